//! The side of one disk: keeps the promise that was given when an object was sealed, and turns what owners ask into
//! operations of the disk.
//!
//! For each object the disk is in one of these states:
//!
//! ```text
//!   serving epoch e ──Seal(e' ≥ e)──▶ closing ──changes under way: 0──▶ promising ──SetEpoch durable──▶ summarising
//!        ▲                             (every request refused)                                            │
//!        └─────────────────────────────── Sealed answered, serving epoch e' ◀────────────────────────────┘
//! ```
//!
//! Invariants (DESIGN.md, Storage, rule 2):
//! - from the moment a seal arrives, nothing of a lower epoch is accepted, reads included;
//! - `Sealed` is answered only after the promise is on stable storage and after every change that was accepted before has
//!   ended, so what the summary says is all there will ever be of earlier epochs;
//! - a request of an epoch that was not sealed here is refused, so an owner can't skip the seal;
//! - within an epoch only the latest connection that sealed is served: what an earlier one still brings, after its owner has
//!   reconnected and asked everything anew, is refused. (A late `Install` would put old blocks over newer ones.);
//! - a change that overlaps an `Install` which the disk has not answered waits for it, since the disk may carry out the two in
//!   either order;
//! - of objects of which the disk holds no data it keeps no more than [`PROMISES_MAX`] promises: a peer that makes names up
//!   can't fill the disk's metadata.
//!
//! Polling: call [`Replica::poll`] until it returns `None` after each input.
//!
//! What it must not know: how a disk stores, who the owners are, whether an answer will arrive.

mod bad;
mod installs;
mod leftovers;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, DiskId, Epoch, ObjectId, Seq};
use ferro_protocol::peer::{RUNS_MAX, Refusal, Reply, Request, RequestId};
use ferro_protocol::units::BlockRange;

use crate::bugs::{Bug, Bugs};
use crate::disk::{DiskError, DiskOp, DiskReply, Ticket};
use bad::BadBlocks;
pub use bad::BadCounts;
use installs::{Installs, span};

/// Names whoever asked: a connection of the daemon, or its own owners. Given out by the driver, a higher one to each new
/// connection; requests of one asker arrive in the order in which they were sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Asker(pub u64);

/// What the driver is to do.
#[derive(Debug)]
pub enum Effect {
    /// Give this to the disk.
    Disk(Ticket, DiskOp),
    /// Answer a request.
    Answer {
        /// Who asked.
        to: Asker,
        /// Its name for the request.
        id: RequestId,
        /// The answer.
        reply: Result<Reply, Refusal>,
        /// The blocks that go with it.
        payload: Bytes,
    },
}

/// One disk's replica.
#[derive(Debug)]
pub struct Replica {
    disk: DiskId,
    bugs: Bugs,
    objects: BTreeMap<ObjectId, Object>,
    /// How many of them were never written here.
    unwritten: usize,
    pending: BTreeMap<Ticket, Pending>,
    next_ticket: u64,
    dead: Option<String>,
    condemned: BTreeSet<ChunkId>,
    /// Installs that the disk has not answered, and what waits for them.
    installs: BTreeMap<ChunkId, Installs>,
    bad: BadBlocks,
    effects: VecDeque<Effect>,
}

#[derive(Debug, Default)]
struct Object {
    /// The epoch that requests must carry now.
    serving: Epoch,
    /// Who has sealed the latest epoch, the last time.
    asker: Option<Asker>,
    /// Changes that the disk has not answered.
    changes: u32,
    /// Seals that wait, the highest epoch last; requests are refused while there are any.
    closing: Option<Closing>,
    /// Data of it was written here.
    written: bool,
    /// Its promise is being removed from the disk; requests are refused meanwhile.
    leaving: bool,
}

#[derive(Debug)]
struct Closing {
    epoch: Epoch,
    askers: Vec<(Asker, RequestId, Epoch)>,
    promised: bool,
    /// The operation whose answer moves this seal on. Answers to those of an earlier seal, which may even have had the same
    /// epoch, say nothing about this one.
    expects: Option<Ticket>,
}

