use ferro_protocol::ids::{Epoch, Version};

use super::*;

const NONE: Bugs = Bugs::NONE;

fn data(first: u32, count: u32) -> Written {
    Written { first, count, what: What::Data }
}

/// A log in memory: the blocks of the slots that are mapped, with their versions.
#[derive(Default)]
struct Slots(BTreeMap<u32, (Seq, Bytes)>);

impl Slots {
    /// Writes a record as [`Ring`] places it; false if there is no room.
    fn write(&mut self, ring: &mut Ring, seq: u64, entries: &[Written]) -> bool {
        let blocks: u32 = entries.iter().filter(|e| e.what == What::Data).map(|e| e.count).sum();
        let Some(slot) = ring.room(blocks) else { return false };
        ring.append(slot, Seq(seq), entries.to_vec());
        ring.appended(Seq(seq), None, NONE);
        let header = encode(slot, Seq(seq), entries);
        let body = (0..blocks).map(|n| Bytes::from(vec![(seq + u64::from(n)) as u8; BLOCK_BYTES]));
        for (n, block) in std::iter::once(header).chain(body).enumerate() {
            let taken = self.0.insert(slot + n as u32, (Seq(seq), block));
            assert!(taken.is_none(), "slot {} was in use", slot + n as u32);
        }
        true
    }

    fn unmap(&mut self, range: BlockRange) {
        range.blocks().for_each(|slot| drop(self.0.remove(&slot)));
    }

    fn scan(&self, slots: u32) -> Result<(Ring, Vec<BlockRange>), BadLog> {
        let mut scan = Scan::default();
        for from in (0..slots).step_by(7) {
            let (mut runs, mut bytes): (Vec<Run>, BytesMut) = (Vec::new(), BytesMut::new());
            for (slot, (seq, block)) in self.0.range(from..(from + 7).min(slots)) {
                let version = Version { epoch: Epoch(1), seq: *seq };
                runs.push(Run { range: BlockRange::one(*slot).unwrap(), version, mapped: true });
                bytes.extend_from_slice(block);
            }
            scan.add(&runs, &bytes.freeze());
        }
        scan.finish(slots, NONE).map(|found| (found.ring, found.wipe))
    }
}

/// Each value of a block: its version and slot.
type Values = Vec<(Seq, Kept)>;

fn known(ring: &Ring) -> Vec<(u32, Values)> {
    ring.blocks.iter().map(|(b, values)| (*b, values.iter().map(|e| (e.seq, e.kept)).collect())).collect()
}

#[test]
fn a_header_is_read_back_and_no_other_is_taken_for_it() {
    let entries = [data(7, 2), Written { first: 0, count: 4_096, what: What::Zeros }, data(262_143, 1)];
    let block = encode(11, Seq(99), &entries);
    assert_eq!(decode(&block, 11, 4, Seq(99)), Some(entries.to_vec()));
    assert_eq!(decode(&block, 12, 4, Seq(99)), None, "it lies elsewhere");
    assert_eq!(decode(&block, 11, 4, Seq(98)), None, "it has another version");
    assert_eq!(decode(&block, 11, 3, Seq(99)), None, "a slot is missing");
    assert_eq!(decode(&block[..100], 11, 4, Seq(99)).map(|e| e.len()), Some(3));
    assert_eq!(decode(&block[..20], 11, 4, Seq(99)), None);
}

#[test]
fn a_header_that_says_too_much_is_refused() {
    for entries in [
        vec![data(262_143, 2)],
        vec![data(5, 0)],
        vec![Written { first: 0, count: 4_097, what: What::Zeros }],
    ] {
        let slots = 1 + entries.iter().filter(|e| e.what == What::Data).map(|e| e.count).sum::<u32>();
        assert_eq!(decode(&encode(0, Seq(1), &entries), 0, slots, Seq(1)), None, "{entries:?}");
    }
    let mut block = encode(0, Seq(1), &[data(0, 1)]).to_vec();
    block[10..12].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(decode(&block, 0, 2, Seq(1)), None, "more entries than a block holds");
}

#[test]
fn an_older_value_stays_until_its_row_is_settled() {
    let mut ring = Ring::new(300);
    let mut slots = Slots::default();
    assert!(slots.write(&mut ring, 10, &[data(5, 1)]));
    assert!(slots.write(&mut ring, 20, &[data(5, 2)]));
    assert_eq!(ring.latest(5).unwrap().seq, Seq(20));
    assert_eq!(ring.before(5, Seq(15)).unwrap().seq, Seq(10));
    assert_eq!(ring.trimmable(1), None, "a parity may be counted with what was written over");
    ring.settled(5, Seq(15));
    assert_eq!(ring.before(5, Seq(15)), None);
    let first = ring.trimmable(1).unwrap();
    assert_eq!((first.first(), first.count()), (0, 2));
    assert!(ring.holds_before(Seq(21)));
    ring.trimmed();
    ring.settled(5, Seq(21));
    ring.settled(6, Seq(21));
    assert!(ring.is_settled() && !ring.is_empty() && !ring.holds_before(Seq(21)));
    assert!(ring.trimmable(1).is_some());
    ring.trimmed();
    assert!(ring.is_empty());
}

