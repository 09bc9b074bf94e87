#!/usr/bin/env bash
# A small cluster on one Linux machine, to run and to measure multi-node MPI programs. Needs root.
#
#   cluster.sh up N [--rate 1gbit] [--delay 0.1ms] [--mtu 1500]      no --rate: not limited
#   cluster.sh run -n K [--ppn P] [--timeout SEC] [-x NAME=VALUE]... -- COMMAND...
#   cluster.sh exec I COMMAND...         on node I
#   cluster.sh counters                  bytes through every node's eth0
#   cluster.sh status
#   cluster.sh down                      may be called at any time, and twice
#
# A node is a set of Linux namespaces of its own:
#   net     an eth0 with the only address 10.99.77.(i+1), and no route to anywhere else
#   uts     the host name node<i>, by which MPI and mnx tell nodes apart
#   ipc     shared memory that other nodes do not see
#   mount   its own /dev/shm, /etc/hosts and /sys; all other files are shared, as NFS would
#
#   node0  eth0 ──── p0 ┐
#   node1  eth0 ──── p1 ├ switch       a namespace, too: nothing is seen in, or can leak to,
#   node2  eth0 ──── p2 ┘              the machine's own network
#
# Each cable is full duplex and limited to --rate in both directions by the kernel (tbf). --delay is the
# latency one way, node to node. Not every kernel can delay (netem), so with a delay the switch is
# cluster_switch.py and not a kernel bridge; it adds 5 to 20 us and takes a part of a core, so stay below 1 Gbit/s.
#
# run starts one MPI job. mpiexec (MPICH or Open MPI) runs on node0 and starts its daemons on the others
# through a stand-in for ssh. Ranks are placed in blocks: node0 has ranks 0 to P-1. mpiexec is $MPIEXEC, else
# the one beside COMMAND's program, else the first in PATH. TCP between nodes, shared memory inside one.
#
# Exit status: run and exec return the command's (124: --timeout); else 0, 1, or 2 for wrong usage.
# Environment: MNX_CLUSTER (a name of 1 to 8 letters and digits: several can be up at once), MPIEXEC.
# Needs iproute2 (ip, tc), util-linux (unshare, nsenter), and python3 for a delay.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin  # a user who became root may not have them

NAME=${MNX_CLUSTER:-mnx}
[[ $NAME =~ ^[a-z0-9]{1,8}$ ]] || { echo "cluster.sh: MNX_CLUSTER: 1 to 8 of a-z and 0-9, not '$NAME'" >&2; exit 2; }
HERE=$(cd "$(dirname "$0")" && pwd)
STATE=${TMPDIR:-/tmp}/mnx-cluster.$NAME      # n<i>/uts, n<i>/ipc: node i's namespaces; n<i>/shm: its /dev/shm
NET=10.99.77
FAB=$NAME-fabric
die() { echo "cluster.sh: $*" >&2; exit 1; }
usage() { sed -n '/^#   cluster.sh up/,/^#$/s/^# \{0,3\}//p' "$0" >&2; exit 2; }
nodes() { cat "$STATE/nodes" 2>/dev/null || true; }
need_up() { [[ -s $STATE/nodes ]] || die "cluster '$NAME' is not up (cluster.sh up N)"; }
# enter I CMD...: run CMD on node I (the working directory and environment are kept)
enter() {
    local i=$1; shift
    [[ -e $STATE/n$i/uts ]] || die "no node $i"
    "$STATE/enter" "$i" "$@"
}

