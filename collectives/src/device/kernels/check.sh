#!/usr/bin/env bash
# Installs NVIDIA's compiler into target/ (no GPU and no CUDA toolkit is needed) and has generate.py compare the PTX
# with what fold.cu compiles to. Any argument but --check, its default, is passed on: `check.sh --write` writes it.
set -euo pipefail
cd "$(dirname "$0")"
root=$(git rev-parse --show-toplevel)
packages=$root/target/nvrtc
stamp=$packages/$(sha256sum requirements.txt | cut -c1-16)
if [ ! -e "$stamp" ]; then
    rm -rf "$packages"
    "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-cache-dir --root-user-action=ignore \
        --target "$packages" -r requirements.txt
    touch "$stamp"
fi
PYTHONPATH=$packages exec "${PYTHON:-python3}" generate.py "${1:---check}"
