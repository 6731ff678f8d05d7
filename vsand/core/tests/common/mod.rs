//! One owner, a directory and a few disks, all in memory, without time or faults of their own: what the owner asks is carried
//! out at once. (Where order and time matter, the simulator is the place.)
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries")]

pub mod cluster;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, HostId, ObjectId, Seq, Version};
use ferro_protocol::peer::{ChunkSummary, Request, RequestId, Run};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, CHUNK_BYTES};
use vsand_core::bugs::Bugs;
use vsand_core::directory::{Command, LockKind, ObjectRecord, Outcome, Policy, Refused, State};
use vsand_core::disk::{DiskOp, DiskReply};
use vsand_core::owner::guest::{GuestRequest, GuestResult, GuestTag};
use vsand_core::owner::{Config, Effect, Owner, ResyncView, ScrubEnd};
use vsand_core::replica::{self, Asker, Replica};
use vsand_core::time::{Instant, Now};

pub const OBJECT: ObjectId = ObjectId::from_bytes([9; 16]);
pub const CHUNK: ChunkId = ChunkId { object: OBJECT, index: ChunkIndex(0) };

pub fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

pub fn disk(n: u8) -> DiskId {
    DiskId::from_bytes([n; 16])
}

/// Version and data of each block of [`CHUNK`].
type Blocks = Vec<(Version, Option<Bytes>)>;

/// A disk and its replica.
pub struct Disk {
    pub replica: Replica,
    pub blocks: Blocks,
    watermark: Seq,
    /// The owner's connection to it.
    pub asker: u64,
    /// Requests reach it.
    pub up: bool,
    /// It does what it is asked, and its answers are lost.
    pub mute: bool,
    /// It is frozen: requests reach it and nothing comes of them.
    pub frozen: bool,
    /// It keeps requests back, until it is told to go on.
    pub keep_back: bool,
    kept: VecDeque<(RequestId, Request, Bytes)>,
    /// Blocks that installs have brought, and those of them with data.
    pub installed: u32,
    pub installed_data: u32,
    pub installs: u32,
}

impl Disk {
    fn carry_out(&mut self, op: DiskOp) -> DiskReply {
        match op {
            DiskOp::Write { range, version, watermark, data, .. } => {
                self.watermark = self.watermark.max(watermark);
                for (n, block) in range.blocks().enumerate() {
                    let data = data.slice(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES);
                    self.put(block, version, Some(data), false);
                }
                DiskReply::Done
            }
            DiskOp::Zero { range, version, watermark, .. } => {
                self.watermark = self.watermark.max(watermark);
                range.blocks().for_each(|block| self.put(block, version, None, false));
                DiskReply::Done
            }
            DiskOp::Install { runs, data, .. } => {
                let mut at = 0;
                self.installs += 1;
                for run in runs {
                    for block in run.range.blocks() {
                        let bytes = run.mapped.then(|| data.slice(at..at + BLOCK_BYTES));
                        at += bytes.as_ref().map_or(0, Bytes::len);
                        self.put(block, run.version, bytes, true);
                    }
                    self.installed += run.range.count();
                    self.installed_data += if run.mapped { run.range.count() } else { 0 };
                }
                DiskReply::Done
            }
            DiskOp::Read { range, .. } => DiskReply::Data(self.data(range, true)),
            DiskOp::Fetch { range, .. } => {
                DiskReply::Runs(self.runs(range.blocks(), |_| true), self.data(range, false))
            }
            DiskOp::List { since, from_block, .. } => {
                DiskReply::List(self.runs(from_block..CHUNK_BLOCKS, |seq| seq > since), None)
            }
            DiskOp::Summarise { .. } => {
                let watermark = self.watermark;
                let seq_max = self.blocks.iter().map(|(version, _)| version.seq).max().unwrap_or_default();
                let tail = self.runs(0..CHUNK_BLOCKS, |seq| seq > watermark);
                DiskReply::Summary(vec![ChunkSummary { index: CHUNK.index, watermark, seq_max, tail }])
            }
            DiskOp::Promote { .. } | DiskOp::Forget { .. } => panic!("nothing of a mirror is staged"),
            DiskOp::SetEpoch { .. } | DiskOp::Remove { .. } => DiskReply::Done,
        }
    }

    fn put(&mut self, block: u32, version: Version, data: Option<Bytes>, force: bool) {
        let entry = &mut self.blocks[block as usize];
        if force || entry.0 < version {
            *entry = (version, data);
        }
    }

