//! A scrub and disks that don't answer. (Bad blocks, and what becomes of them, are the simulator's.)

mod common;

use std::time::Duration;

use common::{CHUNK, Lab};
use vsand_core::owner::ScrubEnd;

const FAST: u64 = 1 << 34;

fn end(blocks: u64, skipped: u32) -> ScrubEnd {
    ScrubEnd { chunk: CHUNK.index, blocks, found: 0, mended: 0, skipped, lost: skipped }
}

#[test]
fn every_component_is_read_once() {
    let mut lab = Lab::new(3);
    lab.write(0, 10);
    lab.write(70_000, 5);
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_millis(200));
    assert_eq!(lab.scrubs, [end(3 * 15, 0)]);
    assert!(lab.owner.scrub_view().is_none());
}

#[test]
fn it_goes_no_faster_than_it_may() {
    let mut lab = Lab::new(2);
    for n in 0..32 {
        lab.write(n * 256, 256);
    }
    lab.owner.scrub(lab.now, CHUNK.index, 8 << 20);
    // 64 MiB on both together.
    lab.pass(Duration::from_secs(6));
    assert!(lab.scrubs.is_empty(), "{:?}", lab.scrubs);
    let view = lab.owner.scrub_view().unwrap();
    assert_eq!((view.components, view.components_done), (2, 1));
    lab.pass(Duration::from_secs(4));
    assert_eq!(lab.scrubs, [end(2 * 32 * 256, 0)]);
}

#[test]
fn a_disk_that_goes_away_is_skipped_and_not_asked_again() {
    let mut lab = Lab::new(3);
    lab.write(0, 10);
    lab.disk(2).keep_back = true;
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_millis(200));
    assert!(lab.scrubs.is_empty(), "the second disk has not answered");
    lab.away(2);
    lab.pass(Duration::from_millis(200));
    assert_eq!(lab.scrubs, [end(2 * 10, 1)]);
    lab.disk(2).keep_back = false;
    lab.back(2);
    lab.pass(Duration::from_millis(200));
    assert_eq!(lab.scrubs.len(), 1);
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_millis(200));
    assert_eq!(lab.scrubs[1], end(3 * 10, 0));
    // Of a chunk that has no place there is nothing to look at.
    lab.owner.scrub(lab.now, ferro_protocol::ids::ChunkIndex(7), FAST);
    lab.pass(Duration::from_millis(50));
    assert_eq!(lab.scrubs[2].blocks, 0);
}

#[test]
fn a_new_owner_looks_at_what_it_has_still_to_seal() {
    let mut lab = Lab::new(3);
    lab.write(0, 10);
    lab.own();
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_millis(100));
    (1..=3).for_each(|n| lab.away(n));
    lab.pass(Duration::from_millis(100));
    assert!(lab.scrubs.is_empty(), "{:?}", lab.scrubs);
    for n in 1..=3 {
        lab.back(n);
        lab.pass(Duration::from_millis(100));
    }
    assert_eq!(lab.scrubs, [end(3 * 10, 0)]);
}

#[test]
fn a_disk_that_is_away_is_waited_for_but_not_for_long() {
    let mut lab = Lab::new(3);
    lab.write(0, 10);
    lab.pass(Duration::from_secs(30));
    lab.away(2);
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_secs(4));
    assert!(lab.scrubs.is_empty(), "{:?}", lab.scrubs);
    lab.back(2);
    lab.pass(Duration::from_millis(100));
    assert_eq!(lab.scrubs, [end(3 * 10, 0)]);
    // One that stays away, once; another scrub does not begin to wait again.
    lab.away(2);
    let left_out = ScrubEnd { lost: 0, ..end(2 * 10, 1) };
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_secs(6));
    assert_eq!(lab.scrubs[1..], [left_out]);
    lab.owner.scrub(lab.now, CHUNK.index, FAST);
    lab.pass(Duration::from_millis(100));
    assert_eq!(lab.scrubs[2..], [left_out]);
}
