#!/usr/bin/env bash
# Several network hosts on one machine, for trials of lost nodes, cut links and batch systems. Needs root and the Debian
# packages iproute2, openssh-server and util-linux.
#
#     hosts.sh up N            makes node1 ... nodeN, with the addresses 10.78.0.1 ... 10.78.0.N
#     hosts.sh on I COMMAND    runs a command on node I
#     hosts.sh cut I           unplugs the network cable of node I; `join I` plugs it in again
#     hosts.sh crash I         ends node I as a power failure would: no connection is closed, nothing is cleaned up
#     hosts.sh down            removes all hosts
#
# A host has separate namespaces for network, host name, processes, mounts and IPC, a separate /dev/shm, /run, and local
# disk /mnt, and an sshd that every other host may use. Everything else is shared, also /tmp and /root, as a network file
# system is. State is kept in $DPTRAIN_HOSTS (default: /tmp/dptrain-hosts).

set -uo pipefail
state=${DPTRAIN_HOSTS:-/tmp/dptrain-hosts}
bridge=dpthosts
network=10.78.0

enter() { # enter I COMMAND...: run a command on node I
    local node=$1
    shift
    nsenter --target "$(<"$state/node$node.pid")" --mount --uts --ipc --net --pid --wd="$PWD" -- "$@"
}

write_shared_files() { # write_shared_files N
    mkdir -p "$state"
    local key
    for key in user host; do
        [[ -f $state/$key ]] || ssh-keygen -q -t ed25519 -N '' -f "$state/$key"
    done
    {
        echo "127.0.0.1 localhost"
        for node in $(seq "$1"); do echo "$network.$node node$node"; done
    } >"$state/hosts"
    mkdir -p "$state/ssh_config.d"
    cat >"$state/ssh_config.d/trial.conf" <<CONFIG
Host node* $network.*
    IdentityFile $state/user
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
CONFIG
    # What process 1 of a host does.
    cat >"$state/boot" <<'BOOT'
node=$1 state=$2
hostname "node$node"
for folder in /dev/shm /mnt /run; do mount -t tmpfs none "$folder"; done
chmod 1777 /dev/shm
mkdir -p /run/sshd
mount --bind "$state/hosts" /etc/hosts
mount --bind "$state/ssh_config.d" /etc/ssh/ssh_config.d
/usr/sbin/sshd -h "$state/host" -o PidFile=none -o AuthorizedKeysFile="$state/user.pub" -o StrictModes=no \
    -o PermitRootLogin=yes -o UsePAM=no -o PrintMotd=no -o MaxStartups=100
touch "$state/node$node.up"
while :; do sleep 1000 & wait; done
BOOT
}

start() { # start I
    local node=$1 pid
    rm -f "$state/node$node.up"
    setsid unshare --net --uts --ipc --mount --pid --fork --mount-proc \
        bash "$state/boot" "$node" "$state" >"$state/node$node.log" 2>&1 </dev/null &
    local unshare=$!
    for _ in $(seq 100); do
        [[ -f $state/node$node.up ]] && break
        sleep 0.1
    done
    pid=$(pgrep --parent "$unshare") || { cat "$state/node$node.log" >&2; exit 1; }
    echo "$pid" >"$state/node$node.pid"
    ip link add "dpt$node" type veth peer name eth0 netns "$pid"
    ip link set "dpt$node" master "$bridge" up
    enter "$node" ip link set lo up
    enter "$node" ip addr add "$network.$node/24" dev eth0
    enter "$node" ip link set eth0 up
}

case ${1:-} in
    up)
        write_shared_files "$2"
        ip link add "$bridge" type bridge && ip link set "$bridge" up || exit 1
        for node in $(seq "$2"); do start "$node"; done
        ;;
    on) shift && enter "$@" ;;
    cut) ip link set "dpt$2" down ;;
    join) ip link set "dpt$2" up ;;
    start) start "$2" ;;
    crash)
        ip link set "dpt$2" down # first, so that no farewell leaves the host
        kill -9 "$(<"$state/node$2.pid")"
        ip link del "dpt$2"
        rm "$state/node$2.pid"
        ;;
    down)
        for file in "$state"/node*.pid; do
            [[ -f $file ]] && kill -9 "$(<"$file")" 2>/dev/null
        done
        for link in $(ip -brief link show master "$bridge" 2>/dev/null | cut -d@ -f1); do ip link del "$link" 2>/dev/null; done
        ip link del "$bridge" 2>/dev/null
        rm -rf "$state"
        ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
