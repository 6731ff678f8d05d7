//! The owner of one object: orders its guest's reads and writes, keeps its components in step, and repairs them.
//!
//! One `Owner` lives from the `Acquire` that made its epoch until the object is released or the owner is fenced. Per chunk
//! it is a [`group::Group`]:
//!
//! ```text
//!            every in-sync disk sealed          blocks above the watermark agree
//!  sealing ───────────────────────────▶ agreeing ──────────────────────────────▶ serving
//!     ▲                                    │
//!     └──── a component failed meanwhile ──┘      unplaced ──first write: PlaceChunk──▶ serving
//! ```
//!
//! Invariants (DESIGN.md, Storage; the simulator checks them from outside):
//! - a write is completed only when every component that the directory calls in sync, and every one that is being
//!   resynced, has it on stable storage (rules 3, 6, 7);
//! - a component leaves the wait of a write only after the directory has taken it out of the in-sync set, with
//!   `stale_seq` no higher than the watermark (rule 6);
//! - reads and writes of a block never overlap, so a read sees only completed writes (rule 5, last sentence);
//! - a read completes only while the lease runs (rule 4);
//! - at most one proposal is under way; each names the revision it is based on, so a late one can't do harm.
//!
//! Inputs are `handle_*` and [`Owner::tick`]; call [`Owner::poll`] until it returns `None` after each. Unanswered proposals
//! and requests are the driver's to deliver at most once; losing one is repaired by time-outs here.
//!
//! What it must not know: connections, queues of a guest, threads, how a component stores.

mod agree;
mod background;
mod copy;
mod dirty;
mod group;
pub mod guest;
mod io;
mod links;
pub(crate) mod locks;
mod record;
pub(crate) mod resync;
mod scrub;
mod stripes;
mod stuck;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, HostId, ObjectId, Role};
use ferro_protocol::peer::{Request, RequestId};

use crate::bugs::Bugs;
use crate::directory::{Command, ObjectRecord};
use crate::time::{Instant, Now};
use copy::{Copy, CopyId};
use group::Group;
use guest::{GuestRequest, GuestResult, GuestTag};
use io::{Op, OpId, Part, PartId};
use links::{Ask, Link};
pub use resync::ResyncView;
pub use scrub::{ScrubEnd, ScrubView};
use stripes::{Stripes, Task, TaskId};

/// Settings of an owner.
#[derive(Clone, Debug)]
pub struct Config {
    /// This host.
    pub me: HostId,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// A disk that owes answers and gives none for so long is taken for dead (0.9 s: with the directory's answer, guests go
    /// on within 2 s).
    pub silence_max: Duration,
    /// A request that is older than this may count as stuck while its disk answers others (1.1 s, for the same reason; what
    /// else must hold, and why load alone never does it, stands in the module `stuck`).
    pub stuck_max: Duration,
    /// Wait so long before a failed proposal or copy is tried again.
    pub retry_after: Duration,
    /// A component that is stale for so long is built anew elsewhere.
    pub repair_delay_s: u64,
    /// Resync at most so fast while the guest does I/O, in bytes per second.
    pub resync_bytes_per_s: u64,
    /// Components that are resynced at once.
    pub resyncs_max: usize,
    /// Copies under way at once.
    pub copies_max: usize,
    /// Slots of 4 KiB of the log of a chunk with parity (16,384). The same for all owners that an object ever has: a new one looks
    /// for the log of the former in so many.
    pub log_slots: u32,
    /// A log this full, in thousandths (500), is put into the shards while the guest writes; before, only when it pauses.
    pub destage_permille: u32,
    /// So many slots of all the object's logs together (32,768: 128 MiB) count like a full log: a new owner reads them all through before it serves.
    pub logged_slots: u32,
    /// Full stripes of so many rows or more (64: 256 KiB on each shard) go straight to the shards, fewer through the log.
    pub straight_rows: u32,
}