    fn data(&self, range: BlockRange, zeros: bool) -> Bytes {
        let mut bytes = BytesMut::new();
        for block in range.blocks() {
            match &self.blocks[block as usize].1 {
                Some(data) => bytes.extend_from_slice(data),
                None if zeros => bytes.resize(bytes.len() + BLOCK_BYTES, 0),
                None => {}
            }
        }
        bytes.freeze()
    }

    fn runs(&self, blocks: std::ops::Range<u32>, wanted: impl Fn(Seq) -> bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for block in blocks {
            let (version, data) = &self.blocks[block as usize];
            let (version, mapped) = (*version, data.is_some());
            if !wanted(version.seq) {
                continue;
            }
            match runs.last_mut() {
                Some(last)
                    if last.range.end() == block && (last.version, last.mapped) == (version, mapped) =>
                {
                    last.range = BlockRange::new(last.range.first(), last.range.count() + 1).unwrap();
                }
                _ => runs.push(Run { range: BlockRange::one(block).unwrap(), version, mapped }),
            }
        }
        runs
    }
}

/// All of it.
pub struct Lab {
    pub state: State,
    pub owner: Owner,
    pub disks: BTreeMap<DiskId, Disk>,
    pub now: Now,
    /// Disks whose host was to be reconnected to.
    pub reconnects: Vec<DiskId>,
    pub fenced: bool,
    /// Scrubs that have ended.
    pub scrubs: Vec<ScrubEnd>,
    /// The most that resyncs had to copy in all, as they said.
    pub resync_total_max: u32,
    results: BTreeMap<GuestTag, GuestResult>,
    index: u64,
    tag: u64,
}

impl Lab {
    /// An object mirrored on these many hosts, each with a disk, owned by the first, its only chunk not placed yet.
    pub fn new(copies: u8) -> Self {
        let mut state = State::default();
        let mut index = 0;
        let mut apply = |command| {
            index += 1;
            state.apply(index, command).expect("accepted")
        };
        for n in 1..=copies {
            apply(Command::PutHost { host: cluster::host_record(n) });
            let (path, capacity_extents) = (format!("/d{n}"), 1 << 20);
            apply(Command::PutDisk { disk: disk(n), host: host(n), path, capacity_extents, used_extents: 0 });
        }
        let (name, policy) = ("v".parse().expect("a name"), Policy::Mirror { copies });
        apply(Command::CreateObject { object: OBJECT, name, size_bytes: CHUNK_BYTES, policy, unix_s: 0 });
        let kind = LockKind::Exclusive { read_only: false };
        let acquire = Command::Acquire { object: OBJECT, epoch: Epoch(0), host: host(1), kind, unix_s: 0 };
        let Outcome::Object(record) = apply(acquire) else { panic!("no record") };
        let now = Now { mono: Instant(1_000_000_000), unix_s: 1_000 };
        let disks = (1..=copies).map(|n| {
            let replica = Replica::new(disk(n), [], |_| false, Bugs::NONE);
            let blocks = vec![(Version::NEVER, None); CHUNK_BLOCKS as usize];
            let (installed, installed_data, installs) = (0, 0, 0);
            let watermark = Seq(0);
            let (asker, up, mute, frozen) = (1, true, false, false);
            let known = Disk {
                replica,
                blocks,
                watermark,
                asker,
                up,
                mute,
                frozen,
                keep_back: false,
                kept: VecDeque::new(),
                installed,
                installed_data,
                installs,
            };
            (disk(n), known)
        });
        let mut lab = Self {
            owner: Owner::new(now, Config::new(host(1)), record, Bugs::NONE),
            disks: disks.collect(),
            state,
            now,
            reconnects: Vec::new(),
            fenced: false,
            scrubs: Vec::new(),
            resync_total_max: 0,
            results: BTreeMap::new(),
            index,
            tag: 0,
        };
        lab.owner.handle_lease(now, Instant(u64::MAX));
        for n in 1..=copies {
            lab.owner.handle_disk_up(now, disk(n), n == 1);
        }
        lab.run();
        lab
    }

    /// A new owner, on the same host.
    pub fn take_over(&mut self) {
        self.own();
        for n in self.disks.keys().copied().collect::<Vec<_>>() {
            self.owner.handle_disk_up(self.now, n, n == disk(1));
        }
        self.run();
    }

    /// A new owner, on the same host, that reaches no disk yet.
    pub fn own(&mut self) {
        let (epoch, kind) = (self.record().epoch, LockKind::Exclusive { read_only: false });
        self.index += 1;
        let acquire = Command::Acquire { object: OBJECT, epoch, host: host(1), kind, unix_s: 0 };
        let Ok(Outcome::Object(record)) = self.state.apply(self.index, acquire) else { panic!("no record") };
        self.owner = Owner::new(self.now, Config::new(host(1)), record, Bugs::NONE);
        self.owner.handle_lease(self.now, Instant(u64::MAX));
    }

