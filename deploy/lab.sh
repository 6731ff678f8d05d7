# shellcheck shell=bash
# The laboratory: hosts as network namespaces on bridges, each with its disks (folders), its addresses and its own vsand and
# vswitchd, and virtual machines under QEMU whose disks and network cards are the daemons' sockets, or hypervisord's. Sourced after
# lib.sh.
#
#   host 1 ── 10.77.0.1 ─┐                                  ┌─ 10.78.0.N: uplink 1 of host N's switch
#   host 2 ── 10.77.0.2 ─┼─ bridge (storage, management)    └─ 10.79.0.N: uplink 2, each on a bridge of its own
#   host 3 ── 10.77.0.3 ─┘
#
# The bridges are in a namespace of their own, so that nothing touches this machine's network.
#
# All names carry LAB_RUN, so that several laboratories live beside each other and one is cleaned up by name. All of its
# files are in LAB_DIR. Processes are known by their pid files there: nothing is ever ended by its name.
#
# Depends on no command of ours but vsand, vsanctl, vswitchd and vswctl in BIN; with lab_hypervisord also on hypervisord, vmctl
# and vmm.

LAB_NET=10.77.0
LAB_PORT=7400
LAB_UPLINKS=(10.78.0 10.79.0)

# lab_open: names the run and makes its folder. LAB_RUN may be set by the caller; LAB_ROOT says where on the disk.
lab_open() {
    need_root
    LAB_RUN=${LAB_RUN:-$(printf '%04x' $((RANDOM * 2 % 65536)))}
    LAB_DIR=${LAB_ROOT:-$CACHE/lab}/$LAB_RUN
    [[ ! -e $LAB_DIR ]] || die "a laboratory named $LAB_RUN exists: lab_close it first ($LAB_DIR)"
    mkdir -p "$LAB_DIR"/{disks,pids,log}
    LAB_BRIDGE=ferro-$LAB_RUN-br
    ip netns add "$LAB_BRIDGE"
    local k
    for ((k = 0; k <= ${#LAB_UPLINKS[@]}; k++)); do
        ip -n "$LAB_BRIDGE" link add "br$k" type bridge
        ip -n "$LAB_BRIDGE" link set "br$k" up
    done
}

# lab_attach RUN: takes up a laboratory that an earlier command left running.
lab_attach() {
    LAB_RUN=$1
    LAB_DIR=${LAB_ROOT:-$CACHE/lab}/$LAB_RUN
    LAB_BRIDGE=ferro-$LAB_RUN-br
    [[ -d $LAB_DIR ]] || die "there is no laboratory $LAB_RUN ($LAB_DIR)"
}

# lab_close: ends every process of the run, removes its namespaces and files. Safe to call twice and half-way.
lab_close() {
    [[ -n ${LAB_RUN:-} && -n ${LAB_DIR:-} ]] || return 0
    local name pidfile pid
    for pidfile in "$LAB_DIR"/pids/*; do
        [[ -e $pidfile ]] && lab_kill "$(basename "$pidfile")" KILL
    done
    for name in $(ip netns list | awk '{ print $1 }' | grep "^ferro-$LAB_RUN-" || true); do
        for pid in $(ip netns pids "$name" 2>/dev/null || true); do
            kill -KILL "$pid" 2>/dev/null || true
        done
        ip netns del "$name" 2>/dev/null || true
    done
    rm -rf "$LAB_DIR"
}

lab_namespace() { echo "ferro-$LAB_RUN-h$1"; }
lab_address() { echo "$LAB_NET.$1"; }
lab_socket() { echo "$LAB_DIR/h$1/run/api.sock"; }
lab_switch_socket() { echo "$LAB_DIR/h$1/switch/api.sock"; }
lab_hypervisor_socket() { echo "$LAB_DIR/h$1/hv/api.sock"; }
lab_port_socket() { echo "$LAB_DIR/h$1/switch/ports/$2.sock"; }

# lab_host N: host N's namespace, link, address, folders and configuration. No daemon yet.
lab_host() {
    local n=$1 ns link
    ns=$(lab_namespace "$n")
    link=p$n
    ip netns add "$ns"
    ip -n "$ns" link add eth0 type veth peer name "$link" netns "$LAB_BRIDGE"
    ip -n "$ns" link set lo up
    ip -n "$ns" addr add "$(lab_address "$n")/24" dev eth0
    ip -n "$ns" link set eth0 up
    ip -n "$LAB_BRIDGE" link set "$link" master br0 up
    local k
    for ((k = 1; k <= ${#LAB_UPLINKS[@]}; k++)); do
        ip -n "$ns" link add "uplink$k" type veth peer name "u$k-$n" netns "$LAB_BRIDGE"
        ip -n "$ns" addr add "${LAB_UPLINKS[k - 1]}.$n/24" dev "uplink$k"
        ip -n "$ns" link set "uplink$k" up
        ip -n "$LAB_BRIDGE" link set "u$k-$n" master "br$k" up
    done
    mkdir -p "$LAB_DIR/h$n"/{state,run,switch,switch-state,hv,hv-state} "$LAB_DIR/disks/h$n"
    lab_config "$n" >"$LAB_DIR/h$n/vsand.toml"
    lab_switch_config "$n" >"$LAB_DIR/h$n/vswitchd.toml"
    lab_hypervisor_config "$n" >"$LAB_DIR/h$n/hypervisord.toml"
}

lab_config() {
    cat <<TOML
listen = "$(lab_address "$1"):$LAB_PORT"
state_dir = "$LAB_DIR/h$1/state"
run_dir = "$LAB_DIR/h$1/run"
fault_domain = "host$1"
TOML
}

lab_switch_config() {
    local addresses
    addresses=$(printf '"%s", ' "${LAB_UPLINKS[@]/%/.$1}")
    cat <<TOML
[host]
name = "host$1"
state_dir = "$LAB_DIR/h$1/switch-state"
run_dir = "$LAB_DIR/h$1/switch"
identity_dir = "$LAB_DIR/h$1/state/identity"
vsand_socket = "$LAB_DIR/h$1/run/api.sock"
tunnel_addresses = [${addresses%, }]
TOML
}

lab_hypervisor_config() {
    cat <<TOML
state_dir = "$LAB_DIR/h$1/hv-state"
run_dir = "$LAB_DIR/h$1/hv"
vsand_socket = "$LAB_DIR/h$1/run/api.sock"
vswitchd_socket = "$LAB_DIR/h$1/switch/api.sock"
vmm = "$BIN/vmm"
TOML
}

# lab_start NAME N COMMAND...: starts a process in host N's namespaces, output to log/NAME.
lab_start() {
    local name=$1 n=$2
    shift 2
    rm -f "$LAB_DIR/pids/$name"
    # setsid: a Ctrl-C at the demo's terminal must reach the demo, which then cleans up, and not the hosts.
    # unshare: a host has a host name. The shell that writes the pid becomes the process, so the pid is exact.
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid ip netns exec "$(lab_namespace "$n")" unshare --uts sh -c 'hostname "$1"; echo $$ >"$2"; shift 2; exec "$@"' \
        sh "host$n" "$LAB_DIR/pids/$name" "$@" >>"$LAB_DIR/log/$name" 2>&1 </dev/null 8>&- 9>&- &
    disown
    lab_wait 10 test -s "$LAB_DIR/pids/$name" || die "$name did not start: see $LAB_DIR/log/$name"
}

lab_pid() { cat "$LAB_DIR/pids/$1" 2>/dev/null; }

lab_running() {
    local pid
    pid=$(lab_pid "$1") && [[ -n $pid && -d /proc/$pid ]] && [[ $(awk '/^State/ { print $2 }' "/proc/$pid/status" 2>/dev/null) != Z ]]
}

# lab_kill NAME SIGNAL: sends it; for KILL and TERM waits until the process is gone and forgets it.
lab_kill() {
    local name=$1 signal=$2 pid
    pid=$(lab_pid "$name") || return 0
    kill "-$signal" "$pid" 2>/dev/null || true
    case $signal in
    KILL | TERM)
        # A stopped process takes SIGTERM only after it goes on.
        [[ $signal == TERM ]] && { kill -CONT "$pid" 2>/dev/null || true; }
        if ! lab_wait 20 lab_gone "$name"; then
            kill -KILL "$pid" 2>/dev/null || true
            lab_wait 10 lab_gone "$name" || printf 'process %s (%s) does not end\n' "$pid" "$name" >&2
        fi
        rm -f "$LAB_DIR/pids/$name"
        ;;
    esac
}
lab_gone() { ! lab_running "$1"; }

# lab_wait SECONDS COMMAND...: repeats the command until it succeeds.
lab_wait() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.2
    done
}

# lab_vsand N: host N's daemon; returns when its API answers.
lab_vsand() {
    lab_start "vsand$1" "$1" "$BIN/vsand" --config "$LAB_DIR/h$1/vsand.toml"
    if ! lab_wait 60 lab_answers "$1"; then
        tail -n 20 "$LAB_DIR/log/vsand$1" >&2
        die "host $1's vsand does not answer on $(lab_socket "$1")"
    fi
}
# lab_vswitchd N: host N's switch; returns when its API answers.
lab_vswitchd() {
    lab_start "vswitchd$1" "$1" "$BIN/vswitchd" --config "$LAB_DIR/h$1/vswitchd.toml"
    if ! lab_wait 60 lab_switch_answers "$1"; then
        tail -n 20 "$LAB_DIR/log/vswitchd$1" >&2
        die "host $1's vswitchd does not answer on $(lab_switch_socket "$1")"
    fi
}
lab_switch_answers() { [[ -S $(lab_switch_socket "$1") ]] && socat -u OPEN:/dev/null "UNIX-CONNECT:$(lab_switch_socket "$1")"; }

# lab_sw N ARGUMENTS...: vswctl on host N.
lab_sw() {
    local n=$1
    shift
    ip netns exec "$(lab_namespace "$n")" "$BIN/vswctl" --socket "$(lab_switch_socket "$n")" "$@"
}

lab_answers() { [[ -S $(lab_socket "$1") ]] && socat -u OPEN:/dev/null "UNIX-CONNECT:$(lab_socket "$1")"; }

# lab_ctl N ARGUMENTS...: vsanctl on host N.
lab_ctl() {
    local n=$1
    shift
    ip netns exec "$(lab_namespace "$n")" "$BIN/vsanctl" --socket "$(lab_socket "$n")" "$@"
}

# lab_hypervisord N: host N's hypervisor; returns when its API answers.
lab_hypervisord() {
    lab_start "hypervisord$1" "$1" "$BIN/hypervisord" --config "$LAB_DIR/h$1/hypervisord.toml"
    if ! lab_wait 60 lab_hv "$1" status; then
        tail -n 20 "$LAB_DIR/log/hypervisord$1" >&2
        die "host $1's hypervisord does not answer on $(lab_hypervisor_socket "$1")"
    fi
}

# lab_hv N ARGUMENTS...: vmctl on host N.
lab_hv() {
    local n=$1
    shift
    ip netns exec "$(lab_namespace "$n")" "$BIN/vmctl" --socket "$(lab_hypervisor_socket "$n")" "$@"
}

# Cutting links. Only what every kernel has: a blackhole queue takes what an interface sends.
lab_cut_out() { ip netns exec "$(lab_namespace "$1")" tc qdisc replace dev eth0 root blackhole; } # nothing leaves host N
lab_cut_in() { ip netns exec "$LAB_BRIDGE" tc qdisc replace dev "p$1" root blackhole; }           # nothing reaches host N
lab_cut_uplink() { ip -n "$LAB_BRIDGE" link set "u$2-$1" down; }                                 # uplink K of host N is pulled
lab_mend_uplink() { ip -n "$LAB_BRIDGE" link set "u$2-$1" up; }
lab_cut_cable() { ip -n "$LAB_BRIDGE" link set "p$1" down; }                                      # the cable is pulled
# Host A's frames to host B go to an address nobody has; B to A and all others go on.
lab_cut_pair() {
    ip -n "$(lab_namespace "$1")" neigh replace "$(lab_address "$2")" lladdr 02:00:00:00:00:ff nud permanent dev eth0
}
# lab_mend N: undoes every cut of host N.
lab_mend() {
    local ns
    ns=$(lab_namespace "$1")
    ip netns exec "$ns" tc qdisc del dev eth0 root 2>/dev/null || true
    ip netns exec "$LAB_BRIDGE" tc qdisc del dev "p$1" root 2>/dev/null || true
    ip -n "$LAB_BRIDGE" link set "p$1" up
    ip -n "$ns" neigh flush dev eth0 nud permanent
}

# --- virtual machines -----------------------------------------------------------------------------------------

LAB_VM_MIB=512

# lab_vm NAME N SOCKET [QEMU OPTIONS...]: a machine on host N whose first disk is the vhost-user-blk socket (none for -). It
# boots from that disk unless the options name a kernel. Its console is log/NAME.console, live at NAME.console.sock.
lab_vm() {
    # Emulated AVX is slower than no AVX, and the C library uses it where it is offered: an old CPU boots sooner.
    local name=$1 n=$2 socket=$3 cpu=Nehalem accel disk=()
    shift 3
    # shellcheck disable=SC2054 # QEMU's options have commas
    [[ $socket == - ]] || disk=(-chardev "socket,id=disk0,path=$socket,$(qemu_reconnect)" -device vhost-user-blk-pci,chardev=disk0,bootindex=1)
    accel=$(qemu_accel)
    [[ $accel == kvm ]] && cpu=host
    # The guest's memory must be shared with the disk's back end, which reads and writes it in place. On reconnection QEMU
    # hands the requests in flight to the new back end: the guest sees a pause.
    lab_start "$name" "$n" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -machine "q35,accel=${accel%%,*},memory-backend=ram${LAB_VM_MACHINE:-}" -cpu "$cpu" -smp 2 -m "$LAB_VM_MIB" \
        -object "memory-backend-memfd,id=ram,size=${LAB_VM_MIB}M,share=on" \
        "${disk[@]}" \
        -chardev "socket,id=console,path=$LAB_DIR/$name.console.sock,server=on,wait=off,logfile=$LAB_DIR/log/$name.console" \
        -serial chardev:console \
        -chardev "socket,id=agent,path=$LAB_DIR/$name.agent.sock,server=on,wait=off" \
        -serial chardev:agent -monitor "unix:$LAB_DIR/$name.monitor.sock,server=on,wait=off" "$@"
    lab_wait 10 test -S "$LAB_DIR/$name.agent.sock" || die "QEMU does not start: see $LAB_DIR/log/$name"
    # Not QEMU's own log: QEMU 7.2 writes to that twice what its socket does not take at once.
    lab_agent_port "$name" "$n" socat - "UNIX-CONNECT:$LAB_DIR/$name.agent.sock"
}

# lab_agent_port NAME N COMMAND...: starts what carries the lines to and from a machine's agent: log/NAME.agent has all that it
# says, and NAME.agent.in takes what is for it.
lab_agent_port() {
    local pipe=$LAB_DIR/$1.agent.in name=$1.agent n=$2
    shift 2
    rm -f "$pipe"
    mkfifo "$pipe"
    # Opened for writing too: otherwise it would end with the first who has written to it.
    # shellcheck disable=SC2016 # expanded by the inner shell
    lab_start "$name" "$n" sh -c 'exec "$@" 0<>"$0"' "$pipe" "$@"
}

# lab_nic N PORT MAC: sets LAB_NIC to the options of a machine on host N whose network card is the switch's port.
lab_nic() {
    # No boot ROM: nothing boots from the network, and looking for it costs seconds. Without KVM, QEMU 7.2 crashes when a
    # vhost-user network card's interrupts are messages: it uses a table that only KVM has.
    local vectors=
    [[ $(qemu_accel) == kvm ]] || vectors=,vectors=0
    # shellcheck disable=SC2034,SC2054 # for the caller; QEMU's options have commas
    LAB_NIC=(-chardev "socket,id=net0,path=$(lab_port_socket "$1" "$2"),$(qemu_reconnect)" -netdev vhost-user,id=net0,chardev=net0
        -device "virtio-net-pci,netdev=net0,mac=$3,romfile=$vectors")
}

# lab_small_vm NAME N GUEST [QEMU OPTIONS...]: the test guest of the folder GUEST, without a disk; up in seconds.
lab_small_vm() {
    local name=$1 n=$2 guest=$3
    shift 3
    LAB_VM_MIB=320 lab_vm "$name" "$n" - -kernel "$guest/vmlinuz" -initrd "$guest/testguest.img" \
        -append "console=ttyS0 panic=-1 mitigations=off" "$@"
}

# lab_console_shows NAME TEXT SECONDS: waits until the machine has printed the text.
lab_console_shows() { lab_wait "$3" grep -aqF -- "$2" "$LAB_DIR/log/$1.console"; }

# lab_guest_send NAME COMMAND: has the machine's agent start a command, prints the request's id, does not wait for its end.
lab_guest_send() {
    # From the clock: in a subshell a counter would not count.
    local id=r${EPOCHREALTIME//[.,]/} log=$LAB_DIR/log/$1.agent request
    request=$(printf '%s' "$2" | base64 -w0)
    lab_wait 60 grep -aqs '^agent ready' "$log" || die "machine $1's agent is not up: see $LAB_DIR/log/$1.console"
    # Opened for reading too, so that it is not waited for one who reads, should what carries it have ended.
    printf '%s %s\n' "$id" "$request" 1<>"$LAB_DIR/$1.agent.in"
    lab_wait 30 grep -aq "^<<$id" "$log" || die "machine $1 does not take commands: see $log"
    echo "$id"
}

# lab_guest_result NAME ID SECONDS: waits, prints what the command printed, returns its status (124: no answer in time).
lab_guest_result() {
    local log=$LAB_DIR/log/$1.agent id=$2 status
    lab_wait "$3" grep -aq "^>>$id " "$log" || return 124
    tr -d '\r' <"$log" | awk -v from="<<$id" -v to=">>$id" '$1 == to { exit } on { print } $0 == from { on = 1 }' | sed '$ { /^$/ d }'
    status=$(tr -d '\r' <"$log" | awk -v to=">>$id" '$1 == to { print $2; exit }')
    return "$status"
}

# lab_guest NAME SECONDS COMMAND: runs a command in the machine, prints its output, returns its status.
lab_guest() {
    local id
    id=$(lab_guest_send "$1" "$3")
    lab_guest_result "$1" "$id" "$2"
}

# --- virtual machines that hypervisord runs ---------------------------------------------------------------------

# lab_at_console NAME N OUT [SEES TYPES]...: what a person does who opens the console of a VM on host N at a terminal: once the
# text SEES has come since the last keys, TYPES is typed, and so on; at the end the escape key. OUT has what the terminal showed. The status is vmctl's;
# 98 if it left the terminal in another state than it found it in.
lab_at_console() {
    local name=$1 n=$2 out=$3
    shift 3
    : >"$out"
    # shellcheck disable=SC2094 # what is typed depends on what is shown
    lab_types "$out" "$@" | ip netns exec "$(lab_namespace "$n")" script --quiet --return --command "before=\$(stty -g)
        $(printf '%q ' "$BIN/vmctl" --socket "$(lab_hypervisor_socket "$n")" console "$name") || exit
        [ \"\$before\" = \"\$(stty -g)\" ] || exit 98" /dev/null >>"$out"
}

# lab_types OUT [SEES TYPES]...: its keys.
lab_types() {
    local out=$1 from=0 status=0
    shift
    # Keys that are pressed before vmctl has the terminal would not be the guest's.
    lab_wait 30 lab_shows "$out" 0 'leaves it' || return 1
    while (($#)); do
        lab_wait 90 lab_shows "$out" "$from" "$1" || {
            printf '%s does not come\n' "$1" >&2
            status=1
            break
        }
        if [[ -n $2 ]]; then
            from=$(stat -c %s "$out")
            printf '%s' "$2"
        fi
        shift 2
    done
    printf '\x1d'
    # The end of this pipe would be a Ctrl-D at the terminal.
    lab_wait 20 lab_shows "$out" 0 'Left the console' || status=1
    return "$status"
}

# lab_shows FILE FROM TEXT: whether the text is in the file behind its first FROM bytes.
lab_shows() { tail -c "+$(($2 + 1))" "$1" | grep -aF -- "$3"; }

# lab_console_agent NAME N: has a VM on host N, at whose console root is logged in, answer lab_guest as a machine of lab_vm does.
# `vmctl console` carries it, and has the console from then on.
lab_console_agent() {
    local name=$1 n=$2
    lab_agent_port "$name" "$n" "$BIN/vmctl" --socket "$(lab_hypervisor_socket "$n")" console "$name"
    # The agent is made for the second serial port; this machine has one. The kernel's messages would be in its answers.
    echo 'dmesg -n 1; sed s/ttyS1/ttyS0/g /usr/local/sbin/lab-agent >/run/agent; echo; exec sh /run/agent' 1<>"$LAB_DIR/$name.agent.in"
    lab_wait 60 grep -aq '^agent ready' "$LAB_DIR/log/$name.agent" || {
        tail -n 20 "$LAB_DIR/log/$name.agent" >&2
        die "the agent of $name does not start at its console"
    }
}

# lab_console_agent_ends NAME: the console is everybody's again, with a login.
lab_console_agent_ends() {
    # shellcheck disable=SC2016 # the guest's
    lab_guest_send "$1" 'kill "$PPID"' >/dev/null
    lab_kill "$1.agent" TERM
    rm -f "$LAB_DIR/$1.agent.in"
}
