//! The words of the common failures, so that the same thing is always said in the same way: what failed, for which thing,
//! what to do next.

use std::fmt::Display;

use ferro_protocol::api::vm::{VmName, VmState};
use ferro_protocol::api::{ApiError, ErrorCode, FaultLine};
use ferro_protocol::ids::VolumeName;
use hypervisor_core::life::Refusal;

/// A VM can't be like this: every fault, and nothing was changed.
pub fn invalid_vm(name: &str, faults: Vec<FaultLine>) -> ApiError {
    let message = match faults.as_slice() {
        [one] => format!("VM {name:?} can't be like this: {one}"),
        many => format!("VM {name:?} can't be like this, for {} reasons", many.len()),
    };
    ApiError::new(ErrorCode::InvalidVm, message, "put that right and try again; nothing was changed")
        .with_faults(faults)
}

/// There is no VM of this name.
pub fn vm_not_found(name: &VmName) -> ApiError {
    let next = "see `vmctl list` for those there are; `vmctl create` makes one";
    ApiError::new(ErrorCode::VmNotFound, format!("there is no VM {name}"), next)
}

/// The VM has to be off for this.
pub fn not_off(name: &VmName, state: VmState, host: Option<&str>) -> ApiError {
    let place = host.map(|host| format!(" on host {host}")).unwrap_or_default();
    let error = ApiError::new(
        ErrorCode::VmNotOff,
        format!("VM {name} is {}{place}", state.as_str()),
        format!("switch it off first: `vmctl stop {name}`"),
    )
    .with("state", state.as_str());
    match host {
        Some(host) => error.with("host", host),
        None => error,
    }
}

/// The VM has to run for this.
pub fn not_running(name: &VmName, state: VmState) -> ApiError {
    let next = match state {
        VmState::Paused => format!("let it go on first: `vmctl resume {name}`"),
        VmState::Off | VmState::Failed => format!("start it first: `vmctl start {name}`"),
        _ => format!("wait a moment; `vmctl show {name}` says how it is"),
    };
    ApiError::new(ErrorCode::VmNotRunning, format!("VM {name} is {}", state.as_str()), next)
        .with("state", state.as_str())
}

/// The VM is on another host.
pub fn elsewhere(name: &VmName, host: &str) -> ApiError {
    ApiError::new(
        ErrorCode::VmElsewhere,
        format!("VM {name} is on host {host}"),
        format!("ask the hypervisord of {host}"),
    )
    .with("host", host)
}

/// The host that has the VM does not answer.
pub fn host_unreachable(name: &VmName, host: &str) -> ApiError {
    ApiError::new(
        ErrorCode::HostUnreachable,
        format!("VM {name} is on host {host}, and the hypervisord there does not answer"),
        format!("see `systemctl status hypervisord` on {host}, and `vsanctl status` for the host itself"),
    )
    .with("host", host)
}

/// The host that had the VM does not answer, and has the lock of its first disk.
pub fn may_run_elsewhere(name: &VmName, volume: &VolumeName, host: &str) -> ApiError {
    ApiError::new(
        ErrorCode::ObjectInUse,
        format!(
            "VM {name} may still run on host {host}: that does not answer, and has the lock of volume {volume}"
        ),
        format!(
            "if host {host} is dead or cut off, break the lock (`vsanctl lock break {volume}`) and start the VM again; if only its \
             hypervisord is, start that"
        ),
    )
    .with("host", host)
}

/// An order that was not carried out.
pub fn refusal(name: &VmName, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::NotOff(state) => not_off(name, state, None),
        Refusal::NotRunning(state) => not_running(name, state),
        Refusal::TimedOut => ApiError::new(
            ErrorCode::TimedOut,
            format!("VM {name} did not switch off in time; it runs"),
            format!("look at its console (`vmctl console {name}`), or `vmctl stop --force {name}`"),
        ),
        Refusal::WentOff => ApiError::new(
            ErrorCode::VmNotRunning,
            format!("VM {name} went off meanwhile"),
            format!("see `vmctl show {name}`"),
        ),
        Refusal::Failed(error) => error,
    }
}

/// Nothing can be changed.
pub fn no_directory(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::NoQuorum,
        format!("{what}: the cluster directory can't be reached or has no quorum, so nothing can be changed"),
        "VMs that run go on; `vsanctl status` says what the directory is missing",
    )
}

/// This host is in no cluster, or its directory was never seen.
pub fn no_cluster(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        format!("the cluster directory was not seen yet: {why}"),
        "see that vsand runs and is in a cluster (`vsanctl status`)",
    )
}

/// Somebody else changed the VM meanwhile.
pub fn overtaken(name: &VmName, now: u64) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!("VM {name} was changed by somebody else meanwhile"),
        "look at what is there now and try again; nothing was changed",
    )
    .with("revision", now)
}

/// It took too long.
pub fn timed_out(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::TimedOut,
        format!("{what} was not done in time; it may still happen"),
        "look with `vmctl show` whether it did before you repeat it",
    )
}

/// The system refused something.
pub fn io(what: String, error: std::io::Error) -> ApiError {
    ApiError::new(
        ErrorCode::Io,
        format!("{what}: {error}"),
        "see that hypervisord may do that, and that the disk is not full",
    )
}

/// A fault of ours.
pub fn internal(what: impl Display, cause: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        format!("{what}: {cause}"),
        "see the daemon's log (`journalctl -u hypervisord`); this is worth a bug report",
    )
}
