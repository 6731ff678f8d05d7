//! A filling between two disks of bytes, in any order that two owners may answer in.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::ids::ChunkIndex;
use ferro_protocol::units::{CHUNK_BYTES, EXTENT_BYTES};

use super::filling::{Do, Filling};
use crate::bugs::Bugs;
use crate::owner::guest::{GuestError, GuestRequest, GuestResult, GuestTag};
use crate::time::Instant;

const FAST: u64 = 1 << 40;
const SECTOR: u64 = 512;

fn write(offset: u64, byte: u8, bytes: u64) -> GuestRequest {
    GuestRequest::Write { offset, data: Bytes::from(vec![byte; bytes as usize]) }
}

fn range(request: &GuestRequest) -> (u64, u64) {
    match request {
        GuestRequest::Read { offset, bytes } | GuestRequest::Zero { offset, bytes } => {
            (*offset, offset + bytes)
        }
        GuestRequest::Write { offset, data } => (*offset, offset + data.len() as u64),
        GuestRequest::Flush => (0, 0),
    }
}

/// One end: requests that overlap are carried out in their order, others in any.
#[derive(Default)]
struct End {
    sectors: Vec<u8>,
    asked: VecDeque<(GuestTag, GuestRequest)>,
}

impl End {
    fn new(bytes: u64) -> Self {
        Self { sectors: vec![0; (bytes / SECTOR) as usize], asked: VecDeque::new() }
    }

    fn carry_out(&mut self, request: &GuestRequest) -> GuestResult {
        let (start, end) = range(request);
        let at = (start / SECTOR) as usize..(end / SECTOR) as usize;
        match request {
            GuestRequest::Read { .. } => {
                let data: Vec<u8> =
                    self.sectors[at].iter().flat_map(|b| std::iter::repeat_n(*b, SECTOR as usize)).collect();
                return GuestResult::Data(vec![Bytes::from(data)]);
            }
            GuestRequest::Write { data, .. } => {
                for (n, sector) in at.enumerate() {
                    self.sectors[sector] = data[n * SECTOR as usize];
                }
            }
            GuestRequest::Zero { .. } => self.sectors[at].fill(0),
            GuestRequest::Flush => {}
        }
        GuestResult::Done
    }

    /// Carries out one that nothing before it stands in the way of.
    fn one(&mut self, choice: usize) -> Option<(GuestTag, GuestResult)> {
        let overlaps = |a: &GuestRequest, b: &GuestRequest| {
            let (a, b) = (range(a), range(b));
            a.0 < b.1 && b.0 < a.1
        };
        let free: Vec<usize> = (0..self.asked.len())
            .filter(|n| !(0..*n).any(|before| overlaps(&self.asked[before].1, &self.asked[*n].1)))
            .collect();
        let n = *free.get(choice % free.len().max(1))?;
        let (tag, request) = self.asked.remove(n)?;
        Some((tag, self.carry_out(&request)))
    }
}

struct Bench {
    filling: Filling,
    first: End,
    second: End,
    ended: Vec<(GuestTag, GuestResult)>,
    now: Instant,
}

impl Bench {
    fn new(size: u64) -> Self {
        let now = Instant(1);
        let filling = Filling::new(now, size, Bugs::NONE);
        Self { filling, first: End::new(size), second: End::new(size), ended: Vec::new(), now }
    }

    fn follow(&mut self) {
        for what in self.filling.take() {
            match what {
                Do::First(tag, request) => self.first.asked.push_back((tag, request)),
                Do::Second(tag, request) => self.second.asked.push_back((tag, request)),
                Do::End(tag, result) => self.ended.push((tag, result)),
            }
        }
    }

    fn run(&mut self, placed: bool) {
        self.now = self.now + Duration::from_millis(10);
        self.filling.run(self.now, FAST, |_| placed);
        self.follow();
    }

    fn first(&mut self, choice: usize) {
        if let Some((tag, result)) = self.first.one(choice) {
            self.filling.first_answered(self.now, tag, result);
            self.follow();
        }
    }

    fn second(&mut self, choice: usize) {
        if let Some((tag, result)) = self.second.one(choice) {
            self.filling.second_answered(tag, &result);
            self.follow();
        }
    }

    fn write(&mut self, tag: u64, request: GuestRequest) {
        self.filling.write(GuestTag(tag), request);
        self.follow();
    }
}

