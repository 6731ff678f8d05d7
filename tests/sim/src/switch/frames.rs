//! Frames of every kind. Each has a number in it that survives every change of its tags, by which it is found again.

use ferro_protocol::net::Mac;
use vswitch_core::frame::{Csum, Gso, GsoKind, Offload};

/// The type of plain frames (IEEE 802, 9.2.3: for experiments).
const PLAIN: u16 = 0x88b6;

/// A frame as it was sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) id: u32,
    pub(super) dst: Mac,
    pub(super) src: Mac,
    /// Its tags: type and content, the outermost first.
    pub(super) tags: Vec<(u16, u16)>,
    pub(super) bytes: Vec<u8>,
    pub(super) offload: Offload,
    /// The address that it asks about, if it does.
    pub(super) asks: Option<[u8; 4]>,
    /// The address that it says to come from, then.
    pub(super) claims: Option<[u8; 4]>,
    /// It is what a guest may not say where it is guarded.
    pub(super) rogue: Option<Rogue>,
}

/// What only some may say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rogue {
    /// An offer of DHCP.
    Dhcp,
    /// An advertisement of DHCP for IPv6.
    DhcpV6,
    /// A router advertisement.
    Router,
}

/// What it carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// So many bytes.
    Plain(usize),
    /// A question: from this address about that.
    Arp([u8; 4], [u8; 4]),
    /// A super-frame of so many bytes, in segments of so many.
    Super(usize, u16),
    /// A server's or a router's.
    Rogue(Rogue),
}

impl Sent {
    pub(super) fn new(id: u32, dst: Mac, src: Mac, tags: &[(u16, u16)], content: Content) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(dst.0);
        bytes.extend(src.0);
        for (kind, tci) in tags {
            bytes.extend(kind.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        let mut offload = Offload::NONE;
        let (mut asks, mut claims, mut rogue) = (None, None, None);
        match content {
            Content::Rogue(_) => {}
            Content::Plain(len) => {
                bytes.extend(PLAIN.to_be_bytes());
                bytes.extend(id.to_be_bytes());
                bytes.extend((0..len).map(|n| (n as u32).wrapping_mul(31).wrapping_add(id) as u8));
            }
            Content::Arp(from, about) => {
                bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                bytes.extend(src.0);
                bytes.extend(from);
                bytes.extend([0; 6]);
                bytes.extend(about);
                bytes.extend(id.to_be_bytes());
                bytes.resize(bytes.len() + 14, 0);
                (asks, claims) = (Some(about), Some(from));
            }
            Content::Super(len, size) => {
                let l4 = bytes.len() + 22;
                bytes.extend([8, 0, 0x45, 0]);
                bytes.extend(((40 + len) as u16).to_be_bytes());
                bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
                bytes.extend(id.to_be_bytes());
                bytes.extend([10, 0, 0, 2, 4, 210, 0, 80]);
                // Sequence and acknowledgement begin at 0.
                bytes.extend([0; 8]);
                bytes.extend([0x50, 0x10, 1, 0, 0, 0, 0, 0]);
                bytes
                    .extend((0..len).map(|n| (n as u32).wrapping_mul(31).wrapping_add(n as u32 / 256) as u8));
                let csum = Csum::Partial { start: l4 as u16, offset: 16 };
                offload = Offload { csum, gso: Some(Gso { kind: GsoKind::TcpV4, ecn: false, size }) };
            }
        }
        if let Content::Rogue(kind) = content {
            put_rogue(&mut bytes, kind, id);
            rogue = Some(kind);
        }
        Self { id, dst, src, tags: tags.to_vec(), bytes, offload, asks, claims, rogue }
    }

    /// The outermost tag, if it is an 802.1Q one.
    pub(super) fn tag(&self) -> Option<u16> {
        self.tags.first().filter(|(kind, _)| *kind == 0x8100).map(|(_, tci)| *tci)
    }

    /// Whether a tag stands behind the first, or a service tag in front.
    pub(super) fn hides(&self) -> bool {
        self.tags.len() > 1 || self.tags.first().is_some_and(|(kind, _)| *kind != 0x8100)
    }

    /// Bytes of its largest packet.
    pub(super) fn packet(&self) -> usize {
        let head = if self.tag().is_some() { 18 } else { 14 };
        match self.offload.gso {
            // 20 bytes each of IP and TCP.
            Some(gso) => 40 + usize::from(gso.size).min(self.bytes.len() - head - 40),
            None => self.bytes.len() - head,
        }
    }

    /// Its bytes with this tag instead of its own.
    pub(super) fn with(&self, tag: Option<u16>) -> Vec<u8> {
        let rest = if self.tag().is_some() { 16 } else { 12 };
        let mut bytes = self.bytes[..12].to_vec();
        if let Some(tci) = tag {
            bytes.extend([0x81, 0]);
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend(&self.bytes[rest..]);
        bytes
    }
}

/// The packet of a server or a router, from an address that is the frame's number.
fn put_rogue(bytes: &mut Vec<u8>, kind: Rogue, id: u32) {
    const PAYLOAD: usize = 48;
    let udp = |from: u16, to: u16| -> Vec<u8> {
        [from.to_be_bytes(), to.to_be_bytes(), (PAYLOAD as u16).to_be_bytes(), [0, 0]].concat()
    };
    let (header, protocol) = match kind {
        Rogue::Dhcp => (udp(67, 68), 17),
        Rogue::DhcpV6 => (udp(547, 546), 17),
        Rogue::Router => (vec![134, 0, 0, 0, 64, 0, 0, 30], 58),
    };
    if kind == Rogue::Dhcp {
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((20 + PAYLOAD as u16).to_be_bytes());
        bytes.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
        bytes.extend(id.to_be_bytes());
        bytes.extend([255; 4]);
    } else {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, PAYLOAD as u8, protocol, 255]);
        bytes.extend(id.to_be_bytes());
        bytes.extend([0; 11]);
        bytes.push(1);
        bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
    let end = bytes.len() + PAYLOAD;
    bytes.extend(header);
    bytes.resize(end, 0);
}

/// Where a frame's content begins, and its type.
pub(super) fn content(bytes: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
        if !matches!(kind, 0x8100 | 0x88a8) {
            return Some((at + 2, kind));
        }
        at += 4;
    }
}

/// The number of a frame; none if it is none of ours.
pub(super) fn id(bytes: &[u8]) -> Option<u32> {
    let (at, kind) = content(bytes)?;
    let place = match kind {
        PLAIN => at,
        0x0806 => at + 28,
        0x0800 => at + 12,
        0x86dd => at + 8,
        _ => return None,
    };
    Some(u32::from_be_bytes(bytes.get(place..place + 4)?.try_into().ok()?)).filter(|id| *id != 0)
}
