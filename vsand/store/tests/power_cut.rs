//! Every-prefix power cut: a seeded workload is run on a store whose writes and flushes are recorded. Then the power is
//! cut after each of them, with any part of what was not yet flushed on the disk or not, torn at sectors; the files are put together as
//! they would be found, opened, and compared with what may be there.
//!
//! Each seed has several lives: the next one goes on from one of the cuts.

#[allow(unreachable_pub, reason = "shared with other test binaries")]
mod common;
mod cut;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Harness, chunk, content, known_content, object, options, range, temp_dir};
use cut::{Cut, Event, Image, Log, Recorder};
use ferro_protocol::ids::{ChunkId, Epoch, ObjectId, Seq, Version};
use ferro_protocol::peer::Run;
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vsand_core::disk::{DiskError, DiskOp, DiskReply};
use vsand_store::{IoHook, Store, StoreConfig, check};

/// Blocks of each component that the workload touches.
const BLOCKS: u32 = 4 * 256;
const COMPONENTS: [(u8, u32); 3] = [(1, 0), (1, 5), (2, 0)];

/// What one block may be: its version, and whether it is mapped. The content follows from both.
type BlockState = (Version, bool);

#[derive(Clone, Debug)]
enum Effect {
    /// Highest version wins.
    Put(ChunkId, BlockRange, BlockState),
    Force(ChunkId, Vec<Run>),
    Forget(ObjectId, Option<ChunkId>),
    Epoch(ObjectId, Epoch),
    /// The extent of the second becomes that of the first: all of it or nothing.
    Promote(ChunkId, ChunkId, u32),
    /// Extents are as if never written: each of them or not.
    ForgetExtents(ChunkId, Range<u32>),
}

#[derive(Clone, Debug)]
struct Change {
    effect: Effect,
    watermark: Seq,
    acked: bool,
    /// It was refused, and has changed nothing.
    refused: bool,
}

fn never() -> BlockState {
    (Version::NEVER, false)
}

/// A block before and after a change.
type Step = ((ChunkId, u32), BlockState, BlockState);

/// All that the disk may hold.
#[derive(Clone)]
struct Model {
    blocks: BTreeMap<(ChunkId, u32), Vec<BlockState>>,
    /// What may have happened as a whole or not at all. Nothing was under way when it began, and nothing came after it.
    wholes: Vec<Vec<Step>>,
    epochs: BTreeMap<ObjectId, Vec<Epoch>>,
    watermarks: BTreeMap<ChunkId, Vec<Seq>>,
}