    /// Somebody else's command; the owner hears of what became of its object.
    pub fn command(&mut self, command: Command) -> Result<Outcome, Refused> {
        self.index += 1;
        let result = self.state.apply(self.index, command);
        self.owner.handle_record(self.now, self.state.objects.get(&OBJECT));
        self.run();
        result
    }

    pub fn record(&self) -> &ObjectRecord {
        &self.state.objects[&OBJECT]
    }

    pub fn disk(&mut self, n: u8) -> &mut Disk {
        self.disks.get_mut(&disk(n)).unwrap()
    }

    /// Requests of the guest, under way.
    pub fn begin(&mut self, request: GuestRequest) -> GuestTag {
        self.tag += 1;
        let tag = GuestTag(self.tag);
        self.owner.handle_guest(self.now, tag, request);
        self.run();
        tag
    }

    pub fn write(&mut self, block: u32, count: u32) -> GuestTag {
        let data = Bytes::from(vec![self.tag as u8 | 0x80; count as usize * BLOCK_BYTES]);
        self.begin(GuestRequest::Write { offset: u64::from(block) * BLOCK_BYTES as u64, data })
    }

    pub fn result(&self, tag: GuestTag) -> Option<&GuestResult> {
        self.results.get(&tag)
    }

    /// The disk's host is away, or comes back.
    pub fn away(&mut self, n: u8) {
        self.disk(n).up = false;
        self.owner.handle_disk_down(self.now, disk(n));
        self.run();
    }

    pub fn back(&mut self, n: u8) {
        let known = self.disk(n);
        (known.up, known.mute, known.frozen) = (true, false, false);
        known.asker += 1;
        self.owner.handle_disk_up(self.now, disk(n), n == 1);
        self.run();
    }

    /// Time passes, in steps of 10 ms.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while self.now.mono < end {
            self.now.mono = self.now.mono + Duration::from_millis(10);
            self.owner.tick(self.now);
            self.run();
        }
    }

    /// The disk does all that it has kept back.
    pub fn give_back(&mut self, n: u8) {
        while self.give_back_one(n) {}
    }

    /// The disk does the first of what it has kept back.
    pub fn give_back_one(&mut self, n: u8) -> bool {
        let Some((id, request, payload)) = self.disk(n).kept.pop_front() else { return false };
        self.asked(disk(n), id, request, payload);
        self.run();
        true
    }

    fn asked(&mut self, disk: DiskId, id: RequestId, request: Request, payload: Bytes) {
        let Some(known) = self.disks.get_mut(&disk) else { return };
        known.replica.handle_request(Asker(known.asker), id, request, payload);
        while let Some(effect) = known.replica.poll() {
            match effect {
                replica::Effect::Disk(ticket, op) => {
                    let reply = known.carry_out(op);
                    known.replica.handle_disk(ticket, Ok(reply));
                }
                replica::Effect::Answer { id, reply, payload, .. } if !known.mute => {
                    self.owner.handle_reply(self.now, id, reply, payload);
                }
                replica::Effect::Answer { .. } => {}
            }
        }
    }

    fn run(&mut self) {
        loop {
            let total: u32 =
                self.owner.resyncs(self.now.mono).iter().map(|r: &ResyncView| r.blocks_total).sum();
            self.resync_total_max = self.resync_total_max.max(total);
            let Some(effect) = self.owner.poll() else { return };
            match effect {
                Effect::Ask { disk, id, request, payload } => {
                    let Some(known) = self.disks.get_mut(&disk).filter(|d| d.up && !d.frozen) else {
                        continue;
                    };
                    if known.keep_back {
                        known.kept.push_back((id, request, payload));
                    } else {
                        self.asked(disk, id, request, payload);
                    }
                }
                Effect::Complete { tag, result } => {
                    assert!(self.results.insert(tag, result).is_none(), "completed twice");
                }
                Effect::Propose { id, command } => {
                    self.index += 1;
                    let outcome = self.state.apply(self.index, command);
                    self.owner.handle_proposal(self.now, id, Some(outcome));
                }
                Effect::Reconnect { disk } => self.reconnects.push(disk),
                Effect::Scrubbed(end) => self.scrubs.push(end),
                Effect::Became { .. } => panic!("an owner alone becomes nothing else"),
                Effect::Fenced => self.fenced = true,
            }
        }
    }
}
