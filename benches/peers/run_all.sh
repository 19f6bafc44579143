#!/usr/bin/env bash
# Runs the peers one after another, appends JSON lines to a file and prints a table.
#   PEERS_DIR=/some/dir bash run_all.sh [OUT.jsonl]
# Environment:
#   PEERS   which ("limit openmpi openmpi-ucx mpich mpich-ucx impi oneccl gloo")
#   RANKS   "2 4"      MODES  "shm tcp"     BENCH_SIZES  bytes, space separated
#   BENCH_MS  time wanted for one size of one run (400)     LIMIT_S  hard limit of one run (60)
#   INPLACE=0  out of place (MPI, oneCCL and ringtree)
#   BENCH_TYPE f32, f64 or bf16 (not MPI; up to 5 ranks)     BENCH_TOUCH=1  buffers just written by their owner
#   RINGTREE   path of the ringtree program: adds peer `ringtree` (plain memory) and `ringtree-reg`
#              (memory allocated by the library)
#   ROUNDS     how often to go through all of it (1); ratio.py takes the median over rounds
# A run that fails or runs past LIMIT_S leaves what it had printed, and a line on stderr.
# After each run the growth of the loopback interface's byte counter is recorded: it shows
# whether a "tcp" run really used TCP and a "shm" run really did not.
set -uo pipefail
: "${PEERS_DIR:?set PEERS_DIR to the folder setup.sh filled}"
here=$(cd "$(dirname "$0")" && pwd)
P=$(cd "$PEERS_DIR" && pwd)
out=${1:-$P/results.jsonl}
PEERS=${PEERS:-limit ${RINGTREE:+ringtree ringtree-reg} openmpi openmpi-ucx mpich mpich-ucx impi oneccl gloo}
ROUNDS=${ROUNDS:-1}
RANKS=${RANKS:-2 4}
MODES=${MODES:-shm tcp}
LIMIT_S=${LIMIT_S:-60}
export BENCH_MS=${BENCH_MS:-400}
export BENCH_TYPE=${BENCH_TYPE:-f32} BENCH_TOUCH=${BENCH_TOUCH:-0}
export BENCH_SIZES=${BENCH_SIZES:-8 1024 65536 1048576 16777216 134217728}
flag=; [ "${INPLACE:-1}" = 0 ] && flag=-o
# only this harness's own wish may reach the libraries
unset UCX_TLS FI_PROVIDER FI_PROVIDER_PATH LD_LIBRARY_PATH I_MPI_ROOT 2>/dev/null || true
run_id=$(date +%Y%m%dT%H%M%S)
cores=$(nproc)
tmp=$(mktemp -d)
# the same congestion control for everyone: some machines default to BBR, which on loopback halves large
# messages and is bistable. TCP_CC names another; needs root, and is put back at the end.
cc_file=/proc/sys/net/ipv4/tcp_congestion_control
cc_before=$(cat $cc_file)
trap 'rm -rf "$tmp"; echo "$cc_before" >$cc_file 2>/dev/null' EXIT
echo "${TCP_CC:-cubic}" >$cc_file 2>/dev/null || true
cc=$(cat $cc_file)
lo_bytes() { awk '$1=="lo:"{print $2}' /proc/net/dev; }

go() { # go PEER TRANSPORT RANKS VERSION COMMAND...
    local peer=$1 tr=$2 n=$3 ver=$4; shift 4
    local l0 l1 rc t0=$SECONDS
    l0=$(lo_bytes)
    BENCH_PEER=$peer BENCH_TRANSPORT=$tr BENCH_VERSION=$ver timeout -k 5 "$LIMIT_S" "$@" >"$tmp/o" 2>"$tmp/e" </dev/null
    rc=$?
    l1=$(lo_bytes)
    sleep 0.3
    grep '^{' "$tmp/o" | sed "s/}\$/,\"type\":\"$BENCH_TYPE\",\"touch\":$BENCH_TOUCH,\"run\":\"$run_id\",\"cc\":\"$cc\",\"load1\":$(cut -d' ' -f1 /proc/loadavg),\"lo_MB\":$(((l1 - l0) / 1000000))}/" | tee -a "$out" >>"$tmp/all"
    printf '%-12s %-14s n=%s rc=%s %3ss lo=%sMB sizes=%s\n' "$peer" "$tr" "$n" "$rc" $((SECONDS - t0)) $(((l1 - l0) / 1000000)) "$(grep -c '^{' "$tmp/o")" >&2
    [ $rc -eq 0 ] || { grep -hv '^{' "$tmp/e" "$tmp/o" | grep -v '^ *$' | head -3 | cut -c1-160 | sed 's/^/    /' >&2; }
}

