//! A network card as an uplink, over `AF_PACKET`: physical ones, and veth.
//!
//! Frames come out of a ring that the kernel fills, with what is still to be done to them (`PACKET_VNET_HDR`): a super-frame
//! that the card or the kernel put together goes on as one. A tag that the kernel took off is put back. They go in with the
//! same header, so the kernel, or the card, makes checksums and cuts super-frames. The card is promiscuous as long as it is
//! open. Its own stack gets what it gets besides: an uplink's card should have no addresses.
//!
//! ```text
//!   give ──► copied behind those that wait ──── end of the turn, or no more room ──► sendmmsg: up to 64 at once
//!      └───► too large to be copied: those that wait go first, then it ──► sendmsg, from where it lies
//! ```
//!
//! Frames leave in the order in which they were given. What the kernel refuses is known only when they leave: whoever asks
//! for that is told of each ([`UplinkDevice::flush`]).

use std::io::{IoSlice, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use vswitch_core::frame::{Csum, Offload, TAG_BYTES, VIRTIO_NET_HDR_BYTES};

use super::batch::Batch;
use super::packet_ring::{PacketRing, SEND_FRAMES, VNET_BYTES, link_changes};
use super::{OpenError, Refusal, head_len};
use crate::data::snapshot::DeviceDrops;

/// The longest frame that is copied to wait for others. One that is longer costs more to copy than a system call.
const WAITING_BYTES_MAX: usize = 2048;

/// A network card that an uplink uses.
#[derive(Debug)]
pub struct UplinkDevice {
    ring: PacketRing,
    changes: OwnedFd,
    interface: String,
    /// Frames that wait for the end of the turn, one behind the other, each behind its header.
    bytes: Vec<u8>,
    waiting: Vec<Waiting>,
}

/// A frame that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Where its header begins.
    at: usize,
    /// How long both are.
    len: usize,
    offload: Offload,
}

