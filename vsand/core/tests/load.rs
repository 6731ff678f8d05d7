//! Components that move from busy disks to idle ones.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::cluster::{Cluster, FIRST, host_record, mirror, number};
use common::{CHUNK, Lab, OBJECT, disk, host};
use ferro_protocol::ids::{ChunkIndex, DiskId, Seq};
use vsand_core::directory::{
    Command, Departure, FeatureLevel, Heat, HostRecord, Load, LoadRules, Outcome, Policy, Preference,
    Refused, SyncChange,
};
use vsand_core::owner::guest::GuestResult;

const SPREAD: u64 = 30;
const RULES: LoadRules = LoadRules { percent: 50, spread_percent: SPREAD, settle_s: 900 };
/// Long after anything was moved.
const LATER: u64 = 1 << 30;
/// Of each disk.
const EXTENTS: u64 = 1 << 20;

/// Hosts with a disk each that have so much to serve, and an object whose first chunk has its copies on the first two. The first host
/// owns it.
fn cluster(loads: &[u64]) -> Cluster {
    let mut c = Cluster::placed(loads.len() as u8, mirror(2));
    assert_eq!(c.disks(FIRST), [disk(1), disk(2)]);
    c.raise();
    report(&mut c, loads);
    c
}

fn report(c: &mut Cluster, loads: &[u64]) {
    let loads = (1..).zip(loads).map(|(n, load)| (disk(n), Load(*load)));
    c.ok(Command::ReportLoad { loads: loads.collect() });
}

fn heat(chunk: ChunkIndex, on: u8, load: u64) -> Heat {
    Heat { object: OBJECT, chunk, disk: disk(on), load: Load(load) }
}

fn pair(next: Option<vsand_core::directory::Move>) -> Option<(u8, u8)> {
    next.map(|m| (number(m.from), number(m.to)))
}

/// What is to move, from which disk to which.
fn next(c: &Cluster, heats: &[Heat]) -> Option<(u8, u8)> {
    pair(c.state.next_move_by_load(RULES, heats, LATER, |_| true))
}

fn begin(
    c: &mut Cluster,
    chunk: ChunkIndex,
    from: DiskId,
    to: DiskId,
    unix_s: u64,
) -> Result<Outcome, Refused> {
    let basis = c.basis();
    c.apply(Command::MoveTo { basis, chunk, from, to, unix_s })
}

fn trim_from(c: &mut Cluster, chunk: ChunkIndex, disk: DiskId, unix_s: u64) -> Result<Outcome, Refused> {
    let basis = c.basis();
    c.apply(Command::TrimFrom { basis, chunk, disk, unix_s })
}

/// All steps of a move.
fn carry_out(c: &mut Cluster, chunk: ChunkIndex, from: DiskId, to: DiskId) {
    begin(c, chunk, from, to, 0).expect("there is a place");
    c.change(vec![SyncChange::Add { chunk, disk: to }]).expect("it has everything");
    // Out of the in-sync set, and gone.
    for _ in 0..2 {
        trim_from(c, chunk, from, 0).expect("one too many");
    }
}

#[test]
fn it_goes_from_the_busiest_disk_to_the_idlest_that_may_take_it() {
    let hot = [heat(FIRST, 2, 500), heat(FIRST, 1, 500)];
    assert_eq!(next(&cluster(&[900, 1_000, 0, 100]), &hot), Some((2, 3)));
    assert_eq!(next(&cluster(&[900, 1_000, 100, 0]), &hot), Some((2, 4)));
    // The third has the least, but has no part in it; the first has a copy.
    let mut c = cluster(&[0, 1_000, 0, 100]);
    c.ok(Command::LeaveDisk { disk: disk(3), departure: Some(Departure::WhenEmpty) });
    assert_eq!(next(&c, &hot), Some((2, 4)));
    // What nobody has measured does not move, nor what somebody else tends.
    let c = cluster(&[900, 1_000, 0, 100]);
    assert_eq!(next(&c, &[]), None);
    assert_eq!(c.state.next_move_by_load(RULES, &hot, LATER, |_| false), None);
    assert_eq!(c.state.next_move_by_load(LoadRules { percent: 0, ..RULES }, &hot, LATER, |_| true), None);
}

