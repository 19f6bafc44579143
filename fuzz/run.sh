#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (10), on what lies in corpus/ and on what libFuzzer makes of it. Needs a
# C++ compiler and stable Rust. An input that breaks something is kept in target/fuzz/artifacts; give it to the
# target's program to see it again, and make a unit test of it.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-10}
output=../target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

# What cargo-fuzz passes, as far as stable Rust has it.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
cargo build --release --target "$host" --target-dir "$output"

found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
mkdir -p "$output/artifacts"
for source in targets/*.rs; do
    target=$(basename "$source" .rs)
    seeds=("corpus/$target")
    [ "$target" = topology_xml ] && seeds+=(../topology/tests/files)
    printf -- '-- %s\n' "$target"
    mkdir "$found/$target"
    TMPDIR=$found "$output/$host/release/$target" "$found/$target" "${seeds[@]}" \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="$output/artifacts/$target-" -print_final_stats=1 2>"$found/$target.log" || {
        tail -n 60 "$found/$target.log" >&2
        exit 1
    }
    grep -E '^stat::(number_of_executed_units|peak_rss_mb)' "$found/$target.log"
done