# ---------------------------------------------------------------- links
us_of() {  # 0.5ms | 500us | 1s | 0 -> microseconds
    [[ $1 =~ ^([0-9]*\.?[0-9]+)(us|ms|s|)$ ]] || die "bad delay '$1' (as in 500us, 0.5ms)"
    awk -v v="${BASH_REMATCH[1]}" -v u="${BASH_REMATCH[2]}" 'BEGIN{m=1000; if(u=="us")m=1; if(u=="s")m=1e6; printf "%d\n", v*m+0.5}'
}
bps_of() { # 100mbit | 1gbit | 2.5gbit -> bit/s
    [[ $1 =~ ^([0-9]*\.?[0-9]+)(k|m|g)bit$ ]] || die "bad rate '$1' (as in 100mbit, 1gbit, none)"
    awk -v v="${BASH_REMATCH[1]}" -v u="${BASH_REMATCH[2]}" 'BEGIN{m=1e3; if(u=="m")m=1e6; if(u=="g")m=1e9; printf "%.0f\n", v*m}'
}
tbf_args() {  # burst: 1 ms worth, at least one 64 KiB GSO frame (so tbf need not split it); queue: 30 ms worth, 512 KiB at least
    awk -v r="$1" 'BEGIN{b=r/8*0.001; if(b<70000)b=70000; l=r/8*0.03; if(l<524288)l=524288; printf "rate %dbit burst %d limit %d", r, b, l+b}'
}
set_rate() {
    local i bps a
    [[ $1 == none ]] || { bps=$(bps_of "$1"); a=$(tbf_args "$bps"); }
    for ((i = 0; i < $(nodes); i++)); do
        tc -n "$NAME-node$i" qdisc del dev eth0 root 2>/dev/null || true
        tc -n "$FAB" qdisc del dev "p$i" root 2>/dev/null || true
        if [[ $1 != none ]]; then
            # shellcheck disable=SC2086
            tc -n "$NAME-node$i" qdisc add dev eth0 root tbf $a
            # shellcheck disable=SC2086
            tc -n "$FAB" qdisc add dev "p$i" root tbf $a
        fi
    done
    echo "$1" > "$STATE/rate"
}
stop_switch() {
    local pid
    [[ -s $STATE/switch.pid ]] || return 0
    pid=$(cat "$STATE/switch.pid")
    # only if that pid is still our switch (pids are reused)
    if tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "cluster_switch.py $FAB"; then
        kill "$pid" 2>/dev/null || true
        for _ in {1..50}; do [[ -e /proc/$pid ]] || break; sleep 0.05; done
        kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$STATE/switch.pid"
}
set_delay() {
    local us i n; us=$(us_of "$1"); n=$(nodes)
    stop_switch
    ip -n "$FAB" link del br0 2>/dev/null || true
    if ((us == 0)); then
        ip -n "$FAB" link add br0 type bridge
        ip -n "$FAB" link set br0 up
        for ((i = 0; i < n; i++)); do ip -n "$FAB" link set "p$i" master br0; done
    else
        # the switch plays the hardware, so it must not queue for a core behind ranks that spin: real-time if allowed
        local rt=(); chrt -f 5 true 2>/dev/null && rt=(chrt -f 5) || rt=(nice -n -10)
        local py; py=$(python3 -c 'import sys; print(sys.executable)')    # not a slow wrapper (pyenv's shims)
        setsid ip netns exec "$FAB" "${rt[@]}" "$py" -I -S "$HERE/cluster_switch.py" "$FAB" "$us" "$n" > "$STATE/switch.log" 2>&1 < /dev/null &
        echo $! > "$STATE/switch.pid"
        for _ in {1..600}; do     # 30 s: the machine can be very busy
            grep -q ready "$STATE/switch.log" && break
            kill -0 "$(cat "$STATE/switch.pid")" 2>/dev/null || break
            sleep 0.05
        done
        grep -q ready "$STATE/switch.log" || die "the switch did not start: $(cat "$STATE/switch.log")"
    fi
    echo "$1" > "$STATE/delay"
}
# ---------------------------------------------------------------- up / down
up() {
    [[ ${1:-} =~ ^[0-9]+$ ]] && (($1 >= 1 && $1 <= 64)) || usage
    local n=$1 rate=none delay=0 mtu=1500 i j d; shift
    while (($#)); do case $1 in
        --rate) rate=$2; shift 2;; --delay) delay=$2; shift 2;; --mtu) mtu=$2; shift 2;; *) usage;; esac; done
    [[ $rate == none ]] || bps_of "$rate" > /dev/null
    us_of "$delay" > /dev/null
    for c in ip tc unshare nsenter; do command -v $c > /dev/null || die "$c missing (apt-get install iproute2 util-linux)"; done
    [[ ! -e $STATE/nodes ]] || die "cluster '$NAME' is already up (down it first, or set MNX_CLUSTER)"
    trap 'rc=$?; trap - EXIT; ((rc == 0)) || { echo "cluster.sh: up failed, cleaning" >&2; down || true; }; exit $rc' EXIT
    mkdir -p "$STATE"; chmod 700 "$STATE"
    ip netns add "$FAB"
    ip -n "$FAB" link set lo up
    { echo "127.0.0.1 localhost"; for ((i = 0; i < n; i++)); do echo "$NET.$((i + 1)) node$i"; done; } > "$STATE/hosts"
    for ((i = 0; i < n; i++)); do
        local ns=$NAME-node$i; d=$STATE/n$i
        mkdir -p "$d/shm"; touch "$d/uts" "$d/ipc"
        mount -t tmpfs -o mode=1777 shm "$d/shm"
        ip netns add "$ns"
        ip link add eth0 netns "$ns" mtu "$mtu" address "02:00:00:4d:50:$(printf %02x "$i")" type veth peer name "p$i" netns "$FAB" mtu "$mtu"
        ip -n "$ns" link set lo up
        ip -n "$ns" addr add "$NET.$((i + 1))/24" dev eth0
        ip -n "$ns" link set eth0 up
        ip -n "$FAB" link set "p$i" up
        unshare --uts="$d/uts" --ipc="$d/ipc" hostname "node$i"
        echo $((i + 1)) > "$STATE/nodes"
    done
    for ((i = 0; i < n; i++)); do for ((j = 0; j < n; j++)); do     # fixed neighbours: no ARP on the wire
        ((i == j)) || ip -n "$NAME-node$i" neigh replace "$NET.$((j + 1))" lladdr "02:00:00:4d:50:$(printf %02x "$j")" dev eth0
    done; done
    # enter I CMD...: the node's net, uts and ipc namespaces, and a fresh mount namespace with its /dev/shm and /etc/hosts.
    # (Not one lasting mount namespace a node: a command on one node could not enter another's from inside it.)
    cat > "$STATE/enter" <<EOF
