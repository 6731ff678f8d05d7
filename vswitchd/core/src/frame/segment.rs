//! Super-frames: where their segments are, and the headers of any run of them.
//!
//! A run of segments of a super-frame is again a frame: a super-frame if there are several, a plain one if there is one.
//! That is what is left when a datagram with some of them is lost, and, one by one, what a receiver without TSO gets.
//! The checksum stays partial: the header holds the sum of the pseudo header, which is made anew.

use super::ip::{Ip, protocol};
use super::{BadOffload, Csum, Ether, Gso, GsoKind, Offload, be16, be32, sum16};

/// The most segments of one super-frame: 64 KiB of the smallest segments that Linux sends (48 bytes) are 1366.
pub const SEGMENTS_MAX: usize = 1400;

/// CWR, PSH, FIN (RFC 9293, section 3.1; RFC 3168, section 6.1).
const CWR: u8 = 0x80;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;

/// The layout of a super-frame whose headers were checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuperFrame {
    l3: usize,
    l4: usize,
    /// Bytes of all headers.
    pub head_len: usize,
    /// Payload bytes.
    pub payload: usize,
    gso: Gso,
}

/// Some neighbouring segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub first: usize,
    /// How many, at least one.
    pub count: usize,
}

impl SuperFrame {
    /// Checks that the headers are those of such a super-frame. Two tags may stand in front of them.
    pub(super) fn of(head: &[u8], len: usize, csum: Csum, gso: Gso) -> Result<Self, BadOffload> {
        let Csum::Partial { start, offset } = csum else { return Err(BadOffload::Kind) };
        let mut ether = Ether::parse_headers(head).map_err(|_| BadOffload::Headers)?;
        if ether.hides_tag() && head.len() >= ether.l3 + super::TAG_BYTES {
            (ether.ether_type, ether.l3) = (be16(head, ether.l3 + 2), ether.l3 + super::TAG_BYTES);
        }
        let ip = Ip::parse(head, &ether).ok_or(BadOffload::Headers)?;
        let (wanted, field) = match gso.kind {
            GsoKind::TcpV4 | GsoKind::TcpV6 => (protocol::TCP, 16),
            GsoKind::Udp => (protocol::UDP, 6),
        };
        let family = match gso.kind {
            GsoKind::TcpV4 => !ip.v6,
            GsoKind::TcpV6 => ip.v6,
            GsoKind::Udp => true,
        };
        let right = family && ip.protocol == wanted && !ip.fragment;
        if !right || usize::from(start) != ip.l4 || offset != field {
            return Err(BadOffload::Headers);
        }
        let transport = match gso.kind {
            GsoKind::Udp => 8,
            // Its length in words stands in the thirteenth byte.
            _ => usize::from(*head.get(ip.l4 + 12).ok_or(BadOffload::Headers)? >> 4) * 4,
        };
        let least = if gso.kind == GsoKind::Udp { 8 } else { 20 };
        let head_len = ip.l4 + transport;
        if transport < least || head_len > head.len() || head_len >= len {
            return Err(BadOffload::Headers);
        }
        let payload = len - head_len;
        if gso.size == 0 || payload.div_ceil(usize::from(gso.size)) > SEGMENTS_MAX {
            return Err(BadOffload::Segments);
        }
        Ok(Self { l3: ether.l3, l4: ip.l4, head_len, payload, gso })
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.payload.div_ceil(self.size())
    }

    /// Payload bytes of each segment but the last.
    pub fn size(&self) -> usize {
        usize::from(self.gso.size)
    }

    /// Bytes of the largest segment behind the Ethernet header: what an MTU is about.
    pub fn packet_max(&self) -> usize {
        self.head_len - self.l3 + self.size().min(self.payload)
    }

    /// Where a run's payload begins and ends in the payload.
    pub fn bytes(&self, run: Run) -> std::ops::Range<usize> {
        let from = run.first * self.size();
        from..(from + run.count * self.size()).min(self.payload)
    }

