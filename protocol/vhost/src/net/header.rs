//! `virtio_net_hdr` (virtio 1.3, section 5.1.6): what is still to be done to a frame, in front of each.
//!
//! ```text
//!   0       1          2         4          6            8             10            12     little-endian
//!   | flags | gso type | hdr_len | gso_size | csum_start | csum_offset | num_buffers |
//! ```
//!
//! `num_buffers` is there with `VERSION_1` or `MRG_RXBUF`, else the header ends before it.

use super::config::feature;

/// Bytes of the header with its number of buffers.
pub const HEADER_BYTES: usize = 12;
/// Bytes of an Ethernet header: no frame is shorter, no checksum begins before its end.
pub const ETHER_BYTES: usize = 14;

/// Bits of `flags`.
pub mod header_flag {
    /// The checksum is still to be made.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum is known to be right. Only from the device to the driver.
    pub const DATA_VALID: u8 = 2;
}

/// Values of `gso_type`.
pub mod gso_type {
    /// An ordinary frame.
    pub const NONE: u8 = 0;
    /// TCP over IPv4 (`HOST_TSO4`, `GUEST_TSO4`).
    pub const TCPV4: u8 = 1;
    /// TCP over IPv6 (`HOST_TSO6`, `GUEST_TSO6`).
    pub const TCPV6: u8 = 4;
    /// A bit beside the type: TCP with ECN (`HOST_ECN`, `GUEST_ECN`).
    pub const ECN: u8 = 0x80;
}

/// The header's fields, in the host's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioNetHdr {
    /// See [`header_flag`].
    pub flags: u8,
    /// See [`gso_type`].
    pub gso_type: u8,
    /// Bytes of all headers of a super-frame: a hint, the frame itself says where its headers end.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a super-frame.
    pub gso_size: u16,
    /// Where the checksum begins, from the frame's beginning.
    pub csum_start: u16,
    /// Where it goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the frame takes; the device sets it.
    pub num_buffers: u16,
}

/// Why a header can't be that of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// A checksum or a kind of super-frame whose feature was not negotiated, or that does not exist.
    #[error("asks for what was not negotiated")]
    NotNegotiated,
    /// The checksum, or its place, is not in the frame.
    #[error("the checksum's place is not in the frame")]
    Checksum,
    /// A super-frame without a checksum to be made, or with segments of no bytes.
    #[error("a super-frame without a checksum, or with segments of no bytes")]
    Gso,
}

/// Which features allow what, seen from one side.
struct Allowed {
    csum: u64,
    tso4: u64,
    tso6: u64,
    ecn: u64,
}

/// What a driver may ask of us.
const FROM_DRIVER: Allowed = Allowed {
    csum: feature::CSUM,
    tso4: feature::HOST_TSO4,
    tso6: feature::HOST_TSO6,
    ecn: feature::HOST_ECN,
};
/// What we may ask of a driver.
const TO_DRIVER: Allowed = Allowed {
    csum: feature::GUEST_CSUM,
    tso4: feature::GUEST_TSO4,
    tso6: feature::GUEST_TSO6,
    ecn: feature::GUEST_ECN,
};

impl VirtioNetHdr {
    /// Reads the fields. Total: any bytes are fields.
    #[inline]
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Writes the fields.
    #[inline]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// Whether the checksum is still to be made.
    pub fn needs_csum(self) -> bool {
        self.flags & header_flag::NEEDS_CSUM != 0
    }

    /// Whether the frame is a super-frame.
    pub fn is_gso(self) -> bool {
        self.gso_type != gso_type::NONE
    }

    /// A driver's header for a frame of `frame_len` bytes, with what has no meaning there cleared: unknown flags are
    /// ignored and `DATA_VALID` is not a driver's to say (section 5.1.6.2.2); without segmentation, or without a checksum,
    /// the fields of them are nothing. Fails if it asks for what was not negotiated or can't be done to this frame.
    #[inline]
    pub fn for_device(self, frame_len: usize, features: u64) -> Result<Self, BadHeader> {
        if self.flags & header_flag::NEEDS_CSUM == 0 && self.gso_type == gso_type::NONE {
            return Ok(Self::default());
        }
        let hdr = Self { flags: self.flags & header_flag::NEEDS_CSUM, num_buffers: 0, ..self };
        hdr.check(frame_len, features, &FROM_DRIVER)?;
        if !hdr.is_gso() {
            return Ok(Self { hdr_len: 0, gso_size: 0, ..hdr });
        }
        // A hint that is never trusted must at least not lead out of the frame.
        Ok(Self { hdr_len: hdr.hdr_len.min(frame_len.min(usize::from(u16::MAX)) as u16), ..hdr })
    }