#!/bin/bash
i=\$1; shift
exec nsenter --net=/run/netns/$NAME-node\$i --uts=$STATE/n\$i/uts --ipc=$STATE/n\$i/ipc -- unshare --mount --propagation private \\
    /bin/bash -c 'mount --bind $STATE/n\$0/shm /dev/shm && mount --bind $STATE/hosts /etc/hosts || exit 125
                  mount -t sysfs sysfs /sys 2>/dev/null; exec "\$@"' "\$i" "\$@"
EOF
    # the fake ssh for mpiexec: rsh [-options] HOST COMMAND WORDS...   (as ssh: the words are joined and given to a shell)
    cat > "$STATE/rsh" <<EOF
#!/bin/bash
while [[ \${1:-} == -* ]]; do case \$1 in -[olpiFEc]) shift 2;; *) shift;; esac; done
h=\${1#node}; shift
[[ \$h =~ ^[0-9]+\$ && -e $STATE/n\$h/uts ]] || { echo "rsh: unknown host node\$h" >&2; exit 255; }
exec $STATE/enter "\$h" /bin/bash -c "\$*"
EOF
    chmod +x "$STATE/enter"
    chmod +x "$STATE/rsh"
    set_delay "$delay"; set_rate "$rate"
    echo "cluster '$NAME': $n nodes, rate $rate, one-way delay $delay, mtu $mtu"
}
down() {
    local ns i pid
    stop_switch
    for ns in $(ip netns list 2>/dev/null | awk '{print $1}' | grep -E "^$NAME-(node[0-9]+|fabric)\$" || true); do
        for pid in $(ip netns pids "$ns" 2>/dev/null || true); do kill -9 "$pid" 2>/dev/null || true; done   # only what lives in OUR namespaces
    done
    for ((i = 0; i < 64; i++)); do
        [[ -d $STATE/n$i ]] || continue
        for f in uts ipc shm; do umount "$STATE/n$i/$f" 2>/dev/null || umount -l "$STATE/n$i/$f" 2>/dev/null || true; done
    done
    for ns in $(ip netns list 2>/dev/null | awk '{print $1}' | grep -E "^$NAME-(node[0-9]+|fabric)\$" || true); do ip netns del "$ns" || true; done
    if grep -qF " $STATE/" /proc/self/mounts; then die "still mounted under $STATE: $(grep -F " $STATE/" /proc/self/mounts)"; fi
    rm -rf "$STATE"
}
status() {
    if [[ ! -s $STATE/nodes ]]; then echo "cluster '$NAME' is down"; return; fi
    echo "cluster '$NAME': $(nodes) nodes, rate $(cat "$STATE/rate"), one-way delay $(cat "$STATE/delay")"
    if [[ -s $STATE/switch.pid ]]; then ps -o pid,pcpu,time,args -p "$(cat "$STATE/switch.pid")" || echo "THE SWITCH IS DEAD: $(tail -3 "$STATE/switch.log")"; fi
}
counters() {
    need_up; local i
    for ((i = 0; i < $(nodes); i++)); do
        nsenter --net=/run/netns/"$NAME-node$i" awk -v n="node$i" '/eth0:/{sub(/.*:/,""); print n, "tx", $9, "rx", $1}' /proc/net/dev
    done | awk '{print; s+=$3} END{print "total tx", s}'
}