impl UplinkDevice {
    /// Opens an interface of this network namespace.
    pub fn open(interface: &str) -> std::result::Result<Self, OpenError> {
        let what = format!("interface {interface}");
        let ring = PacketRing::open(interface).map_err(OpenError::system(what.clone()))?;
        let changes = link_changes().map_err(OpenError::system(what))?;
        let bytes = Vec::with_capacity(SEND_FRAMES * (VNET_BYTES + WAITING_BYTES_MAX));
        let waiting = Vec::with_capacity(SEND_FRAMES);
        Ok(Self { ring, changes, interface: interface.to_owned(), bytes, waiting })
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Readable when there are frames.
    pub(crate) fn frames(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Readable when links have changed.
    pub(crate) fn links(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// Takes the news of links; what they are is asked for afterwards ([`UplinkDevice::link`]).
    pub(crate) fn drain_links(&self) {
        let mut news = [0_u8; 8192];
        // An overrun is news, too.
        while matches!(rustix::io::read(&self.changes, &mut news), Ok(1..) | Err(Errno::NOBUFS)) {}
    }

    /// Whether it is up and has a carrier. An error: it is gone.
    pub(crate) fn link(&self) -> Result<bool> {
        self.ring.link()
    }

    /// Counts what found no slot in the ring.
    pub(crate) fn count_losses(&self, drops: &mut DeviceDrops) {
        match self.ring.losses() {
            Ok(lost) => drops.overrun += lost,
            Err(error) => tracing::debug!(interface = self.interface, %error, "no statistics"),
        }
    }

    /// Takes frames until the batch is full; whether there are more.
    pub(crate) fn take(&mut self, batch: &mut Batch, drops: &mut DeviceDrops) -> bool {
        // What is thrown away takes time, too.
        let mut budget = batch.room_frames();
        while budget > 0 && batch.space(vswitch_core::frame::FRAME_BYTES_MAX).is_some() {
            let Some(slot) = self.ring.next() else { return false };
            budget -= 1;
            let Some(bytes) = slot.bytes.filter(|bytes| bytes.len() >= vswitch_core::frame::ETHER_BYTES)
            else {
                drops.bad_length += 1;
                continue;
            };
            let mut header = [0; VIRTIO_NET_HDR_BYTES];
            header[..VNET_BYTES].copy_from_slice(&slot.vnet);
            let Ok(mut offload) = Offload::from_virtio(header) else {
                drops.bad_header += 1;
                continue;
            };
            let tag_bytes = if slot.tag.is_some() { TAG_BYTES } else { 0 };
            let Some(room) = batch.space(bytes.len() + tag_bytes) else {
                drops.bad_length += 1;
                continue;
            };
            let (addresses, rest) = bytes.split_at(12);
            room[..12].copy_from_slice(addresses);
            if let Some((protocol, tci)) = slot.tag {
                room[12..14].copy_from_slice(&protocol.to_be_bytes());
                room[14..16].copy_from_slice(&tci.to_be_bytes());
                if let Csum::Partial { start, .. } = &mut offload.csum {
                    *start = start.saturating_add(TAG_BYTES as u16);
                }
            }
            room[12 + tag_bytes..].copy_from_slice(rest);
            let len = room.len();
            batch.put(len, offload);
        }
        self.ring.settle();
        true
    }

    /// Takes a frame to be sent with others; whether it did. If not, it is too long, or there is no room: [`Self::flush`], and
    /// then [`Self::send`] it.
    pub(crate) fn give(&mut self, offload: Offload, pieces: &[&[u8]]) -> bool {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if bytes > WAITING_BYTES_MAX || self.waiting.len() >= SEND_FRAMES {
            return false;
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&offload.to_virtio(head_len(offload, pieces), 0)[..VNET_BYTES]);
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        self.waiting.push(Waiting { at, len: self.bytes.len() - at, offload });
        true
    }

    /// Sends what was given. `refused` is told of each frame that the kernel does not take, and may send something in its
    /// place.
    pub(crate) fn flush(&mut self, mut refused: impl FnMut(&Self, Refusal, Offload, &[u8])) {
        let mut slices = [IoSlice::new(&[]); SEND_FRAMES];
        let mut rest = &self.waiting[..];
        while let Some(first) = rest.first() {
            let count = rest.len().min(SEND_FRAMES);
            for (slice, it) in slices.iter_mut().zip(rest) {
                *slice = IoSlice::new(&self.bytes[it.at..it.at + it.len]);
            }
            match self.ring.send_many(&slices[..count]) {
                // It never says that; if it did, we would ask for ever.
                Ok(0) | Err(Errno::INTR) => {
                    let frame = &self.bytes[first.at + VNET_BYTES..first.at + first.len];
                    if let Err(refusal) = self.send(first.offload, &[frame]) {
                        refused(self, refusal, first.offload, frame);
                    }
                    rest = &rest[1..];
                }
                Ok(sent) => rest = &rest[sent.min(count)..],
                Err(error) => {
                    let frame = &self.bytes[first.at + VNET_BYTES..first.at + first.len];
                    refused(self, self.refusal(error, first.offload), first.offload, frame);
                    rest = &rest[1..];
                }
            }
        }
        self.waiting.clear();
        self.bytes.clear();
    }

    /// Whether frames wait.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends a frame now, from where it lies. Those that were given before must have been sent.
    pub(crate) fn send(&self, offload: Offload, pieces: &[&[u8]]) -> std::result::Result<(), Refusal> {
        let header = offload.to_virtio(head_len(offload, pieces), 0);
        let mut parts = [IoSlice::new(&header[..VNET_BYTES]), IoSlice::new(&[]), IoSlice::new(&[])];
        for (part, piece) in parts[1..].iter_mut().zip(pieces) {
            *part = IoSlice::new(piece);
        }
        let sent = self.ring.send(&parts[..=pieces.len().min(2)]);
        sent.map(drop).map_err(|error| self.refusal(error, offload))
    }

    fn refusal(&self, error: Errno, offload: Offload) -> Refusal {
        match error {
            Errno::AGAIN | Errno::NOBUFS => Refusal::NoRoom,
            Errno::MSGSIZE => Refusal::TooLong,
            Errno::NETDOWN | Errno::NXIO | Errno::NODEV => Refusal::NotReady,
            Errno::INVAL if offload != Offload::NONE => Refusal::Offload,
            error => {
                tracing::debug!(interface = self.interface, %error, "a frame was refused");
                Refusal::Failed
            }
        }
    }
}