impl Model {
    fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
            wholes: Vec::new(),
            epochs: BTreeMap::new(),
            watermarks: BTreeMap::new(),
        }
    }

    fn change<T: Copy + Ord>(states: &mut Vec<T>, acked: bool, f: impl Fn(T) -> T) {
        let changed: Vec<T> = states.iter().map(|&s| f(s)).collect();
        if acked {
            states.clear();
        }
        states.extend(changed);
        states.sort();
        states.dedup();
    }

    /// What a block is. Only when all changes so far were answered.
    fn state(&self, chunk: ChunkId, block: u32) -> BlockState {
        match self.blocks.get(&(chunk, block)).map(Vec::as_slice) {
            None => never(),
            Some([state]) => *state,
            Some(states) => panic!("{chunk} block {block} may be any of {states:?}"),
        }
    }

    fn apply_whole(&mut self, acked: bool, steps: Vec<Step>) {
        for (place, _, after) in &steps {
            let states = self.blocks.entry(*place).or_insert_with(|| vec![never()]);
            Self::change(states, acked, |_| *after);
        }
        if !acked {
            self.wholes.push(steps);
        }
    }

    fn apply(&mut self, change: &Change) {
        match &change.effect {
            Effect::Promote(to, from, extent) => {
                let mut steps = Vec::new();
                for block in extent * 256..(extent + 1) * 256 {
                    let (old, new) = (self.state(*to, block), self.state(*from, block));
                    assert!(new.1 && new.0 > old.0, "{old:?} was replaced by {new:?}");
                    steps.push(((*to, block), old, new));
                    steps.push(((*from, block), new, never()));
                }
                let marks = self.watermarks.entry(*to).or_insert_with(|| vec![Seq(0)]);
                Self::change(marks, change.acked, |old| old.max(change.watermark));
                return self.apply_whole(change.acked, steps);
            }
            Effect::ForgetExtents(chunk, extents) => {
                for extent in extents.clone() {
                    let blocks = extent * 256..(extent + 1) * 256;
                    let steps = blocks.map(|b| ((*chunk, b), self.state(*chunk, b), never())).collect();
                    self.apply_whole(change.acked, steps);
                }
                return;
            }
            _ => {}
        }
        let mut at = |chunk: ChunkId, block: u32, f: &dyn Fn(BlockState) -> BlockState| {
            let states = self.blocks.entry((chunk, block)).or_insert_with(|| vec![never()]);
            Self::change(states, change.acked, f);
        };
        match &change.effect {
            Effect::Put(chunk, range, new) => {
                for block in range.blocks() {
                    at(*chunk, block, &|old| if new.0 > old.0 { *new } else { old });
                }
                let marks = self.watermarks.entry(*chunk).or_insert_with(|| vec![Seq(0)]);
                Self::change(marks, change.acked, |old| old.max(change.watermark));
            }
            Effect::Force(chunk, runs) => {
                for run in runs {
                    for block in run.range.blocks() {
                        at(*chunk, block, &|_| (run.version, run.mapped));
                    }
                }
            }
            Effect::Forget(object, chunk) => {
                let of = |c: ChunkId| c.object == *object && chunk.is_none_or(|only| only == c);
                for (_, states) in self.blocks.iter_mut().filter(|((c, _), _)| of(*c)) {
                    Self::change(states, change.acked, |_| never());
                }
                for (_, marks) in self.watermarks.iter_mut().filter(|(c, _)| of(**c)) {
                    Self::change(marks, change.acked, |_| Seq(0));
                }
                if chunk.is_none() {
                    let epochs = self.epochs.entry(*object).or_insert_with(|| vec![Epoch(0)]);
                    if change.acked {
                        epochs.clear();
                    }
                    epochs.push(Epoch(0));
                }
            }
            Effect::Epoch(object, epoch) => {
                let epochs = self.epochs.entry(*object).or_insert_with(|| vec![Epoch(0)]);
                let raised: Vec<Epoch> = epochs.iter().map(|&e| e.max(*epoch)).collect();
                if change.acked {
                    epochs.clear();
                }
                epochs.extend(raised);
            }
            Effect::Promote(..) | Effect::ForgetExtents(..) => {}
        }
    }

    /// Compares with what a disk holds, and narrows the possible down to that.
    fn check(&mut self, disk: &mut Harness, what: &str) {
        let found: BTreeMap<ObjectId, Epoch> = disk.store.sealed().collect();
        for (object, epochs) in &mut self.epochs {
            let epoch = found.get(object).copied().unwrap_or_default();
            assert!(epochs.contains(&epoch), "{what}: epoch {epoch:?}, possible {epochs:?}");
            *epochs = vec![epoch];
        }
        for (o, index) in COMPONENTS {
            let chunk = chunk(o, index);
            let answer = disk.run(DiskOp::Summarise { object: chunk.object });
            let Ok(DiskReply::Summary(summary)) = answer else { panic!("{what}: {answer:?}") };
            let mark = summary.iter().find(|s| s.index == chunk.index).map_or(Seq(0), |s| s.watermark);
            let marks = self.watermarks.entry(chunk).or_insert_with(|| vec![Seq(0)]);
            assert!(marks.contains(&mark), "{what}: {chunk}: watermark {mark:?} of {marks:?}");
            *marks = vec![mark];
            for first in (0..BLOCKS).step_by(256) {
                let answer = disk.run(DiskOp::Fetch { chunk, range: range(first, 256) });
                let Ok(DiskReply::Runs(runs, data)) = answer else { panic!("{what}: {answer:?}") };
                let mut at = 0;
                for run in runs {
                    for block in run.range.blocks() {
                        let state = (run.version, run.mapped);
                        let possible = self.blocks.entry((chunk, block)).or_insert_with(|| vec![never()]);
                        assert!(
                            possible.contains(&state),
                            "{what}: {chunk} block {block}: {state:?} of {possible:?}"
                        );
                        *possible = vec![state];
                        if run.mapped {
                            let bytes = &data[at..at + BLOCK_BYTES];
                            assert!(
                                bytes == known_content(block, run.version).as_slice(),
                                "{what}: {chunk} block {block} has wrong bytes"
                            );
                            at += BLOCK_BYTES;
                        }
                    }
                }
            }
        }
        for steps in std::mem::take(&mut self.wholes) {
            let mut happened: Vec<bool> = steps
                .iter()
                .filter(|(_, before, after)| before != after)
                .map(|((chunk, block), _, after)| self.state(*chunk, *block) == *after)
                .collect();
            happened.dedup();
            assert!(happened.len() < 2, "{what}: {:?} and the others are half done", steps[0]);
        }
    }
}

