#!/usr/bin/env bash
# Runs the native tests under LLVM's sanitizers: tests/sanitizers.sh [address] [thread], both if none is named.
#
# address finds memory that is used after it was freed or beyond its end, and what is never freed; thread finds data
# races. Both need a nightly toolchain, and thread the source of the standard library, which is built with it so that
# the sanitizer sees what that synchronises:
#
#     rustup toolchain install nightly --profile minimal --component rust-src
#
# Neither sees what another process does to shared memory, or code that is compiled at run time. The thread sanitizer
# does not know fences, by which the shared-memory ring orders its parking: tests/loom proves that ring. Everything is
# compiled anew for each sanitizer, and runs several times slower: no part of run.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
output=${CARGO_TARGET_DIR:-target}/sanitizers

# All unit tests of what is native, and the tests of it between real ranks.
units=(ringtree-plan ringtree-topology ringtree-transport ringtree)
programs=(conformance contract groups order point_to_point random_calls registered reproducible values)

run() {
    local sanitizer=$1
    shift
    printf '\n== %s sanitizer\n' "$sanitizer"
    export RUSTFLAGS="-Zsanitizer=$sanitizer"
    local test=(cargo +nightly test --locked --target "$host" --target-dir "$output/$sanitizer" "$@")
    "${test[@]}" "${units[@]/#/--package=}" --lib
    "${test[@]}" --package=ringtree-tests "${programs[@]/#/--test=}"
}

[ $# != 0 ] || set -- address thread
for sanitizer in "$@"; do
    case $sanitizer in
        address) run address ;;
        thread) run thread -Zbuild-std ;;
        *) echo "usage: tests/sanitizers.sh [address] [thread]" >&2 && exit 2 ;;
    esac
done