#[derive(Debug)]
enum Pending {
    Request {
        to: Asker,
        id: RequestId,
        chunk: ChunkId,
        change: bool,
        span: Option<BlockRange>,
        data: bool,
    },
    /// Where there is something to verify.
    Look {
        to: Asker,
        id: RequestId,
        chunk: ChunkId,
        from_block: u32,
    },
    Verify {
        to: Asker,
        id: RequestId,
        chunk: ChunkId,
        next_block: u32,
    },
    Promise {
        object: ObjectId,
        epoch: Epoch,
    },
    Summary {
        object: ObjectId,
    },
    Removal {
        chunk: ChunkId,
    },
    Forgetting {
        object: ObjectId,
    },
}

/// The most objects without data here whose epochs a disk promises. Far more than there are volumes that were sealed and never
/// written, and than are deleted between two looks at the directory ([`Replica::forget_object`]).
pub const PROMISES_MAX: u32 = 16_384;
/// The most seals of one object that may wait at once; there is one a host.
const SEALS_MAX: usize = 64;

impl Replica {
    /// A replica over a disk that was opened with these promises on it; `holds` tells of which objects it has data.
    pub fn new(
        disk: DiskId,
        sealed: impl IntoIterator<Item = (ObjectId, Epoch)>,
        holds: impl Fn(ObjectId) -> bool,
        bugs: Bugs,
    ) -> Self {
        let object = |(id, serving)| (id, Object { serving, written: holds(id), ..Object::default() });
        let objects: BTreeMap<ObjectId, Object> = sealed.into_iter().map(object).collect();
        Self {
            disk,
            bugs,
            unwritten: objects.values().filter(|object| !object.written).count(),
            objects,
            pending: BTreeMap::new(),
            next_ticket: 0,
            dead: None,
            condemned: BTreeSet::new(),
            installs: BTreeMap::new(),
            bad: BadBlocks::default(),
            effects: VecDeque::new(),
        }
    }

    /// The disk.
    pub fn disk(&self) -> DiskId {
        self.disk
    }

