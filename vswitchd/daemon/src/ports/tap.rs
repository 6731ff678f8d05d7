//! A TAP interface: a port for the host itself, or for a machine monitor that knows no vhost-user.
//!
//! With `IFF_VNET_HDR`: checksums and super-frames travel both ways, as over vhost-user. One queue.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};
use vswitch_core::frame::{ETHER_BYTES, FRAME_BYTES_MAX, Offload, VIRTIO_NET_HDR_BYTES};

use super::batch::Batch;
use super::{OpenError, Refusal, head_len};
use crate::data::snapshot::DeviceDrops;

/// Bytes of `virtio_net_hdr` as the kernel has it here: without the number of buffers.
const VNET_BYTES: usize = 10;

/// A TAP interface.
pub struct TapPort {
    device: SyncDevice,
    interface: String,
    mtu: u16,
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
    /// Makes the interface, or takes it over if it is persistent, and sets it up.
    pub fn open(interface: &str, mtu: u16) -> Result<Self, OpenError> {
        let open = || {
            let builder = DeviceBuilder::new().name(interface).layer(Layer::L2).mtu(mtu).offload(true);
            let device = builder.build_sync()?;
            device.set_nonblocking(true)?;
            Ok(device)
        };
        let device = open().map_err(OpenError::system(format!("TAP interface {interface}")))?;
        Ok(Self { device, interface: interface.to_owned(), mtu, ready: true, broken: None })
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
