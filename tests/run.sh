#!/usr/bin/env bash
# Installs what the tests need (Debian: iproute2 and nftables, for network namespaces) and runs all:
# formatting, lints, documentation, unit and end-to-end tests, loom, and each benchmark once. The launchers
# that ranks are tested under are installed by launchers.sh.
#
# Tests over two network namespaces need root. Without it they are skipped, except in CI (CI=true),
# where a test bed that cannot be made is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

if ! command -v ip >/dev/null || ! command -v nft >/dev/null; then
    step "installing iproute2 and nftables"
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends iproute2 nftables >/dev/null
    else
        echo "the tests over network namespaces need \`ip\` and \`nft\`: install iproute2, nftables" >&2
        exit 1
    fi
fi

step "launchers"
bash tests/launchers.sh
step "formatting"
cargo fmt --all -- --check
step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
step "tests"
cargo test --workspace --locked
step "loom: every interleaving of the shared-memory ring"
RUSTFLAGS="--cfg loom" cargo test -p ringtree-loom-tests --lib --locked --target-dir target/loom
step "benchmarks, once each"
cargo bench -p ringtree-benches --locked -- --test
