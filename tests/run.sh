#!/usr/bin/env bash
# Installs what the tests need (Debian: iproute2 and nftables for network namespaces, QEMU and libibverbs for the
# machine with RDMA, what rdma-core is built with, Chromium) and runs all: formatting, lints, documentation, unit and
# end-to-end tests, each fuzz target for ten seconds, loom, and each benchmark once. The launchers that ranks are
# tested under are installed by launchers.sh.
#
# Tests over two network namespaces need root, and packages can be installed only by it and by apt. What cannot be
# tested is skipped, except in CI (CI=true), where a test bed that cannot be made is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

# A hundred test programs with what a debugger wants, and what the next build could use again, are 18 GB; without, 6.
if [ "${CI:-}" = true ]; then
    export CARGO_PROFILE_DEV_DEBUG=none CARGO_INCREMENTAL=0
fi

# For network namespaces; for the machine with RDMA (rdma-vm/runner.sh); for libFuzzer (fuzz/run.sh); for rdma-core's
# header (verbs-layout); to look at the trainer's report.
packages=(
    iproute2 nftables
    qemu-system-x86 busybox-static kmod libibverbs1 ibverbs-providers xz-utils
    g++
    cmake libclang-dev libibverbs-dev make pkg-config python3
    chromium
)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} != 0 ]; then
    step "installing ${missing[*]}"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    elif [ "${CI:-}" = true ]; then
        exit 1
    else
        echo "some tests will be skipped without: apt-get install --no-install-recommends ${missing[*]}" >&2
    fi
fi

step "launchers"
bash tests/launchers.sh
step "formatting"
cargo fmt --all -- --check
cargo fmt --manifest-path tests/verbs-layout/Cargo.toml -- --check
cargo fmt --manifest-path fuzz/Cargo.toml -- --check
step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet --features ringtree/cudarc
step "structures and constants of libibverbs, against rdma-core's header"
if command -v cmake >/dev/null && [ -e /usr/include/infiniband/verbs.h ]; then
    cargo test --manifest-path tests/verbs-layout/Cargo.toml --locked --target-dir target/verbs-layout
else
    echo "skipped: cmake or libibverbs-dev is missing"
fi
step "CUDA kernels: compiled again, compared, and assembled for every architecture"
bash collectives/src/device/kernels/check.sh
step "the trainer for GPUs, type-checked"
bash trainer/check-cuda.sh
step "tests; those named rdma in a virtual machine"
cargo test --workspace --locked
step "faults planted in a copy of the code for GPUs, which the tests must notice"
bash tests/planted-faults.sh
step "fuzzing: all that reads what comes from outside"
if command -v g++ >/dev/null; then
    fuzz/run.sh 10
else
    echo "skipped: g++ is missing"
fi
step "loom: every interleaving of the shared-memory ring"
RUSTFLAGS="--cfg loom" cargo test -p ringtree-loom-tests --lib --locked --target-dir target/loom
step "benchmarks, once each"
cargo bench -p ringtree-benches --locked -- --test