#[test]
fn nothing_goes_farther_from_where_its_volume_is_rather_kept() {
    let hot = [heat(FIRST, 2, 500)];
    let mut c = cluster(&[900, 1_000, 0, 100]);
    assert_eq!(next(&c, &hot), Some((2, 3)));
    for (n, domain) in [(1, "lyon/a"), (2, "lyon/b"), (3, "brest/a"), (4, "lyon/c")] {
        let fault_domain = domain.to_owned();
        c.ok(Command::PutHost { host: HostRecord { fault_domain, ..host_record(n) } });
    }
    let preference = Preference { places: vec!["lyon".to_owned()], across_sites: false };
    c.ok(Command::Prefer { object: OBJECT, preference });
    assert_eq!(next(&c, &hot), Some((2, 4)));
}

#[test]
fn disks_that_are_about_even_or_serve_little_give_nothing() {
    let hot = [heat(FIRST, 2, 250)];
    assert_eq!(next(&cluster(&[749, 1_000, 500, 751]), &hot), Some((2, 3)));
    assert_eq!(next(&cluster(&[750, 1_000, 500, 751]), &hot), None, "not by half more than the others");
    let hot = [heat(FIRST, 2, 60)];
    assert_eq!(next(&cluster(&[0, Load::FLOOR.0, 0, 0]), &hot), Some((2, 4)));
    assert_eq!(next(&cluster(&[0, Load::FLOOR.0 - 1, 0, 0]), &hot), None);
}

#[test]
fn what_would_only_carry_the_heat_elsewhere_stays() {
    let c = cluster(&[0, 1_000, 100, 0]);
    let of = |load| next(&c, &[heat(FIRST, 2, load)]);
    assert_eq!(of(1_000), None);
    assert_eq!(of(751), None);
    // Much less loaded than the other was.
    assert_eq!(of(750), Some((2, 4)));
    assert_eq!(of(250), Some((2, 4)));
    assert_eq!(of(249), None, "not worth it");
}

#[test]
fn what_is_read_on_its_own_host_goes_rather_to_another_disk_there() {
    let second = ChunkIndex(1);
    let mut c = cluster(&[1_000, 0, 0, 0]);
    c.place(second).expect("there is room");
    assert_eq!(c.disks(second)[0], disk(1), "the owner reads both there");
    c.put_disk(5, 1, EXTENTS, 500);
    let both = [heat(FIRST, 1, 400), heat(second, 1, 500)];
    let which = |c: &Cluster| {
        let next = c.state.next_move_by_load(RULES, &both, LATER, |_| true)?;
        Some((next.chunk, number(next.from), number(next.to)))
    };
    assert_eq!(which(&c), Some((second, 1, 5)));
    report(&mut c, &[1_000, 0, 0, 0, 250]);
    assert_eq!(which(&c), Some((FIRST, 1, 5)), "though the other would be even on an idle host");
    report(&mut c, &[1_000, 0, 0, 0, 400]);
    assert!(which(&c).is_some_and(|(chunk, _, to)| chunk == second && to != 5));
}

#[test]
fn a_copy_that_comes_to_its_reader_may_bring_all_reads() {
    // The copies come to be on the second and the third; the owner, on the first, reads now the one and now the other.
    let mut c = cluster(&[0, 1_000, 400, 1_000]);
    carry_out(&mut c, FIRST, disk(1), disk(3));
    let with = |other| next(&c, &[heat(FIRST, 2, 500), heat(FIRST, 3, other)]);
    assert_eq!((with(250), with(251)), (Some((2, 1)), None));
}