# ---------------------------------------------------------------- run
sweep() {  # end the processes of one run that are still on the nodes
    local i pid
    for ((i = 0; i < $(nodes); i++)); do for pid in $(ip netns pids "$NAME-node$i" 2>/dev/null || true); do
        if tr '\0' '\n' < "/proc/$pid/environ" 2>/dev/null | grep -qxF "$1"; then kill -9 "$pid" 2>/dev/null || true; fi
    done; done
}
run() {
    need_up
    local np="" ppn="" tmo="" env=() mpi n i left hosts="" c rc=0; n=$(nodes)
    while (($#)); do case $1 in
        -np|-n) np=$2; shift 2;; --ppn) ppn=$2; shift 2;; --timeout) tmo=$2; shift 2;;
        -x) env+=("$2"); shift 2;; --) shift; break;; -*) usage;; *) break;; esac; done
    [[ -n $np && $# -gt 0 ]] || usage
    : "${ppn:=$(((np + n - 1) / n))}"
    ((ppn * n >= np)) || die "$np ranks do not fit on $n nodes with $ppn each"
    local x=${MPIEXEC:-}
    [[ -n $x ]] || { [[ $1 == */* && -x $(dirname "$1")/mpiexec ]] && x=$(dirname "$1")/mpiexec || x=$(command -v mpiexec || true); }
    [[ -n $x ]] || die "no mpiexec: set MPIEXEC, or name CMD's program by its path in a venv that has one"
    local v; v=$("$x" --version 2>&1 || true)
    case $v in *Intel*) die "$x is Intel MPI's: use MPICH or Open MPI";; *HYDRA*) mpi=mpich;;
        *"Open MPI"*|*OpenRTE*|*prte*|*PRRTE*) mpi=openmpi;; *) die "what MPI is $x? Use MPICH or Open MPI";; esac
    for ((i = 0, left = np; i < n && left > 0; i++)); do
        c=$((left < ppn ? left : ppn)); left=$((left - c)); hosts+=${hosts:+,}node$i:$c
    done
    local cmd=("$x")
    case $mpi in
    mpich)   # ch4: shared memory inside a node, UCX (or libfabric) over TCP between nodes
        env=(UCX_TLS=tcp,self UCX_NET_DEVICES=eth0 FI_PROVIDER=tcp FI_TCP_IFACE=eth0 "${env[@]}")
        cmd+=(-launcher ssh -launcher-exec "$STATE/rsh" -iface eth0 -hosts "$hosts" -np "$np");;
    openmpi) # both spellings of the parameters, for 4.x (ORTE) and 5.x (PRRTE)
        env=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl_tcp_if_include=eth0
             OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_plm_rsh_agent="$STATE/rsh" PRTE_MCA_plm_ssh_agent="$STATE/rsh"
             OMPI_MCA_oob_tcp_if_include=eth0 PRTE_MCA_prte_if_include=eth0 PMIX_MCA_ptl_tcp_if_include=lo,eth0
             OMPI_MCA_btl=self,sm,tcp "${env[@]}")
        grep -qE '\) [1-4]\.' <<< "$v" && env+=(OMPI_MCA_btl=self,vader,tcp)
        cmd+=(--host "$hosts" -np "$np" --bind-to none);;
    esac
    # Open MPI forwards only OMPI_* and PRTE_*; MPICH forwards everything
    if [[ $mpi == openmpi ]]; then for i in "${env[@]}" PATH LD_LIBRARY_PATH PYTHONPATH OPENBLAS_NUM_THREADS OMP_NUM_THREADS; do
        i=${i%%=*}; case $i in OMPI_*|PRTE_*|PMIX_*) ;; *) [[ " ${env[*]} " == *" $i="* || -n ${!i:-} ]] && cmd+=(-x "$i");; esac; done; fi
    # timeout ends mpiexec, which ends its ranks; what is left of this run after that (found by its mark) is ended here
    mark=MNX_CLUSTER_RUN=$NAME.$$.$RANDOM      # not local: the trap reads it after this function
    trap 'sweep "$mark"' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM
    # in the background, as bash runs a trap only when its foreground child is done; no stdin: launchers differ, and can hang on it
    enter 0 env "$mark" "${env[@]}" ${tmo:+timeout -k 5 "$tmo"} "${cmd[@]}" "$@" < /dev/null &
    wait $! || rc=$?
    ((rc != 137)) || [[ -z $tmo ]] || rc=124
    return $rc
}

cmd=${1:-}
(($#)) || usage
shift
[[ $(id -u) == 0 ]] || die "needs root, to make network namespaces. Call it by: sudo $0 $cmd ..."
[[ $(uname) == Linux ]] || die "needs Linux, for its namespaces"
case $cmd in
up) up "$@";;
down) down;;
run) run "$@";;
exec) need_up; (($# >= 2)) || usage; i=$1; shift; enter "$i" "$@";;
counters) counters;;
status) status;;
*) usage;;
esac