impl Config {
    /// The defaults for this host.
    pub fn new(me: HostId) -> Self {
        Self {
            me,
            read_only: false,
            silence_max: Duration::from_millis(900),
            stuck_max: Duration::from_millis(1_100),
            retry_after: Duration::from_millis(100),
            repair_delay_s: 3_600,
            resync_bytes_per_s: 64 << 20,
            resyncs_max: 4,
            copies_max: 8,
            log_slots: 16_384,
            destage_permille: 500,
            logged_slots: 32_768,
            straight_rows: 64,
        }
    }
}

/// Names a proposal until its result is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProposalId(pub u64);

/// What the driver is to do.
#[derive(Debug)]
pub enum Effect {
    /// Ask a disk; the answer comes back by [`Owner::handle_reply`].
    Ask {
        /// The disk.
        disk: DiskId,
        /// The request's name.
        id: RequestId,
        /// The request.
        request: Request,
        /// Its blocks.
        payload: Bytes,
    },
    /// A guest request has ended.
    Complete {
        /// Its name.
        tag: GuestTag,
        /// How.
        result: GuestResult,
    },
    /// Propose a change of the directory; the result comes back by [`Owner::handle_proposal`].
    Propose {
        /// The proposal's name.
        id: ProposalId,
        /// The change.
        command: Command,
    },
    /// The disk's host takes this host's connection for an earlier one than it has, and does not stop: the driver drops the
    /// connection and makes another.
    Reconnect {
        /// The disk.
        disk: DiskId,
    },
    /// The volume is another object now, under the same epoch ([`crate::volume`]); an owner of one object never says so.
    Became {
        /// What it was.
        from: ObjectId,
        /// What it is.
        to: ObjectId,
    },
    /// A scrub of a chunk has ended ([`Owner::scrub`]).
    Scrubbed(ScrubEnd),
    /// The object belongs to somebody else now. The guest's requests are neither completed nor failed; the driver drops
    /// its socket and this owner.
    Fenced,
}

/// What keeps I/O from going on, for people.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// A disk with an in-sync component has no space left: writes wait.
    Full(DiskId),
    /// No host and disk can take this chunk: writes to it wait.
    NoPlace(ChunkIndex),
    /// A disk answers some requests and not others: it is read from and resynced only where that can't be avoided.
    Stuck(DiskId),
    /// No in-sync component of this chunk answers: its I/O waits.
    Unreachable(ChunkIndex),
    /// The directory does not answer while a change is needed: I/O waits.
    NoDirectory,
}

/// The owner of one object.
#[derive(Debug)]
pub struct Owner {
    config: Config,
    bugs: Bugs,
    epoch: Epoch,
    record: Arc<ObjectRecord>,
    lease_until: Instant,
    fenced: bool,
    links: BTreeMap<DiskId, Link>,
    groups: BTreeMap<ChunkIndex, Group>,
    asks: BTreeMap<RequestId, Ask>,
    ops: BTreeMap<OpId, Op>,
    parts: BTreeMap<PartId, Part>,
    copies: BTreeMap<CopyId, Copy>,
    /// Chunks with parity, and what is under way in them.
    stripes: BTreeMap<ChunkIndex, Stripes>,
    tasks: BTreeMap<TaskId, Task>,
    /// Tasks that have all that they asked for.
    ready_tasks: VecDeque<TaskId>,
    /// Chunks with parity where something may begin.
    stripes_busy: BTreeSet<ChunkIndex>,
    /// Data of logs in memory.
    cached_bytes: usize,
    logged: stripes::pressure::Logged,
    /// Reads that wait for the lease.
    lease_wait: Vec<PartId>,
    /// Groups that need a change in the directory before I/O can go on.
    shrink_wanted: BTreeSet<ChunkIndex>,
    place_wanted: BTreeSet<ChunkIndex>,
    join_wanted: BTreeSet<(ChunkIndex, DiskId)>,
    repair_wanted: BTreeMap<ChunkIndex, Option<DiskId>>,
    trim_wanted: BTreeSet<ChunkIndex>,
    /// The disks that are leaving the cluster, or in hosts that were given up.
    leaving: BTreeSet<DiskId>,
    /// The disks of hosts in maintenance.
    resting: BTreeSet<DiskId>,
    /// The disks in this host's site.
    near: BTreeSet<DiskId>,
    /// Full stripes go straight to the shards.
    straight: bool,
    /// What is being moved from a disk that stays.
    moving: Option<background::Moving>,
    /// The component that a move to a certain disk has made one too many.
    vacated: Option<(ChunkIndex, DiskId)>,
    /// Until then no component is given up for its disk's silence ([`background::PATIENCE`]).
    patient_until: Instant,
    proposal: Option<record::Proposal>,
    propose_after: Instant,
    /// No chunk is placed before this time: there was no room.
    place_after: Instant,
    /// Nothing that no guest waits for is proposed before this time.
    background_after: Instant,
    directory_silent: bool,
    next_id: u64,
    guest_io_at: Instant,
    budget: resync::Budget,
    scrub: Option<scrub::Scrub>,
    /// Some component is not in sync, or one too many.
    degraded: bool,
    resync_after: Instant,
    next_check: Instant,
    troubles: BTreeSet<Trouble>,
    effects: VecDeque<Effect>,
}

