#!/usr/bin/env bash
# Runs a command on a Slurm cluster of four virtual nodes, n1 to n4, which lasts as long as the command.
#   bash tests/slurm.sh COMMAND ARGUMENTS...
# Wants root, slurm-wlm, munge and iproute2. The cluster has processes, mounts and a network of its own:
# outside nothing is seen of it, and nothing is left behind.
set -euo pipefail

if [ "${1:-}" != --inside ]; then
    exec unshare --mount --net --pid --fork --mount-proc --kill-child bash "$0" --inside "$@"
fi
shift

work=$PWD
folder=/mnt
mount -t tmpfs none "$folder"
cd "$folder"
mkdir run state munge tmp
export TMPDIR=$folder/tmp
for node in n1 n2 n3 n4; do mkdir "tmp-$node" "spool-$node"; done

# Each node has an address that is not of the loopback interface's range: without any of these, the
# resolver finds no addresses at all.
name=$(uname -n)
ip link set lo up
echo "127.0.0.1 localhost $name" >hosts
for node in 1 2 3 4; do
    ip address add "10.78.0.$node/32" dev lo
    echo "10.78.0.$node n$node" >>hosts
done
mount --bind hosts /etc/hosts

head -c 1024 /dev/urandom >munge/key
chmod 400 munge/key
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" \
    >munge/said 2>&1

export SLURM_CONF=$folder/slurm.conf
cat >"$SLURM_CONF" <<END
ClusterName=virtual
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/run/slurmctld.pid
TmpFS=$folder/tmp-%n
SlurmdSpoolDir=$folder/spool-%n
SlurmdPidFile=$folder/run/slurmd-%n.pid
NodeName=n[1-4] NodeHostname=$name NodeAddr=n[1-4] Port=17001-17004 CPUs=4 RealMemory=1000
PartitionName=p Nodes=n[1-4] Default=YES State=UP OverSubscribe=FORCE:4
END
slurmctld -f "$SLURM_CONF" -L "$folder/slurmctld.log"
for node in n1 n2 n3 n4; do slurmd -f "$SLURM_CONF" -N "$node" -L "$folder/slurmd-$node.log"; done
for _ in $(seq 600); do
    if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 4 ]; then
        cd "$work"
        # Not by exec: the end of this process is that of the cluster.
        "$@"
        exit
    fi
    sleep 0.05
done
echo "the cluster does not start:" >&2
tail -n 5 "$folder"/*.log >&2
exit 1
