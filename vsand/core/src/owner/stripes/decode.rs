//! What can't be read from a shard is made from the others of its rows.
//!
//! ```text
//!   rows taken ──▶ fetch the other shards, with versions ──▶ solve, row by row ──▶ handed over
//!                     │ one is bad, stuck or away: fetch again without it; too few: with those that are stuck, or wait, or lost
//! ```
//!
//! A row's parities are used each with the values that it was counted with. For a data block that is, by the parity's
//! version, the latest value in the log that is older, or else what lies in place: a job writes parities before data, so
//! while any parity is old, the old value is still there, and whatever a parity was counted with is still in the log.
//! Without a crash in between all of a row's parities are of one generation, and this is the ordinary decoding.
//!
//! Rows are held meanwhile: shared for a read, alone where the result is installed ([`super::rebuild`]).

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::{ChunkIndex, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use vsand_code::Equation;

use super::ring::Kept;
use super::{Stripes, TaskId, Wanted, Work, versions};
use crate::bugs::Bug;
use crate::owner::Owner;
use crate::owner::copy::CopyId;
use crate::owner::io::{Fault, Got};
use crate::owner::locks::Mode;
use crate::time::Instant;

/// Who gets what was decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum For {
    Task(TaskId, usize),
    Copy(CopyId),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Rows,
    Log,
    Shards,
}

/// A decoding under way.
#[derive(Debug)]
pub(super) struct Decode {
    rows: BlockRange,
    shard: u8,
    whom: For,
    step: Step,
    /// Shards that failed to answer well.
    bad: BTreeSet<u8>,
    /// Shards that did not answer while their disks answered others: not asked again as long as there are enough without them.
    stuck: BTreeSet<u8>,
    asked: Vec<u8>,
    slots: Vec<u32>,
    log: LogData,
}

/// Blocks of the log that were read for a decoding, by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct LogData(BTreeMap<u32, Bytes>);

/// What shards have of some rows.
#[derive(Debug, Default)]
pub(super) struct Fetched(BTreeMap<u8, BTreeMap<u32, (Version, Bytes)>>);

impl Fetched {
    /// What a shard has answered.
    pub(super) fn add(&mut self, shard: u8, runs: &[Run], data: &Bytes) {
        let rows = self.0.entry(shard).or_default();
        let mut at = 0;
        for (row, version, mapped) in versions(runs) {
            let block = if mapped {
                at += BLOCK_BYTES;
                data.slice(at - BLOCK_BYTES..at)
            } else {
                ZERO_BLOCK.clone()
            };
            rows.insert(row, (version, block));
        }
    }

    pub(super) fn get(&self, shard: u8, row: u32) -> Option<&(Version, Bytes)> {
        self.0.get(&shard)?.get(&row)
    }
}

static ZERO_BLOCK: Bytes = Bytes::from_static(&[0; BLOCK_BYTES]);

impl LogData {
    /// What the log has to be asked for before these rows can be decoded.
    pub(super) fn missing(&self, stripes: &Stripes, rows: BlockRange) -> Vec<u32> {
        let geometry = stripes.geometry;
        let blocks =
            rows.blocks().flat_map(|row| geometry.data_shards().map(move |s| geometry.block(s, row)));
        let values = blocks.flat_map(|block| stripes.ring.values(block));
        values.filter_map(super::ring::Entry::to_read).filter(|s| !self.0.contains_key(s)).collect()
    }

    pub(super) fn put(&mut self, slot: u32, data: Bytes) {
        self.0.insert(slot, data);
    }

    /// The block that an entry of the log stands for, if it was read.
    pub(super) fn get<'a>(&'a self, entry: &'a super::ring::Entry) -> Option<&'a Bytes> {
        match (entry.kept, &entry.cached) {
            (Kept::Zeros, _) => Some(&ZERO_BLOCK),
            (_, Some(cached)) => Some(cached),
            (Kept::Slot(slot), None) => self.0.get(&slot),
            (Kept::Staged, None) => None,
        }
    }
}