/// Where a workload writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Places {
    /// Anywhere, by a few blocks or by whole extents: all ways that data can go.
    Anywhere,
    /// Mostly to the same few blocks: the journal wraps while they are written again and again before they go to their place,
    /// and while they are on their way there.
    Same,
}

/// Makes operations. Versions rise, mostly; forced ones may bring lower versions, each with content of its own.
struct Workload {
    rng: ChaCha8Rng,
    seq: u64,
    places: Places,
    /// Extents that were written as a whole, and for whom.
    staged: Vec<(ChunkId, ChunkId, u32)>,
}

impl Workload {
    /// Stages extents, puts them in force, and forgets some. What is staged may be written to before it is put in force.
    fn next_of_whole_extents(&mut self) -> (DiskOp, Change) {
        let rng = &mut self.rng;
        self.seq += 1;
        let watermark = Seq(self.seq * 2);
        let done = |op, effect| (op, Change { effect, watermark, acked: false, refused: false });
        // Of one object, and either for the other.
        let (to, from) = [(chunk(1, 0), chunk(1, 5)), (chunk(1, 5), chunk(1, 0))][rng.random_range(0..2)];
        match rng.random_range(0..10) {
            0..4 => {
                let extent = rng.random_range(0..BLOCKS / 256);
                let (range, version) =
                    (range(extent * 256, 256), Version { epoch: Epoch(1), seq: Seq(self.seq * 4) });
                self.staged.push((to, from, extent));
                let data = content(range, version);
                let op = DiskOp::Write { chunk: from, range, version, watermark, data };
                done(op, Effect::Put(from, range, (version, true)))
            }
            4 if !self.staged.is_empty() => {
                let &(_, chunk, extent) = &self.staged[self.staged.len() - 1];
                let (count, version) =
                    (rng.random_range(1..16), Version { epoch: Epoch(1), seq: Seq(self.seq * 4) });
                let range = range(extent * 256 + rng.random_range(0..240), count);
                let data = content(range, version);
                let op = DiskOp::Write { chunk, range, version, watermark, data };
                done(op, Effect::Put(chunk, range, (version, true)))
            }
            4..9 => {
                let any = (to, from, rng.random_range(0..BLOCKS / 256));
                let (to, from, extent) = self.staged.last().copied().unwrap_or(any);
                // Else it is tried again, in case it was too early.
                if rng.random_bool(0.5) {
                    self.staged.pop();
                }
                let op = DiskOp::Promote { to, from: from.index, extent, watermark };
                done(op, Effect::Promote(to, from, extent))
            }
            _ => {
                let first = rng.random_range(0..BLOCKS / 256);
                let end = rng.random_range(first..=BLOCKS / 256);
                let op = DiskOp::Forget { chunk: to, first, end };
                done(op, Effect::ForgetExtents(to, first..end))
            }
        }
    }

