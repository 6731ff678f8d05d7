//! What disks and components have to serve, as averages that forget half of what was in each half-life.
//!
//! Counted where requests are passed on: of each component by the host that owns it, which asks all of them, and of each disk by the host
//! that it is in, which all ask. Both count the same ([`work`]), so that the one can be taken from the other. What has come since is
//! taken into the averages once a second.
//!
//! An average that began with nothing lags behind; after [`HALF_LIVES`] half-lives it has seven eighths of what there is, and only
//! then it is told to others ([`vsand_core::directory::load`] reckons with that eighth).
//!
//! Bounded: at most [`COMPONENTS_MAX`] components, and those that have next to nothing to serve are dropped. Time is an input.

use std::collections::HashMap;
use std::time::Duration;

use ferro_protocol::ids::{ChunkId, DiskId};
use ferro_protocol::peer::Request;
use vsand_core::directory::{Heat, Load};
use vsand_core::time::Instant;

/// How often averages are brought up to date.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// After so many of them an average has settled.
const HALF_LIVES: u32 = 3;
/// So many components are counted at most: more than one host serves much of.
const COMPONENTS_MAX: usize = 4_096;
/// A component that has less to serve, in work a second, is not counted any longer.
const COLD: f64 = 1.0;
/// Work is counted in parts: a block of 4 KiB is the sixteenth of 64 KiB.
const PARTS: u64 = 16;

/// Which component a request is for and what it costs, in sixteenths of work: one, and one more for each 64 KiB that it reads or
/// writes. `None` for what copies, looks through and mends: that gives way to guests, and is over some time.
pub(super) fn work(request: &Request) -> Option<(ChunkId, u64)> {
    match request {
        Request::Read { chunk, range, .. } | Request::Write { chunk, range, .. } => {
            // What is staged for a shard is work for the shard.
            let chunk = ChunkId { index: chunk.index.record(), ..*chunk };
            Some((chunk, PARTS + u64::from(range.count())))
        }
        Request::Zero { chunk, .. } | Request::Promote { chunk, .. } | Request::Forget { chunk, .. } => {
            Some((*chunk, PARTS))
        }
        Request::Seal { .. }
        | Request::Fetch { .. }
        | Request::Install { .. }
        | Request::List { .. }
        | Request::Verify { .. } => None,
    }
}

/// One average.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    since: Instant,
    /// In sixteenths, since the average was brought up to date.
    recent: u64,
    /// Work a second.
    average: f64,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, recent: 0, average: 0.0 }
    }

    /// Counts what a request costs.
    pub(super) fn add(&mut self, work: u64) {
        self.recent = self.recent.saturating_add(work);
    }

    /// So much of the average stays; the rest is what came in this time.
    fn fold(&mut self, over: Duration, stays: f64) {
        let recent = std::mem::take(&mut self.recent) as f64 / PARTS as f64 / over.as_secs_f64();
        self.average = self.average * stays + recent * (1.0 - stays);
    }

    fn load(&self) -> Load {
        Load(self.average.round() as u64)
    }
}

/// What a disk has to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskLoad {
    /// How much.
    pub load: Load,
    /// It was counted for long enough.
    pub settled: bool,
}

/// What this host's owners ask of components, on whatever host.
#[derive(Debug)]
pub(super) struct Loads {
    half_life: Duration,
    folded: Instant,
    components: HashMap<(ChunkId, DiskId), Meter>,
}

impl Loads {
    pub(super) fn new(now: Instant, half_life: Duration) -> Self {
        Self { half_life, folded: now, components: HashMap::new() }
    }

    /// An owner asks something of a component.
    pub(super) fn asked(&mut self, now: Instant, chunk: ChunkId, disk: DiskId, work: u64) {
        let full = self.components.len() >= COMPONENTS_MAX;
        match self.components.get_mut(&(chunk, disk)) {
            Some(meter) => meter.add(work),
            None if full => {}
            None => {
                let mut meter = Meter::new(now);
                meter.add(work);
                self.components.insert((chunk, disk), meter);
            }
        }
    }

