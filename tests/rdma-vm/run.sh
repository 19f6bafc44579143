#!/usr/bin/env bash
# run.sh [-a PROGRAM]... COMMAND: runs a shell command in a virtual machine with RDMA devices, and ends with its
# status. The programs have the same paths there as here; without any, it is the `ringtree` that was built last.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${RINGTREE_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ringtree/rdma-vm}
limit_s=${RINGTREE_VM_TIMEOUT:-1200}

programs=()
while [ "${1:-}" = -a ]; do
    programs+=("$2")
    shift 2
done
if [ ${#programs[@]} = 0 ]; then
    last=$(ls -t "$here"/../../target/{release,debug}/ringtree 2>/dev/null | head -n 1)
    [ -n "$last" ] || { echo "cargo build -p ringtree-cli comes first" >&2; exit 1; }
    programs=("$(readlink -f "$last")")
fi

missing() {
    echo "the machine with RDMA cannot be made: $1" >&2
    if [ "${CI:-}" = true ]; then exit 1; fi
    echo "skipped" >&2
    exit 0
}

packages=()
for package in qemu-system-x86 busybox-static kmod libibverbs1 ibverbs-providers iproute2 xz-utils; do
    dpkg -s "$package" >/dev/null 2>&1 || packages+=("$package")
done
[ ${#packages[@]} = 0 ] || missing "apt-get install --no-install-recommends ${packages[*]}"

# The image is made again when what it is made of has changed.
kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
[ -n "$kernel" ] || missing "apt-get update"
versions=$(dpkg-query -W libibverbs1 ibverbs-providers iproute2 busybox-static)
key=$(cat "$here/base.sh" "$here/init" <(echo "$kernel $versions") | sha256sum | cut -c 1-16)
base=$cache/$key
[ -f "$base/base.cpio.gz" ] || bash "$here/base.sh" "$base" || missing "its image"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/root/bin"
for program in "${programs[@]}"; do
    mkdir -p "$work/root$(dirname "$program")"
    strip --strip-debug -o "$work/root$program" "$program" || exit 1
    [ "${program##*/}" != ringtree ] || ln -s "$program" "$work/root/bin/ringtree"
done
{
    env | grep -E '^(RUST_|RINGTREE_|CI=)' | sed "s/'/'\\\\''/g; s/=\(.*\)/='\1'/; s/^/export /"
    echo "$*"
} >"$work/root/command"
(cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/programs.cpio"
# The kernel unpacks one archive after the other.
cat "$base/base.cpio.gz" "$work/programs.cpio" >"$work/initrd"

timeout -k 5 "$limit_s" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -machine pc -accel tcg,thread=multi -cpu max -smp 2 -m 1536 -serial stdio \
    -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel "$base/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1" </dev/null 2>&1 |
    sed -u 's/\x1b[^a-zA-Z]*[a-zA-Z]//g; s/\r//' | tee "$work/console"
status=${PIPESTATUS[0]}
# The device makes 2s + 1 of a status s; 0 means that the machine ended without one.
if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    echo "the RDMA machine was ended after $limit_s s" >&2
    exit 124
elif [ $((status & 1)) = 0 ] || ! grep -qa '^@@ status' "$work/console"; then
    echo "the RDMA machine ended without a status (QEMU: $status)" >&2
    exit 99
fi
exit $((status >> 1))
