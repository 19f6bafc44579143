#!/usr/bin/env bash
# Type-checks and lints the trainer with the feature cuda, without CUDA or a GPU. candle has nvcc compile its kernels
# while it is built. Nothing here is linked or run, so that an nvcc that writes empty files does as well as NVIDIA's,
# and takes no time.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cuda
mkdir -p "$target/toolkit/bin"
cat >"$target/toolkit/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
# Says which version it is, and writes what it is asked for, empty: `-o FILE`, or `--output-directory FOLDER` and a PTX
# file named like the source, which is the last argument.
set -euo pipefail
case "$*" in
*--version*)
    printf '%s\n' 'nvcc: a stand-in' '' '' 'Cuda compilation tools, release 12.8, V12.8.0'
    exit
    ;;
*--list-gpu-code*)
    echo sm_80
    exit
    ;;
esac
source=${!#}
while [ $# != 0 ]; do
    case $1 in
    -o) : >"$2" ;;
    --output-directory) : >"$2/$(basename "${source%.cu}").ptx" ;;
    esac
    shift
done
NVCC
chmod +x "$target/toolkit/bin/nvcc"
export PATH=$target/toolkit/bin:$PATH NVCC=$target/toolkit/bin/nvcc CUDA_COMPUTE_CAP=80
cargo clippy -p ringtree-trainer --lib --bins --features cuda --locked --target-dir "$target" -- -D warnings