#[test]
fn a_move_never_fills_what_would_be_emptied_because_it_is_full() {
    let with = |used_percent: [u64; 4]| {
        let mut c = cluster(&[0, 1_000, 500, 0]);
        let used = (1..).zip(used_percent).map(|(n, percent)| (disk(n), EXTENTS * percent / 100 + 1));
        c.ok(Command::ReportUsage { used_extents: used.collect() });
        c
    };
    let hot = [heat(FIRST, 2, 400)];
    let next = |used| next(&with(used), &hot);
    assert_eq!((next([5, 5, 5, 34]), next([5, 5, 5, 35])), (Some((2, 4)), None));
    // Nearly full, less is too much.
    assert_eq!((next([79, 79, 79, 83]), next([79, 79, 79, 84])), (Some((2, 4)), None));
    // No room; and that counts also where nothing moves by fullness.
    assert_eq!(next([94, 94, 94, 95]), None);
    let never = LoadRules { spread_percent: 0, ..RULES };
    let next = |used| pair(with(used).state.next_move_by_load(never, &hot, LATER, |_| true));
    assert_eq!((next([5, 5, 5, 79]), next([5, 5, 5, 84])), (Some((2, 4)), None));
}

#[test]
fn nothing_moves_while_something_is_repaired_or_until_averages_have_settled() {
    let hot = [heat(FIRST, 2, 500)];
    let mut c = cluster(&[0, 1_000, 0, 0]);
    let remove = SyncChange::Remove { chunk: FIRST, disk: disk(1), stale_seq: Seq(0) };
    c.change(vec![remove]).expect("one is left");
    assert_eq!(next(&c, &hot), None);
    let mut c = cluster(&[0, 1_000, 0, 0]);
    begin(&mut c, FIRST, disk(2), disk(4), 5_000).expect("there is a place");
    let at =
        |c: &Cluster, heats: &[Heat], unix_s| pair(c.state.next_move_by_load(RULES, heats, unix_s, |_| true));
    assert_eq!(at(&c, &hot, LATER), None, "one at a time");
    c.change(vec![SyncChange::Add { chunk: FIRST, disk: disk(4) }]).expect("it has everything");
    for unix_s in [5_990, 6_000] {
        trim_from(&mut c, FIRST, disk(2), unix_s).expect("one too many");
    }
    // As its host still says, which counts what was.
    let hot = [heat(FIRST, 4, 500)];
    report(&mut c, &[0, 0, 0, 1_000]);
    assert_eq!((at(&c, &hot, 6_899), at(&c, &hot, 6_900)), (None, Some((4, 3))));
    // One by fullness counts too. A clock that was ahead counts for nothing.
    let basis = c.basis();
    let mut fuller = c.clone();
    fuller.ok(Command::Move { basis, chunk: FIRST, from: disk(1), unix_s: 9_000 });
    assert_eq!(fuller.state.loads.moved_unix_s(), 9_000);
    assert_eq!(at(&c, &hot, 5_000), Some((4, 3)));
}

#[test]
fn shards_move_within_what_their_chunk_leaves_free() {
    let mut c = Cluster::placed(4, Policy::Parity { data: 2, parity: 1 });
    c.raise();
    let shard = FIRST.shard(0);
    let of = |c: &Cluster, n: u8| number(c.disks(FIRST.shard(n))[0]);
    let from = of(&c, 0);
    let free = (1..=4).find(|n| (0..3).all(|shard| of(&c, shard) != *n)).expect("four hosts, three shards");
    // The free one is the least idle of those that would do.
    let mut loads = [0; 4];
    (loads[usize::from(from) - 1], loads[usize::from(free) - 1]) = (1_000, 200);
    report(&mut c, &loads);
    assert_eq!(next(&c, &[heat(shard, from, 500)]), Some((from, free)));
    carry_out(&mut c, shard, disk(from), disk(free));
    assert_eq!((of(&c, 0), c.disks(shard).len()), (free, 1));
}

