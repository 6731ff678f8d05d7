//! Frames as bytes: what a switch must read of them, and what it may change.
//!
//! ```text
//!   0         6        12                 16                        IEEE 802.3, 3.1.1; IEEE 802.1Q, 9.3
//!   | dst MAC | src MAC | 8100 | PCP DEI VID | ether type | ...
//!                       '------- the tag, if any --------'
//! ```
//!
//! A frame comes as its *head*, a private copy of its first bytes, and its length: what a guest may still change while it
//! is looked at must never be looked at twice. [`HEAD_BYTES`] are enough for every header that is read here. Beside it
//! travels its [`Offload`]: checksum and segmentation that are still to be done, or need not be.
//!
//! Every function here takes any bytes and returns; nothing is trusted for its length.

pub mod arp;
pub mod ip;
pub mod nd;
mod offload;
mod segment;

pub use offload::{BadOffload, Csum, Gso, GsoKind, Offload, VIRTIO_NET_HDR_BYTES};
pub use segment::{Run, SEGMENTS_MAX, SuperFrame};

use ferro_protocol::net::{Mac, VlanId};

/// How much of a frame's beginning its head must hold, if the frame is that long: Ethernet, two tags, IPv6 with some
/// extension headers, TCP with all options.
pub const HEAD_BYTES: usize = 192;
/// Bytes of an Ethernet header without a tag.
pub const ETHER_BYTES: usize = 14;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 4;
/// The longest frame: 65,535 bytes behind an IPv6 header, with a tag.
pub const FRAME_BYTES_MAX: usize = 65_535 + 40 + ETHER_BYTES + TAG_BYTES;

/// Ether types (IEEE registry).
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// RARP, which switches learn a moved address from.
    pub const RARP: u16 = 0x8035;
    /// A customer's tag (IEEE 802.1Q, table 9-1).
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A service tag (IEEE 802.1Q, table 9-1).
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// What service tags were before they were standard.
    pub const OLD_SERVICE_VLAN: u16 = 0x9100;
    /// For experiments (IEEE 802, 9.2.3): beacons between uplinks.
    pub const LOCAL_EXPERIMENT: u16 = 0x88b5;
}

/// Whether the type says that a tag follows.
const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN | ether_type::OLD_SERVICE_VLAN)
}

/// A VLAN of the data path: 0 is "none", 1 to 4094 a [`VlanId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Vid(u16);

impl Vid {
    /// No VLAN: untagged.
    pub const NONE: Self = Self(0);

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// As a VLAN, unless it is none.
    pub fn vlan(self) -> Option<VlanId> {
        VlanId::new(u32::from(self.0)).ok()
    }
}

impl From<VlanId> for Vid {
    fn from(vlan: VlanId) -> Self {
        Self(vlan.get())
    }
}

impl From<Option<VlanId>> for Vid {
    fn from(vlan: Option<VlanId>) -> Self {
        vlan.map_or(Self::NONE, Self::from)
    }
}

/// A tag's content: priority, drop eligibility, VLAN (IEEE 802.1Q, 9.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tci(pub u16);

impl Tci {
    /// The VLAN's number, with the values that are none: 0 and 4095.
    pub const fn raw_vid(self) -> u16 {
        self.0 & 0x0fff
    }

    /// The VLAN; none for a priority tag, `Err` for 4095.
    pub const fn vid(self) -> Result<Vid, Malformed> {
        if self.raw_vid() == 0x0fff { Err(Malformed::ReservedVlan) } else { Ok(Vid(self.raw_vid())) }
    }

    /// This tag with another VLAN, its priority kept.
    #[must_use]
    pub const fn with(self, vid: Vid) -> Self {
        Self((self.0 & 0xf000) | vid.0)
    }
}

/// What makes bytes no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its headers, or longer than any frame.
    #[error("the frame is shorter than its headers or longer than any frame")]
    Length,
    /// The source address is a group or zero (IEEE 802.3, 3.2.3).
    #[error("the source address is not a station's")]
    Source,
    /// VLAN 4095.
    #[error("VLAN 4095 is reserved")]
    ReservedVlan,
}