/// A generator that is good enough to mix orders.
fn next(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

#[test]
fn whatever_the_order_both_are_the_same_in_the_end() {
    const SIZE: u64 = 6 * EXTENT_BYTES + 4096;
    for seed in 1..=200_u64 {
        let (mut dice, mut bench) = (seed, Bench::new(SIZE));
        // What was there before.
        for n in 0..40 {
            let at = next(&mut dice) as u64 % (SIZE / SECTOR);
            bench.first.sectors[at as usize] = n + 1;
        }
        let mut tag = 0;
        let mut steps = 0;
        while !(bench.filling.is_complete() && bench.filling.is_idle() && tag >= 150) {
            steps += 1;
            assert!(steps < 20_000, "seed {seed} does not end");
            match next(&mut dice) % 10 {
                0 | 1 if tag < 150 => {
                    tag += 1;
                    // Around the borders of pieces, so that much overlaps.
                    let border = next(&mut dice) as u64 % 6 * EXTENT_BYTES;
                    let offset = border + next(&mut dice) as u64 % 16 * SECTOR;
                    let offset = if next(&mut dice).is_multiple_of(2) {
                        offset
                    } else {
                        offset.saturating_sub(8 * SECTOR)
                    };
                    let bytes = (1 + next(&mut dice) as u64 % 12) * SECTOR;
                    let request = if next(&mut dice).is_multiple_of(4) {
                        GuestRequest::Zero { offset, bytes }
                    } else {
                        write(offset, 100 + (tag % 100) as u8, bytes)
                    };
                    bench.write(tag, request);
                }
                2 | 3 => bench.run(true),
                4..=6 => {
                    let choice = next(&mut dice);
                    bench.first(choice);
                }
                _ => {
                    let choice = next(&mut dice);
                    bench.second(choice);
                }
            }
            assert!(!bench.filling.has_failed(bench.now));
        }
        assert_eq!(bench.ended.len(), 150);
        assert!(bench.ended.iter().all(|(_, result)| *result == GuestResult::Done));
        assert!(bench.first.sectors == bench.second.sectors, "seed {seed}: they differ");
    }
}

#[test]
fn what_has_no_place_is_not_read_and_zeros_are_not_written() {
    let mut bench = Bench::new(2 * CHUNK_BYTES);
    bench.run(false);
    assert!(bench.filling.is_complete() && bench.first.asked.is_empty());
    let mut bench = Bench::new(EXTENT_BYTES);
    bench.run(true);
    assert_eq!(bench.first.asked.len(), 1);
    bench.first(0);
    assert!(bench.second.asked.is_empty() && bench.filling.is_complete());
}

#[test]
fn a_chunk_that_gets_a_place_while_a_write_is_under_way_is_copied() {
    let mut bench = Bench::new(CHUNK_BYTES);
    bench.write(1, write(0, 7, SECTOR));
    // The chunk has no place as far as is known, and a write that gives it one holds its range.
    bench.run(false);
    assert!(!bench.filling.is_complete());
    bench.first(0);
    let placed = |chunk| chunk == ChunkIndex(0);
    while !bench.filling.is_complete() {
        bench.filling.run(bench.now, FAST, placed);
        bench.follow();
        bench.first(0);
        bench.second(0);
    }
    assert_eq!(bench.second.sectors[0], 7);
}

#[test]
fn a_write_that_fails_breaks_it_and_giving_up_leaves_nobody_waiting() {
    let mut bench = Bench::new(4 * EXTENT_BYTES);
    bench.first.sectors.fill(1);
    bench.run(true);
    bench.first(0);
    bench.second(0);
    // One that goes to both, one behind it, and one that waits for a piece that is being copied.
    bench.write(1, write(0, 7, 2 * SECTOR));
    bench.write(2, write(SECTOR, 8, SECTOR));
    bench.write(3, write(3 * EXTENT_BYTES, 9, SECTOR));
    assert_eq!(bench.second.asked.back(), Some(&(GuestTag(1), write(0, 7, 2 * SECTOR))));
    let mine = bench.first.asked.iter().position(|(tag, _)| *tag == GuestTag(1)).expect("asked");
    bench.first.asked.remove(mine);
    bench.filling.first_answered(bench.now, GuestTag(1), GuestResult::Done);
    assert!(bench.ended.is_empty(), "the target has not answered");
    let failed = GuestResult::Failed(GuestError::Lost);
    assert!(!bench.filling.has_failed(bench.now));
    assert!(bench.filling.has_failed(bench.now + Duration::from_secs(6)), "the guest waits too long");
    bench.filling.second_answered(GuestTag(1), &failed);
    assert!(bench.filling.has_failed(bench.now));
    let (to_do, under_way) = bench.filling.give_up();
    let ended = |tag| to_do.iter().any(|what| *what == Do::End(GuestTag(tag), GuestResult::Done));
    let begun = |tag| to_do.iter().any(|what| matches!(what, Do::First(t, _) if *t == GuestTag(tag)));
    assert!(ended(1) && begun(2) && begun(3), "{to_do:?}");
    assert_eq!(under_way, [GuestTag(2), GuestTag(3)]);
    assert!(!to_do.iter().any(|what| matches!(what, Do::Second(..))));
}