#[test]
fn a_log_turns_over_and_is_found_again_as_it_was() {
    let mut ring = Ring::new(64);
    let mut slots = Slots::default();
    let (mut written, mut refused) = (0, 0);
    for seq in 1..2_000_u64 {
        let count = (seq * 7 % 11) as u32;
        let entries = if count == 0 {
            vec![Written { first: 100, count: 9, what: What::Zeros }]
        } else {
            vec![data((seq % 40) as u32, count)]
        };
        if slots.write(&mut ring, seq, &entries) {
            written += 1
        } else {
            refused += 1
        }
        let (found, wipe) = slots.scan(64).unwrap();
        assert_eq!((known(&found), wipe), (known(&ring), Vec::new()), "after {seq}");
        assert_eq!(found.head, ring.head);
        if seq % 3 == 0 {
            // What came up to some time ago is in the shards.
            for block in 0..200 {
                ring.settled(block, Seq(seq.saturating_sub(6)));
            }
            while let Some(range) = ring.trimmable(1) {
                slots.unmap(range);
                ring.trimmed();
            }
            // A scan does not know what was settled: it is put into the shards again.
            let (found, _) = slots.scan(64).unwrap();
            ring = found;
        }
    }
    assert!(written > 1_000 && refused > 50, "{written} {refused}");
}

#[test]
fn a_record_that_is_not_whole_is_wiped() {
    for missing in 0..4 {
        let (mut ring, mut slots) = (Ring::new(64), Slots::default());
        assert!(slots.write(&mut ring, 1, &[data(0, 2)]));
        let at = ring.head;
        assert!(slots.write(&mut ring, 2, &[data(10, 3)]));
        slots.unmap(BlockRange::one(at + missing).unwrap());
        let (found, wipe) = slots.scan(64).unwrap();
        assert_eq!(
            known(&found).iter().map(|(b, _)| *b).collect::<Vec<_>>(),
            [0, 1],
            "without slot {missing}"
        );
        let wiped: u32 = wipe.iter().map(|r| r.count()).sum();
        assert_eq!(wiped, 3, "all that is left of it");
        assert_eq!(found.head, at);
    }
}

#[test]
fn records_across_each_other_are_no_log() {
    let mut slots = Slots::default();
    for (slot, seq) in [(10, 1), (30, 2), (20, 3)] {
        let header = encode(slot, Seq(seq), &[Written { first: 0, count: 1, what: What::Zeros }]);
        slots.0.insert(slot, (Seq(seq), header));
    }
    assert!(slots.scan(64).is_err());
}

#[test]
fn the_oldest_block_is_looked_for_where_jobs_may_begin() {
    let mut ring = Ring::new(100);
    let mut slots = Slots::default();
    for (seq, first) in [(1, 0), (2, 50), (3, 20)] {
        assert!(slots.write(&mut ring, seq, &[data(first, 9)]));
    }
    let none = |_: u32| None;
    assert_eq!(ring.oldest(0, none), Some(0));
    // From the first record on 30 of 100 slots are taken, from the second on 20, from the last on 10.
    assert_eq!((ring.oldest(300, none), ring.oldest(301, none)), (Some(0), None));
    let first = |block: u32| (block < 9).then_some(9);
    assert_eq!((ring.oldest(200, first), ring.oldest(201, first)), (Some(50), None));
    // Part of a run is busy: the block behind that part is the oldest.
    assert_eq!(ring.oldest(0, |block| (block < 4).then_some(4)), Some(4));
    // Whoever says that a run ends where it begins passes over one block, and is asked again.
    assert_eq!(ring.oldest(0, |block| (block < 3).then_some(block)), Some(3));
    assert_eq!(ring.oldest(0, |block| (block < 59).then_some(u32::MAX)), None);
    ring.settled(4, Seq(2));
    assert_eq!(ring.oldest(0, |block| (block < 4).then_some(4)), Some(5));
}

fn staged(first: u32, count: u32) -> Written {
    Written { first, count, what: What::Staged }
}

fn cached(first: u32, count: u32, fill: u8) -> Cached {
    let mut cached = Cached::default();
    cached.add(first, Bytes::from(vec![fill; count as usize * BLOCK_BYTES]));
    cached
}