impl Owner {
    /// The owner of the object from the `Acquire` that brought this record on. Disks are unreachable until
    /// [`Self::handle_disk_up`] says otherwise.
    pub fn new(now: Now, config: Config, record: Arc<ObjectRecord>, bugs: Bugs) -> Self {
        let mut owner = Self {
            bugs,
            epoch: record.epoch,
            lease_until: Instant(0),
            fenced: false,
            links: BTreeMap::new(),
            groups: BTreeMap::new(),
            asks: BTreeMap::new(),
            ops: BTreeMap::new(),
            parts: BTreeMap::new(),
            copies: BTreeMap::new(),
            stripes: BTreeMap::new(),
            tasks: BTreeMap::new(),
            ready_tasks: VecDeque::new(),
            stripes_busy: BTreeSet::new(),
            cached_bytes: 0,
            logged: stripes::pressure::Logged::default(),
            lease_wait: Vec::new(),
            shrink_wanted: BTreeSet::new(),
            place_wanted: BTreeSet::new(),
            join_wanted: BTreeSet::new(),
            repair_wanted: BTreeMap::new(),
            trim_wanted: BTreeSet::new(),
            leaving: BTreeSet::new(),
            resting: BTreeSet::new(),
            near: BTreeSet::new(),
            straight: false,
            moving: None,
            vacated: None,
            patient_until: now.mono + background::PATIENCE,
            proposal: None,
            propose_after: Instant(0),
            place_after: Instant(0),
            background_after: Instant(0),
            directory_silent: false,
            next_id: 1,
            guest_io_at: Instant(0),
            budget: resync::Budget::new(now.mono),
            scrub: None,
            degraded: !record.settled(),
            resync_after: Instant(0),
            next_check: now.mono,
            troubles: BTreeSet::new(),
            effects: VecDeque::new(),
            config,
            record: Arc::clone(&record),
        };
        for (index, chunk) in &record.chunks {
            let group = Group::recovering(*index, chunk);
            for component in &chunk.components {
                owner.link(now.mono, component.disk);
            }
            owner.groups.insert(*index, group);
        }
        let logs: Vec<ChunkIndex> = record.chunks.keys().filter(|i| i.role() == Role::Log).copied().collect();
        for log in logs {
            owner.begin_stripes(now.mono, log.base(), false);
        }
        let sealing: BTreeSet<DiskId> = record.chunks.values().flat_map(|c| c.in_sync()).collect();
        for disk in sealing {
            owner.seal(now.mono, disk);
        }
        owner
    }

    // ---- getters -----------------------------------------------------------------------------------------------

    /// The object.
    pub fn object(&self) -> ObjectId {
        self.record.id
    }

    /// The epoch of this owner.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The latest record that this owner has seen.
    pub fn record(&self) -> &Arc<ObjectRecord> {
        &self.record
    }

    /// Whether the guest may only read, from now on.
    pub(crate) fn set_read_only(&mut self, read_only: bool) {
        self.config.read_only = read_only;
    }

    /// Whether somebody else owns the object now.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether every placed chunk is serving.
    pub fn is_serving(&self) -> bool {
        self.groups.values().all(Group::is_serving)
    }

