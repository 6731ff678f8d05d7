//! Frames through datagrams and back: whole, cut, shared, lost, late.

use ferro_protocol::net::Vni;
use vswitch_core::bugs::Bugs;
use vswitch_core::frame::{Csum, Edit, Gso, GsoKind, Offload, Tci};
use vswitch_core::hash::HashKey;
use vswitch_core::time::Instant;
use vswitch_core::tunnel::{Edited, MARKER, Malformed, Meta, Packer, Source, Unpacker, pin};

type Frame = (Meta, Vec<u8>);

const NOW: Instant = Instant(0);
const LATER: Instant = Instant(1_000_000_000);

fn plain(len: usize, n: u8) -> Frame {
    let meta = Meta { vni: Vni::new(5000).unwrap(), tci: Tci(0x600a), offload: Offload::NONE };
    (meta, (0..len).map(|i| (i * 13 + i / 256) as u8 ^ n).collect())
}

/// A super-frame of TCP over IPv4.
fn tcp(payload: usize, size: u16) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    bytes.extend(((40 + payload) as u16).to_be_bytes());
    bytes.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 4, 210, 0, 80]);
    bytes.extend(1000_u32.to_be_bytes());
    bytes.extend([0, 0, 0, 9, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.extend((0..payload).map(|i| (i * 7 + i / 256) as u8));
    let csum = Csum::Partial { start: 34, offset: 16 };
    let gso = Some(Gso { kind: GsoKind::TcpV4, ecn: false, size });
    (Meta { offload: Offload { csum, gso }, ..plain(0, 0).0 }, bytes)
}

fn pack(frames: &[Frame], datagram_max: usize) -> Vec<Vec<u8>> {
    let (mut packer, mut bytes, mut ends) = (Packer::new(datagram_max), Vec::new(), Vec::new());
    for (meta, frame) in frames {
        assert!(packer.push(meta, frame.as_slice(), &mut bytes, &mut ends));
    }
    packer.finish(&bytes, &mut ends);
    let mut from = 0;
    let datagrams: Vec<Vec<u8>> =
        ends.iter().map(|end| bytes[std::mem::replace(&mut from, *end)..*end].to_vec()).collect();
    assert!(datagrams.iter().all(|d| d.len() <= datagram_max && d[0] == MARKER));
    assert_eq!(from, bytes.len());
    datagrams
}

fn unpack(it: &mut Unpacker, datagrams: &[Vec<u8>]) -> Vec<Frame> {
    let mut frames = Vec::new();
    for datagram in datagrams {
        it.handle(NOW, datagram, |frame| frames.push((frame.meta, frame.bytes.to_vec()))).unwrap();
    }
    it.handle_time(LATER, |frame| frames.push((frame.meta, frame.bytes.to_vec())));
    assert!(!it.is_waiting());
    frames
}

#[test]
fn frames_that_fill_their_datagrams_to_the_last_byte_leave() {
    for datagram_max in [600, 1183, 1200, 1470] {
        for len in datagram_max - 40..datagram_max + 1200 {
            let sent: Vec<usize> = pack(&[plain(len, 1)], datagram_max).iter().map(Vec::len).collect();
            assert!(sent.iter().sum::<usize>() > len, "{len} bytes in datagrams of {datagram_max}: {sent:?}");
            assert!(sent.iter().all(|bytes| *bytes <= datagram_max), "{sent:?}");
        }
    }
}

#[test]
fn frames_come_out_as_they_went_in() {
    for datagram_max in [512, 1180, 1400, 8900] {
        let mut frames: Vec<Frame> = [60, 64, 1514, 60, 9014, 1514, 1514, 60].map(|len| plain(len, 3)).into();
        frames.extend([tcp(64_000, 1460), tcp(20_000, 500), tcp(3000, 8000), plain(65_000, 1)]);
        let datagrams = pack(&frames, datagram_max);
        assert_eq!(unpack(&mut Unpacker::new(Bugs::NONE), &datagrams), frames, "{datagram_max}");
        // Whichever way they come, all that fits into the window does.
        let mut mixed = datagrams;
        mixed.reverse();
        let mut out = unpack(&mut Unpacker::new(Bugs::NONE), &mixed);
        out.sort_by_key(|(_, bytes)| (bytes.len(), bytes.clone()));
        let mut all = frames.clone();
        all.sort_by_key(|(_, bytes)| (bytes.len(), bytes.clone()));
        assert!(out.len() >= all.len() - 8 && out.iter().all(|f| all.contains(f) || f.1.len() < 65_000));
    }
}

#[test]
fn small_frames_share_and_large_ones_fill() {
    let small: Vec<Frame> = (0..100).map(|n| plain(64, n)).collect();
    assert_eq!(pack(&small, 1400).len(), 6, "19 in each");
    let large: Vec<Frame> = (0..50).map(|n| plain(1514, n)).collect();
    let count = pack(&large, 1400).len();
    assert!((54..=58).contains(&count), "{count}: 75,700 bytes and their headers");
    assert_eq!(pack(&[tcp(64_000, 1300)], 1400).len(), 50, "a segment each");
}

/// The payload bytes of a super-frame that a delivered run holds.
fn covered(frame: &Frame) -> (usize, usize) {
    let sequence = u32::from_be_bytes(frame.1[38..42].try_into().unwrap()) as usize - 1000;
    (sequence, sequence + frame.1.len() - 54)
}

#[test]
fn a_lost_datagram_costs_its_segments() {
    let whole = tcp(64_000, 1300);
    let datagrams = pack(std::slice::from_ref(&whole), 1400);
    for lost in 0..datagrams.len() {
        let mut some = datagrams.clone();
        some.remove(lost);
        let out = unpack(&mut Unpacker::new(Bugs::NONE), &some);
        let bytes: usize = out.iter().map(|frame| frame.1.len() - 54).sum();
        assert!(bytes >= 64_000 - 1300, "without datagram {lost}: {bytes}");
        for frame in &out {
            let (from, to) = covered(frame);
            assert_eq!(frame.1[54..], whole.1[54 + from..54 + to]);
            let length = usize::from(u16::from_be_bytes([frame.1[16], frame.1[17]]));
            assert_eq!(length, frame.1.len() - 14);
            assert!(frame.0.offload.check(&frame.1, frame.1.len()).is_ok());
        }
    }
    // Where segments do not fit, it costs two.
    let datagrams = pack(&[tcp(64_000, 1460)], 1400);
    for lost in 0..datagrams.len() {
        let mut some = datagrams.clone();
        some.remove(lost);
        let out = unpack(&mut Unpacker::new(Bugs::NONE), &some);
        let bytes: usize = out.iter().map(|frame| frame.1.len() - 54).sum();
        assert!(bytes >= 64_000 - 2 * 1460, "without datagram {lost}: {bytes}");
    }
}

#[test]
fn a_plain_frame_with_a_gap_is_lost_and_others_are_not() {
    let frames: Vec<Frame> = (0..20).map(|n| plain(3000, n)).collect();
    let mut datagrams = pack(&frames, 1400);
    datagrams.remove(7);
    let mut it = Unpacker::new(Bugs::NONE);
    let out = unpack(&mut it, &datagrams);
    assert!(out.len() >= 18 && out.iter().all(|frame| frames.contains(frame)));
    assert_eq!(it.given_up() as usize, 20 - out.len());
    // The same again: duplicates of what is done bring nothing.
    let before = out.len();
    assert!(unpack(&mut it, &datagrams[datagrams.len() - 3..]).len() < before);
}

#[test]
fn the_path_may_change_in_between() {
    let frames = [plain(9000, 1), tcp(30_000, 1000), plain(9000, 2)];
    let (mut packer, mut bytes, mut ends) = (Packer::new(8900), Vec::new(), Vec::new());
    for (n, (meta, frame)) in frames.iter().enumerate() {
        packer.set_datagram_max([8900, 1180, 1400][n]);
        assert!(packer.push(meta, frame.as_slice(), &mut bytes, &mut ends));
    }
    packer.finish(&bytes, &mut ends);
    let mut from = 0;
    let datagrams: Vec<Vec<u8>> =
        ends.iter().map(|end| bytes[std::mem::replace(&mut from, *end)..*end].to_vec()).collect();
    assert_eq!(unpack(&mut Unpacker::new(Bugs::NONE), &datagrams), frames);
}

#[test]
fn junk_is_refused() {
    let mut it = Unpacker::new(Bugs::NONE);
    let mut handle = |bytes: &[u8]| it.handle(NOW, bytes, |_| panic!("nothing is in it"));
    assert_eq!(handle(&[]), Err(Malformed::Record));
    assert_eq!(handle(&[0xf2]), Err(Malformed::Marker(0xf2)));
    assert_eq!(handle(&[MARKER]), Ok(()));
    assert_eq!(handle(&[MARKER, 3]), Err(Malformed::Record));
    assert_eq!(handle(&[MARKER, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed::Meta), "VNI 0");
    assert_eq!(handle(&[MARKER, 0, 0, 0, 1, 0x0f, 0xff, 0, 0]), Err(Malformed::Meta), "VLAN 4095");
    assert_eq!(handle(&[MARKER, 0, 0, 0, 1, 0, 0, 0, 9, 1]), Err(Malformed::Record), "cut off");
    let far = [MARKER, 2, 0, 0, 0, 1, 0, 1, 0, 0xd0, 0, 1, 7];
    assert_eq!(handle(&far), Err(Malformed::Bounds));
    let long = [MARKER, 1, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0xff, 0, 0, 0, 0, 0];
    assert_eq!(handle(&long), Err(Malformed::Bounds));
}

#[test]
fn edits_are_made_on_the_way() {
    let frame: Vec<u8> = (0..100).collect();
    let edit = Edit { strip: true, insert: Some(Tci(5)) };
    let mut wanted = Vec::new();
    edit.apply(&frame, &mut wanted);
    let source = Edited::new(&frame, edit);
    for cut in 0..=source.len() {
        let mut out = Vec::new();
        source.copy(0, cut, &mut out);
        source.copy(cut, source.len() - cut, &mut out);
        assert_eq!(out, wanted);
    }
}

#[test]
fn only_the_flows_of_a_dead_connection_move() {
    let key = HashKey(1, 2);
    let before: Vec<_> = (0..200).map(|flow| pin(key, flow, &[true; 4]).unwrap()).collect();
    let after: Vec<_> = (0..200).map(|flow| pin(key, flow, &[true, false, true, true]).unwrap()).collect();
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert_eq!(moved, before.iter().filter(|at| **at == 1).count());
    assert!((20..90).contains(&moved));
    assert_eq!(pin(key, 1, &[false; 4]), None);
}
