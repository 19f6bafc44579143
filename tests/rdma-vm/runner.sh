#!/usr/bin/env bash
# runner.sh PROGRAM [ARGUMENT...]: what cargo runs programs by. Test binaries that are called `rdma` run in a
# virtual machine with RDMA devices (run.sh); everything else as it is.
case ${1##*/} in
    rdma-*) ;;
    *) exec "$@" ;;
esac
test=$(readlink -f "$1")
shift
program=$(dirname "$(dirname "$test")")/ringtree
driver=$(dirname "$test")/libringtree_cuda_standin.so
programs=(-a "$test" -a "$program")
[ ! -e "$driver" ] || programs+=(-a "$driver")
exec bash "$(dirname "$0")/run.sh" "${programs[@]}" "$(printf '%q ' "$test" --test-threads=1 "$@")"
