//! Confinement: a guest that breaks out of KVM, or out of a device's code, finds itself in a process that can do nothing.
//!
//! ```text
//!   started ──► broker (root, outside)                       jailed (the VM)
//!                 opens KVM, memory, kernel, sockets, log
//!                 makes a new PID namespace, runs itself anew ──► namespaces, empty root, own user, no capabilities
//!                 hands the descriptors over ────────────────────► filter of system calls for the start
//!                 answers: dial back end N, next log ◄───────────► kernel is read, threads start, each with its filter
//!                 passes signals on, waits for the end ◄────────── exit status
//! ```
//!
//! [`channel`] is all that both say to each other; what is asked for are numbers of the configuration, which the broker
//! has from the command line. Neither outlives the other. See `docs/decisions/0016-confinement.md`.

mod broker;
mod channel;
mod filters;
mod jail;

use std::fmt;

use rustix::process::{Gid, Uid};

pub use broker::broker;
pub use filters::Filters;
pub use jail::{enter, jailed};

use crate::outside::OpenError;
use crate::run::RunError;

/// Whom the VM runs as: never root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

impl User {
    /// Two numbers, neither of them root's, nor the one that means none.
    pub fn new(uid: u32, gid: u32) -> Option<Self> {
        let fine = |id: u32| id != 0 && id != u32::MAX;
        (fine(uid) && fine(gid)).then_some(Self { uid, gid })
    }

    fn uid(self) -> Uid {
        Uid::from_raw(self.uid)
    }

    fn gid(self) -> Gid {
        Gid::from_raw(self.gid)
    }
}

impl Default for User {
    fn default() -> Self {
        Self { uid: NOBODY, gid: NOBODY }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// How a VM is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// Not at all: it runs in the process that was started, with its rights.
    None,
    /// In a process of its own, as this user.
    Full(User),
}

/// Why a VM can't be confined, or not be run so.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A step of the confinement is not possible here.
    #[error(
        "confining the VM: {step}: {source}. In a container it needs CAP_SYS_ADMIN; --confine none runs without"
    )]
    Step {
        /// Which.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The filters of system calls.
    #[error("confining the VM: filters of system calls: {0}. The kernel needs CONFIG_SECCOMP_FILTER")]
    Filter(String),
    /// The jailed process was started by somebody else, or the broker has gone.
    #[error("this process is not for starting by hand: its broker does not answer ({0})")]
    NoBroker(std::io::Error),
    /// What the configuration names.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The VM.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// For `map_err`.
fn step(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> ConfineError {
    move |source| ConfineError::Step { step, source: source.into() }
}

/// How the jailed process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status; it has said why.
    Status(u8),
    /// By this signal.
    Killed(i32),
}

/// The status of a VM whose process was killed: it could not go on.
const KILLED_STATUS: u8 = 5;

impl Ended {
    /// The status of the process that was started.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Status(status) => *status,
            Self::Killed(_) => KILLED_STATUS,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the VM's process ended with status {status}"),
            Self::Killed(libc::SIGSYS) => f.write_str(
                "the VM's process was killed for a system call that is forbidden to it (SIGSYS). The kernel's log names \
                 it (journalctl -k, \"type=1326\", \"syscall=\"). Either the guest has broken into its virtual machine \
                 monitor, or this is a fault of the monitor: keep the disk and the logs, and report it",
            ),
            Self::Killed(libc::SIGKILL) => f.write_str(
                "the VM's process was killed (SIGKILL): by somebody, or for want of memory (journalctl -k, \"oom\")",
            ),
            Self::Killed(signal) => {
                write!(f, "the VM's process crashed (signal {signal}): this is a fault of the monitor, report it")
            }
        }
    }
}