    /// Whether no guest request is under way.
    pub fn is_idle(&self) -> bool {
        !self.ops.values().any(Op::is_guests)
    }

    /// Whether nothing waits in a log for its shards (of a volume with parity).
    pub fn is_destaged(&self) -> bool {
        !self.stripes_pending()
    }

    /// The chunks with parity in whose rows nothing is under way: their in-sync shards are of one generation.
    pub fn chunks_at_rest(&self) -> impl Iterator<Item = ChunkIndex> {
        self.stripes.iter().filter(|(_, stripes)| stripes.is_at_rest()).map(|(chunk, _)| *chunk)
    }

    /// What keeps I/O waiting now.
    pub fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.troubles.iter()
    }

    /// When [`Self::tick`] is to be called again.
    pub fn tick_after(&self) -> Duration {
        if !self.copies.is_empty() || self.resyncing() || self.scrub.is_some() {
            Duration::from_millis(10)
        } else if !self.asks.is_empty()
            || self.proposal.is_some()
            || self.wants_proposal()
            || self.stripes_pending()
        {
            Duration::from_millis(50)
        } else {
            Duration::from_secs(1)
        }
    }

    // ---- inputs ------------------------------------------------------------------------------------------------

    /// A guest asks.
    pub fn handle_guest(&mut self, now: Now, tag: GuestTag, request: GuestRequest) {
        if self.fenced {
            return;
        }
        self.guest_io_at = now.mono;
        self.start_op(now.mono, tag, request);
        self.settle(now);
    }

    /// This host's lease runs until then.
    pub fn handle_lease(&mut self, now: Now, valid_until: Instant) {
        self.lease_until = self.lease_until.max(valid_until);
        if self.lease_runs(now.mono) {
            for part in std::mem::take(&mut self.lease_wait) {
                self.admit(now.mono, part);
            }
            self.settle(now);
        }
    }

    /// These disks are leaving the cluster, or their hosts were given up: their components are built elsewhere, and stay in step until
    /// that is done.
    pub fn handle_leaving(&mut self, now: Now, leaving: &BTreeSet<DiskId>) {
        if self.fenced || self.leaving == *leaving {
            return;
        }
        self.leaving.clone_from(leaving);
        self.next_check = now.mono;
        self.tick(now);
    }

    /// These disks are in hosts that somebody works on: their components are not built elsewhere because they are away.
    pub fn handle_resting(&mut self, now: Now, resting: &BTreeSet<DiskId>) {
        if self.fenced || self.resting == *resting {
            return;
        }
        if !self.resting.is_subset(resting) {
            self.patient_until = now.mono + background::PATIENCE;
        }
        self.resting.clone_from(resting);
        self.next_check = now.mono;
        self.tick(now);
    }

    /// These disks are in this host's site: they are read from before others.
    pub fn handle_near(&mut self, near: &BTreeSet<DiskId>) {
        if self.near != *near {
            self.near.clone_from(near);
        }
    }

    /// The directory says that this owner's lock is gone ([`crate::lease::Standing::Lost`]).
    pub fn handle_lock_lost(&mut self) {
        self.fence();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        if self.fenced {
            return;
        }
        self.check_silence(now.mono);
        self.check_stuck(now.mono);
        self.check_stale(now);
        self.tick_stripes(now.mono);
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    // ---- shared by the parts ----------------------------------------------------------------------------------

    /// Restores what must hold after each input: resyncs that can run do, and the most urgent proposal is under way.
    fn settle(&mut self, now: Now) {
        if self.fenced {
            return;
        }
        self.run_stripes(now.mono);
        self.run_resyncs(now);
        self.run_stripes(now.mono);
        self.run_scrub(now.mono);
        self.propose_next(now);
    }

    fn fence(&mut self) {
        if !self.fenced {
            self.fenced = true;
            self.effects.clear();
            self.effects.push_back(Effect::Fenced);
        }
    }

    fn lease_runs(&self, now: Instant) -> bool {
        now < self.lease_until || self.bugs.has(crate::bugs::Bug::StaleReadAfterLease)
    }

    fn chunk_id(&self, index: ChunkIndex) -> ChunkId {
        ChunkId { object: self.record.id, index }
    }

    fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}
