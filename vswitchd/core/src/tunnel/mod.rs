//! Frames between hosts, in QUIC datagrams.
//!
//! [`Packer`] puts frames into datagrams, [`Unpacker`] takes them out again, [`pin`] says which connection a flow takes,
//! [`Heart`] whether the other side is there, [`FairQueue`] whose frame is next where the path is slower than the guests.
//!
//! ```text
//!   datagram:  | F1 | record | record | ...        the first byte: a marker (F) and the version (1)
//!
//!   whole:     | 0 flags | vni 3 | tci 2 |          len 2         | offload | bytes       small frames share a datagram
//!   head:      | 1 flags | vni 3 | tci 2 | id 4 | total 4 | len 2 | offload | bytes       the beginning of a large one
//!   part:      | 2       | id 4 | offset 4 | len 2 | bytes                                 the rest of it, in pieces
//!
//!   offload:   | start 2 | offset 2 |  if flag 10 (checksum partial); flag 20: checksum known to be right
//!              | kind 1 | size 2 |     if flag 40 (segmentation), after the checksum           all numbers big-endian
//! ```
//!
//! **Super-frames.** The head holds the headers, the parts the payload. If a segment fits into a datagram, no segment is
//! cut: a lost datagram costs the segments in it, no more, and what arrives is delivered as the runs of segments that it
//! holds (`frame::SuperFrame`). Where a segment is larger than a datagram, a lost one costs the two that it touches. The
//! head comes once in front and once more in the second datagram, if there is one: else the loss of the first would cost
//! everything.
//!
//! **Changes of the path's MTU** take effect with the next datagram: parts have offsets, not numbers.
//!
//! What it must not know: QUIC, what the frames say, where they go.

mod heart;
mod pack;
mod queue;
mod unpack;

pub use heart::{Beat, HEARTBEAT_EVERY, HEARTBEATS_MISSED_MAX, Heart};
pub use pack::{Edited, Packer, Source, pin};
pub use queue::{FairQueue, Waiting};
pub use unpack::{Arrived, Malformed, OVERTAKEN_MAX, PATIENCE, REASSEMBLY_MAX, SLOTS, Unpacker};

use ferro_protocol::net::Vni;

use crate::frame::{Csum, Gso, GsoKind, Offload, Tci};

/// The first byte of every datagram: a marker and the version of this format.
pub const MARKER: u8 = 0xf1;
/// The least room that a datagram must have: headers of any kind, and some payload.
pub const DATAGRAM_BYTES_MIN: usize = 512;

const WHOLE: u8 = 0;
const HEAD: u8 = 1;
const PART: u8 = 2;
const KIND_MASK: u8 = 0x0f;
const CSUM_PARTIAL: u8 = 0x10;
const CSUM_VALID: u8 = 0x20;
const GSO: u8 = 0x40;
const PART_BYTES: usize = 11;

/// What a frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowKey {
    /// What all frames of its flow have in common: they take the same connection.
    pub hash: u32,
    /// Who sent it: the sources of a host share what waits to be sent.
    pub source: u16,
}

/// What a frame is besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// The virtual network.
    pub vni: Vni,
    /// Priority and VLAN; the frame's bytes have no tag of their network.
    pub tci: Tci,
    /// What is still to be done to it.
    pub offload: Offload,
}

impl Meta {
    /// Bytes of its offload.
    const fn offload_bytes(&self) -> usize {
        let csum = if matches!(self.offload.csum, Csum::Partial { .. }) { 4 } else { 0 };
        if self.offload.gso.is_some() { csum + 3 } else { csum }
    }

    fn flags(&self) -> u8 {
        let csum = match self.offload.csum {
            Csum::None => 0,
            Csum::Valid => CSUM_VALID,
            Csum::Partial { .. } => CSUM_PARTIAL,
        };
        csum | if self.offload.gso.is_some() { GSO } else { 0 }
    }

    fn put_network(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.vni.get().to_be_bytes()[1..]);
        out.extend_from_slice(&self.tci.0.to_be_bytes());
    }

    fn put_offload(&self, out: &mut Vec<u8>) {
        if let Csum::Partial { start, offset } = self.offload.csum {
            out.extend_from_slice(&start.to_be_bytes());
            out.extend_from_slice(&offset.to_be_bytes());
        }
        if let Some(gso) = self.offload.gso {
            let kind = match gso.kind {
                GsoKind::TcpV4 => 1,
                GsoKind::TcpV6 => 2,
                GsoKind::Udp => 3,
            };
            out.push(kind | if gso.ecn { 0x80 } else { 0 });
            out.extend_from_slice(&gso.size.to_be_bytes());
        }
    }
}

fn gso(kind: u8, size: u16) -> Option<Gso> {
    let known = match kind & 0x7f {
        1 => GsoKind::TcpV4,
        2 => GsoKind::TcpV6,
        3 => GsoKind::Udp,
        _ => return None,
    };
    Some(Gso { kind: known, ecn: kind & 0x80 != 0, size })
}