impl Stripes {
    /// The data blocks of a row as they lie in place, for the shards `wanted`: read, or solved for. None if too little was read.
    pub(super) fn solve_row(
        &self,
        row: u32,
        wanted: &[u8],
        fetched: &Fetched,
        log: &LogData,
        mixed: bool,
    ) -> Option<Vec<Bytes>> {
        let geometry = self.geometry;
        let lost: Vec<usize> =
            wanted.iter().filter(|s| fetched.get(**s, row).is_none()).map(|s| usize::from(*s)).collect();
        let mut equations = Vec::new();
        for shard in geometry.parity_shards() {
            let Some((version, block)) = fetched.get(shard, row) else { continue };
            let known = geometry.data_shards().map(|data| {
                let in_log = self.ring.before(geometry.block(data, row), version.seq).filter(|_| !mixed);
                match in_log {
                    Some(entry) => log.get(entry),
                    None => fetched.get(data, row).map(|(_, block)| block),
                }
            });
            let known = known.map(|block| block.map(AsRef::as_ref)).collect();
            let parity = usize::from(shard - geometry.data);
            equations.push(Equation { parity, block, known, generation: 0 });
        }
        let solved = if lost.is_empty() { Vec::new() } else { self.code.solve(&equations, &lost)? };
        let mut solved = solved.into_iter();
        wanted
            .iter()
            .map(|shard| match fetched.get(*shard, row) {
                Some((_, block)) => Some(block.clone()),
                None => solved.next().map(Bytes::from),
            })
            .collect()
    }
}

impl Owner {
    /// Decodes rows of a shard.
    pub(super) fn start_decode(
        &mut self,
        chunk: ChunkIndex,
        rows: BlockRange,
        shard: u8,
        fault: Fault,
        whom: For,
    ) -> TaskId {
        // One that is only away is asked itself, should it be back before enough of the others are.
        let of = |kind: Fault| BTreeSet::from_iter((fault == kind).then_some(shard));
        let (bad, stuck) = (of(Fault::Bad), of(Fault::Stuck));
        let (asked, slots, log) = (Vec::new(), Vec::new(), LogData::default());
        let decode = Decode { rows, shard, whom, step: Step::Rows, bad, stuck, asked, slots, log };
        let mode = if matches!(whom, For::Copy(_)) { Mode::Exclusive } else { Mode::Shared };
        let id = self.begin_task(chunk, Work::Decode(decode));
        let racing = self.bugs.has(Bug::RebuildRacesDestage) && matches!(whom, For::Copy(_));
        if racing || self.take_rows(id, chunk, rows, mode) {
            self.ready_tasks.push_back(id);
        }
        id
    }

    /// A decoding goes on.
    pub(super) fn decode_on(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        mut decode: Decode,
        got: Vec<Result<Got, Fault>>,
    ) {
        match decode.step {
            Step::Rows => return self.decode_log(now, id, chunk, decode),
            Step::Log => {
                // The log may hold more by now: what was asked for counts.
                for (slot, got) in std::mem::take(&mut decode.slots).into_iter().zip(got) {
                    match got {
                        Ok(Got::Data(data)) => decode.log.put(slot, data),
                        _ => return self.decode_ended(now, id, chunk, &decode, Err(Fault::Bad)),
                    }
                }
                return self.decode_shards(now, id, chunk, decode);
            }
            Step::Shards => {}
        }
        let mut fetched = Fetched::default();
        let mut all = true;
        for (shard, got) in std::mem::take(&mut decode.asked).into_iter().zip(got) {
            match got {
                Ok(Got::Runs(runs, data)) => fetched.add(shard, &runs, &data),
                Err(Fault::Away) => all = false,
                Err(Fault::Stuck) => {
                    decode.stuck.insert(shard);
                    all = false;
                }
                _ => {
                    decode.bad.insert(shard);
                    all = false;
                }
            }
        }
        if !all {
            return self.decode_shards(now, id, chunk, decode);
        }
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let mixed = self.bugs.has(Bug::GenerationsMixed);
        match decoded(stripes, &decode, &fetched, mixed) {
            Some(done) => self.decode_ended(now, id, chunk, &decode, Ok(done)),
            None => self.decode_ended(now, id, chunk, &decode, Err(Fault::Bad)),
        }
    }