#[test]
fn a_move_names_a_disk_that_may_take_it_and_the_one_that_goes() {
    let mut c = cluster(&[0, 1_000, 0, 0]);
    c.ok(Command::LeaveDisk { disk: disk(3), departure: Some(Departure::WhenEmpty) });
    let mut to = |from, to| begin(&mut c, FIRST, disk(from), disk(to), 0);
    for taken in [1, 2, 3, 9] {
        assert!(matches!(to(2, taken), Err(Refused::NoRoom { .. })), "to {taken}");
    }
    assert!(matches!(to(4, 4), Err(Refused::NoComponent(_))));
    to(2, 4).expect("a free one");
    assert!(matches!(to(1, 4), Err(Refused::TooMuch(_))), "one at a time");
    assert_eq!(c.disks(FIRST), [disk(1), disk(2), disk(4)]);
    // Until it has everything, nothing can go but it.
    let nothing_spare = Err(Refused::NothingSpare(FIRST));
    assert_eq!(trim_from(&mut c, FIRST, disk(2), 0), nothing_spare);
    c.join(disk(4));
    // The first is the fullest by far.
    c.ok(Command::ReportUsage { used_extents: vec![(disk(1), EXTENTS / 2)] });
    assert_eq!(trim_from(&mut c, FIRST, disk(3), 0), nothing_spare);
    for _ in 0..2 {
        trim_from(&mut c, FIRST, disk(2), 0).expect("one too many");
    }
    assert_eq!(c.disks(FIRST), [disk(1), disk(4)]);
    assert_eq!(trim_from(&mut c, FIRST, disk(1), 0), nothing_spare);
}

#[test]
fn below_its_level_nothing_is_known_of_load() {
    let mut c = Cluster::placed(4, mirror(2));
    let now = FeatureLevel(1);
    assert_eq!(Command::ReportLoad { loads: Vec::new() }.since(), FeatureLevel::LOADS);
    let refused = Err(Refused::OtherLevel { now });
    assert_eq!(c.apply(Command::ReportLoad { loads: vec![(disk(1), Load(500))] }), refused);
    assert_eq!(begin(&mut c, FIRST, disk(2), disk(4), 9), refused);
    assert_eq!(trim_from(&mut c, FIRST, disk(2), 9), refused);
    let basis = c.basis();
    c.ok(Command::Move { basis, chunk: FIRST, from: disk(2), unix_s: 9 });
    assert_eq!(c.state.loads, vsand_core::directory::Loads::default());
}

#[test]
fn what_is_known_of_a_disk_goes_with_it() {
    let mut c = cluster(&[100, 200, 300, 400]);
    let load = |c: &Cluster, n| c.state.loads.of(disk(n)).0;
    report(&mut c, &[100, 0, 300, 400, 500]);
    assert_eq!([1, 2, 3, 4, 5].map(|n| load(&c, n)), [100, 0, 300, 400, 0], "there is no fifth");
    c.ok(Command::RemoveDisk { disk: disk(3), unix_s: 0 });
    assert_eq!(load(&c, 3), 0);
    c.ok(Command::RemoveHost { host: host(4), unix_s: 0 });
    assert_eq!(load(&c, 4), 0);
}

#[test]
fn idle_disks_have_nothing_to_say() {
    let news = |said, now| Load(now).is_news(Load(said));
    assert!(!news(0, 15) && news(0, 16) && !news(100, 85) && news(100, 84));
    assert!(!news(1_000, 1_124) && news(1_000, 1_125) && !news(1_000, 876) && news(1_000, 875));
    assert!(news(0, u64::MAX) && news(u64::MAX, 0));
}

/// What happens to a cluster of which both balancers take care.
struct Model {
    c: Cluster,
    /// What each component of a chunk has to serve.
    heats: BTreeMap<ChunkIndex, u64>,
    /// Extents of a component.
    size: u64,
    dice: u64,
    /// What is told is off, as much as it may be.
    noise: bool,
}

