//! The words of the common failures, so that the same thing is always said in the same way: what failed, for which thing,
//! what to do next.

use std::fmt::Display;

use ferro_protocol::api::{ApiError, ErrorCode, FaultLine};
use ferro_protocol::net::{Mac, NetName};
use vswitch_core::config::{Fault, Problem};

use super::control::Point;
use crate::ports::TapRefused;

/// The configuration can't be like this: every fault, and nothing was changed.
pub fn invalid_network(faults: &[Fault]) -> ApiError {
    let lines: Vec<FaultLine> = faults
        .iter()
        .map(|fault| FaultLine {
            kind: fault.kind.to_owned(),
            name: fault.name.clone(),
            problem: fault.problem.to_string(),
        })
        .collect();
    let message = match lines.as_slice() {
        [one] => one.to_string(),
        many => format!("the network can't be configured like this, for {} reasons", many.len()),
    };
    // A thing that is not there has a code of its own where it is the only fault: it is the commonest mistake.
    let code = match faults {
        [Fault { kind, problem: Problem::NotThere, .. }] => match *kind {
            "switch" => ErrorCode::SwitchNotFound,
            "port group" => ErrorCode::GroupNotFound,
            "port" => ErrorCode::PortNotFound,
            "mirror" => ErrorCode::MirrorNotFound,
            _ => ErrorCode::InvalidNetwork,
        },
        [Fault { problem: Problem::Twice, .. }] => ErrorCode::NameTaken,
        _ => ErrorCode::InvalidNetwork,
    };
    let next = match code {
        ErrorCode::NameTaken => "choose another name, or change what is there; nothing was changed",
        ErrorCode::InvalidNetwork => "put that right and try again; nothing was changed",
        _ => "check the name (the noun's `list` shows those there are); nothing was changed",
    };
    ApiError::new(code, message, next).with_faults(lines)
}

/// Somebody else changed the configuration meanwhile.
pub fn basis_passed(basis: u64, now: u64) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!("the configuration has changed meanwhile: it has revision {now} and not {basis}"),
        "look at what is there now and try again; nothing was changed",
    )
    .with("revision", now)
}

/// No revision waits to be confirmed, or another one does.
pub fn nothing_to_confirm(revision: u64) -> ApiError {
    ApiError::new(
        ErrorCode::RevisionNotFound,
        format!("revision {revision} does not wait to be confirmed: it holds already, or it was undone"),
        "see `vswctl status` for what is in force",
    )
}

/// There is no port of this name.
pub fn port_not_found(name: &NetName) -> ApiError {
    ApiError::new(
        ErrorCode::PortNotFound,
        format!("there is no port {name}"),
        "see `vswctl port list` for those there are; `vswctl port create` makes one",
    )
}

/// The port has something else attached to it.
pub fn port_attached(name: &NetName, to: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::PortAttached,
        format!("port {name} is attached to {to} already"),
        format!("detach it first: `vswctl port detach {name}`"),
    )
}

/// The socket or the interface belongs to another port.
pub fn device_taken(device: impl Display, by: &NetName) -> ApiError {
    ApiError::new(
        ErrorCode::PortAttached,
        format!("{device} belongs to port {by} already"),
        format!("choose another one, or detach that port: `vswctl port detach {by}`"),
    )
}

/// The port has nothing attached here.
pub fn port_not_attached(name: &NetName) -> ApiError {
    ApiError::new(
        ErrorCode::PortNotAttached,
        format!("port {name} is not attached to this host"),
        format!("see `vswctl port show {name}` for the host that it is attached to"),
    )
}

/// A socket or an interface can't be used.
pub fn device_failed(device: impl Display, cause: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::DeviceFailed,
        format!("{device} can't be used: {cause}"),
        "check that it is there, that vswitchd may use it, and that nobody else does",
    )
}

/// An interface can't be a port.
pub fn tap_refused(interface: &str, why: TapRefused) -> ApiError {
    ApiError::new(
        ErrorCode::DeviceFailed,
        format!("interface {interface} can't be used: {why}"),
        why.next_step(),
    )
}

/// There is nothing of this name to capture or trace at.
pub fn point_not_found(point: &Point) -> ApiError {
    let (code, next) = match point {
        Point::Port(_) => (
            ErrorCode::PortNotFound,
            "see `vswctl port list`: it must be attached to this host; another host's can be watched there",
        ),
        Point::Group(_) => (ErrorCode::GroupNotFound, "see `vswctl portgroup list` for those there are"),
        Point::Uplink(_) => (ErrorCode::UplinkNotFound, "see `vswctl uplink list` for those of this host"),
    };
    ApiError::new(code, format!("there is no {point} on this host"), next)
}

/// The address may move.
pub fn mac_not_frozen(mac: Mac) -> ApiError {
    ApiError::new(
        ErrorCode::MacNotFrozen,
        format!("address {mac} is not frozen"),
        "see `vswctl mac list --frozen`; give the VNI too if it is in a virtual network",
    )
}

/// So many captures run that no further one may begin.
pub fn captures_limit(max: usize) -> ApiError {
    ApiError::new(
        ErrorCode::LimitReached,
        format!("{max} captures are running, as many as there may be"),
        "stop one of them",
    )
}

/// Nothing can be changed.
pub fn no_quorum(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::NoQuorum,
        format!("{what}: the cluster directory can't be reached or has no quorum, so nothing can be changed"),
        "forwarding goes on; `vsanctl status` says what the directory is missing",
    )
}

/// The worker does not answer, or has ended.
pub fn worker_gone(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        format!("{what}: the switch is starting or stopping"),
        "try again in a moment; `systemctl status vswitchd` says whether it runs",
    )
}

/// It took too long.
pub fn timed_out(what: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::TimedOut,
        format!("{what} was not done in time; it may still happen"),
        "look with `vswctl status` whether it did before you repeat it",
    )
}

/// A fault of ours.
pub fn internal(what: impl Display, cause: impl Display) -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        format!("{what}: {cause}"),
        "see the daemon's log (`journalctl -u vswitchd`); this is worth a bug report",
    )
}