#[test]
fn a_record_of_what_is_staged_is_one_slot_that_only_later_releases_know() {
    let block = encode(3, Seq(9), &[staged(512, 512)]);
    assert_eq!(decode(&block, 3, 1, Seq(9)), Some(vec![staged(512, 512)]));
    assert_eq!(decode(&block, 3, 513, Seq(9)), None, "it has no data");
    assert_eq!(block[8..10], VERSION_STAGED.to_le_bytes());
    assert_eq!(encode(3, Seq(9), &[data(512, 1)])[8..10], VERSION.to_le_bytes());
    let mut older = block.to_vec();
    older[8..10].copy_from_slice(&VERSION.to_le_bytes());
    assert_eq!(decode(&older, 3, 1, Seq(9)), None, "a header of that version names nothing staged");
    let mixed = encode(3, Seq(9), &[staged(512, 512), data(5, 1)]);
    assert_eq!(decode(&mixed, 3, 2, Seq(9)), None, "such a record has nothing else");
    let mut both = block.to_vec();
    both[28..32].copy_from_slice(&(512 | ZERO | STAGED).to_le_bytes());
    assert_eq!(decode(&both, 3, 1, Seq(9)), None, "zeros are not staged");
}

#[test]
fn what_is_staged_is_known_until_all_of_it_is_in_force() {
    let mut ring = Ring::new(64);
    ring.append(0, Seq(10), vec![staged(0, 32)]);
    ring.append(1, Seq(20), vec![staged(32, 32)]);
    assert!(!ring.is_all_staged(0..64), "neither is on every copy");
    ring.appended(Seq(20), Some(&cached(32, 32, 2)), NONE);
    ring.appended(Seq(10), Some(&cached(0, 32, 1)), NONE);
    assert!(ring.is_all_staged(0..64) && !ring.is_all_staged(0..65));
    assert_eq!(ring.latest(31).unwrap().cached.as_ref().unwrap()[0], 1);
    assert_eq!(ring.latest(32).unwrap().to_read(), None, "it is in memory");
    // Something is written over a block of it.
    ring.append(2, Seq(30), vec![data(5, 1)]);
    ring.appended(Seq(30), None, NONE);
    assert!(!ring.is_all_staged(0..64) && ring.is_all_staged(6..64));
    for block in 0..63 {
        ring.settled(block, Seq(25));
    }
    assert_eq!(ring.staged_settled(), [Seq(10)]);
    assert_eq!(ring.staged().filter_map(Record::staged).collect::<Vec<_>>(), [staged(32, 32)]);
    ring.settled(63, Seq(25));
    assert_eq!(ring.staged_settled(), [Seq(20)]);
    assert!(ring.names_staged() && ring.staged().next().is_none());
    assert_eq!(
        ring.trimmable(1),
        BlockRange::new(0, 2).ok(),
        "what was written over it is still to be settled"
    );
}

#[test]
fn what_a_disk_would_not_stage_leaves_a_slot_and_nothing_else() {
    let mut ring = Ring::new(64);
    ring.append(0, Seq(10), vec![staged(0, 32)]);
    assert_eq!(ring.trimmable(1), None, "it is under way");
    ring.abandoned(Seq(10));
    assert!(ring.staged().next().is_none() && ring.is_settled() && ring.latest(0).is_none());
    assert_eq!(ring.trimmable(1), BlockRange::one(0).ok());
}

#[test]
fn a_new_owner_is_told_what_is_staged_and_tells_what_is_not_in_force() {
    let mut slots = Slots::default();
    let mut ring = Ring::new(64);
    slots.0.insert(0, (Seq(10), encode(0, Seq(10), &[staged(0, 32)])));
    slots.0.insert(1, (Seq(20), encode(1, Seq(20), &[staged(64, 32)])));
    ring.append(2, Seq(30), vec![data(5, 1)]);
    ring.appended(Seq(30), None, NONE);
    let mut scan = Scan::default();
    for (slot, (seq, block)) in &slots.0 {
        let version = Version { epoch: Epoch(7), seq: *seq };
        scan.add(&[Run { range: BlockRange::one(*slot).unwrap(), version, mapped: true }], block);
    }
    let mut found = scan.finish(64, NONE).unwrap();
    let version = |seq| Version { epoch: Epoch(7), seq: Seq(seq) };
    assert_eq!(found.staged, [(version(10), staged(0, 32)), (version(20), staged(64, 32))]);
    assert!(found.ring.latest(0).is_none() && found.ring.trimmable(1).is_none(), "nothing is known yet");
    found.ring.found(Seq(10), BTreeMap::from([(3, Bytes::from(vec![9; BLOCK_BYTES]))]));
    found.ring.found(Seq(20), BTreeMap::new());
    assert_eq!(found.ring.latest(3).unwrap().cached.as_ref().unwrap()[0], 9);
    assert!(found.ring.latest(4).is_none(), "that is in force");
    assert_eq!(found.ring.staged().map(Record::seq).collect::<Vec<_>>(), [Seq(10)]);
    assert!(found.ring.holds_before(Seq(15)));
    found.ring.settled(3, Seq(11));
    assert_eq!(found.ring.trimmable(1), BlockRange::new(0, 2).ok());
}