impl Model {
    fn new(seed: u64, alike: bool, noise: bool) -> Self {
        let c = Cluster::placed(6, mirror(2));
        let mut model = Self { c, heats: BTreeMap::new(), size: 1_000, dice: seed, noise };
        model.c.raise();
        for n in 1..=6 {
            let capacity = if alike { EXTENTS } else { 5_000 + model.roll(25_000) };
            model.c.put_disk(n, n, capacity, 1);
        }
        for chunk in (0..8).map(ChunkIndex) {
            if chunk != FIRST {
                model.c.place(chunk).expect("there is room");
            }
            let heat = model.roll(2_000);
            model.heats.insert(chunk, heat);
        }
        model
    }

    /// Below this.
    fn roll(&mut self, below: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % below
    }

    fn on(&self, disk: DiskId) -> impl Iterator<Item = ChunkIndex> + '_ {
        self.heats.keys().copied().filter(move |chunk| self.c.disks(*chunk).contains(&disk))
    }

    fn load(&self, disk: DiskId) -> u64 {
        self.on(disk).map(|chunk| self.heats[&chunk]).sum()
    }

    fn squares(&self) -> u128 {
        (1..=6).map(|n| u128::from(self.load(disk(n))).pow(2)).sum()
    }

    fn busiest(&self) -> u64 {
        (1..=6).map(|n| self.load(disk(n))).max().unwrap_or(0)
    }

    /// What hosts say of their disks, and the owner of its components.
    fn told(&mut self) -> Vec<Heat> {
        let used = (1..=6).map(|n| (disk(n), self.on(disk(n)).count() as u64 * self.size + 1)).collect();
        self.c.ok(Command::ReportUsage { used_extents: used });
        let mut loads = Vec::new();
        for n in 1..=6 {
            let load = self.load(disk(n));
            // Between eight ninths and eight sevenths.
            let of = if self.noise { 7_000 + self.roll(2_001) } else { 8_000 };
            loads.push(load * 8_000 / of);
        }
        report(&mut self.c, &loads);
        let mut heats = Vec::new();
        for (chunk, heat) in self.heats.clone() {
            for on in self.c.disks(chunk) {
                let seen = if self.noise { 875 + self.roll(126) } else { 1_000 };
                heats.push(Heat { object: OBJECT, chunk, disk: on, load: Load(heat * seen / 1_000) });
            }
        }
        heats
    }
}

#[test]
fn both_balancers_together_come_to_an_end_and_leave_less_to_the_busiest() {
    let (mut by_load, mut by_fullness, mut better) = (0, 0, 0);
    for (seed, alike, noise) in (0..300).map(|seed| (seed, seed % 3 == 0, seed % 2 == 0)) {
        let rules = LoadRules { percent: 20, settle_s: 0, ..RULES };
        let mut model = Model::new(seed, alike, noise);
        let began = model.busiest();
        let mut steps = 0;
        loop {
            let heats = model.told();
            steps += 1;
            assert!(steps < 100, "seed {seed}: it goes on and on");
            if let Some(next) = model.c.state.next_move(SPREAD, |_| true) {
                by_fullness += 1;
                let basis = model.c.basis();
                model.c.ok(Command::Move { basis, chunk: next.chunk, from: next.from, unix_s: 0 });
                let change = SyncChange::Add { chunk: next.chunk, disk: next.to };
                model.c.change(vec![change]).expect("it has everything");
                for _ in 0..2 {
                    model.c.trim(next.chunk).expect("one too many");
                }
                continue;
            }
            let Some(next) = model.c.state.next_move_by_load(rules, &heats, LATER, |_| true) else { break };
            by_load += 1;
            let before = (model.squares(), model.load(next.from).max(model.load(next.to)));
            carry_out(&mut model.c, next.chunk, next.from, next.to);
            let after = (model.squares(), model.load(next.from).max(model.load(next.to)));
            assert!(after.0 < before.0 && after.1 < before.1, "seed {seed}: {before:?} {after:?}");
            if !noise {
                assert!(after.1 * 100 <= before.1 * 75, "seed {seed}: {before:?} {after:?}");
            }
            model.told();
            let taken_back = model.c.state.next_move(SPREAD, |_| true).filter(|back| back.from == next.to);
            assert_eq!(taken_back, None, "seed {seed}");
        }
        if alike {
            assert!(model.busiest() <= began, "seed {seed}");
            better += u32::from(model.busiest() < began);
        }
    }
    assert!(by_load > 100 && by_fullness > 100 && better > 15, "{by_load} {by_fullness} {better}");
}