    /// Whether the disk owes an answer.
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Why the disk is dead, if it is.
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }

    /// The disk's blocks that failed their checksums since it was opened.
    pub fn bad_blocks(&self) -> BadCounts {
        self.bad.counts()
    }

    /// What an owner asks. The payload's length was checked against the request ([`Request::payload_bytes`]).
    pub fn handle_request(&mut self, from: Asker, id: RequestId, request: Request, payload: Bytes) {
        if let Some(reason) = &self.dead {
            let reason = reason.clone();
            return self.refuse(from, id, Refusal::Dead(reason));
        }
        match request.payload_bytes() {
            Ok(bytes) if bytes == payload.len() => {}
            Ok(bytes) => {
                let what = format!("{} bytes of payload where {bytes} belong", payload.len());
                return self.refuse(from, id, Refusal::Malformed(what));
            }
            Err(refusal) => return self.refuse(from, id, refusal),
        }
        match request {
            Request::Seal { object, epoch } => self.seal(from, id, object, epoch),
            Request::Write { chunk, range, version, watermark } => {
                let op = DiskOp::Write { chunk, range, version, watermark, data: payload };
                self.forward(from, id, chunk, version.epoch, true, op);
            }
            Request::Zero { chunk, range, version, watermark } => {
                let op = DiskOp::Zero { chunk, range, version, watermark };
                self.forward(from, id, chunk, version.epoch, true, op);
            }
            Request::Install { chunk, epoch, runs } => {
                self.forward(from, id, chunk, epoch, true, DiskOp::Install { chunk, runs, data: payload });
            }
            Request::Promote { chunk, extent, version, watermark } => {
                let op = DiskOp::Promote { to: chunk, from: chunk.index.staged(), extent, watermark };
                self.forward(from, id, chunk, version.epoch, true, op);
            }
            Request::Forget { chunk, version, first, end } => {
                let chunk = ChunkId { index: chunk.index.staged(), ..chunk };
                self.forward(from, id, chunk, version.epoch, true, DiskOp::Forget { chunk, first, end });
            }
            Request::Read { chunk, epoch, range } => {
                self.forward(from, id, chunk, epoch, false, DiskOp::Read { chunk, range });
            }
            Request::Fetch { chunk, epoch, range } => {
                self.forward(from, id, chunk, epoch, false, DiskOp::Fetch { chunk, range });
            }
            Request::List { chunk, epoch, since, from_block } => {
                let op = DiskOp::List { chunk, since, from_block, runs_max: RUNS_MAX };
                self.forward(from, id, chunk, epoch, false, op);
            }
            Request::Verify { chunk, epoch, from_block } => {
                if self.admit(from, id, chunk, epoch) {
                    let ticket = self.ticket(Pending::Look { to: from, id, chunk, from_block });
                    let op = DiskOp::List { chunk, since: Seq(0), from_block, runs_max: 1 };
                    self.effects.push_back(Effect::Disk(ticket, op));
                }
            }
        }
    }

    /// What the disk answers.
    pub fn handle_disk(&mut self, ticket: Ticket, result: Result<DiskReply, DiskError>) {
        if let Err(DiskError::Dead(reason)) = &result
            && self.dead.is_none()
        {
            self.dead = Some(reason.clone());
        }
        let Some(pending) = self.pending.remove(&ticket) else { return };
        match pending {
            Pending::Request { to, id, chunk, change, span, data } => {
                if data && result.is_ok() && !std::mem::replace(&mut self.entry(chunk.object).written, true) {
                    self.unwritten -= 1;
                }
                if let Err(DiskError::BadBlocks(bad)) = &result {
                    self.bad.found(chunk, bad);
                } else if let (Some(span), Ok(_)) = (span, &result) {
                    self.bad.replaced(chunk, span);
                }
                self.answer(to, id, result);
                if change {
                    self.install_ended(ticket, chunk);
                    self.change_ended(chunk.object);
                }
            }
            Pending::Look { to, id, chunk, from_block } => self.looked(to, id, chunk, from_block, result),
            Pending::Verify { to, id, chunk, next_block } => {
                self.verified(to, id, chunk, next_block, result);
            }
            Pending::Promise { object, epoch } => self.promised(object, epoch, Some(ticket), result),
            Pending::Summary { object } => self.summarised(object, ticket, result),
            Pending::Removal { chunk } => {
                self.bad.removed(chunk.object, Some(chunk.index));
                self.condemned.remove(&chunk);
                self.change_ended(chunk.object);
            }
            Pending::Forgetting { object } => {
                if result.is_ok() {
                    self.bad.removed(object, None);
                    let gone = self.objects.remove(&object);
                    self.unwritten -= usize::from(gone.is_some_and(|object| !object.written));
                } else if let Some(entry) = self.objects.get_mut(&object) {
                    entry.leaving = false;
                }
            }
        }
    }

    /// Forgets who asked: the connection is gone, answers to it go nowhere.
    pub fn forget_asker(&mut self, asker: Asker) {
        for object in self.objects.values_mut() {
            if object.asker == Some(asker) {
                // Should an earlier number belong to a later connection, that one may seal now.
                object.asker = None;
            }
            if let Some(closing) = &mut object.closing {
                closing.askers.retain(|(to, ..)| *to != asker);
            }
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn seal(&mut self, from: Asker, id: RequestId, object: ObjectId, epoch: Epoch) {
        if epoch == Epoch(0) {
            return self.refuse(from, id, Refusal::Malformed("no owner has epoch 0".to_owned()));
        }
        if self.unwritten >= PROMISES_MAX as usize && !self.objects.contains_key(&object) {
            return self.refuse(from, id, Refusal::TooManyObjects { promises_max: PROMISES_MAX });
        }
        let entry = self.entry(object);
        let latest = entry.closing.as_ref().map_or(entry.serving, |closing| closing.epoch.max(entry.serving));
        if epoch < latest {
            return self.refuse(from, id, Refusal::Fenced { sealed: latest });
        }
        if entry.leaving {
            let sealed = entry.serving;
            return self.refuse(from, id, Refusal::Unsealed { sealed });
        }
        if epoch == latest && entry.asker.is_some_and(|asker| asker > from) {
            let sealed = entry.serving;
            return self.refuse(from, id, Refusal::Unsealed { sealed });
        }
        entry.asker = Some(from);
        let closing = entry.closing.get_or_insert_with(|| Closing {
            epoch,
            askers: Vec::new(),
            promised: false,
            expects: None,
        });
        if epoch > closing.epoch {
            closing.epoch = epoch;
            closing.promised = false;
            closing.expects = None;
        }
        if closing.askers.len() >= SEALS_MAX {
            return self.refuse(from, id, Refusal::Malformed("too many seals at once".to_owned()));
        }
        closing.askers.push((from, id, epoch));
        self.promise_if_quiet(object);
    }

    fn forward(
        &mut self,
        from: Asker,
        id: RequestId,
        chunk: ChunkId,
        epoch: Epoch,
        change: bool,
        op: DiskOp,
    ) {
        if !self.admit(from, id, chunk, epoch) {
            return;
        }
        let data = match &op {
            DiskOp::Write { data, .. } | DiskOp::Install { data, .. } => !data.is_empty(),
            _ => false,
        };
        let span = if change { span(&op) } else { None };
        if change {
            self.entry(chunk.object).changes += 1;
        }
        let ticket = self.ticket(Pending::Request { to: from, id, chunk, change, span, data });
        if change {
            self.submit_in_order(ticket, chunk, op);
        } else {
            self.effects.push_back(Effect::Disk(ticket, op));
        }
    }

    /// Whether the asker may ask of this chunk now; if not it is told.
    fn admit(&mut self, from: Asker, id: RequestId, chunk: ChunkId, epoch: Epoch) -> bool {
        // An object that was never sealed here gets no entry, or a peer could fill the memory with names it makes up.
        if !self.objects.contains_key(&chunk.object) && !self.bugs.has(Bug::NoSeal) {
            self.refuse(from, id, Refusal::Unsealed { sealed: Epoch(0) });
            return false;
        }
        // What is staged goes with its shard.
        let record = ChunkId { index: chunk.index.record(), ..chunk };
        let (bugs, condemned) =
            (self.bugs, self.condemned.contains(&chunk) || self.condemned.contains(&record));
        let entry = self.entry(chunk.object);
        let latest = entry.closing.as_ref().map_or(entry.serving, |closing| closing.epoch.max(entry.serving));
        // Epoch 0 stands for "never opened": no owner has it, and a seal that failed leaves it behind.
        let sealed = epoch == entry.serving && epoch > Epoch(0) && entry.asker == Some(from);
        let unsealed = !sealed || entry.closing.is_some() || entry.leaving;
        let refusal = if epoch < latest && !bugs.has(Bug::NoSeal) {
            Refusal::Fenced { sealed: latest }
        } else if unsealed && !bugs.has(Bug::NoSeal) {
            Refusal::Unsealed { sealed: entry.serving }
        } else if condemned {
            Refusal::Unsealed { sealed: Epoch(0) }
        } else {
            return true;
        };
        self.refuse(from, id, refusal);
        false
    }

    /// Gives a change to the disk, now or after the installs that it overlaps.
    fn submit_in_order(&mut self, ticket: Ticket, chunk: ChunkId, op: DiskOp) {
        let install = matches!(op, DiskOp::Install { .. });
        if install || self.installs.contains_key(&chunk) {
            let Some(span) = span(&op) else { return self.effects.push_back(Effect::Disk(ticket, op)) };
            let order = self.installs.entry(chunk).or_default();
            if order.blocks(span, order.waiting.len()) {
                return order.waiting.push_back((ticket, span, op));
            }
            if install {
                order.running.push((ticket, span));
            }
        }
        self.effects.push_back(Effect::Disk(ticket, op));
    }

    /// The disk has answered a change: what waited for it goes on, if it was an install.
    fn install_ended(&mut self, ticket: Ticket, chunk: ChunkId) {
        let Some(order) = self.installs.get_mut(&chunk) else { return };
        let Some(at) = order.running.iter().position(|(running, _)| *running == ticket) else { return };
        order.running.swap_remove(at);
        let mut n = 0;
        while let Some((ticket, span, op)) = order.waiting.get(n) {
            if order.blocks(*span, n) {
                n += 1;
                continue;
            }
            if matches!(op, DiskOp::Install { .. }) {
                order.running.push((*ticket, *span));
            }
            if let Some((ticket, _, op)) = order.waiting.remove(n) {
                self.effects.push_back(Effect::Disk(ticket, op));
            }
        }
        if order.running.is_empty() {
            self.installs.remove(&chunk);
        }
    }

    fn change_ended(&mut self, object: ObjectId) {
        let entry = self.entry(object);
        entry.changes = entry.changes.saturating_sub(1);
        self.promise_if_quiet(object);
    }

    /// Once no change is under way, the promise is written down.
    fn promise_if_quiet(&mut self, object: ObjectId) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let Some(closing) = &mut entry.closing else { return };
        if closing.promised || entry.changes > 0 {
            return;
        }
        closing.promised = true;
        let epoch = closing.epoch;
        if self.bugs.has(Bug::SealInMemory) {
            return self.promised(object, epoch, None, Ok(DiskReply::Done));
        }
        let ticket = self.ticket(Pending::Promise { object, epoch });
        self.expect(object, ticket);
        self.effects.push_back(Effect::Disk(ticket, DiskOp::SetEpoch { object, epoch }));
    }

    fn expect(&mut self, object: ObjectId, ticket: Ticket) {
        if let Some(closing) = self.objects.get_mut(&object).and_then(|o| o.closing.as_mut()) {
            closing.expects = Some(ticket);
        }
    }

    fn promised(
        &mut self,
        object: ObjectId,
        epoch: Epoch,
        ticket: Option<Ticket>,
        result: Result<DiskReply, DiskError>,
    ) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        let Some(closing) = &entry.closing else { return };
        if closing.expects != ticket {
            // Another seal came meanwhile: its own promise follows.
            return self.promise_if_quiet(object);
        }
        match result {
            Ok(_) => {
                entry.serving = epoch;
                let ticket = self.ticket(Pending::Summary { object });
                self.expect(object, ticket);
                self.effects.push_back(Effect::Disk(ticket, DiskOp::Summarise { object }));
            }
            Err(error) => self.end_closing(object, &Err(refusal(error))),
        }
    }

    fn summarised(&mut self, object: ObjectId, ticket: Ticket, result: Result<DiskReply, DiskError>) {
        let expected = self.objects.get(&object).and_then(|o| o.closing.as_ref()).and_then(|c| c.expects);
        if expected != Some(ticket) {
            return;
        }
        let reply = match result {
            Ok(DiskReply::Summary(chunks)) => Ok(Reply::Sealed { chunks }),
            Ok(_) => Err(Refusal::Dead("the store gave an answer of the wrong kind".to_owned())),
            Err(error) => Err(refusal(error)),
        };
        self.end_closing(object, &reply);
    }

    fn end_closing(&mut self, object: ObjectId, reply: &Result<Reply, Refusal>) {
        let Some(closing) = self.objects.get_mut(&object).and_then(|o| o.closing.take()) else { return };
        for (to, id, epoch) in closing.askers {
            if epoch < closing.epoch {
                self.refuse(to, id, Refusal::Fenced { sealed: closing.epoch });
            } else {
                let (reply, payload) = (reply.clone(), Bytes::new());
                self.effects.push_back(Effect::Answer { to, id, reply, payload });
            }
        }
    }

    fn answer(&mut self, to: Asker, id: RequestId, result: Result<DiskReply, DiskError>) {
        let (reply, payload) = match result {
            Ok(DiskReply::Done) => (Ok(Reply::Done), Bytes::new()),
            Ok(DiskReply::Data(data)) => (Ok(Reply::Data), data),
            Ok(DiskReply::Runs(runs, data)) => (Ok(Reply::Runs(runs)), data),
            Ok(DiskReply::List(runs, next_block)) => (Ok(Reply::List { runs, next_block }), Bytes::new()),
            Ok(DiskReply::Summary(chunks)) => (Ok(Reply::Sealed { chunks }), Bytes::new()),
            Err(error) => (Err(refusal(error)), Bytes::new()),
        };
        self.effects.push_back(Effect::Answer { to, id, reply, payload });
    }

    fn refuse(&mut self, to: Asker, id: RequestId, refusal: Refusal) {
        self.effects.push_back(Effect::Answer { to, id, reply: Err(refusal), payload: Bytes::new() });
    }

    fn entry(&mut self, object: ObjectId) -> &mut Object {
        self.objects.entry(object).or_insert_with(|| {
            self.unwritten += 1;
            Object::default()
        })
    }

    fn ticket(&mut self, pending: Pending) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.pending.insert(ticket, pending);
        ticket
    }
}

fn refusal(error: DiskError) -> Refusal {
    match error {
        DiskError::BadBlocks(bad) => Refusal::BadBlocks { bad },
        DiskError::Full => Refusal::Full,
        DiskError::NotStaged => Refusal::NotStaged,
        DiskError::Dead(reason) => Refusal::Dead(reason),
    }
}