/// The Ethernet header and its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ether {
    /// To whom.
    pub dst: Mac,
    /// From whom.
    pub src: Mac,
    /// Its 802.1Q tag.
    pub tag: Option<Tci>,
    /// The type behind the tag. Less than 0x0600 is a length (IEEE 802.3, 3.2.6).
    pub ether_type: u16,
    /// Where what it carries begins.
    pub l3: usize,
}

impl Ether {
    /// Reads the head of a frame of `len` bytes.
    pub fn parse(head: &[u8], len: usize) -> Result<Self, Malformed> {
        if len > FRAME_BYTES_MAX || len < head.len() || head.len() < ETHER_BYTES.max(len.min(HEAD_BYTES)) {
            return Err(Malformed::Length);
        }
        Self::parse_headers(head)
    }

    /// Reads a head that may be no more than its headers.
    pub(crate) fn parse_headers(head: &[u8]) -> Result<Self, Malformed> {
        if head.len() < ETHER_BYTES {
            return Err(Malformed::Length);
        }
        let mac =
            |at: usize| Mac([head[at], head[at + 1], head[at + 2], head[at + 3], head[at + 4], head[at + 5]]);
        let (dst, src) = (mac(0), mac(6));
        if !src.is_station() {
            return Err(Malformed::Source);
        }
        let outer = be16(head, 12);
        if outer != ether_type::VLAN {
            return Ok(Self { dst, src, tag: None, ether_type: outer, l3: ETHER_BYTES });
        }
        if head.len() < ETHER_BYTES + TAG_BYTES {
            return Err(Malformed::Length);
        }
        let tag = Tci(be16(head, 14));
        Ok(Self { dst, src, tag: Some(tag), ether_type: be16(head, 16), l3: ETHER_BYTES + TAG_BYTES })
    }

    /// Whether a tag stands where only a type may: behind the tag, or a service tag in front. Once the tag before it is
    /// taken off, it would speak for itself.
    pub const fn hides_tag(&self) -> bool {
        is_tag(self.ether_type)
    }

    /// Whether a bridge must not forward it: link-local protocols such as spanning tree, LACP, LLDP and pause (IEEE
    /// 802.1Q, table 8-1).
    pub fn is_reserved(&self) -> bool {
        matches!(self.dst.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
    }
}

/// How a frame's tag changes on its way out. The frame itself is never copied for it: whoever writes it to its
/// destination writes [`Edit::prefix`] and then the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Edit {
    /// The tag that it came with is left out.
    pub strip: bool,
    /// This tag is put in.
    pub insert: Option<Tci>,
}

/// The beginning of a frame that was edited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    bytes: [u8; 16],
    len: u8,
    /// Where in the original the rest begins.
    pub rest_from: usize,
}

impl Prefix {
    /// What stands before the rest.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Edit {
    /// Nothing changes.
    pub const NONE: Self = Self { strip: false, insert: None };

    /// From the tag that a frame has to the one that it shall have.
    pub fn between(has: Option<Tci>, wants: Option<Tci>) -> Self {
        if has == wants { Self::NONE } else { Self { strip: has.is_some(), insert: wants } }
    }

    /// How long a frame of `len` bytes becomes.
    pub const fn len(self, len: usize) -> usize {
        let longer = if self.insert.is_some() { len + TAG_BYTES } else { len };
        if self.strip { longer - TAG_BYTES } else { longer }
    }

    /// The beginning of what goes out. The head is one that [`Ether::parse`] took.
    pub fn prefix(self, head: &[u8]) -> Prefix {
        let mut bytes = [0; 16];
        bytes[..12].copy_from_slice(&head[..12]);
        let mut len = 12;
        if let Some(tci) = self.insert {
            bytes[12..14].copy_from_slice(&ether_type::VLAN.to_be_bytes());
            bytes[14..16].copy_from_slice(&tci.0.to_be_bytes());
            len = 16;
        }
        Prefix { bytes, len, rest_from: if self.strip { 16 } else { 12 } }
    }

    /// The offload of what goes out: its offsets move with the bytes.
    pub fn offload(self, offload: Offload) -> Offload {
        let Csum::Partial { start, offset } = offload.csum else { return offload };
        let start = self.len(usize::from(start)) as u16;
        Offload { csum: Csum::Partial { start, offset }, ..offload }
    }