    fn next(&mut self) -> (DiskOp, Change) {
        let share = if self.places == Places::Same { 0.03 } else { 0.2 };
        if self.rng.random_bool(share) {
            return self.next_of_whole_extents();
        }
        let rng = &mut self.rng;
        let (o, index) = COMPONENTS[rng.random_range(0..COMPONENTS.len())];
        let chunk = chunk(o, index);
        let count = match self.places {
            Places::Anywhere => [1, 1, 1, 2, 3, 16, 40, 100, 200, 256, 256][rng.random_range(0..11)],
            Places::Same => [1, 1, 2, 3, 8, 24][rng.random_range(0..6)],
        };
        let first = match rng.random_range(0..3) {
            _ if self.places == Places::Same && rng.random_bool(0.9) => rng.random_range(0..40),
            0 if count == 256 => rng.random_range(0..BLOCKS / 256) * 256,
            0 | 1 => rng.random_range(0..100),
            _ => rng.random_range(0..BLOCKS - count),
        };
        let range = range(first, count);
        self.seq += 1;
        // Now and then an old version arrives late.
        let seq = if rng.random_bool(0.1) {
            self.seq.saturating_sub(rng.random_range(0..40)).max(1)
        } else {
            self.seq
        };
        // The low bits keep versions of different makers apart.
        let version = |kind: u64| Version { epoch: Epoch(1), seq: Seq(seq * 4 + kind) };
        let watermark = Seq(self.seq * 2);
        let kind = match self.places {
            Places::Same if rng.random_bool(0.8) => 0,
            _ => rng.random_range(0..100),
        };
        let (op, effect) = match kind {
            0..70 => {
                let version = version(0);
                let data = content(range, version);
                let op = DiskOp::Write { chunk, range, version, watermark, data };
                (op, Effect::Put(chunk, range, (version, true)))
            }
            70..82 => {
                let version = version(1);
                (
                    DiskOp::Zero { chunk, range, version, watermark },
                    Effect::Put(chunk, range, (version, false)),
                )
            }
            82..92 => {
                let version = version(2);
                let half = BlockRange::new(range.first(), count.div_ceil(2)).unwrap();
                let mut runs = vec![Run { range: half, version, mapped: rng.random_bool(0.7) }];
                if let Ok(rest) = BlockRange::new(half.end(), count - half.count()) {
                    runs.push(Run { range: rest, version: Version::NEVER, mapped: false });
                }
                let data = if runs[0].mapped { content(half, version) } else { Bytes::new() };
                (DiskOp::Install { chunk, runs: runs.clone(), data }, Effect::Force(chunk, runs))
            }
            92..97 => {
                let (object, epoch) = (object(o), Epoch(self.seq as u32));
                (DiskOp::SetEpoch { object, epoch }, Effect::Epoch(object, epoch))
            }
            _ => {
                let one = rng.random_bool(0.6).then_some(chunk);
                let op = DiskOp::Remove { object: chunk.object, chunk: one.map(|c| c.index) };
                (op, Effect::Forget(chunk.object, one))
            }
        };
        (op, Change { effect, watermark, acked: false, refused: false })
    }
}

/// A workload on its way.
struct Life<'a> {
    disk: &'a mut Harness,
    log: &'a Log,
    changes: Vec<Change>,
    tickets: BTreeMap<u64, usize>,
    under_way: usize,
    seen: usize,
}

impl Life<'_> {
    /// Takes note of answers.
    fn settle(&mut self) {
        while let Some(ticket) = self.disk.order.get(self.seen) {
            self.seen += 1;
            let Some(&index) = self.tickets.get(ticket) else { continue };
            self.under_way -= 1;
            match &self.disk.answers[ticket] {
                Ok(DiskReply::Done) => self.log.lock().unwrap().push(Event::Acked(index)),
                Err(DiskError::Full | DiskError::NotStaged) => self.changes[index].refused = true,
                other => panic!("{other:?}"),
            }
        }
    }

    fn wait_for_depth(&mut self, depth: usize) {
        self.settle();
        while self.under_way > depth {
            self.disk.turn(Duration::from_millis(10));
            self.settle();
        }
    }
}

