//! Where frames come from and go to: vhost-user-net, TAP, physical NICs.
//!
//! A device is opened by the control plane, which may wait, and given to the worker (`data::port::Command`), which must
//! not. All of them speak the same way: frames come out in batches ([`batch::Batch`]) with what is still to be done to them
//! ([`vswitch_core::frame::Offload`]), and go in as pieces that follow one another, with the same; or they are refused, and
//! the refusal says why ([`Refusal`]).
//!
//! What it must not know: where frames go, MAC tables, VLANs of groups, peers.

pub mod batch;
pub mod packet;
pub mod vhost;

pub use packet::UplinkDevice;
pub use vhost::VhostPort;

/// What is plugged into a port.
#[derive(Debug)]
pub enum PortDevice {
    /// A guest's network card, behind a vhost-user socket.
    Vhost(Box<VhostPort>),
}

/// Why a device did not take a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Nobody takes frames.
    #[error("nobody takes frames there")]
    NotReady,
    /// No room now.
    #[error("its rings or buffers are full")]
    NoRoom,
    /// Too long.
    #[error("the frame is longer than it takes")]
    TooLong,
    /// It can't make this checksum or cut this super-frame: do it before.
    #[error("it does not do such checksums or super-frames")]
    Offload,
    /// The system refused.
    #[error("the system refused")]
    Failed,
}

/// Why a device can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// What was being done, to what.
        what: String,
        /// Why it failed.
        error: std::io::Error,
    },
    /// Not as the vhost-user device wants it.
    #[error("socket {0}: {1}")]
    Vhost(String, ferro_vhost::SessionError),
}

impl OpenError {
    /// Of a system call's error.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::System { what, error }
    }
}
