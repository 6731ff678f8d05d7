# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it
# What deploy/demo, deploy/test and deploy/guest/build share: what is installed, where built things lie, how
# steps are named. Sourced, never run. Nothing here knows about hosts or networks: see lab.sh.
#
# Environment that a caller may set: CARGO_TARGET_DIR, XDG_CACHE_HOME.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Outside the checkout, so that every checkout on this machine and every CI run share what was built once.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/ferrosphere
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
# One profile for everything, so that tests, simulator, demo and black box link the same artefacts.
BIN=$CARGO_TARGET_DIR/release
# What cargo builds at once. Always the same set, because cargo unites the features of what it builds together and compiles
# anew when they change; without the simulator, which turns on the deliberate bugs: no product ever holds their code.
PRODUCT=(--release --locked --workspace --exclude ferro-sim)
# Of that what is installed: the daemons, their tools and the vmm.
BINARIES=(--bin vsand --bin vsanctl --bin vswitchd --bin vswctl --bin hypervisord --bin vmctl --bin vmm)

# The release before this one, where rolling upgrades are tested from. Nothing was released yet: the last commit of before the cluster
# had a version of its own.
FORMER=c2eee2d49357cf4336c40a4d35783e31d9568801

RUST_MIN=1.89
CARGO_DENY_VERSION=0.20.2
NEXTEST_VERSION=0.9.115