#[test]
fn an_owner_moves_a_copy_to_the_disk_that_was_named_while_the_guest_writes() {
    let mut lab = Lab::new(4);
    let hosts = lab.state.hosts.keys().copied().collect();
    lab.command(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts })
        .expect("asked");
    lab.write(0, 8);
    lab.command(Command::SetPolicy { object: OBJECT, from: mirror(4), to: mirror(2) }).expect("fewer");
    let pass = Duration::from_secs(6);
    lab.pass(pass);
    let there = |lab: &Lab| lab.record().chunks[&CHUNK.index].in_sync().collect::<Vec<_>>();
    for _ in 0..3 {
        let before = there(&lab);
        let [from, stays] = before[..] else { panic!("{before:?}") };
        // By fullness it would go elsewhere, and the other copy would go.
        let mut free = (1..=4).map(disk).filter(|disk| !before.contains(disk));
        let (to, emptier) = (free.next().expect("four"), free.next().expect("four"));
        let used = vec![(from, 1), (stays, EXTENTS / 2), (to, EXTENTS / 4), (emptier, 1)];
        lab.command(Command::ReportUsage { used_extents: used }).expect("known");
        lab.owner.move_component(lab.now, CHUNK.index, from, Some(to));
        let mut written = Vec::new();
        for block in 0..20 {
            written.push(lab.write(block * 7, 3));
            lab.pass(pass / 20);
        }
        assert!(written.iter().all(|tag| lab.result(*tag) == Some(&GuestResult::Done)));
        assert_eq!(there(&lab).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([stays, to]));
        assert!(lab.record().settled() && !lab.owner.is_moving());
        assert_eq!(lab.disks[&stays].blocks, lab.disks[&to].blocks);
    }
}

#[test]
fn where_the_moved_one_is_needed_again_another_goes() {
    // Copied, and the other copy fails before the one that was copied for has gone.
    let mut lab = Lab::new(3);
    let hosts = lab.state.hosts.keys().copied().collect();
    lab.command(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts })
        .expect("asked");
    lab.write(0, 8);
    lab.command(Command::SetPolicy { object: OBJECT, from: mirror(3), to: mirror(2) }).expect("fewer");
    let pass = Duration::from_secs(6);
    lab.pass(pass);
    let before = lab.record().chunks[&CHUNK.index].in_sync().collect::<Vec<_>>();
    let [from, stays] = before[..] else { panic!("{before:?}") };
    let to = (1..=3).map(disk).find(|disk| !before.contains(disk)).expect("three");
    lab.owner.move_component(lab.now, CHUNK.index, from, Some(to));
    while lab.record().chunks[&CHUNK.index].in_sync().count() < 3 {
        lab.pass(Duration::from_millis(10));
    }
    lab.away(number(stays));
    lab.write(0, 8);
    lab.pass(pass);
    let left: Vec<DiskId> = lab.record().chunks[&CHUNK.index].in_sync().collect();
    assert_eq!(left.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([from, to]));
    assert_eq!(lab.record().chunks[&CHUNK.index].components.len(), 2, "it is not missed");
}
