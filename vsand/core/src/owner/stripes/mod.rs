//! Chunks with parity: RAID-5 and RAID-6 (DESIGN.md, Storage, rule 9; docs/decisions/0022-destaging.md).
//!
//! Such a chunk is kept as several records, each a group like any other ([`super::group`]): its shards, of one component each,
//! and a mirrored log ([`ring`]). This module is what stands between the guest and those groups:
//!
//! ```text
//!   guest write ──▶ queue ──▶ record in the log, on every copy ──▶ acknowledged
//!                                      │ later, row by row: a job
//!                                      ▼
//!        read what of the row is not in the log ──▶ new parity, on every parity shard ──▶ data ──▶ slots given back
//!
//!   guest read  ──▶ block in the log?  its slot
//!                   else               its shard; if that can't be read: decoded from the row's other shards
//! ```
//!
//! Invariants (the simulator checks them from outside):
//! - what a guest was told is written is in the log, on every in-sync copy, until it is in the shards: on all in-sync parity
//!   shards first, and only then on its data shard. So however a job ends, the old value lies in place until every
//!   parity is new, and the new value lies in the log: any of the row's parities can be made use of, because its version tells which
//!   values it was counted with ([`decode`]);
//! - a job's versions are higher than those of all records that it puts into the shards, and lower than those of all later
//!   ones: no record that touches its rows is under way when it begins;
//! - jobs of a row exclude each other and everything that reads a whole row (`rows`). Guest reads and writes of single
//!   blocks never wait for a job;
//! - a job that has begun to write never gives up: a shard that fails leaves the in-sync set, in the directory, and the job goes on
//!   without it. One that can't read what it needs has written nothing: it ends, and its rows are tried one by one, and those
//!   of them that can't be had are put off until a component may answer again. What waits holds up nobody: rows beside
//!   them, reads, and the resyncs that may bring the missing shards back.
//!
//! Full stripes don't go through the log: the shards' disks stage them, and the log only names them ([`straight`]).
//!
//! After a change of owner the log is read through ([`recover`]) and all that it holds is put into the shards again, which
//! changes nothing where that was done already.
//!
//! What it must not know: connections, how a component stores, who the guest is.

mod append;
mod decode;
mod destage;
mod found;
mod geometry;
pub(super) mod pressure;
mod read;
mod rebuild;
mod recover;
mod ring;
mod straight;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::{ChunkIndex, DiskId, Role, Seq, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use vsand_code::Code;

use super::group::{Group, Holder, Phase};
use super::guest::{Piece, PieceKind};
use super::io::{Fault, Got, PartId};
use super::locks::RangeLocks;
use super::{Owner, Trouble};
use crate::bugs::Bug;
use crate::directory::Policy;
use crate::time::Instant;
pub(super) use geometry::Geometry;

/// Names a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct TaskId(pub u64);

/// How far a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its groups are not all serving.
    Waiting,
    /// The log is read through.
    Recovering,
    Ready,
    /// No copy of some of the log's slots can be read: what was acknowledged can't be told from what was not. The guest is refused,
    /// because a write of it would go over the log; reading is tried again, for a copy may come back.
    Lost {
        /// When, unless it is under way.
        again: Option<Instant>,
    },
}

/// A guest's write that is not in a record yet, or not all of it.
#[derive(Debug)]
struct Queued {
    part: PartId,
    first: u32,
    end: u32,
    /// The blocks from `first` on; without it they become zeros.
    data: Option<Bytes>,
    /// It was to be staged, and a disk would not: it goes through the log.
    logged: bool,
}

/// One chunk with parity.
#[derive(Debug)]
pub(super) struct Stripes {
    geometry: Geometry,
    code: Code,
    stage: Stage,
    ring: ring::Ring,
    /// The log's slots as they were counted last ([`pressure`]).
    counted: u32,
    queue: VecDeque<Queued>,
    /// Of each guest write that is in records under way: in how many.
    under_way: BTreeMap<PartId, u32>,
    /// The versions of changes of the log that are under way.
    log_open: BTreeSet<Seq>,
    /// The first versions of jobs that are under way.
    jobs_open: BTreeSet<Seq>,
    /// The rows of jobs under way, by the first of them; no row has two.
    jobs: BTreeMap<u32, BlockRange>,
    put_off: destage::PutOff,
    staged: straight::Staged,
    rows: RangeLocks<TaskId>,
    /// What is older and in the log was found there by this owner: its rows' parities may be of different generations.
    heal_before: Seq,
    /// Tasks that found too few shards to go on.
    stalled: BTreeSet<TaskId>,
    /// Before the log is read through: when those are tried again at the latest.
    look_again: Instant,
    appended_at: Instant,
}