    /// The header as a driver with these features may get it. Fails if the frame needs what the driver can't do:
    /// then the checksum has to be made, or the super-frame cut, before.
    #[inline]
    pub fn for_driver(self, frame_len: usize, features: u64) -> Result<Self, BadHeader> {
        if self.flags == 0 && self.gso_type == gso_type::NONE {
            return Ok(Self::default());
        }
        let known = header_flag::NEEDS_CSUM | header_flag::DATA_VALID;
        let mut hdr = Self { flags: self.flags & known, ..self };
        hdr.check(frame_len, features, &TO_DRIVER)?;
        if features & feature::GUEST_CSUM == 0 {
            // Only a statement: a driver that does not ask for it checks for itself.
            hdr.flags &= !header_flag::DATA_VALID;
        }
        Ok(hdr)
    }

    #[inline]
    fn check(self, frame_len: usize, features: u64, allowed: &Allowed) -> Result<(), BadHeader> {
        if self.needs_csum() {
            if features & allowed.csum == 0 {
                return Err(BadHeader::NotNegotiated);
            }
            let start = usize::from(self.csum_start);
            if start < ETHER_BYTES || start + usize::from(self.csum_offset) + 2 > frame_len {
                return Err(BadHeader::Checksum);
            }
        }
        if !self.is_gso() {
            return Ok(());
        }
        let needed = match self.gso_type & !gso_type::ECN {
            gso_type::TCPV4 => allowed.tso4,
            gso_type::TCPV6 => allowed.tso6,
            _ => return Err(BadHeader::NotNegotiated),
        };
        let ecn = self.gso_type & gso_type::ECN != 0;
        if features & needed == 0 || ecn && features & allowed.ecn == 0 {
            return Err(BadHeader::NotNegotiated);
        }
        if !self.needs_csum() || self.gso_size == 0 {
            return Err(BadHeader::Gso);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = feature::ALL;

    fn tso() -> VirtioNetHdr {
        VirtioNetHdr {
            flags: header_flag::NEEDS_CSUM,
            gso_type: gso_type::TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    #[test]
    fn fields_survive_the_wire() {
        let hdr = VirtioNetHdr { num_buffers: 0x1234, ..tso() };
        assert_eq!(VirtioNetHdr::parse(hdr.encode()), hdr);
        assert_eq!(hdr.encode(), [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0x34, 0x12]);
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        assert_eq!(tso().for_device(4000, ALL), Ok(tso()));
        for missing in [feature::CSUM, feature::HOST_TSO4] {
            assert_eq!(tso().for_device(4000, ALL & !missing), Err(BadHeader::NotNegotiated));
        }
        for missing in [feature::GUEST_CSUM, feature::GUEST_TSO4] {
            assert_eq!(tso().for_driver(4000, ALL & !missing), Err(BadHeader::NotNegotiated));
        }
        let ecn = VirtioNetHdr { gso_type: gso_type::TCPV6 | gso_type::ECN, ..tso() };
        assert_eq!(ecn.for_device(4000, ALL), Ok(ecn));
        assert_eq!(ecn.for_device(4000, ALL & !feature::HOST_ECN), Err(BadHeader::NotNegotiated));
        assert_eq!(ecn.for_device(4000, ALL & !feature::HOST_TSO6), Err(BadHeader::NotNegotiated));
        for kind in [2, 3, 5, 0x7f, 0x80] {
            let odd = VirtioNetHdr { gso_type: kind, ..tso() };
            assert_eq!(odd.for_device(4000, u64::MAX), Err(BadHeader::NotNegotiated), "{kind}");
        }
    }

    #[test]
    fn the_checksum_lies_within_the_frame() {
        let at = |csum_start, csum_offset, len| {
            VirtioNetHdr { gso_type: 0, csum_start, csum_offset, ..tso() }.for_device(len, ALL)
        };
        assert!(at(34, 16, 52).is_ok());
        assert_eq!(at(34, 16, 51), Err(BadHeader::Checksum));
        assert_eq!(at(13, 16, 60), Err(BadHeader::Checksum));
        assert_eq!(at(u16::MAX, u16::MAX, 65_562), Err(BadHeader::Checksum));
    }

    #[test]
    fn super_frames_have_a_checksum_and_a_segment_size() {
        assert_eq!(VirtioNetHdr { gso_size: 0, ..tso() }.for_device(4000, ALL), Err(BadHeader::Gso));
        assert_eq!(VirtioNetHdr { flags: 0, ..tso() }.for_device(4000, ALL), Err(BadHeader::Gso));
        let long = VirtioNetHdr { hdr_len: 9000, ..tso() }.for_device(4000, ALL).unwrap();
        assert_eq!(long.hdr_len, 4000);
    }

    #[test]
    fn what_means_nothing_is_cleared() {
        let noise = VirtioNetHdr { flags: 0xfe, gso_type: 0, ..tso() };
        assert_eq!(noise.for_device(60, ALL), Ok(VirtioNetHdr::default()));
        let valid = VirtioNetHdr { flags: header_flag::DATA_VALID, ..VirtioNetHdr::default() };
        assert_eq!(valid.for_driver(60, ALL), Ok(valid));
        assert_eq!(valid.for_driver(60, 0), Ok(VirtioNetHdr::default()));
    }
}