ompi() { # ompi PEER TRANSPORT N MCA...
    local peer=$1 tr=$2 n=$3; shift 3
    # yielding costs a little at n <= cores, so only where ranks share a core
    local y=0; [ "$n" -gt "$cores" ] && y=1
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 go "$peer" "$tr" "$n" 5.0.11 \
        "$P/openmpi/bin/mpirun" --map-by :OVERSUBSCRIBE --bind-to none -n "$n" --mca mpi_yield_when_idle $y "$@" "$P/bin/mpi_bench.openmpi" $flag
}
mpich() { # mpich PEER TRANSPORT N VAR=VALUE...
    local peer=$1 tr=$2 n=$3; shift 3
    local e=()
    # its release-gather collectives spin without yielding: 20 ms for 8 bytes at 4 ranks on 2 cores
    [ "$n" -gt "$cores" ] && e=(MPIR_CVAR_POLLS_BEFORE_YIELD=1 MPIR_CVAR_POSIX_POLL_FREQUENCY=1
        MPIR_CVAR_ALLREDUCE_POSIX_INTRA_ALGORITHM=mpir MPIR_CVAR_BARRIER_POSIX_INTRA_ALGORITHM=mpir)
    go "$peer" "$tr" "$n" 5.0.2 env ${e[@]+"${e[@]}"} "$@" "$P/mpich/bin/mpiexec" -bind-to none -n "$n" "$P/bin/mpi_bench.mpich" $flag
}
impi_env() { # N VAR=VALUE... -- COMMAND
    local n=$1; shift
    local e=(I_MPI_ROOT="$P/impi" LD_LIBRARY_PATH="$P/impi/lib" FI_PROVIDER_PATH="$P/impi/lib" I_MPI_PIN=0)
    # oneCCL: progress in the calling thread is best while each rank has a core (its worker thread spins
    # beside it otherwise); that wait never yields, so with shared cores the worker that yields is better
    if [ "$n" -gt "$cores" ]; then
        e+=(I_MPI_THREAD_YIELD=2 I_MPI_PAUSE_COUNT=0 CCL_WORKER_OFFLOAD=1 CCL_YIELD=sched_yield CCL_SPIN_COUNT=1)
    else
        e+=(CCL_WORKER_OFFLOAD=0)
    fi
    env "${e[@]}" "$@"
}
export -f impi_env; export P cores

for round in $(seq "$ROUNDS"); do for peer in $PEERS; do
    if [ "$peer" = limit ]; then go limit - 2 - "$P/bin/limit"; continue; fi
    for n in $RANKS; do
        for mode in $MODES; do
            h=("$P/impi/bin/mpiexec.hydra" -n "$n")
            case $peer-$mode in
            openmpi-shm) ompi openmpi shm "$n" --mca pml ob1 --mca btl sm,self ;;
            openmpi-tcp) ompi openmpi tcp "$n" --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include lo --mca coll '^sm' ;;
            openmpi-ucx-*)
                t=sm,self; [ "$mode" = tcp ] && t=tcp,self
                ompi openmpi-ucx "$mode" "$n" --mca pml ucx --mca opal_common_ucx_tls any --mca opal_common_ucx_devices any --mca coll '^sm' -x UCX_TLS=$t -x UCX_NET_DEVICES=all ;;
            mpich-shm) mpich mpich shm "$n" MPIR_CVAR_CH4_NETMOD=ofi ;;
            mpich-tcp) mpich mpich tcp "$n" MPIR_CVAR_CH4_NETMOD=ofi MPIR_CVAR_NOLOCAL=1 FI_PROVIDER=tcp FI_TCP_IFACE=lo ;;
            mpich-ucx-*)
                t=sm,self; [ "$mode" = tcp ] && t=tcp,self
                mpich mpich-ucx "$mode" "$n" MPIR_CVAR_CH4_NETMOD=ucx MPIR_CVAR_NOLOCAL=1 UCX_TLS=$t ;;
            impi-shm) go impi shm "$n" 2021.18.1 bash -c 'impi_env "$@"' _ "$n" I_MPI_FABRICS=shm "${h[@]}" "$P/bin/mpi_bench.impi" $flag ;;
            impi-tcp) go impi tcp "$n" 2021.18.1 bash -c 'impi_env "$@"' _ "$n" I_MPI_FABRICS=ofi I_MPI_COLL_INTRANODE=pt2pt FI_PROVIDER=tcp FI_TCP_IFACE=lo "${h[@]}" "$P/bin/mpi_bench.impi" $flag ;;
            oneccl-shm) go oneccl shm "$n" 2021.16.2 bash -c 'impi_env "$@"' _ "$n" CCL_LOG_LEVEL=error I_MPI_FABRICS=shm "${h[@]}" "$P/bin/oneccl_bench" $flag ;;
            oneccl-tcp) go oneccl tcp "$n" 2021.16.2 bash -c 'impi_env "$@"' _ "$n" CCL_LOG_LEVEL=error CCL_ATL_TRANSPORT=ofi CCL_ATL_SHM=0 FI_PROVIDER=tcp FI_TCP_IFACE=lo "${h[@]}" "$P/bin/oneccl_bench" $flag ;;
            gloo-tcp) go gloo tcp "$n" - "$P/gloo-venv/bin/python" "$here/gloo_bench.py" "$n" ;;
            ringtree-shm | ringtree-tcp | ringtree-reg-shm | ringtree-reg-tcp)
                m=plain; [ "$peer" = ringtree-reg ] && m=registered
                p=(--in-place -d "$BENCH_TYPE"); [ -n "$flag" ] && p[0]=--out-of-place
                [ "$BENCH_TOUCH" = 1 ] && p+=(--touch)
                go "$peer" "$mode" "$n" - "${RINGTREE:?}" bench all-reduce --ranks "$n" --transport "$mode" --memory "$m" "${p[@]}" \
                    --sizes "${BENCH_SIZES// /,}" --time-ms "$BENCH_MS" --jsonl ;;
            gloo-shm) ;; # Gloo has no shared-memory transport
            *) echo "unknown: $peer-$mode" >&2 ;;
            esac
        done
    done
done; done
"${PYTHON:-python3}" "$here/table.py" "$tmp/all"
echo "appended to $out (run $run_id)"
