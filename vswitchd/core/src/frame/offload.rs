//! What is still to be done to a frame, as `virtio_net_hdr` says it (virtio 1.2, section 5.1.6), and travels with it from
//! guest to guest.
//!
//! ```text
//!   0       1          2        4          6            8             10            12     little-endian
//!   | flags | gso type | hdr_len | gso size | csum start | csum offset | num buffers |
//! ```

use super::SuperFrame;

/// Bytes of `virtio_net_hdr` with its number of buffers, as modern devices have it.
pub const VIRTIO_NET_HDR_BYTES: usize = 12;

/// Where UDP has its checksum.
const UDP_CSUM_AT: usize = 6;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_ECN: u8 = 0x80;

/// The checksum of the transport.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Csum {
    /// In the frame; nobody has looked at it.
    #[default]
    None,
    /// Known to be right.
    Valid,
    /// Still to be made: the sum from `start` to the end goes to `start + offset`, where that of the pseudo header stands.
    Partial {
        /// Where the sum begins, from the frame's beginning.
        start: u16,
        /// Where it goes, from `start`.
        offset: u16,
    },
}

impl Csum {
    /// Makes the checksum of a frame that lies in one piece, for a receiver that can't: what is left to be done. Nothing
    /// happens to a frame that has no room for it (see [`Offload::check`]).
    #[must_use]
    pub fn make(self, frame: &mut [u8]) -> Self {
        let Self::Partial { start, offset } = self else { return self };
        let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
        if at + 2 > frame.len() {
            return self;
        }
        // The field holds the pseudo header's sum, so it is part of what is summed.
        let sum = !(super::sum16(&frame[start..], 0) as u16);
        // A datagram without a checksum says 0 (RFC 768), so one that has it says the other zero.
        let udp = usize::from(offset) == UDP_CSUM_AT;
        let sum = if udp && sum == 0 { 0xffff } else { sum };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Self::None
    }
}

/// Of what a super-frame is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams (USO).
    Udp,
}

/// A super-frame: one header and the payload of many segments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gso {
    /// Of what.
    pub kind: GsoKind,
    /// With TCP's congestion bits: CWR only on the first segment (RFC 3168, section 6.1.2).
    pub ecn: bool,
    /// Payload bytes of each segment but the last.
    pub size: u16,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Offload {
    /// The checksum.
    pub csum: Csum,
    /// Segmentation.
    pub gso: Option<Gso>,
}

/// Why a frame can't be what its offload says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadOffload {
    /// An unknown type, or segmentation without a checksum.
    #[error("an unknown kind of segmentation, or one without a checksum")]
    Kind,
    /// The checksum's place is outside of the frame.
    #[error("the checksum's place is not in the frame")]
    Checksum,
    /// The headers are not those of that kind of super-frame.
    #[error("the headers are not those of such a super-frame")]
    Headers,
    /// Segments of no bytes, or too many.
    #[error("segments of no bytes, or more than a super-frame may have")]
    Segments,
}

impl Offload {
    /// Nothing is to be done.
    pub const NONE: Self = Self { csum: Csum::None, gso: None };

    /// Reads `virtio_net_hdr`. `hdr_len` is only a hint and is not looked at: where the headers end, the frame says.
    pub fn from_virtio(header: [u8; VIRTIO_NET_HDR_BYTES]) -> Result<Self, BadOffload> {
        let le16 = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let csum = if header[0] & NEEDS_CSUM != 0 {
            Csum::Partial { start: le16(6), offset: le16(8) }
        } else if header[0] & DATA_VALID != 0 {
            Csum::Valid
        } else {
            Csum::None
        };
        let kind = match header[1] & !GSO_ECN {
            0 => return if header[1] == 0 { Ok(Self { csum, gso: None }) } else { Err(BadOffload::Kind) },
            1 => GsoKind::TcpV4,
            4 => GsoKind::TcpV6,
            5 => GsoKind::Udp,
            _ => return Err(BadOffload::Kind),
        };
        let gso = Gso { kind, ecn: header[1] & GSO_ECN != 0, size: le16(4) };
        Ok(Self { csum, gso: Some(gso) })
    }

    /// Writes `virtio_net_hdr`. `head_len` is that of a super-frame's headers, 0 for others; `buffers` how many receive
    /// buffers the frame takes.
    pub fn to_virtio(self, head_len: u16, buffers: u16) -> [u8; VIRTIO_NET_HDR_BYTES] {
        let mut header = [0; VIRTIO_NET_HDR_BYTES];
        match self.csum {
            Csum::None => {}
            Csum::Valid => header[0] = DATA_VALID,
            Csum::Partial { start, offset } => {
                header[0] = NEEDS_CSUM;
                header[6..8].copy_from_slice(&start.to_le_bytes());
                header[8..10].copy_from_slice(&offset.to_le_bytes());
            }
        }
        if let Some(gso) = self.gso {
            let kind = match gso.kind {
                GsoKind::TcpV4 => 1,
                GsoKind::TcpV6 => 4,
                GsoKind::Udp => 5,
            };
            header[1] = kind | if gso.ecn { GSO_ECN } else { 0 };
            header[2..4].copy_from_slice(&head_len.to_le_bytes());
            header[4..6].copy_from_slice(&gso.size.to_le_bytes());
        }
        header[10..12].copy_from_slice(&buffers.to_le_bytes());
        header
    }

    /// Whether a frame of `len` bytes with this head can be what this says; the super-frame, if it is one.
    pub fn check(self, head: &[u8], len: usize) -> Result<Option<SuperFrame>, BadOffload> {
        if let Csum::Partial { start, offset } = self.csum {
            // The sum begins behind the Ethernet header and has room for itself.
            let end = usize::from(start) + usize::from(offset) + 2;
            if usize::from(start) < super::ETHER_BYTES || end > len {
                return Err(BadOffload::Checksum);
            }
        }
        match self.gso {
            None => Ok(None),
            Some(gso) => SuperFrame::of(head, len, self.csum, gso).map(Some),
        }
    }
}
