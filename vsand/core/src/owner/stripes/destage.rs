//! Jobs: what the log has of some rows goes into the shards.
//!
//! ```text
//!   rows taken ──▶ read ──────────────▶ parity ──────────────▶ data ──────────────▶ settled: the log may forget it
//!                  what of the rows     on every in-sync       on its shard, every
//!                  is not in the log    parity shard           block of it
//!                  (bad or away: all of the rows, to decode)
//! ```
//!
//! An extent that is staged whole ([`super::straight`]) is put in force instead, the parities of its rows first; if a disk would not, the job goes on
//! as if it were in the log.
//!
//! Jobs begin ([`super::pressure`]) with what is oldest in the log, and leave what is newest alone while there is room: a guest that writes one block
//! after the other is still filling the extents there, and a whole extent goes to its shard's disk in one write, part of one in two.
//!
//! Whole rows are counted anew, from all their data: with one block changed of four that reads as much as taking the old
//! value out of the old parity would, and it mends what it passes.
//!
//! All versions of a job are taken when it has its rows and none of their blocks is in a record under way: higher than
//! those of all that it puts into the shards, lower than those of all that comes later.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::{ChunkIndex, Seq};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, EXTENT_BLOCKS};

use super::decode::{Fetched, LogData};
use super::pressure::{self, JOBS_MAX};
use super::recover::AGAIN;
use super::ring::Kept;
use super::straight::promotions;
use super::{Stage, Stripes, TaskId, Wanted, Work, buffer, zeroed_buffer};
use crate::bugs::Bug;
use crate::owner::io::{Fault, Got};
use crate::owner::locks::Mode;
use crate::owner::{Owner, Trouble};
use crate::time::Instant;

/// Rows of a job at most: an extent on each shard.
const ROWS_MAX: u32 = EXTENT_BLOCKS;
/// A guest that wrote nothing for so long pauses.
const QUIET: std::time::Duration = std::time::Duration::from_millis(200);

/// Rows whose jobs could not read what they need.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    /// Tried one by one: of several rows perhaps only one is to blame.
    alone: BTreeSet<u32>,
    /// Not tried for now.
    waiting: BTreeSet<u32>,
    since: Instant,
}

impl PutOff {
    fn add(&mut self, now: Instant, rows: BlockRange) {
        let rows = rows.blocks();
        if rows.len() == 1 {
            self.waiting.extend(rows)
        } else {
            self.alone.extend(rows)
        }
        self.since = now;
    }

    /// Whether something waits.
    pub(super) fn is_any(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// All may be tried again.
    pub(super) fn clear(&mut self) {
        self.alone.clear();
        self.waiting.clear();
    }

    /// Time has passed: bad blocks may have been mended.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.is_any() && now.since(self.since) >= AGAIN {
            self.clear();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Rows,
    Read,
    Recover,
    Parity,
    Data,
    /// Staged parities are put in force, then staged data.
    PromoteParity,
    PromoteData,
}

/// Rows of one data shard that become what the log has.
#[derive(Clone, Debug)]
struct Change {
    shard: u8,
    rows: BlockRange,
    zero: bool,
}

/// A job under way.
#[derive(Debug)]
pub(super) struct Job {
    rows: BlockRange,
    step: Step,
    /// The first of its versions.
    seq: Seq,
    changes: Vec<Change>,
    /// What is asked for: rows of a shard, or slots of the log.
    asked: Vec<Asked>,
    log: LogData,
    fetched: Fetched,
    bad: Vec<u8>,
    /// By data shard, then row: what the row will be. `None` is not known yet.
    cells: Vec<Vec<Option<Bytes>>>,
    /// The same once all is known: each data shard's rows as they follow each other. Empty if all of them become zeros.
    columns: Vec<Bytes>,
    /// An extent that is staged whole: it is put in force, if the disks agree.
    promote: bool,
}

/// The rows that no job may begin with now.
struct Taken<'a> {
    stripes: &'a Stripes,
    appending: Vec<BlockRange>,
}

impl Taken<'_> {
    /// Up to before which row they go on, if the row is one of them.
    fn until(&self, row: u32) -> Option<u32> {
        let before = self.stripes.jobs.range(..=row).next_back().map(|(_, rows)| rows);
        let rows = before.into_iter().chain(&self.appending).find(|rows| rows.contains(row));
        let waits = || self.stripes.put_off.waiting.contains(&row).then_some(row + 1);
        rows.map(|rows| rows.end()).or_else(waits)
    }

    /// The same for a block: up to before which block those behind it are in such rows.
    fn until_block(&self, block: u32) -> Option<u32> {
        let geometry = self.stripes.geometry;
        Some(geometry.follows(block, self.until(geometry.locate(block).1)?))
    }
}

