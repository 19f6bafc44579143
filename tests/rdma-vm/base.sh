#!/usr/bin/env bash
# base.sh FOLDER: makes vmlinuz and base.cpio.gz there, of Debian's packages.
#
# The kernel's package is downloaded and a few files of it unpacked; it is not installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
cd "$work"
# As apt's own user, it could not write here.
chmod 755 "$work"

package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
apt-get download -q "$package" >/dev/null 2>&1
mkdir kernel root
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x -C kernel --wildcards \
    './boot/vmlinuz*' '*/drivers/infiniband/core/*' '*/drivers/infiniband/sw/rxe/*' \
    '*/net/ipv4/udp_tunnel.ko*' '*/net/ipv6/ip6_udp_tunnel.ko*' '*/crypto/crc32*' \
    '*/drivers/net/veth.ko*' '*/net/sched/sch_netem.ko*'
# Newer kernels compress their modules.
find kernel -name '*.ko.xz' -exec xz -d {} +

mkdir -p root/{bin,sbin,lib64,lib/x86_64-linux-gnu/libibverbs,usr/bin,usr/sbin,etc/libibverbs.d} \
    root/{proc,sys,dev,tmp,run,modules}
ln -s ../lib root/usr/lib

# Modules in the order in which they can be loaded. rxe asks for crc32_generic without saying so.
declare -A added
add_module() {
    [ -z "${added[$1]:-}" ] || return 0
    added[$1]=1
    local file dependency
    file=$(find kernel -name "$1.ko" -o -name "${1//_/-}.ko" | head -n 1)
    [ -n "$file" ] || { echo "$package has no module $1" >&2; return 1; }
    for dependency in $(/sbin/modinfo -F depends "$file" | tr , ' '); do
        add_module "$dependency"
    done
    cp "$file" root/modules/
    basename "$file" >>root/modules/order
}
for module in crc32_generic rdma_rxe veth sch_netem; do add_module "$module"; done

# Programs with their libraries, and what Rust's programs need.
lib=root/lib/x86_64-linux-gnu
add_libraries() {
    { ldd "$1" || true; } | awk '/=> \// { print $3 } /^\t\/lib64/ { print $1 }' |
        while read -r library; do
            case $library in
                */ld-linux*) cp -L "$library" root/lib64/ ;;
                *) cp -L "$library" "$lib/" ;;
            esac
        done
}
cp /bin/busybox root/bin/
ln -s busybox root/bin/sh
for program in ip tc rdma; do
    path=$(readlink -f "$(command -v "$program" || echo "/sbin/$program")")
    cp "$path" "root/usr/sbin/$program"
    add_libraries "$path"
done
verbs=/usr/lib/x86_64-linux-gnu
cp -L "$verbs/libibverbs.so.1" "$lib/"
add_libraries "$verbs/libibverbs.so.1"
cp "$verbs"/libibverbs/librxe-rdmav*.so "$lib/libibverbs/"
cp /etc/libibverbs.d/rxe.driver root/etc/libibverbs.d/
for library in libgcc_s.so.1 libm.so.6; do
    cp -L "/lib/x86_64-linux-gnu/$library" "$lib/"
done
install -m 755 "$here/init" root/init

(cd root && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >base.cpio.gz
# Where another archive follows, it must begin at a multiple of 4 bytes.
truncate -s %4 base.cpio.gz
cp kernel/boot/vmlinuz-* vmlinuz
mv vmlinuz base.cpio.gz "$folder/"
echo "RDMA machine: ${package#linux-image-}, image of $(stat -c %s "$folder/base.cpio.gz") bytes" >&2
