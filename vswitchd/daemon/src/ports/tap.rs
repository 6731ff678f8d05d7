//! A TAP interface: a port for the host itself, or for a machine monitor that knows no vhost-user.
//!
//! With `IFF_VNET_HDR`: checksums and super-frames travel both ways, as over vhost-user. One queue.
//!
//! ```text
//!   not there ──open──► made: gone when this program ends ──keep──► stays over restarts with its addresses ──forget──► gone
//!   there, persistent, nobody uses it ──open──► used ──────────────────────────────► as it was
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};
use vswitch_core::frame::{ETHER_BYTES, FRAME_BYTES_MAX, Offload, VIRTIO_NET_HDR_BYTES};

use ferro_protocol::net::Mac;

use super::batch::Batch;
use super::packet_ring::{interface_exists, set_persistent};
use super::{OpenError, Refusal, head_len};
use crate::data::snapshot::DeviceDrops;

/// Bytes of `virtio_net_hdr` as the kernel has it here: without the number of buffers.
const VNET_BYTES: usize = 10;

/// A TAP interface.
pub struct TapPort {
    device: SyncDevice,
    interface: String,
    mtu: u16,
    /// It was made here, and goes when nobody needs it any more.
    made: bool,
    /// There may be frames.
    pub(crate) ready: bool,
    /// Why it does not work any more.
    pub(crate) broken: Option<String>,
}

impl std::fmt::Debug for TapPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TapPort").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl TapPort {
    /// Makes the interface with this address, or takes it over if it is persistent, and sets it up. `ours`: if it is there,
    /// it was made here before.
    pub fn open(interface: &str, mac: Mac, mtu: u16, ours: bool) -> Result<Self, OpenError> {
        let refuse = |why| OpenError::Tap { interface: interface.to_owned(), why };
        if !is_name(interface) {
            return Err(refuse(TapRefused::Name));
        }
        let failed = || OpenError::system(format!("TAP interface {interface}"));
        let existed = interface_exists(interface).map_err(failed())?;
        let made = ours || !existed;
        let mut builder = DeviceBuilder::new().name(interface).layer(Layer::L2).mtu(mtu).offload(true);
        if made {
            builder = builder.mac_addr(mac.0);
        }
        // The kernel looks at what is there before it changes anything.
        let device = builder.build_sync().map_err(|error| match TapRefused::of(&error, existed) {
            Some(why) => refuse(why),
            None => failed()(error),
        })?;
        device.set_nonblocking(true).map_err(failed())?;
        Ok(Self { device, interface: interface.to_owned(), mtu, made, ready: true, broken: None })
    }

    /// Whether it was made here.
    pub fn made(&self) -> bool {
        self.made
    }

    /// That it was made here is written down: it stays when this program ends. Not before, or one whose program is killed in between would
    /// later pass for somebody else's.
    pub(crate) fn keep(&self) {
        if self.made
            && let Err(error) = set_persistent(self.device.as_fd(), true)
        {
            tracing::warn!(interface = self.interface, %error, "the interface goes when vswitchd ends");
        }
    }

    /// Nobody needs it any more: one that was made here goes with this value.
    pub(crate) fn forget(&self) {
        if self.made
            && let Err(error) = set_persistent(self.device.as_fd(), false)
        {
            tracing::warn!(interface = self.interface, %error, "the interface stays: `ip link del` removes it");
        }
    }

    /// Removes an interface that was made here and that nobody uses.
    pub fn remove(interface: &str) -> Result<(), OpenError> {
        let failed = || OpenError::system(format!("TAP interface {interface}"));
        if interface_exists(interface).map_err(failed())? {
            let builder = DeviceBuilder::new().name(interface).layer(Layer::L2).offload(true);
            let device = builder.build_sync().map_err(failed())?;
            set_persistent(device.as_fd(), false).map_err(failed())?;
        }
        Ok(())
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    pub(crate) fn set_mtu(&mut self, mtu: u16) {
        if self.mtu == mtu {
            return;
        }
        match self.device.set_mtu(mtu) {
            Ok(()) => self.mtu = mtu,
            Err(error) => tracing::warn!(interface = self.interface, mtu, %error, "the MTU can't be set"),
        }
    }

    /// Takes frames until the batch is full; whether there are more.
    pub(crate) fn take(&mut self, batch: &mut Batch, drops: &mut DeviceDrops) -> bool {
        let mut budget = batch.room_frames();
        while self.ready && budget > 0 {
            let Some(room) = batch.space(FRAME_BYTES_MAX) else { return true };
            budget -= 1;
            let mut header = [0; VIRTIO_NET_HDR_BYTES];
            let mut parts = [IoSliceMut::new(&mut header[..VNET_BYTES]), IoSliceMut::new(room)];
            match rustix::io::readv(&self.device, &mut parts) {
                Ok(bytes) if bytes >= VNET_BYTES + ETHER_BYTES => match Offload::from_virtio(header) {
                    Ok(offload) => batch.put(bytes - VNET_BYTES, offload),
                    Err(_) => drops.bad_header += 1,
                },
                Ok(_) => drops.bad_length += 1,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.ready = false,
                Err(error) => {
                    tracing::warn!(interface = self.interface, %error, "TAP interface failed");
                    self.ready = false;
                    self.broken = Some(format!("interface {}: {error}", self.interface));
                }
            }
        }
        self.ready
    }

    /// Gives the host a frame.
    pub(crate) fn give(&mut self, offload: Offload, pieces: &[&[u8]]) -> Result<(), Refusal> {
        let header = offload.to_virtio(head_len(offload, pieces), 0);
        let mut parts = [IoSlice::new(&header[..VNET_BYTES]), IoSlice::new(&[]), IoSlice::new(&[])];
        for (part, piece) in parts[1..].iter_mut().zip(pieces) {
            *part = IoSlice::new(piece);
        }
        match rustix::io::writev(&self.device, &parts[..=pieces.len().min(2)]) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Err(Refusal::NoRoom),
            // The interface is down.
            Err(Errno::IO) => Err(Refusal::NotReady),
            Err(Errno::INVAL) if offload != Offload::NONE => Err(Refusal::Offload),
            Err(error) => {
                tracing::debug!(interface = self.interface, %error, "a frame was refused");
                Err(Refusal::Failed)
            }
        }
    }
}

