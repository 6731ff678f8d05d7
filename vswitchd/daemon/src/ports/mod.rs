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
#[allow(unsafe_code)]
mod packet_ring;
pub mod tap;
pub mod vhost;

use std::os::fd::{AsFd, BorrowedFd};

use vswitch_core::frame::{HEAD_BYTES, Offload};

use crate::data::snapshot::{DeviceDrops, PortLink};
use batch::Batch;

pub use packet::UplinkDevice;
pub use tap::{TapPort, TapRefused};
pub use vhost::VhostPort;

/// What is plugged into a port.
#[derive(Debug)]
pub enum PortDevice {
    /// A guest's network card, behind a vhost-user socket.
    Vhost(Box<VhostPort>),
    /// A TAP interface.
    Tap(Box<TapPort>),
}

impl PortDevice {
    // ---- getters ----

    /// What it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vhost(_) => "vhost-user",
            Self::Tap(_) => "tap",
        }
    }

    /// Whether it is an interface that was made here.
    pub fn made(&self) -> bool {
        match self {
            Self::Vhost(_) => false,
            Self::Tap(tap) => tap.made(),
        }
    }

    /// How it is when it is plugged in.
    pub(crate) fn first_link(&self) -> PortLink {
        match self {
            Self::Vhost(_) => PortLink::Waiting,
            Self::Tap(_) => PortLink::Running,
        }
    }

    /// Queues that frames can be given to.
    pub(crate) fn pairs(&self) -> usize {
        match self {
            Self::Vhost(vhost) => vhost.device.receiving().len(),
            Self::Tap(_) => 1,
        }
    }

    /// The virtio features that the guest took.
    pub(crate) fn features(&self) -> u64 {
        match self {
            Self::Vhost(vhost) => vhost.device.features(),
            Self::Tap(_) => 0,
        }
    }

    /// Whether it stopped serving.
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.device.broken().is_some(),
            Self::Tap(tap) => tap.broken.is_some(),
        }
    }

    /// What to wait for besides kicks.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Vhost(vhost) => vhost.device.control_notifier().map(AsFd::as_fd).into_iter().collect(),
            Self::Tap(tap) => vec![tap.fd()],
        }
    }

    /// Whether it has several queues for frames: then all of a flow take the same.
    #[inline]
    pub(crate) fn wants_flow(&self) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.wants_flow(),
            Self::Tap(_) => false,
        }
    }

    /// Whether it makes checksums by itself.
    pub(crate) fn takes_csum(&self) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.takes_csum(),
            Self::Tap(_) => true,
        }
    }

    // ---- frames ----

    /// Takes frames until the batch is full; whether there are more.
    pub(crate) fn take(&mut self, batch: &mut Batch, drops: &mut DeviceDrops) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.take(batch, drops),
            Self::Tap(tap) => tap.take(batch, drops),
        }
    }

    /// Gives it a frame, in up to two pieces.
    #[inline]
    pub(crate) fn give(&mut self, flow: u32, offload: Offload, pieces: &[&[u8]]) -> Result<(), Refusal> {
        match self {
            Self::Vhost(vhost) => vhost.give(flow, offload, pieces),
            Self::Tap(tap) => tap.give(offload, pieces),
        }
    }

    /// Shows it what it was given.
    pub(crate) fn flush(&mut self) {
        if let Self::Vhost(vhost) = self {
            vhost.device.flush_notifications();
        }
    }

    // ---- the loop's boundaries ----

    /// Something may have arrived.
    pub(crate) fn readable(&mut self) {
        if let Self::Tap(tap) = self {
            tap.ready = true;
        }
    }

    /// Asks to be told of the next frame. `true`: there is one already.
    pub(crate) fn arm(&mut self) -> bool {
        match self {
            Self::Vhost(vhost) => vhost.device.arm(),
            Self::Tap(tap) => tap.ready,
        }
    }

    /// Need not be told: it is looked at anyway.
    pub(crate) fn disarm(&mut self) {
        if let Self::Vhost(vhost) = self {
            vhost.device.disarm();
        }
    }

    /// It is written down that it is a port.
    pub(crate) fn keep(&self) {
        if let Self::Tap(tap) = self {
            tap.keep();
        }
    }

    /// Nobody needs it any more.
    pub(crate) fn forget(&self) {
        if let Self::Tap(tap) = self {
            tap.forget();
        }
    }

    /// What its port's policy is now.
    pub(crate) fn set_policy(&mut self, mtu: u16, up: bool) {
        match self {
            Self::Vhost(vhost) => {
                if vhost.device.settings().mtu != Some(mtu) {
                    vhost.device.set_mtu(Some(mtu));
                }
                vhost.device.set_link(up);
            }
            Self::Tap(tap) => tap.set_mtu(mtu),
        }
    }
}

/// How long a super-frame's headers are; 0 for others. A hint that some receivers use.
pub(crate) fn head_len(offload: Offload, pieces: &[&[u8]]) -> u16 {
    if offload.gso.is_none() {
        return 0;
    }
    let mut head = [0; HEAD_BYTES];
    let (mut used, mut len) = (0, 0);
    for piece in pieces {
        let now = piece.len().min(HEAD_BYTES - used);
        head[used..used + now].copy_from_slice(&piece[..now]);
        used += now;
        len += piece.len();
    }
    match offload.check(&head[..used], len) {
        Ok(Some(layout)) => layout.head_len as u16,
        _ => 0,
    }
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
    /// Not an interface that can be a port.
    #[error("{why}")]
    Tap {
        /// Which.
        interface: String,
        /// Why not.
        why: TapRefused,
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