    fn decode_log(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut decode: Decode) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let slots = decode.log.missing(stripes, decode.rows);
        decode.step = Step::Log;
        decode.slots.clone_from(&slots);
        self.put_back(id, chunk, Work::Decode(decode));
        let wanted =
            slots.iter().filter_map(|s| BlockRange::one(*s).ok()).map(|s| Wanted::read(chunk.log(), s));
        let wanted = wanted.collect();
        self.want(now, id, wanted);
    }

    fn decode_shards(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut decode: Decode) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let geometry = stripes.geometry;
        let in_sync = |n: &u8| self.has_in_sync(chunk.shard(*n));
        let good = |n: &u8| {
            let passed_over = decode.bad.contains(n) || decode.stuck.contains(n);
            !passed_over && self.shard_disk(chunk.shard(*n)).is_some()
        };
        let data: Vec<u8> = geometry.data_shards().filter(good).collect();
        let missing = usize::from(geometry.data) - data.len();
        // After a crash a parity may be counted with values that only another one tells apart: then all are asked. What is
        // installed takes its versions from one, where there is one.
        let enough =
            if stripes.is_healed() { missing.max(usize::from(decode.whom_copies())) } else { usize::MAX };
        let parities: Vec<u8> = geometry.parity_shards().filter(good).take(enough).collect();
        if parities.len() < missing && !decode.stuck.is_empty() {
            // What is stuck is not lost: without it there would be too few.
            decode.stuck.clear();
            return self.decode_shards(now, id, chunk, decode);
        }
        if parities.len() < missing {
            let left = (0..geometry.shards()).filter(|n| !decode.bad.contains(n)).filter(in_sync).count();
            if left < usize::from(geometry.data) {
                return self.decode_ended(now, id, chunk, &decode, Err(Fault::Bad));
            }
            decode.step = Step::Rows;
            // A block that could not be read may be mended, or its shard built anew, by then.
            decode.bad.clear();
            self.put_back(id, chunk, Work::Decode(decode));
            return self.stall(id, chunk);
        }
        let mut asked = data;
        asked.extend(parities);
        let wanted = asked.iter().map(|n| Wanted::fetch(chunk.shard(*n), decode.rows)).collect();
        decode.step = Step::Shards;
        decode.asked = asked;
        self.put_back(id, chunk, Work::Decode(decode));
        self.want(now, id, wanted);
    }

    fn decode_ended(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        decode: &Decode,
        result: Result<(Vec<Run>, Bytes), Fault>,
    ) {
        match decode.whom {
            For::Task(task, place) => {
                self.give_rows_back(chunk, id);
                self.task_answered(task, place, result.map(|(runs, data)| Got::Data(spread(&runs, &data))));
            }
            // The rows are held until it is installed.
            For::Copy(copy) => self.decoded_for_copy(now, copy, result.ok()),
        }
    }
}

impl Decode {
    fn whom_copies(&self) -> bool {
        matches!(self.whom, For::Copy(_))
    }
}

/// The rows of the shard that was to be decoded, as runs with versions, and their data.
fn decoded(stripes: &Stripes, decode: &Decode, fetched: &Fetched, mixed: bool) -> Option<(Vec<Run>, Bytes)> {
    let geometry = stripes.geometry;
    let data_shards: Vec<u8> = geometry.data_shards().collect();
    let mut runs: Vec<Run> = Vec::new();
    let mut bytes = BytesMut::new();
    for row in decode.rows.blocks() {
        let block = if decode.shard < geometry.data {
            stripes.solve_row(row, &[decode.shard], fetched, &decode.log, mixed)?.pop()?
        } else {
            let data = stripes.solve_row(row, &data_shards, fetched, &decode.log, mixed)?;
            let data: Vec<&[u8]> = data.iter().map(AsRef::as_ref).collect();
            let mut out = vec![0; BLOCK_BYTES];
            stripes.code.encode_one(usize::from(decode.shard - geometry.data), &data, &mut out);
            Bytes::from(out)
        };
        let of = |shard| fetched.get(shard, row).map(|(version, _)| *version);
        let version =
            geometry.parity_shards().find_map(of).or_else(|| geometry.data_shards().filter_map(of).max())?;
        let mapped = block.iter().any(|b| *b != 0);
        if mapped {
            bytes.extend_from_slice(&block);
        }
        match runs.last_mut() {
            Some(last) if last.version == version && last.mapped == mapped => {
                last.range = BlockRange::new(last.range.first(), last.range.count() + 1).ok()?;
            }
            _ => runs.push(Run { range: BlockRange::one(row).ok()?, version, mapped }),
        }
    }
    Some((runs, bytes.freeze()))
}

/// The blocks of all runs, those that are not mapped as zeros.
fn spread(runs: &[Run], data: &Bytes) -> Bytes {
    if runs.iter().all(|run| run.mapped) {
        return data.clone();
    }
    let mut all = BytesMut::new();
    let mut at = 0;
    for run in runs {
        let end = all.len() + run.range.bytes();
        if run.mapped {
            all.extend_from_slice(&data[at..at + run.range.bytes()]);
            at += run.range.bytes();
        }
        all.resize(end, 0);
    }
    all.freeze()
}
