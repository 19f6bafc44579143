#!/usr/bin/env bash
# runner.sh PROGRAM [ARGUMENT...]: what cargo runs programs by. Test binaries that are called `rdma` run in a
# virtual machine with RDMA devices (README.md); everything else as it is.
case ${1##*/} in
    rdma-*) ;;
    *) exec "$@" ;;
esac
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${RINGTREE_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ringtree/rdma-vm}

missing() {
    echo "the RDMA tests need a virtual machine: $1" >&2
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
key=$(cat "$here/base.sh" "$here/init" <(echo "$kernel" "$(dpkg-query -W libibverbs1 iproute2 busybox-static)") |
    sha256sum | cut -c 1-16)
base=$cache/$key
if ! [ -f "$base/base.cpio.gz" ]; then
    bash "$here/base.sh" "$base" || missing "its image could not be made"
fi

# The programs have the same paths there as here.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/root"
add() {
    mkdir -p "$work/root$(dirname "$1")"
    strip --strip-debug -o "$work/root$1" "$1"
}
test=$(readlink -f "$1")
shift
add "$test"
program=$(dirname "$(dirname "$test")")/ringtree
[ ! -x "$program" ] || add "$program"
{
    env | grep -E '^(RUST_|RINGTREE_|CI=)' | sed "s/'/'\\\\''/g; s/=\(.*\)/='\1'/; s/^/export /"
    printf '%q ' "$test" --test-threads=1 "$@"
    echo
} >"$work/root/command"
(cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/tests.cpio"
# The kernel unpacks one archive after the other.
cat "$base/base.cpio.gz" "$work/tests.cpio" >"$work/initrd"

timeout -k 5 "${RINGTREE_VM_TIMEOUT:-900}" qemu-system-x86_64 -nodefaults -no-user-config -display none \
    -no-reboot -machine pc -accel tcg,thread=multi -cpu max -smp 2 -m 1536 -serial stdio \
    -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel "$base/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1" </dev/null 2>&1 |
    sed -u 's/\x1b[^a-zA-Z]*[a-zA-Z]//g; s/\r//' | tee "$work/console"
status=${PIPESTATUS[0]}
# The device makes 2s + 1 of a status s; 0 means that the machine ended without one.
if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    echo "the RDMA machine was ended after ${RINGTREE_VM_TIMEOUT:-900} s" >&2
    exit 124
elif [ $((status & 1)) = 0 ] || ! grep -qa '^@@ status' "$work/console"; then
    echo "the RDMA machine ended without a status (QEMU: $status)" >&2
    exit 99
fi
exit $((status >> 1))