impl Stripes {
    fn new(geometry: Geometry, code: Code, stage: Stage, slots: u32) -> Self {
        Self {
            geometry,
            code,
            stage,
            ring: ring::Ring::new(slots),
            counted: 0,
            queue: VecDeque::new(),
            under_way: BTreeMap::new(),
            log_open: BTreeSet::new(),
            jobs_open: BTreeSet::new(),
            jobs: BTreeMap::new(),
            put_off: destage::PutOff::default(),
            staged: straight::Staged::default(),
            rows: RangeLocks::default(),
            heal_before: Seq(0),
            stalled: BTreeSet::new(),
            look_again: Instant(0),
            appended_at: Instant(0),
        }
    }

    /// Whether no row is between two states.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_healed() && self.jobs_open.is_empty()
    }

    /// Whether tasks of this chunk wait for a shard, or the whole chunk for its log.
    pub(super) fn is_stuck(&self) -> bool {
        !self.stalled.is_empty() || self.put_off.is_any() || self.is_lost()
    }

    fn is_lost(&self) -> bool {
        matches!(self.stage, Stage::Lost { .. })
    }

    /// Whether each row's in-sync shards are of one generation, but for what jobs do now.
    fn is_healed(&self) -> bool {
        self.stage == Stage::Ready && !self.ring.holds_before(self.heal_before)
    }
}

/// Something that takes several requests to groups.
#[derive(Debug)]
pub(super) struct Task {
    chunk: ChunkIndex,
    waiting: usize,
    got: Vec<Option<Result<Got, Fault>>>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Append(append::Append),
    Stage(Box<straight::Staging>),
    Forget(straight::Forgetting),
    Trim(append::Trim),
    Read(read::Read),
    Decode(decode::Decode),
    Job(Box<destage::Job>),
    Recover(recover::Recover),
}

/// A request of a task to a group.
#[derive(Debug)]
struct Wanted {
    chunk: ChunkIndex,
    range: BlockRange,
    kind: PieceKind,
    seq: Option<Seq>,
}

impl Wanted {
    fn read(chunk: ChunkIndex, range: BlockRange) -> Self {
        Self { chunk, range, kind: PieceKind::Read { skip: 0, len: range.bytes() }, seq: None }
    }

    fn fetch(chunk: ChunkIndex, range: BlockRange) -> Self {
        Self { chunk, range, kind: PieceKind::Fetch, seq: None }
    }

    fn change(chunk: ChunkIndex, range: BlockRange, data: Option<Bytes>, seq: Seq) -> Self {
        let kind = data.map_or(PieceKind::Zero, |data| PieceKind::Write { data });
        Self { chunk, range, kind, seq: Some(seq) }
    }
}

impl Owner {
    /// The shape of the object's chunks, if they have parity.
    pub(super) fn geometry(&self) -> Option<Geometry> {
        match self.record.policy {
            Policy::Parity { data, parity } => Some(Geometry { data, parity }),
            Policy::Mirror { .. } => None,
        }
    }

    /// Whether requests for this record are the guest's, and go through this module.
    pub(super) fn is_striped(&self, index: ChunkIndex) -> bool {
        index.role() == Role::Whole && self.stripes.contains_key(&index)
    }