/// Runs the workload on an open disk; returns its changes, the log is with the recorder. Forced changes and those of whole extents run alone: where
/// they overlap others under way, either order would be right.
fn live(disk: &mut Harness, work: &mut Workload, count: usize, log: &Log) -> Vec<Change> {
    let seen = disk.order.len();
    let mut life = Life { disk, log, changes: Vec::new(), tickets: BTreeMap::new(), under_way: 0, seen };
    for _ in 0..count {
        let (op, change) = work.next();
        let alone = !matches!(change.effect, Effect::Put(..) | Effect::Epoch(..));
        life.wait_for_depth(if alone { 0 } else { work.rng.random_range(0..14) });
        life.changes.push(change);
        let index = life.changes.len() - 1;
        log.lock().unwrap().push(Event::Submitted(index));
        let ticket = life.disk.submit(op);
        life.tickets.insert(ticket, index);
        life.under_way += 1;
        if work.rng.random_bool(0.5) {
            life.disk.turn(Duration::ZERO);
        }
        if alone {
            life.wait_for_depth(0);
        }
    }
    life.wait_for_depth(0);
    life.changes
}

/// The changes as they stand at a point of the log.
fn at_cut(model: &Model, changes: &[Change], log: &[Event]) -> Model {
    let mut acked = vec![false; changes.len()];
    let mut submitted = 0;
    for event in log {
        match event {
            Event::Submitted(index) => submitted = index + 1,
            Event::Acked(index) => acked[*index] = true,
            _ => {}
        }
    }
    let mut model = model.clone();
    for (change, acked) in changes.iter().zip(acked).take(submitted).filter(|(c, _)| !c.refused) {
        model.apply(&Change { acked, ..change.clone() });
    }
    model
}

fn config(log: Option<&Log>) -> StoreConfig {
    StoreConfig {
        cached_extents: 4,
        overlay_blocks_max: 1800,
        dirty_extents_max: 24,
        freeze_extents_a_turn: 1,
        hook: log.map(|log| Box::new(Recorder::of(log)) as Box<dyn IoHook>),
        ..StoreConfig::default()
    }
}