    /// The whole frame as it goes out, into `out`.
    pub fn apply(self, frame: &[u8], out: &mut Vec<u8>) {
        let prefix = self.prefix(frame);
        out.extend_from_slice(prefix.bytes());
        out.extend_from_slice(&frame[prefix.rest_from..]);
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The one's complement sum that IP, TCP and UDP use (RFC 1071), not yet folded.
pub(crate) fn sum16(bytes: &[u8], start: u32) -> u32 {
    let mut sum = u64::from(start);
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[u16], ether_type: u16) -> Vec<u8> {
        let mut bytes = vec![0x52, 0, 0, 0, 0, 1, 0x52, 0, 0, 0, 0, 2];
        for tci in tags {
            bytes.extend([0x81, 0]);
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend([7; 50]);
        bytes
    }

    #[test]
    fn tags_are_read() {
        let plain = frame(&[], 0x0800);
        let ether = Ether::parse(&plain, plain.len()).unwrap();
        assert_eq!((ether.tag, ether.ether_type, ether.l3), (None, 0x0800, 14));
        let tagged = frame(&[0xa00a], 0x0806);
        let ether = Ether::parse(&tagged, tagged.len()).unwrap();
        assert_eq!((ether.tag, ether.ether_type, ether.l3), (Some(Tci(0xa00a)), 0x0806, 18));
        assert_eq!(ether.tag.unwrap().vid(), Ok(Vid(10)));
        assert!(!ether.hides_tag());
        let double = frame(&[10, 20], 0x0800);
        assert!(Ether::parse(&double, double.len()).unwrap().hides_tag());
        let service = frame(&[], ether_type::SERVICE_VLAN);
        assert!(Ether::parse(&service, service.len()).unwrap().hides_tag());
    }

    #[test]
    fn bad_frames_are_refused() {
        let plain = frame(&[], 0x0800);
        assert_eq!(Ether::parse(&plain[..13], 13), Err(Malformed::Length));
        assert_eq!(Ether::parse(&plain[..20], plain.len()), Err(Malformed::Length), "the head is too short");
        assert_eq!(Ether::parse(&plain, FRAME_BYTES_MAX + 1), Err(Malformed::Length));
        let tagged = frame(&[10], 0x0800);
        assert_eq!(Ether::parse(&tagged[..16], 16), Err(Malformed::Length));
        let reserved = frame(&[0x0fff], 0x0800);
        let tag = Ether::parse(&reserved, reserved.len()).unwrap().tag.unwrap();
        assert_eq!(tag.vid(), Err(Malformed::ReservedVlan), "it is one, but of no VLAN");
        for source in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 0]] {
            let mut bytes = plain.clone();
            bytes[6..12].copy_from_slice(&source);
            assert_eq!(Ether::parse(&bytes, bytes.len()), Err(Malformed::Source));
        }
    }

    #[test]
    fn edits_move_the_tag_and_nothing_else() {
        let (plain, tagged, other) = (frame(&[], 0x0800), frame(&[0x600a], 0x0800), frame(&[0x600b], 0x0800));
        let check = |from: &[u8], to: &[u8]| {
            let tag = |bytes: &[u8]| Ether::parse(bytes, bytes.len()).unwrap().tag;
            let edit = Edit::between(tag(from), tag(to));
            let mut out = Vec::new();
            edit.apply(from, &mut out);
            assert_eq!(out, to);
            assert_eq!(edit.len(from.len()), to.len());
            let before = Offload { csum: Csum::Partial { start: 34, offset: 16 }, gso: None };
            let Csum::Partial { start, .. } = edit.offload(before).csum else { panic!("it stays partial") };
            assert_eq!(usize::from(start) + from.len(), 34 + to.len());
        };
        for (from, to) in [(&plain, &tagged), (&tagged, &plain), (&tagged, &other), (&plain, &plain)] {
            check(from, to);
        }
    }

    #[test]
    fn sums_do_not_overflow() {
        assert_eq!(sum16(&vec![0xff; 65_535], 0xffff), sum16(&[0xff, 0], 0xffff));
        assert_eq!(sum16(&[1, 2, 3], 0), 0x0102 + 0x0300);
    }
}