    /// A chunk that the directory has a place for begins: empty, or as a former owner left it.
    pub(super) fn begin_stripes(&mut self, now: Instant, chunk: ChunkIndex, empty: bool) {
        let Some(geometry) = self.geometry() else { return };
        let Ok(code) = Code::new(geometry.data.into(), geometry.parity.into()) else { return };
        if self.stripes.contains_key(&chunk) {
            return;
        }
        let stage = if empty { Stage::Ready } else { Stage::Waiting };
        self.stripes.insert(chunk, Stripes::new(geometry, code, stage, self.config.log_slots));
        let group = self.groups.entry(chunk).or_insert_with(|| Group::fresh(chunk, None));
        group.phase = if empty { Phase::Serving } else { Phase::Sealing };
        if empty {
            self.set_floors(chunk);
            self.start_backlog(now, chunk);
        } else {
            for n in 0..geometry.shards() {
                self.serve_without_component(chunk.shard(n));
            }
        }
    }

    /// A shard that has no component in sync serves at once: there is nothing to ask, and nothing to wait for.
    pub(super) fn serve_without_component(&mut self, index: ChunkIndex) {
        if !matches!(index.role(), Role::Shard(_)) {
            return;
        }
        if let Some(group) = self.groups.get_mut(&index)
            && matches!(group.phase, Phase::Sealing)
            && group.in_sync().next().is_none()
        {
            group.phase = Phase::Serving;
            group.summaries.clear();
        }
    }

    /// A group began to serve: if it was the last of its chunk, the chunk goes on.
    pub(super) fn stripes_ready(&mut self, now: Instant, index: ChunkIndex) {
        let chunk = index.base();
        let Some(stripes) = self.stripes.get_mut(&chunk).filter(|s| s.stage == Stage::Waiting) else {
            return;
        };
        let mut seq = Seq(0);
        let forget = self.bugs.has(Bug::MarksForgotten);
        for record in self.record.policy.records(chunk) {
            match self.groups.get(&record) {
                Some(group) if matches!(group.phase, Phase::Serving) => {
                    // A shard that has no component in sync has agreed on nothing, and has marks.
                    let marks = if forget { Seq(0) } else { group.stale_max() };
                    seq = seq.max(group.next_seq).max(marks.next());
                }
                _ => return,
            }
        }
        stripes.stage = Stage::Recovering;
        if let Some(log) = self.groups.get_mut(&chunk.log()) {
            log.next_seq = seq;
        }
        self.set_floors(chunk);
        self.recover(now, chunk);
    }

    /// Tells the groups up to where everything is stable: they see only their own part of it.
    fn set_floors(&mut self, chunk: ChunkIndex) {
        let Some(stripes) = self.stripes.get(&chunk) else { return };
        let Some(next) = self.groups.get(&chunk.log()).map(|log| log.next_seq) else { return };
        let floor = |open: &BTreeSet<Seq>| Seq(open.first().map_or(next.0, |seq| seq.0).saturating_sub(1));
        let (log, shards) = (floor(&stripes.log_open), floor(&stripes.jobs_open));
        for n in 0..stripes.geometry.shards() {
            if let Some(group) = self.groups.get_mut(&chunk.shard(n)) {
                group.floor = Some(shards);
            }
        }
        if let Some(group) = self.groups.get_mut(&chunk.log()) {
            group.floor = Some(log);
        }
    }

    /// So many versions, higher than all before; the first.
    fn take_seqs(&mut self, chunk: ChunkIndex, count: u64) -> Seq {
        let Some(log) = self.groups.get_mut(&chunk.log()) else { return Seq(0) };
        let first = log.next_seq;
        log.next_seq = Seq(first.0 + count);
        first
    }

    // ---- tasks ---------------------------------------------------------------------------------------------------

    fn begin_task(&mut self, chunk: ChunkIndex, work: Work) -> TaskId {
        let id = TaskId(self.fresh_id());
        self.put_back(id, chunk, work);
        id
    }

    /// Asks for all of these; the task goes on when each was answered, and at once if there is none.
    fn want(&mut self, now: Instant, id: TaskId, wanted: Vec<Wanted>) {
        self.expect(id, wanted.len());
        for (place, Wanted { chunk, range, kind, seq }) in wanted.into_iter().enumerate() {
            self.start_inner(now, id, place, Piece { chunk, range, kind }, seq);
        }
    }