/// Opens the disk as it is found, and compares. What is possible afterwards is what was found.
fn open_and_check(dir: &Path, model: &mut Model, what: &str) {
    let report = check::verify(dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(report.findings, [], "{what}");
    let mut disk = Harness::open(dir, config(None));
    model.check(&mut disk, what);
}

/// How much is done with a seed.
#[derive(Clone, Copy)]
struct Extent {
    lives: usize,
    changes_a_life: usize,
    cuts_a_life: usize,
}

/// Returns how many cuts were tried, and how many extents were promoted.
fn one_seed(seed: u64, places: Places, extent: Extent) -> (usize, usize) {
    let Extent { lives, changes_a_life, cuts_a_life } = extent;
    let dir = temp_dir();
    let formatted = dir.path().join("formatted");
    // Every third disk is too small: there, space that checkpoints free is what changes wait for.
    let capacity = if seed.is_multiple_of(3) { 16 << 20 } else { 32 << 20 };
    Store::format(&formatted, &options(capacity)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut work =
        Workload { rng: ChaCha8Rng::seed_from_u64(seed ^ 0xaaaa), seq: 0, places, staged: Vec::new() };
    let mut image = Image::default();
    let mut model = Model::new();
    let (mut checked, mut promoted) = (0, 0);
    for life in 0..lives {
        let place = dir.path().join(format!("life{life}"));
        image.restore(&formatted, &place);
        let log: Log = Arc::default();
        let mut disk = Harness::open(&place, config(Some(&log)));
        model.check(&mut disk, &format!("seed {seed} life {life} at its start"));
        disk.dawdle = Some(ChaCha8Rng::seed_from_u64(seed ^ 0x55));
        let changes = live(&mut disk, &mut work, changes_a_life, &log);
        let is_promoted = |c: &&Change| matches!(c.effect, Effect::Promote(..)) && !c.refused;
        promoted += changes.iter().filter(is_promoted).count();
        let stats = disk.store.stats();
        assert!(stats.checkpoints > 0 && stats.destages > 0, "{stats:?}");
        match places {
            Places::Anywhere => assert!(stats.direct_writes > 0, "{stats:?}"),
            Places::Same => {
                assert!(stats.absorbed_blocks > stats.destaged_blocks, "{stats:?}");
                assert!(stats.destaged_blocks > stats.destages, "{stats:?}");
            }
        }
        drop(disk);
        std::fs::remove_dir_all(&place).unwrap();
        let log = log.lock().unwrap().clone();

        let step = (log.len() / cuts_a_life).max(1);
        let offset = rng.random_range(0..step);
        let survivor = rng.random_range(log.len() / 2..log.len()) / step * step + offset;
        let mut cut = Cut::of(image.clone());
        let mut next = None;
        for (n, event) in log.iter().enumerate() {
            cut.pass(event);
            if n % step != offset {
                continue;
            }
            let found = cut.image(rng.random_range(0..6), &mut rng);
            let what = format!("seed {seed} life {life} cut after {n} of {}: {event:.60?}", log.len());
            let mut possible = at_cut(&model, &changes, &log[..=n]);
            let place = dir.path().join("cut");
            found.restore(&formatted, &place);
            found.check_rows(&what);
            open_and_check(&place, &mut possible, &what);
            std::fs::remove_dir_all(&place).unwrap();
            checked += 1;
            if n >= survivor && next.is_none() {
                next = Some((found, possible));
            }
        }
        (image, model) = next.unwrap_or_else(|| {
            let mut end = at_cut(&model, &changes, &log);
            let place = dir.path().join("end");
            cut.stable.restore(&formatted, &place);
            open_and_check(&place, &mut end, "at the end");
            std::fs::remove_dir_all(&place).unwrap();
            (cut.stable.clone(), end)
        });
    }
    (checked, promoted)
}

fn seeds(range: std::ops::Range<u64>, places: Places) {
    let extent = Extent { lives: 2, changes_a_life: 120, cuts_a_life: 40 };
    let mut all_promoted = 0;
    for seed in range {
        let (cuts, promoted) = one_seed(seed, places, extent);
        assert!(cuts > 60, "seed {seed}: only {cuts} cuts");
        all_promoted += promoted;
    }
    assert!(all_promoted > 12, "only {all_promoted} extents were promoted");
}

// Two tests, so that two cores share the work.
#[test]
fn no_cut_loses_or_mixes_anything_a() {
    seeds(1..4, Places::Anywhere);
}

#[test]
fn no_cut_loses_or_mixes_anything_b() {
    seeds(101..104, Places::Anywhere);
}

#[test]
fn no_cut_harms_blocks_that_stay_in_the_journal() {
    let extent = Extent { lives: 3, changes_a_life: 500, cuts_a_life: 40 };
    for seed in 201..203 {
        let (cuts, _) = one_seed(seed, Places::Same, extent);
        assert!(cuts > 90, "seed {seed}: only {cuts} cuts");
    }
}

/// Short lives, each cut after each of its events.
fn at_every_event(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let extent = Extent { lives: 1, changes_a_life: 60, cuts_a_life: usize::MAX };
        let (cuts, _) = one_seed(seed, Places::Anywhere, extent);
        assert!(cuts > 150, "seed {seed}: only {cuts} cuts");
    }
}

#[test]
fn no_event_is_a_bad_moment_a() {
    at_every_event(301..303);
}

#[test]
fn no_event_is_a_bad_moment_b() {
    at_every_event(401..403);
}

/// Many more, by hand: `POWER_CUT_SEEDS=1000 cargo test --release -p vsand-store --test power_cut -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn many_seeds_at_every_event() {
    let count = std::env::var("POWER_CUT_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    for seed in 1000..1000 + count {
        let (places, changes_a_life) =
            if seed % 2 == 0 { (Places::Anywhere, 120) } else { (Places::Same, 500) };
        let extent = Extent { lives: 4, changes_a_life, cuts_a_life: usize::MAX };
        let (cuts, promoted) = one_seed(seed, places, extent);
        println!("seed {seed}: {cuts} cuts, {promoted} extents promoted");
    }
}
