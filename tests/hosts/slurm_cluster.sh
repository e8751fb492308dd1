#!/usr/bin/env bash
# A real Slurm on the hosts that hosts.sh has made: slurmctld on node1, munged and slurmd on each. Needs root and the Debian
# packages slurmctld, slurmd, slurm-client, munge and libpmix2.
#
#     slurm_cluster.sh up N    starts the daemons on node1 ... nodeN (after `hosts.sh up N`)
#     slurm_cluster.sh slurmd I    starts munged and slurmd on node I, also after a crash
#     slurm_cluster.sh down    ends the daemons; `hosts.sh down` ends them, too
#
# The partition `batch` has a GraceTime and is preempted by the partition `urgent`. Commands on a host need
# SLURM_CONF=$DPTRAIN_HOSTS/slurm.conf (default: /tmp/dptrain-hosts/slurm.conf). A requeued job may start after 5 s.

set -uo pipefail
state=${DPTRAIN_HOSTS:-/tmp/dptrain-hosts}
hosts() { "$(dirname "$0")/hosts.sh" "$@"; }

write_configuration() { # write_configuration N
    [[ -f $state/munge.key ]] || head -c 128 /dev/urandom >"$state/munge.key"
    chmod 400 "$state/munge.key"
    cat >"$state/slurm.conf" <<CONFIG
ClusterName=trials
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket,cred_expire=5
StateSaveLocation=/mnt/slurmctld
SlurmdSpoolDir=/mnt/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
SlurmdTimeout=8
KillWait=20
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=node[1-$1] CPUs=2 RealMemory=1000
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
CONFIG
    echo "CgroupPlugin=cgroup/v1" >"$state/cgroup.conf"
    echo "PMIxCliTmpDirBase=/mnt" >"$state/mpi.conf"
}

start_slurmd() { # start_slurmd I
    hosts on "$1" munged --force --key-file="$state/munge.key" --socket=/run/munge.socket --pid-file=/run/munged.pid \
        --log-file=/mnt/munged.log --seed-file=/mnt/munged.seed
    hosts on "$1" mkdir -p /mnt/slurmd /mnt/slurmctld
    hosts on "$1" slurmd -N "node$1" -f "$state/slurm.conf"
}

case ${1:-} in
    up)
        write_configuration "$2"
        for node in $(seq "$2"); do start_slurmd "$node"; done
        hosts on 1 slurmctld -c -f "$state/slurm.conf"
        for _ in $(seq 100); do
            idle=$(SLURM_CONF=$state/slurm.conf hosts on 1 sinfo --noheader --partition=batch --states=idle --format=%D)
            [[ $idle == "$2" ]] && exit 0
            sleep 0.2
        done
        echo "slurm_cluster.sh: the nodes are not idle after 20 s; see $state/*.log" >&2
        exit 1
        ;;
    slurmd) start_slurmd "$2" ;;
    down)
        for node in "$state"/node*.pid; do
            node=${node##*node} node=${node%.pid}
            hosts on "$node" pkill -9 'slurm|munged'
        done
        ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