/// Whether an interface can be called that: `dev_valid_name` of Linux, and without what it would put a number in place of.
fn is_name(interface: &str) -> bool {
    let bad =
        |byte: u8| byte == b'/' || byte == b':' || byte == b'%' || byte.is_ascii_whitespace() || byte == 0;
    (1..16).contains(&interface.len()) && !matches!(interface, "." | "..") && !interface.bytes().any(bad)
}

/// Why an interface can't be a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TapRefused {
    /// It can't be called that.
    #[error("that is no name of an interface: 1 to 15 characters, without blanks and / : %")]
    Name,
    /// It is something else.
    #[error("it is there, and is no TAP interface with a single queue")]
    NoTap,
    /// Somebody else has it.
    #[error("another program uses it")]
    Busy,
    /// Not for us.
    #[error("vswitchd may not use it, or may not make it (CAP_NET_ADMIN)")]
    Permission,
    /// The kernel has none.
    #[error("this system has no TAP interfaces (/dev/net/tun, the kernel's module tun)")]
    NoTun,
}

impl TapRefused {
    /// What the kernel means by an error (`tun_set_iff`, and opening `/dev/net/tun`).
    fn of(error: &std::io::Error, existed: bool) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::INVAL if existed => Some(Self::NoTap),
            Errno::BUSY => Some(Self::Busy),
            Errno::PERM | Errno::ACCESS => Some(Self::Permission),
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Some(Self::NoTun),
            _ => None,
        }
    }

    /// What to do.
    pub fn next_step(self) -> &'static str {
        match self {
            Self::Name => "give it a name as `ip link` has them; nothing was changed",
            Self::NoTap => {
                "name one that is not there, which vswitchd makes, or a TAP (`ip tuntap add dev NAME mode tap`); nothing was changed"
            }
            Self::Busy => "end the program that uses it, or name another one; nothing was changed",
            Self::Permission => {
                "see that vswitchd has CAP_NET_ADMIN (its unit gives it) and that the TAP's owner is not another user; nothing was changed"
            }
            Self::NoTun => "load the module (`modprobe tun`); nothing was changed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces() {
        for good in ["tap1", "a", "fifteen-letters", "v.10"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "sixteen-letters-", "a/b", "a b", "a:b", "tap%d", ".", "..", "a\n", "a\0"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