    /// Writes the headers of a run and returns its offload. `head` is that of the super-frame.
    pub fn put_head(&self, head: &[u8], run: Run, out: &mut Vec<u8>) -> Offload {
        let bytes = self.bytes(run);
        let last = bytes.end == self.payload;
        let start = out.len();
        out.extend_from_slice(&head[..self.head_len]);
        let new = &mut out[start..];
        let transport = self.head_len - self.l4 + bytes.len();
        let v6 = new[self.l3] >> 4 == 6;
        if v6 {
            let after = self.l4 - self.l3 - 40 + transport;
            new[self.l3 + 4..self.l3 + 6].copy_from_slice(&(after as u16).to_be_bytes());
        } else {
            let total = (self.l4 - self.l3 + transport) as u16;
            new[self.l3 + 2..self.l3 + 4].copy_from_slice(&total.to_be_bytes());
            let id = be16(new, self.l3 + 4).wrapping_add(run.first as u16);
            new[self.l3 + 4..self.l3 + 6].copy_from_slice(&id.to_be_bytes());
            new[self.l3 + 10..self.l3 + 12].fill(0);
            let sum = !(sum16(&new[self.l3..self.l4], 0) as u16);
            new[self.l3 + 10..self.l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let (number, field) = if self.gso.kind == GsoKind::Udp {
            new[self.l4 + 4..self.l4 + 6].copy_from_slice(&(transport as u16).to_be_bytes());
            (protocol::UDP, 6)
        } else {
            let sequence = be32(new, self.l4 + 4).wrapping_add(bytes.start as u32);
            new[self.l4 + 4..self.l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            let flags = &mut new[self.l4 + 13];
            *flags &= !(if run.first > 0 { CWR } else { 0 } | if last { 0 } else { PSH | FIN });
            (protocol::TCP, 16)
        };
        let addresses = if v6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        let pseudo = sum16(&new[addresses], transport as u32 + u32::from(number)) as u16;
        let at = self.l4 + usize::from(field);
        new[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        Offload {
            csum: Csum::Partial { start: self.l4 as u16, offset: field },
            gso: (run.count > 1).then_some(self.gso),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A super-frame of TCP over IPv4, with some payload.
    pub(crate) fn tcp(payload: usize, size: u16) -> (Vec<u8>, Offload) {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend([0x45, 0]);
        bytes.extend(((40 + payload) as u16).to_be_bytes());
        bytes.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0x04, 0xd2, 0, 80]);
        bytes.extend(0xffff_ff00_u32.to_be_bytes());
        bytes.extend([0, 0, 0, 9, 0x50, 0x80 | 0x10 | 0x08 | 0x01, 1, 0, 0, 0, 0, 0]);
        bytes.extend((0..payload).map(|n| (n * 7 + n / 256) as u8));
        let csum = Csum::Partial { start: 34, offset: 16 };
        (bytes, Offload { csum, gso: Some(Gso { kind: GsoKind::TcpV4, ecn: false, size }) })
    }

    #[test]
    fn a_run_of_segments_is_a_frame() {
        let (bytes, offload) = tcp(3500, 1000);
        let whole = offload.check(&bytes, bytes.len()).unwrap().unwrap();
        assert_eq!((whole.segments(), whole.head_len, whole.packet_max()), (4, 54, 1040));
        let mut head = Vec::new();
        let run = whole.put_head(&bytes, Run { first: 1, count: 2 }, &mut head);
        assert_eq!(run.gso, offload.gso);
        assert_eq!(be16(&head, 16), 2040);
        assert_eq!(be16(&head, 18), 0x1235);
        assert_eq!(be32(&head, 38), 0xffff_ff00_u32.wrapping_add(1000));
        assert_eq!(head[47], 0x10, "neither the first nor the last");
        assert_eq!(sum16(&head[14..34], 0), 0xffff);
        head.clear();
        let last = whole.put_head(&bytes, Run { first: 3, count: 1 }, &mut head);
        assert_eq!((last.gso, be16(&head, 16), head[47]), (None, 540, 0x19));
        head.clear();
        let all = whole.put_head(&bytes, Run { first: 0, count: 4 }, &mut head);
        assert_eq!(all, offload);
        assert_eq!(head[47], 0x99);
        let pseudo = sum16(&bytes[26..34], 20 + 3500 + 6) as u16;
        assert_eq!(be16(&head, 50), pseudo);
    }

    #[test]
    fn checksums_are_made() {
        let (bytes, offload) = tcp(3500, 1000);
        let whole = offload.check(&bytes, bytes.len()).unwrap().unwrap();
        for n in 0..whole.segments() {
            let run = Run { first: n, count: 1 };
            let mut frame = Vec::new();
            let left = whole.put_head(&bytes, run, &mut frame);
            frame.extend_from_slice(&bytes[whole.head_len..][whole.bytes(run)]);
            assert_eq!(left.csum.make(&mut frame), Csum::None);
            let transport = (frame.len() - 34) as u32;
            let pseudo = sum16(&frame[26..34], transport + 6);
            assert_eq!(sum16(&frame[34..], pseudo), 0xffff, "a receiver finds it right");
        }
        let far = Csum::Partial { start: 60, offset: 10 };
        assert_eq!(far.make(&mut [0; 70]), far, "no room, no change");
        let mut udp = [0xff; 20];
        assert_eq!(Csum::Partial { start: 12, offset: 6 }.make(&mut udp), Csum::None);
        assert_eq!(udp[18..], [0xff; 2], "zero would say that there is none");
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let (bytes, offload) = tcp(3000, 1000);
        let check = |offload: Offload, bytes: &[u8]| offload.check(bytes, bytes.len()).map(|_| ());
        assert_eq!(check(offload, &bytes), Ok(()));
        let gso = offload.gso.unwrap();
        let with = |gso| Offload { gso: Some(gso), ..offload };
        assert_eq!(check(with(Gso { size: 0, ..gso }), &bytes), Err(BadOffload::Segments));
        assert_eq!(check(with(Gso { size: 1, ..gso }), &bytes), Err(BadOffload::Segments));
        assert_eq!(check(with(Gso { kind: GsoKind::TcpV6, ..gso }), &bytes), Err(BadOffload::Headers));
        assert_eq!(check(with(Gso { kind: GsoKind::Udp, ..gso }), &bytes), Err(BadOffload::Headers));
        assert_eq!(check(Offload { csum: Csum::Valid, ..offload }, &bytes), Err(BadOffload::Kind));
        let far = Offload { csum: Csum::Partial { start: 65_535, offset: 65_535 }, gso: None };
        assert_eq!(check(far, &bytes), Err(BadOffload::Checksum));
        let mut fragment = bytes.clone();
        fragment[20] |= 0x20;
        assert_eq!(check(offload, &fragment), Err(BadOffload::Headers));
        let mut short = bytes;
        short[46] = 0x40;
        assert_eq!(check(offload, &short), Err(BadOffload::Headers));
    }

    #[test]
    fn virtio_headers_come_back() {
        let (_, offload) = tcp(10, 5);
        for offload in [Offload::NONE, Offload { csum: Csum::Valid, gso: None }, offload] {
            assert_eq!(Offload::from_virtio(offload.to_virtio(54, 1)), Ok(offload));
        }
        assert_eq!(Offload::from_virtio([0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(BadOffload::Kind));
    }
}