/// What of a job's rows could not be read; the worse is the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Gap {
    /// Of a shard: the others may make up for it.
    Shard,
    /// Of the log, from any of its copies: nothing else has it.
    Log,
}

#[derive(Clone, Debug)]
enum Asked {
    Shard { shard: u8, rows: BlockRange },
    Log(u32),
    Whole(u8),
}

impl Owner {
    /// Begins as many jobs as the logs' fullness asks for.
    pub(super) fn start_jobs(&mut self, now: Instant, chunk: ChunkIndex) {
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            let taken = stripes.ring.taken();
            self.logged.count(std::mem::replace(&mut stripes.counted, taken), taken);
        }
        loop {
            let Some(stripes) = self.stripes.get(&chunk) else { return };
            if stripes.stage != Stage::Ready || stripes.ring.is_settled() {
                return;
            }
            let room = stripes.jobs.len() < JOBS_MAX;
            if let Some(rows) = room.then(|| self.next_promotion(chunk)).flatten() {
                self.start_job(chunk, rows, true);
                continue;
            }
            let Some(stripes) = self.stripes.get(&chunk) else { return };
            let held = (self.cached_bytes / (super::append::CACHE_BYTES_MAX / 1_000)) as u32;
            let held = if stripes.ring.staged().next().is_some() { held } else { 0 };
            let quiet = now.since(stripes.appended_at) >= QUIET;
            let state = pressure::Chunk {
                slots: stripes.counted,
                fullness: stripes.ring.fullness().max(held),
                jobs: stripes.jobs.len(),
                calm: quiet || self.staged_presses(chunk) || !stripes.is_healed(),
            };
            let Some(behind) = self.logged.next_job(&self.config, state) else { return };
            let Some(rows) = self.next_rows(chunk, behind) else { return };
            self.start_job(chunk, rows, false);
        }
    }

    fn start_job(&mut self, chunk: ChunkIndex, rows: BlockRange, promote: bool) {
        let job = Job {
            rows,
            step: Step::Rows,
            seq: Seq(0),
            changes: Vec::new(),
            asked: Vec::new(),
            log: LogData::default(),
            fetched: Fetched::default(),
            bad: Vec::new(),
            cells: Vec::new(),
            columns: Vec::new(),
            promote,
        };
        let id = self.begin_task(chunk, Work::Job(Box::new(job)));
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.jobs.insert(rows.first(), rows);
            self.logged.job_began();
        }
        if self.take_rows(id, chunk, rows, Mode::Exclusive) {
            self.ready_tasks.push_back(id);
        }
    }

    /// The rows around the oldest block of the log that no job has and no record under way touches, with those beside them.
    /// `behind`: the part of the log, in thousandths, that is behind the block at least.
    fn next_rows(&self, chunk: ChunkIndex, behind: u32) -> Option<BlockRange> {
        let stripes = self.stripes.get(&chunk)?;
        let geometry = stripes.geometry;
        let taken = Taken { stripes, appending: stripes.appending().collect() };
        let block = stripes.ring.oldest(behind, |block| taken.until_block(block))?;
        let row = geometry.locate(block).1;
        let in_log =
            |row: u32| geometry.data_shards().any(|s| stripes.ring.latest(geometry.block(s, row)).is_some());
        let alone = |row: u32| stripes.put_off.alone.contains(&row);
        if alone(row) {
            return BlockRange::one(row).ok();
        }
        let goes = |row: u32| in_log(row) && taken.until(row).is_none() && !alone(row);
        let extent = row / ROWS_MAX * ROWS_MAX;
        let (mut first, mut end) = (row, row + 1);
        while first > extent && goes(first - 1) {
            first -= 1;
        }
        while end < (extent + ROWS_MAX).min(geometry.rows()) && goes(end) {
            end += 1;
        }
        BlockRange::new(first, end - first).ok()
    }

    /// A job goes on.
    pub(super) fn job_on(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        mut job: Job,
        got: Vec<Result<Got, Fault>>,
    ) {
        match job.step {
            Step::Rows => self.job_reads(now, id, chunk, job),
            Step::Read => match self.job_got(chunk, &mut job, got) {
                None => self.job_parity(now, id, chunk, job),
                Some(Gap::Shard) => self.job_recovers(now, id, chunk, job),
                Some(Gap::Log) => self.job_waits(now, id, chunk, &job),
            },
            Step::Recover => match self.job_got(chunk, &mut job, got) {
                None if self.job_solves(chunk, &mut job) => self.job_parity(now, id, chunk, job),
                Some(Gap::Shard) => self.job_recovers(now, id, chunk, job),
                None | Some(Gap::Log) => self.job_waits(now, id, chunk, &job),
            },
            Step::Parity => self.job_data(now, id, chunk, job),
            Step::Data => self.job_ended(chunk, id, &job),
            Step::PromoteParity | Step::PromoteData => self.job_promoted(now, id, chunk, job, &got),
        }
    }

    /// The job has its rows: what is in the log of them is what it puts into the shards.
    fn job_reads(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut job: Job) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let geometry = stripes.geometry;
        let first = job.rows.first();
        if stripes.appending().any(|rows| rows.overlaps(job.rows)) {
            // It would be neither before nor after this job. The oldest blocks are looked for again.
            return self.end_job(chunk, id, &job);
        }
        let rows = job.rows.count() as usize;
        job.cells = vec![vec![None; rows]; usize::from(geometry.data)];
        let mut wanted = Vec::new();
        for shard in geometry.data_shards() {
            let entry = |row: u32| stripes.ring.latest(geometry.block(shard, row));
            let kind = |row: u32| entry(row).map(|e| e.kept == Kept::Zeros);
            for (rows, kind) in runs(job.rows, kind) {
                if let Some(zero) = kind {
                    job.changes.push(Change { shard, rows, zero });
                } else {
                    wanted.push(Wanted::read(chunk.shard(shard), rows));
                    job.asked.push(Asked::Shard { shard, rows });
                }
            }
            for row in job.rows.blocks() {
                let Some(entry) = entry(row) else { continue };
                if let Some(slot) = entry.to_read() {
                    if let Ok(range) = BlockRange::one(slot) {
                        wanted.push(Wanted::read(chunk.log(), range));
                        job.asked.push(Asked::Log(slot));
                    }
                } else {
                    job.cells[usize::from(shard)][(row - first) as usize] = job.log.get(entry).cloned();
                }
            }
        }
        if job.changes.is_empty() {
            return self.end_job(chunk, id, &job);
        }
        let versions = u64::from(geometry.parity) + job.changes.len() as u64;
        job.seq = self.take_seqs(chunk, versions);
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.jobs_open.insert(job.seq);
        }
        self.set_floors(chunk);
        job.promote = job.promote && self.can_promote(chunk, job.rows);
        if job.promote {
            return self.job_promotes(now, id, chunk, job);
        }
        job.step = Step::Read;
        self.put_back(id, chunk, Work::Job(Box::new(job)));
        self.want(now, id, wanted);
    }

    /// All of the rows is staged: the parities are put in force, and then the data.
    fn job_promotes(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut job: Job) {
        let Some(geometry) = self.stripes.get(&chunk).map(|s| s.geometry) else { return };
        let hasty = self.bugs.has(Bug::DataPromotedFirst);
        let parity_next = (job.step != Step::PromoteParity) != hasty;
        let (shards, seq) = if parity_next {
            (geometry.parity_shards(), job.seq)
        } else {
            (geometry.data_shards(), Seq(job.seq.0 + u64::from(geometry.parity)))
        };
        job.step = if job.step == Step::PromoteParity { Step::PromoteData } else { Step::PromoteParity };
        let wanted = promotions(chunk, shards, job.rows, seq);
        self.put_back(id, chunk, Work::Job(Box::new(job)));
        self.want(now, id, wanted);
    }

    /// Disks have put the rows in force, or one would not: then they are written, over what the others have done.
    fn job_promoted(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        mut job: Job,
        got: &[Result<Got, Fault>],
    ) {
        if got.iter().any(Result::is_err) {
            job.promote = false;
            return self.job_parity(now, id, chunk, job);
        }
        match job.step {
            Step::PromoteParity => self.job_promotes(now, id, chunk, job),
            _ => self.job_ended(chunk, id, &job),
        }
    }

    /// What the job needs can't be read now, however often it is asked for: it ends, and its rows are put off.
    fn job_waits(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, job: &Job) {
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.jobs_open.remove(&job.seq);
            stripes.put_off.add(now, job.rows);
            if stripes.put_off.is_any() {
                self.troubles.insert(Trouble::Unreachable(chunk));
            }
        }
        self.set_floors(chunk);
        self.end_job(chunk, id, job);
    }

    /// Takes what was answered; says what failed.
    fn job_got(&self, chunk: ChunkIndex, job: &mut Job, got: Vec<Result<Got, Fault>>) -> Option<Gap> {
        let stripes = self.stripes.get(&chunk)?;
        let first = job.rows.first();
        let mut gap = None;
        for (asked, got) in std::mem::take(&mut job.asked).into_iter().zip(got) {
            match (asked, got) {
                (Asked::Shard { shard, rows }, Ok(Got::Data(data))) => {
                    for (n, row) in rows.blocks().enumerate() {
                        let block = data.slice(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES);
                        job.cells[usize::from(shard)][(row - first) as usize] = Some(block);
                    }
                }
                (Asked::Log(slot), Ok(Got::Data(data))) => job.log.put(slot, data),
                (Asked::Whole(shard), Ok(Got::Runs(runs, data))) => job.fetched.add(shard, &runs, &data),
                (Asked::Shard { shard, .. } | Asked::Whole(shard), failed) => {
                    if matches!(failed, Err(Fault::Bad | Fault::Stuck)) {
                        job.bad.push(shard);
                    }
                    gap = gap.max(Some(Gap::Shard));
                }
                (Asked::Log(_), _) => gap = Some(Gap::Log),
            }
        }
        for shard in stripes.geometry.data_shards() {
            for row in job.rows.blocks() {
                let cell = &mut job.cells[usize::from(shard)][(row - first) as usize];
                let block = stripes.geometry.block(shard, row);
                // What came into the log since has a later version, and its turn later.
                if let Some(entry) = stripes.ring.before(block, job.seq)
                    && cell.is_none()
                {
                    *cell = job.log.get(entry).cloned();
                    if cell.is_none() {
                        gap = Some(Gap::Log);
                    }
                }
            }
        }
        gap
    }

    /// Something of the rows can't be read: everything there is of them is fetched.
    fn job_recovers(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut job: Job) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let geometry = stripes.geometry;
        job.fetched = Fetched::default();
        job.asked.clear();
        let good = |n: &u8| !job.bad.contains(n) && self.shard_disk(chunk.shard(*n)).is_some();
        let shards: Vec<u8> = (0..geometry.shards()).filter(good).collect();
        let slots = job.log.missing(stripes, job.rows);
        if shards.len() < usize::from(geometry.data) {
            return self.job_waits(now, id, chunk, &job);
        }
        job.step = Step::Recover;
        let mut wanted = Vec::new();
        for slot in slots {
            if let Ok(range) = BlockRange::one(slot) {
                wanted.push(Wanted::read(chunk.log(), range));
                job.asked.push(Asked::Log(slot));
            }
        }
        for shard in shards {
            wanted.push(Wanted::fetch(chunk.shard(shard), job.rows));
            job.asked.push(Asked::Whole(shard));
        }
        self.put_back(id, chunk, Work::Job(Box::new(job)));
        self.want(now, id, wanted);
    }

    /// Fills the cells that are not in the log from what was fetched.
    fn job_solves(&self, chunk: ChunkIndex, job: &mut Job) -> bool {
        let Some(stripes) = self.stripes.get(&chunk) else { return false };
        let mixed = self.bugs.has(Bug::GenerationsMixed);
        for (n, row) in job.rows.blocks().enumerate() {
            let open = |shard: &u8| job.cells[usize::from(*shard)][n].is_none();
            let wanted: Vec<u8> = stripes.geometry.data_shards().filter(open).collect();
            let Some(blocks) = stripes.solve_row(row, &wanted, &job.fetched, &job.log, mixed) else {
                return false;
            };
            for (shard, block) in wanted.into_iter().zip(blocks) {
                job.cells[usize::from(shard)][n] = Some(block);
            }
        }
        true
    }

    /// All data of the rows is known: their parity is written.
    fn job_parity(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut job: Job) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let geometry = stripes.geometry;
        // Rows that become zeros altogether need no place.
        let zeros = job.changes.iter().filter(|c| c.zero).map(|c| c.rows.count()).sum::<u32>()
            == job.rows.count() * u32::from(geometry.data);
        let parities: Vec<Option<Bytes>> = if zeros {
            vec![None; geometry.parity.into()]
        } else {
            let columns: Option<Vec<Bytes>> = job.cells.iter().map(|cells| column(cells)).collect();
            let Some(columns) = columns else { return self.job_recovers(now, id, chunk, job) };
            job.columns = columns;
            let data: Vec<&[u8]> = job.columns.iter().map(AsRef::as_ref).collect();
            let mut parities: Vec<BytesMut> =
                geometry.parity_shards().map(|_| zeroed_buffer(job.rows.bytes())).collect();
            let mut out: Vec<&mut [u8]> = parities.iter_mut().map(AsMut::as_mut).collect();
            stripes.code.encode_into(&data, &mut out);
            parities.into_iter().map(|parity| Some(parity.freeze())).collect()
        };
        let change = |(n, (shard, block))| {
            Wanted::change(chunk.shard(shard), job.rows, block, Seq(job.seq.0 + n as u64))
        };
        let wanted: Vec<Wanted> = (0..).zip(geometry.parity_shards().zip(parities)).map(change).collect();
        job.step = Step::Parity;
        if self.bugs.has(Bug::DataBeforeParity) {
            // The write hole: the old data is gone while the parities are still old.
            let early: Vec<Wanted> = self.job_changes(chunk, &job);
            self.put_back(id, chunk, Work::Job(Box::new(job)));
            return self.want(now, id, early.into_iter().chain(wanted).collect());
        }
        self.put_back(id, chunk, Work::Job(Box::new(job)));
        self.want(now, id, wanted);
    }

    fn job_changes(&self, chunk: ChunkIndex, job: &Job) -> Vec<Wanted> {
        let Some(stripes) = self.stripes.get(&chunk) else { return Vec::new() };
        let first = job.rows.first();
        let after = job.seq.0 + u64::from(stripes.geometry.parity);
        let change = |(n, change): (usize, &Change)| {
            let from = (change.rows.first() - first) as usize * BLOCK_BYTES;
            let column = || job.columns.get(usize::from(change.shard));
            let data =
                if change.zero { None } else { Some(column()?.slice(from..from + change.rows.bytes())) };
            Some(Wanted::change(chunk.shard(change.shard), change.rows, data, Seq(after + n as u64)))
        };
        job.changes.iter().enumerate().filter_map(change).collect()
    }

    /// Every parity is new: the data may be overwritten.
    fn job_data(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, mut job: Job) {
        let wanted =
            if self.bugs.has(Bug::DataBeforeParity) { Vec::new() } else { self.job_changes(chunk, &job) };
        job.step = Step::Data;
        if self.bugs.has(Bug::LogTrimmedEarly) {
            self.job_settled(chunk, &job);
        }
        self.put_back(id, chunk, Work::Job(Box::new(job)));
        self.want(now, id, wanted);
    }

    fn job_ended(&mut self, chunk: ChunkIndex, id: TaskId, job: &Job) {
        self.job_settled(chunk, job);
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.jobs_open.remove(&job.seq);
        }
        self.set_floors(chunk);
        self.end_job(chunk, id, job);
    }

    fn job_settled(&mut self, chunk: ChunkIndex, job: &Job) {
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            let geometry = stripes.geometry;
            let mut freed = 0;
            stripes.staged_settled(job.rows, job.promote);
            for row in job.rows.blocks() {
                for shard in geometry.data_shards() {
                    freed += stripes.ring.settled(geometry.block(shard, row), job.seq);
                }
            }
            stripes.close_staged();
            self.cached_bytes = self.cached_bytes.saturating_sub(freed * BLOCK_BYTES);
        }
    }

    fn end_job(&mut self, chunk: ChunkIndex, id: TaskId, job: &Job) {
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.jobs.remove(&job.rows.first());
            self.logged.job_ended();
        }
        self.give_rows_back(chunk, id);
        self.stripes_busy.insert(chunk);
    }
}

/// Rows in runs of the same kind.
fn runs<K: PartialEq>(rows: BlockRange, kind: impl Fn(u32) -> K) -> Vec<(BlockRange, K)> {
    let mut runs: Vec<(u32, u32, K)> = Vec::new();
    for row in rows.blocks() {
        let this = kind(row);
        match runs.last_mut() {
            Some((_, end, last)) if *last == this => *end = row + 1,
            _ => runs.push((row, row + 1, this)),
        }
    }
    runs.into_iter()
        .filter_map(|(from, to, kind)| Some((BlockRange::new(from, to - from).ok()?, kind)))
        .collect()
}

/// Blocks that follow each other as one run of bytes.
fn column(cells: &[Option<Bytes>]) -> Option<Bytes> {
    if let [Some(one)] = cells {
        return Some(one.clone());
    }
    let mut all = buffer(cells.len() * BLOCK_BYTES);
    for cell in cells {
        all.extend_from_slice(cell.as_ref()?);
    }
    Some(all.freeze())
}