    /// Brings all averages up to date, if it is time.
    pub(super) fn fold<'a>(&mut self, now: Instant, disks: impl Iterator<Item = &'a mut Meter>) {
        let over = now.since(self.folded);
        if over < FOLD_EVERY {
            return;
        }
        self.folded = now;
        let stays = 0.5_f64.powf(over.as_secs_f64() / self.half_life.as_secs_f64());
        disks.for_each(|meter| meter.fold(over, stays));
        self.components.retain(|_, meter| {
            meter.fold(over, stays);
            // One that has just begun has not much yet.
            meter.average >= COLD || now.since(meter.since) < self.half_life
        });
    }

    /// What a disk has to serve.
    pub(super) fn of(&self, now: Instant, meter: &Meter) -> DiskLoad {
        DiskLoad { load: meter.load(), settled: self.settled(now, meter) }
    }

    /// What the components have to serve that were counted for long enough.
    pub(super) fn heats(&self, now: Instant) -> Vec<Heat> {
        let settled = self.components.iter().filter(|(_, meter)| self.settled(now, meter));
        let heat = |(&(chunk, disk), meter): (&(ChunkId, DiskId), &Meter)| Heat {
            object: chunk.object,
            chunk: chunk.index,
            disk,
            load: meter.load(),
        };
        settled.map(heat).collect()
    }

    fn settled(&self, now: Instant, meter: &Meter) -> bool {
        now.since(meter.since) >= self.half_life * HALF_LIVES
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::ids::{ChunkIndex, Epoch, ObjectId, Seq, Version};
    use ferro_protocol::units::BlockRange;

    use super::*;

    const HALF_LIFE: Duration = Duration::from_secs(60);

    fn at(s: u64) -> Instant {
        Instant(s * 1_000_000_000)
    }

    fn chunk(n: u32) -> ChunkId {
        ChunkId { object: ObjectId::from_bytes([7; 16]), index: ChunkIndex(n) }
    }

    fn disk(n: u8) -> DiskId {
        DiskId::from_bytes([n; 16])
    }

    /// So many seconds, in each of which the component is asked for so much work.
    fn pass(loads: &mut Loads, seconds: std::ops::Range<u64>, chunk: ChunkId, work: u64) {
        for s in seconds {
            if work > 0 {
                loads.asked(at(s), chunk, disk(1), work * PARTS);
            }
            loads.fold(at(s + 1), std::iter::empty());
        }
    }

    #[test]
    fn a_request_is_one_and_one_more_for_each_64_kib() {
        let (chunk, epoch, version) = (chunk(0), Epoch(1), Version { epoch: Epoch(1), seq: Seq(1) });
        let range = |blocks| BlockRange::new(0, blocks).unwrap();
        let read = |blocks| work(&Request::Read { chunk, epoch, range: range(blocks) });
        assert_eq!([1, 16, 256].map(read), [17, 2 * PARTS, 17 * PARTS].map(|work| Some((chunk, work))));
        let write = Request::Write { chunk, range: range(16), version, watermark: Seq(0) };
        assert_eq!(work(&write), Some((chunk, 2 * PARTS)));
        // It frees space, however much.
        let zero = Request::Zero { chunk, range: range(256), version, watermark: Seq(0) };
        assert_eq!(work(&zero), Some((chunk, PARTS)));
        for background in [
            Request::Fetch { chunk, epoch, range: range(16) },
            Request::List { chunk, epoch, since: Seq(0), from_block: 0 },
            Request::Verify { chunk, epoch, from_block: 0 },
            Request::Install { chunk, epoch, runs: Vec::new() },
        ] {
            assert_eq!(work(&background), None, "{background:?}");
        }
    }

    #[test]
    fn an_average_halves_in_a_half_life_and_is_told_when_it_has_settled() {
        let mut loads = Loads::new(at(0), HALF_LIFE);
        pass(&mut loads, 0..60, chunk(0), 1_000);
        assert_eq!(loads.heats(at(60)), [], "it may be over soon");
        pass(&mut loads, 60..180, chunk(0), 1_000);
        let told = |loads: &Loads, s| loads.heats(at(s)).first().map(|h| (h.chunk.0, h.disk, h.load.0));
        assert_eq!(told(&loads, 180), Some((0, disk(1), 875)));
        pass(&mut loads, 180..1_000, chunk(0), 1_000);
        assert_eq!(told(&loads, 1_000), Some((0, disk(1), 1_000)));
        pass(&mut loads, 1_000..1_060, chunk(0), 0);
        assert_eq!(told(&loads, 1_060), Some((0, disk(1), 500)));
        pass(&mut loads, 1_060..1_700, chunk(0), 0);
        assert_eq!(told(&loads, 1_700), None, "it is cold");
        assert!(loads.components.is_empty());
    }

    #[test]
    fn how_often_it_is_brought_up_to_date_changes_nothing() {
        let average = |every: u64| {
            let (mut loads, mut meter) = (Loads::new(at(0), HALF_LIFE), Meter::new(at(0)));
            for s in 1..=240 {
                meter.add(300 * PARTS);
                if s % every == 0 {
                    loads.fold(at(s), std::iter::once(&mut meter));
                }
            }
            loads.of(at(240), &meter)
        };
        assert_eq!(average(1), DiskLoad { load: Load(281), settled: true });
        assert_eq!(average(1), average(20));
    }

    #[test]
    fn what_is_kept_in_memory_is_bounded_and_the_cold_make_room() {
        let mut loads = Loads::new(at(0), HALF_LIFE);
        for n in 0..2 * COMPONENTS_MAX as u32 {
            loads.asked(at(0), chunk(n), disk(1), PARTS);
        }
        assert_eq!(loads.components.len(), COMPONENTS_MAX);
        loads.fold(at(1), std::iter::empty());
        assert_eq!(loads.components.len(), COMPONENTS_MAX, "they may have just begun");
        loads.fold(at(61), std::iter::empty());
        assert!(loads.components.is_empty());
        loads.asked(at(61), chunk(9_000), disk(1), PARTS);
        assert_eq!(loads.components.len(), 1);
    }
}
