//! What a receiver can't do by itself is done here: super-frames are cut, checksums made. The slow way, for receivers that
//! did not negotiate what the sender did; nothing of this runs for frames that their receiver takes as they are.

use vswitch_core::frame::{Csum, HEAD_BYTES, Offload, Run};

use crate::ports::Refusal;

/// Buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct Mender {
    whole: Vec<u8>,
    segment: Vec<u8>,
}

impl Mender {
    /// Gives `emit` the frame as one or more that are plain, or, if the receiver takes that, with checksums to be made. The
    /// first refusal ends it: what went before stays sent, as on any wire.
    pub(super) fn mend(
        &mut self,
        offload: Offload,
        pieces: &[&[u8]],
        takes_csum: bool,
        mut emit: impl FnMut(Offload, &[&[u8]]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.whole.clear();
        for piece in pieces {
            self.whole.extend_from_slice(piece);
        }
        let head = &self.whole[..self.whole.len().min(HEAD_BYTES)];
        let Some(layout) = offload.check(head, self.whole.len()).map_err(|_| Refusal::Offload)? else {
            let csum = if takes_csum { return Err(Refusal::Offload) } else { offload.csum };
            return match csum.make(&mut self.whole) {
                Csum::Partial { .. } => Err(Refusal::Offload),
                csum => emit(Offload { csum, gso: None }, &[&self.whole]),
            };
        };
        for first in 0..layout.segments() {
            let run = Run { first, count: 1 };
            self.segment.clear();
            let left = layout.put_head(&self.whole, run, &mut self.segment);
            self.segment.extend_from_slice(&self.whole[layout.head_len..][layout.bytes(run)]);
            let csum = if takes_csum { left.csum } else { left.csum.make(&mut self.segment) };
            emit(Offload { csum, gso: None }, &[&self.segment])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::frame::{Gso, GsoKind};

    fn super_frame(payload: usize, size: u16) -> (Vec<u8>, Offload) {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        bytes.extend(((40 + payload) as u16).to_be_bytes());
        bytes.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0x04, 0xd2, 0, 80, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        bytes.extend((0..payload).map(|n| (n * 7 + n / 256) as u8));
        let csum = Csum::Partial { start: 34, offset: 16 };
        (bytes, Offload { csum, gso: Some(Gso { kind: GsoKind::TcpV4, ecn: false, size }) })
    }

    #[test]
    fn a_super_frame_becomes_segments() {
        let (bytes, offload) = super_frame(2500, 1000);
        let (first, rest) = bytes.split_at(20);
        for takes_csum in [false, true] {
            let mut got = Vec::new();
            let mut mender = Mender::default();
            let emit = |offload: Offload, pieces: &[&[u8]]| {
                assert_eq!(offload.gso, None);
                assert_eq!(matches!(offload.csum, Csum::Partial { .. }), takes_csum);
                got.push(pieces.concat());
                Ok(())
            };
            assert_eq!(mender.mend(offload, &[first, rest], takes_csum, emit), Ok(()));
            assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
            let payload: Vec<u8> = got.iter().flat_map(|frame| frame[54..].to_vec()).collect();
            assert_eq!(payload, bytes[54..]);
        }
    }

    #[test]
    fn what_can_not_be_mended_is_refused() {
        let (bytes, offload) = super_frame(100, 50);
        let far = Offload { csum: Csum::Partial { start: 34, offset: 60_000 }, gso: None };
        let mut mender = Mender::default();
        let emit = |_: Offload, _: &[&[u8]]| -> Result<(), Refusal> { panic!("nothing is sent") };
        assert_eq!(mender.mend(far, &[&bytes], false, emit), Err(Refusal::Offload));
        let plain = Offload { gso: None, ..offload };
        assert_eq!(
            mender.mend(plain, &[&bytes], true, emit),
            Err(Refusal::Offload),
            "it was refused as it is"
        );
    }
}