# Debian package:the command that proves it is there, or package: alone to ask dpkg. Only what the scripts or the tests use.
PACKAGES_NEEDED=(
    build-essential:g++ libclang-dev: pkg-config:pkg-config # RocksDB, its bindings, ring
    qemu-system-x86:qemu-system-x86_64 qemu-utils:qemu-img mmdebstrap:mmdebstrap cpio:cpio e2fsprogs:mke2fs fdisk:sfdisk # guests
    bsdutils:script hostname:hostname iproute2:ip jq:jq socat:socat tshark:tshark util-linux:unshare # the laboratory
)
# What only deploy/test uses.
PACKAGES_CHECKS=(shellcheck:shellcheck systemd:systemd-analyze xfsprogs:mkfs.xfs dpdk-dev:dpdk-testpmd busybox-static: acpica-tools:iasl libisal-dev:
    openvswitch-switch:ovs-vswitchd fio:fio iperf3:iperf3 xz-utils:xz) # the last three: in the nested lab

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' DIM=$'\e[2m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' GREEN='' DIM='' PLAIN=''
fi

note() { printf '%s\n' "${DIM}-- $*${PLAIN}"; }
die() {
    printf '%s\n' "${RED}error:${PLAIN} $*" >&2
    exit 1
}

# step NAME COMMAND...: runs the command under a name, with its time; a failure names the step and ends the script.
step() {
    local name=$1 from=$SECONDS status
    shift
    printf '\n%s\n' "${BOLD}== $name${PLAIN}"
    # Not `if "$@"`: that would switch off errexit inside the command. A subshell keeps it.
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    if ((status != 0)); then
        printf '%s\n' "${RED}== FAILED: $name (status $status, $((SECONDS - from)) s)${PLAIN}" >&2
        exit 1
    fi
    printf '%s\n' "${GREEN}== $name: ok, $((SECONDS - from)) s${PLAIN}"
}

need_root() {
    ((EUID == 0)) || die "this needs root (packages, network namespaces): run it with sudo"
}

# install_packages PACKAGE:PROOF...: installs those that are missing.
install_packages() {
    local entry package proof missing=()
    for entry in "$@"; do
        package=${entry%%:*} proof=${entry#*:}
        if [[ -n $proof ]]; then
            command -v "$proof" >/dev/null || missing+=("$package")
        else
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
        fi
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "these are missing and this is no Debian: ${missing[*]}"
    need_root
    note "installing ${missing[*]}"
    apt-get update -qq || die "apt-get update failed: is the network up?"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

# need_rust: cargo, new enough. It is not installed for the user: which toolchain they have is their choice.
need_rust() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    # Under sudo the toolchain is often that of the user who called it; it is only read.
    if ! command -v cargo >/dev/null && [[ -n ${SUDO_USER:-} ]]; then
        local home
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        if [[ -x $home/.cargo/bin/cargo ]]; then
            PATH=$PATH:$home/.cargo/bin
            export RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
        fi
    fi
    command -v cargo >/dev/null || die "Rust is not installed. Get it from https://rustup.rs:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\"
then run this again. Rust $RUST_MIN or later is needed."
    local have
    have=$(cargo --version | awk '{ print $2 }')
    if [[ $(printf '%s\n%s\n' "$RUST_MIN" "$have" | sort -V | head -n1) != "$RUST_MIN" ]]; then
        die "Rust $have is too old: $RUST_MIN or later is needed. With rustup: rustup update stable"
    fi
}

# ensure_rocksdb: RocksDB's static archive, compiled once a machine for every profile and target directory, and the
# two variables that make its crate link it. A plain `cargo build` without them works too and compiles its own.
ensure_rocksdb() {
    local folder=$CACHE/rocksdb version flags='' stamp work archive
    version=$(awk -F'"' '/^name = "librocksdb-sys"$/ { getline; print $2 }' "$REPO/Cargo.lock")
    [[ -n $version ]] || die "Cargo.lock names no librocksdb-sys"
    # The crate turns on the CRC instructions only by a whole target CPU; every x86-64 host since 2010 has these.
    [[ $(uname -m) == x86_64 ]] && flags='-msse4.2 -mpclmul'
    stamp="librocksdb-sys $version; opt-level 2; CXXFLAGS $flags; $(uname -m)"
    export ROCKSDB_LIB_DIR=$folder ROCKSDB_STATIC=1
    [[ -e $folder/librocksdb.a && $(cat "$folder/stamp" 2>/dev/null) == "$stamp" ]] && return 0

    mkdir -p "$folder"
    exec 8>"$folder/lock"
    flock 8
    if [[ ! -e $folder/librocksdb.a || $(cat "$folder/stamp" 2>/dev/null) != "$stamp" ]]; then
        note "compiling RocksDB $version (once a machine; 10 to 20 minutes on two cores)"
        work=$folder/build
        mkdir -p "$work/src"
        : >"$work/src/lib.rs"
        # Cargo drops from it what is not needed here and keeps the other versions.
        cp "$REPO/Cargo.lock" "$work/Cargo.lock"
        cat >"$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-archive"
version = "0.0.0"
edition = "2021"
[dependencies]
librocksdb-sys = { version = "=${version%%+*}", default-features = false, features = ["bindgen-runtime"] }
[profile.release]
opt-level = 2
debug = 0
[workspace]
TOML
        (
            cd "$work"
            unset ROCKSDB_LIB_DIR ROCKSDB_STATIC
            CXXFLAGS=$flags cargo build --release --target-dir "$work/target"
        ) || die "RocksDB did not compile: see above"
        archive=$(find "$work/target/release/build" -name librocksdb.a -print -quit)
        [[ -n $archive ]] || die "RocksDB's build left no librocksdb.a under $work/target"
        # The stamp goes last and each by rename: a build that is cut off leaves no archive that is believed.
        rm -f "$folder/stamp"
        cp "$archive" "$folder/librocksdb.a.new"
        mv "$folder/librocksdb.a.new" "$folder/librocksdb.a"
        printf '%s\n' "$stamp" >"$folder/stamp.new"
        mv "$folder/stamp.new" "$folder/stamp"
        rm -rf "$work"
    fi
    exec 8>&-
}

# ensure_former: vsand and vsanctl of the former release, compiled once a machine from this repository's history; sets FORMER_BIN. What is
# built next puts today's programs back in $BIN.
ensure_former() {
    local work=$CACHE/former/build
    FORMER_BIN=$CACHE/former/$FORMER
    [[ -x $FORMER_BIN/vsand && -x $FORMER_BIN/vsanctl ]] && return 0
    git -C "$REPO" cat-file -e "$FORMER^{commit}" 2>/dev/null ||
        die "the former release, commit $FORMER, is not in this checkout's history: get all of it with git fetch --unshallow"

    mkdir -p "$FORMER_BIN"
    exec 8>"$CACHE/former/lock"
    flock 8
    if [[ ! -x $FORMER_BIN/vsand || ! -x $FORMER_BIN/vsanctl ]]; then
        note "compiling the former release, ${FORMER:0:7} (once a machine; 5 to 10 minutes on two cores)"
        rm -rf "$work"
        mkdir -p "$work"
        git -C "$REPO" archive "$FORMER" | tar -x -C "$work"
        # Built beside today's, so that they share what both depend on.
        CARGO_INCREMENTAL=0 of_sources cargo build --manifest-path "$work/Cargo.toml" "${PRODUCT[@]}" --bin vsand --bin vsanctl --quiet ||
            die "the former release did not compile: see above"
        # Each by rename: a copy that is cut off is not believed.
        mkdir -p "$work/bin"
        cp "$BIN"/{vsand,vsanctl} "$work/bin"
        mv "$work"/bin/{vsand,vsanctl} "$FORMER_BIN"
        rm -rf "$work"
    fi
    exec 8>&-
}

# ensure_cargo_tool CRATE VERSION: a cargo subcommand, built once a machine under the cache and put on the path.
ensure_cargo_tool() {
    local crate=$1 version=$2 root=$CACHE/tools
    export PATH=$root/bin:$PATH
    [[ $("$root/bin/$crate" "${crate#cargo-}" --version 2>/dev/null | awk 'NR == 1 { print $2 }') == "$version" ]] && return 0
    note "compiling $crate $version (once a machine)"
    # These tools run for seconds: a quick compile is worth more than a quick tool.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --quiet --locked --force --root "$root" --target-dir "$CACHE/tools-build" "$crate@$version" ||
        die "cargo could not install $crate $version"
    rm -rf "$CACHE/tools-build"
}

# of_sources CARGO...: runs cargo so that it compiles what has changed and not whatever was checked out anew. Cargo compares times, and a
# fresh checkout has only its own; so each file is given the time at which the target directory first saw what is in it. The
# record holds one content a file, the last one seen: what differs from it counts as changed now. One build at a time: two checkouts
# with other contents would take each other's for their own. Where there is no git repository cargo goes by the times that are there.
of_sources() {
    git -C "$REPO" rev-parse --is-inside-work-tree >/dev/null 2>&1 || { "$@"; return; }
    mkdir -p "$CARGO_TARGET_DIR"
    (
        exec 7>"$CARGO_TARGET_DIR/sources.lock"
        flock -n 7 || { note "another build uses $CARGO_TARGET_DIR: waiting for its end" >&2; flock 7; }
        same_sources
        status=0
        "$@" 7>&- || status=$?
        touch "$CARGO_TARGET_DIR/sources.built"
        exit "$status"
    )
}

# same_sources: the part of of_sources that sets the times.
same_sources() {
    local record=$CARGO_TARGET_DIR/sources built=$CARGO_TARGET_DIR/sources.built folder time
    # What was compiled while nobody kept the record may come from anything: cargo forgets it.
    if [[ -e $record && -e $built ]]; then
        for folder in "$CARGO_TARGET_DIR"/*/.fingerprint; do
            # There is none where cargo has failed before it compiled anything.
            [[ ! -d $folder ]] || find "$folder" -mindepth 2 -newer "$built" -printf '%h\0'
        done | sort -zu | xargs -0r rm -rf
    else
        : >"$record"
    fi
    cd "$REPO"
    # Lines of the record: time, SHA-256, path. A path that sha256sum must escape (a backslash before the line) is left as it is.
    git ls-files -z --cached --others --exclude-standard | while IFS= read -rd '' file; do
        [[ ! -f $file || -L $file ]] || printf '%s\0' "$file"
    done | xargs -0r sha256sum -- | awk -v now="$(date +%s.%N)" '
        old { seen[substr($0, length($1) + 2)] = $1; next }
        !/^\\/ { print ($0 in seen ? seen[$0] : now) " " $0 }
    ' old=1 "$record" old= - >"$record.new"
    # A time of the record is one run's, so these are few.
    cut -d ' ' -f 1 "$record.new" | sort -u | while read -r time; do
        awk -v time="$time" '$1 == time { printf "%s%c", substr($0, length(time) + 68), 0 }' "$record.new" | xargs -0r touch -c -d "@$time" --
    done
    mv "$record.new" "$record"
}

# qemu_accel: "kvm" where KVM runs stock kernels at full speed, else emulation. /dev/kvm alone does not prove it:
# on a machine without VT-x or SVM it may emulate guest kernel code and stop at the first instruction it lacks.
qemu_accel() {
    if [[ -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
        echo kvm
    else
        echo tcg,thread=multi
    fi
}

# qemu_reconnect: the socket option that makes QEMU try again after its back end went away; QEMU 9.2 renamed it.
qemu_reconnect() {
    local version
    version=$(qemu-system-x86_64 --version | awk 'NR == 1 { print $4 }')
    if [[ $(printf '9.2\n%s\n' "$version" | sort -V | head -n1) == 9.2 ]]; then
        echo reconnect-ms=500
    else
        echo reconnect=1
    fi
}