    /// The task goes on when it has so many answers.
    fn expect(&mut self, id: TaskId, answers: usize) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.waiting = answers;
        task.got = std::iter::repeat_with(|| None).take(answers).collect();
        if answers == 0 {
            self.ready_tasks.push_back(id);
        }
    }

    /// A group has answered a task.
    pub(super) fn task_answered(&mut self, id: TaskId, place: usize, got: Result<Got, Fault>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Some(slot) = task.got.get_mut(place)
            && slot.is_none()
        {
            *slot = Some(got);
            task.waiting -= 1;
            if task.waiting == 0 {
                self.ready_tasks.push_back(id);
            }
        }
    }

    /// Lets tasks go on that have all that they asked for, and begins what there is to begin.
    pub(super) fn run_stripes(&mut self, now: Instant) {
        if self.stripes.is_empty() {
            return;
        }
        self.run_tasks(now);
        for chunk in std::mem::take(&mut self.stripes_busy) {
            self.pump(now, chunk);
            self.start_jobs(now, chunk);
            self.trim(now, chunk);
            self.forget_remains(now, chunk);
            self.run_tasks(now);
        }
    }

    fn run_tasks(&mut self, now: Instant) {
        while let Some(id) = self.ready_tasks.pop_front() {
            let Some(task) = self.tasks.remove(&id) else { continue };
            let (chunk, got) = (task.chunk, task.got);
            let got: Vec<Result<Got, Fault>> = got.into_iter().flatten().collect();
            match task.work {
                Work::Append(append) => self.append_done(now, chunk, append, &got),
                Work::Stage(staging) => self.staged(now, chunk, *staging, &got),
                Work::Forget(_) => self.forgotten(chunk),
                Work::Trim(trim) => self.trim_done(chunk, trim),
                Work::Read(read) => self.read_done(now, id, chunk, read, got),
                Work::Decode(decode) => self.decode_on(now, id, chunk, decode, got),
                Work::Job(job) => self.job_on(now, id, chunk, *job, got),
                Work::Recover(recover) => self.recover_on(now, id, chunk, recover, got),
            }
        }
    }

    /// The task goes on later with this work.
    fn put_back(&mut self, id: TaskId, chunk: ChunkIndex, work: Work) {
        self.tasks.insert(id, Task { chunk, waiting: 0, got: Vec::new(), work });
    }

    /// Takes rows for a task that reads or changes whole ones; true if it has them now, else it goes on when it has.
    fn take_rows(
        &mut self,
        id: TaskId,
        chunk: ChunkIndex,
        rows: BlockRange,
        mode: super::locks::Mode,
    ) -> bool {
        self.stripes.get_mut(&chunk).is_some_and(|s| s.rows.lock(id, rows, mode))
    }

    pub(super) fn give_rows_back(&mut self, chunk: ChunkIndex, id: TaskId) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        let granted = stripes.rows.unlock(id);
        self.ready_tasks.extend(granted);
    }

    /// Too few shards of the chunk can be asked: the task goes on when one comes back.
    fn stall(&mut self, id: TaskId, chunk: ChunkIndex) {
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.stalled.insert(id);
            self.troubles.insert(Trouble::Unreachable(chunk));
        }
    }

    /// A component may answer again.
    pub(super) fn unstall_stripes(&mut self) {
        for (chunk, stripes) in &mut self.stripes {
            if !stripes.stalled.is_empty() || stripes.put_off.is_any() {
                self.troubles.remove(&Trouble::Unreachable(*chunk));
                self.ready_tasks.extend(std::mem::take(&mut stripes.stalled));
                stripes.put_off.clear();
                self.stripes_busy.insert(*chunk);
            }
        }
    }

    /// Time has passed: what has waited long enough in a log goes into the shards, and lost logs are looked at again.
    pub(super) fn tick_stripes(&mut self, now: Instant) {
        let mut again = Vec::new();
        for (chunk, stripes) in &mut self.stripes {
            stripes.put_off.tick(now);
            if stripes.stage == Stage::Recovering && now >= stripes.look_again {
                self.ready_tasks.extend(std::mem::take(&mut stripes.stalled));
            }
            if let Stage::Lost { again: at } = &mut stripes.stage
                && at.take_if(|at| now >= *at).is_some()
            {
                again.push(*chunk);
            }
        }
        for chunk in again {
            self.recover(now, chunk);
        }
        let busy = |s: &Stripes| !s.ring.is_empty() || s.staged.has_remains();
        let busy = self.stripes.iter().filter(|(_, s)| s.stage == Stage::Ready && busy(s));
        self.stripes_busy.extend(busy.map(|(chunk, _)| *chunk));
    }

    /// Whether a log holds something.
    pub(super) fn stripes_pending(&self) -> bool {
        self.stripes.values().any(|s| !s.ring.is_empty() || s.stage == Stage::Recovering)
    }

    // ---- the in-sync set --------------------------------------------------------------------------------------------

    /// Whether a component of the record is in sync.
    pub(super) fn has_in_sync(&self, index: ChunkIndex) -> bool {
        self.groups.get(&index).is_some_and(|g| g.in_sync().next().is_some())
    }

    /// Whether a component of the record is in sync and did not fail.
    fn has_healthy(&self, index: ChunkIndex) -> bool {
        self.groups.get(&index).is_some_and(|g| g.healthy().next().is_some())
    }

    /// Shards of the chunk that have a component which did not fail.
    pub(super) fn healthy_shards(&self, chunk: ChunkIndex) -> usize {
        let shards = self.stripes.get(&chunk.base()).map_or(0, |s| s.geometry.shards());
        (0..shards).filter(|n| self.has_healthy(chunk.base().shard(*n))).count()
    }

    /// Whether the record's chunk can do without its failed components.
    pub(super) fn can_shrink(&self, index: ChunkIndex) -> bool {
        match index.role() {
            Role::Shard(_) if self.bugs.has(Bug::TooFewShards) => true,
            Role::Shard(_) => self
                .stripes
                .get(&index.base())
                .is_some_and(|s| self.healthy_shards(index) >= usize::from(s.geometry.data)),
            Role::Whole | Role::Log => self.has_healthy(index),
        }
    }

    /// Up to where every in-sync shard of the record's chunk has all jobs, as far as that is known.
    pub(super) fn shards_watermark(&self, index: ChunkIndex) -> Option<Seq> {
        let stripes = self.stripes.get(&index.base())?;
        let shards = (0..stripes.geometry.shards()).filter_map(|n| self.groups.get(&index.base().shard(n)));
        let known = shards.filter(|g| !matches!(g.phase, Phase::Sealing) || !g.summaries.is_empty());
        known.map(Group::watermark).max()
    }

    /// The disk of a shard that can be asked now.
    fn shard_disk(&self, index: ChunkIndex) -> Option<DiskId> {
        let group = self.groups.get(&index)?;
        if self.bugs.has(Bug::StaleShardDecoded) {
            return group.members.keys().copied().find(|d| self.usable(*d));
        }
        let usable = group.healthy().filter(|d| self.usable(*d));
        usable.min_by_key(|d| !self.trusted(*d))
    }

    /// Gives up a guest's range and ends its part.
    fn end_guest(&mut self, now: Instant, chunk: ChunkIndex, part: PartId, result: Result<Got, Fault>) {
        self.end_part(part, result);
        self.unlock(now, chunk, Holder::Part(part));
    }
}

/// The runs of a range that are mapped, with their versions, one block at a time.
fn versions(runs: &[Run]) -> impl Iterator<Item = (u32, Version, bool)> + '_ {
    runs.iter().flat_map(|run| run.range.blocks().map(move |block| (block, run.version, run.mapped)))
}

/// From this size on a buffer is worth the block that it takes to begin where a disk wants it.
const ALIGNED_MIN: usize = 16 * BLOCK_BYTES;

/// An empty buffer for so many bytes. A large one is at an address that a block's size divides: a disk takes it as it is, and copies
/// any other.
fn buffer(len: usize) -> BytesMut {
    if len < ALIGNED_MIN {
        return BytesMut::with_capacity(len);
    }
    let mut all = BytesMut::with_capacity(len + BLOCK_BYTES);
    let before = all.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
    all.resize(before, 0);
    all.split_off(before)
}

/// The same, of zeros.
fn zeroed_buffer(len: usize) -> BytesMut {
    let mut all = buffer(len);
    all.resize(len, 0);
    all
}
