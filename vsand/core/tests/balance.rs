//! Components that move from fuller disks to emptier ones.

mod common;

use std::time::Duration;

use common::cluster::{Cluster, FIRST, mirror, number};
use common::{CHUNK, Lab, OBJECT, disk, host};
use ferro_protocol::ids::{Epoch, ObjectId, Seq};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{
    Basis, Command, Departure, LockKind, MaintenanceMode, Outcome, Policy, Refused, SyncChange,
};
use vsand_core::owner::guest::GuestResult;

const SPREAD: u64 = 10;
/// Longer than it takes to look for what is missing, and than a resync of little takes.
const WHILE: Duration = Duration::from_secs(6);

/// Of each disk.
const EXTENTS: u64 = 1 << 20;

/// Four hosts with a disk each, so full in percent, and an object whose only chunk has its copies on the first two.
fn cluster(used_percent: [u64; 4]) -> Cluster {
    cluster_of(4, used_percent)
}

/// The same with more hosts, whose disks are empty.
fn cluster_of(hosts: u8, used_percent: [u64; 4]) -> Cluster {
    let mut c = Cluster::placed(hosts, mirror(2));
    assert_eq!(c.disks(FIRST), [disk(1), disk(2)]);
    report(&mut c, used_percent);
    c
}

fn report(c: &mut Cluster, used_percent: [u64; 4]) {
    let used = (1..).zip(used_percent).map(|(n, percent)| (disk(n), EXTENTS * percent / 100 + 1));
    c.ok(Command::ReportUsage { used_extents: used.collect() });
}

/// What is to move, from which disk to which.
fn next(c: &Cluster) -> Option<(u8, u8)> {
    c.state.next_move(SPREAD, |_| true).map(|m| (number(m.from), number(m.to)))
}

fn begin(c: &mut Cluster, from: u8) -> Result<Outcome, Refused> {
    let basis = c.basis();
    c.apply(Command::Move { basis, chunk: FIRST, from: disk(from), unix_s: 0 })
}

#[test]
fn it_goes_from_the_fullest_to_where_new_ones_go() {
    assert_eq!(next(&cluster([30, 5, 5, 1])), Some((1, 4)));
    assert_eq!(next(&cluster([30, 40, 5, 1])), Some((2, 4)));
    assert_eq!(next(&cluster([30, 5, 1, 5])), Some((1, 3)));
    // Even enough; full, but of nothing that is known; full, and so are the others.
    assert_eq!(next(&cluster([10, 5, 5, 1])), None);
    assert_eq!(next(&cluster([5, 5, 30, 1])), None);
    assert_eq!(next(&cluster([79, 71, 72, 72])), None);
    // Nearly full, less is enough.
    assert_eq!(next(&cluster([81, 75, 75, 74])), Some((1, 4)));
    assert_eq!(next(&cluster([81, 78, 78, 78])), None);
    let c = cluster([30, 5, 5, 1]);
    assert_eq!(c.state.next_move(SPREAD, |_| false), None);
    assert_eq!(c.state.next_move(50, |_| true), None);
}

#[test]
fn what_its_guest_reads_on_that_host_goes_last() {
    let mut c = cluster([30, 5, 5, 1]);
    let closed = ObjectId::from_bytes([10; 16]);
    let (name, policy) = ("closed".parse().expect("a name"), mirror(2));
    c.ok(Command::CreateObject { object: closed, name, size_bytes: CHUNK_BYTES, policy, unix_s: 0 });
    let (epoch, kind) = (Epoch(0), LockKind::Background);
    c.ok(Command::Acquire { object: closed, epoch, host: host(1), kind, unix_s: 0 });
    let record = &c.state.objects[&closed];
    let basis = Basis { object: closed, epoch: record.epoch, revision: record.revision };
    c.ok(Command::PlaceChunk { basis, chunk: FIRST, near: host(1) });
    let which = |c: &Cluster| c.state.next_move(SPREAD, |_| true).map(|m| (m.object, number(m.from)));
    assert_eq!(which(&c), Some((OBJECT, 1)), "both are read there");
    c.ok(Command::Release { object: closed, epoch: basis.epoch, host: host(1) });
    assert_eq!(which(&c), Some((closed, 1)));
}

#[test]
fn disks_that_leave_or_rest_take_no_part_and_repair_comes_first() {
    let mut c = cluster([30, 5, 5, 1]);
    c.ok(Command::LeaveDisk { disk: disk(4), departure: Some(Departure::WhenEmpty) });
    assert_eq!(next(&c), Some((1, 3)));
    c.ok(Command::LeaveDisk { disk: disk(1), departure: Some(Departure::WhenEmpty) });
    assert_eq!(next(&c), None, "it moves anyway");
    let mut c = cluster([30, 5, 5, 1]);
    let mode = MaintenanceMode::EnsureAccess;
    let departure = Some(Departure::Maintenance { mode, since_unix_s: 0 });
    c.ok(Command::LeaveHost { host: host(4), departure });
    assert_eq!(next(&c), Some((1, 3)));
    let mut c = cluster([30, 5, 5, 1]);
    let stale_seq = Seq(0);
    c.change(vec![SyncChange::Remove { chunk: FIRST, disk: disk(2), stale_seq }]).expect("one is left");
    assert_eq!(next(&c), None);
    assert!(matches!(begin(&mut c, 1), Err(Refused::TooMuch(_))));
}

/// Five hosts, of which the first is fuller than the third and the fifth is away, and another object that has this owner and a
/// copy on the fifth.
fn one_is_away(policy: Policy, owner: u8) -> Cluster {
    let mut c = cluster_of(5, [30, 5, 1, 5]);
    c.raise();
    let object = ObjectId::from_bytes([10; 16]);
    let name = "other".parse().expect("a name");
    c.ok(Command::CreateObject { object, name, size_bytes: CHUNK_BYTES, policy, unix_s: 0 });
    let (epoch, kind) = (Epoch(0), LockKind::Exclusive { read_only: false });
    c.ok(Command::Acquire { object, epoch, host: host(owner), kind, unix_s: 0 });
    let record = &c.state.objects[&object];
    let basis = Basis { object, epoch: record.epoch, revision: record.revision };
    c.ok(Command::PlaceChunk { basis, chunk: FIRST, near: host(5) });
    assert!(c.state.objects[&object].chunks[&FIRST].in_sync().any(|d| d == disk(5)), "placed near it");
    let away = c.away(5, true);
    c.ok(away);
    c
}

#[test]
fn what_nobody_can_repair_keeps_nothing_from_moving() {
    let next = |policy, owner| next(&one_is_away(policy, owner));
    assert_eq!(next(mirror(2), 1), None, "it can be copied: repair comes first");
    assert_eq!(next(mirror(1), 1), Some((1, 3)), "its only copy is there");
    assert_eq!(next(mirror(2), 5), Some((1, 3)), "it is open there: nobody else can do it");
}

#[test]
fn a_move_adds_first_and_the_fullest_goes() {
    let mut c = cluster([30, 5, 5, 1]);
    assert!(matches!(begin(&mut c, 3), Err(Refused::NoComponent(_))));
    begin(&mut c, 1).expect("there is a place");
    assert_eq!(c.disks(FIRST), [disk(1), disk(2), disk(4)]);
    assert!(matches!(begin(&mut c, 2), Err(Refused::TooMuch(_))), "one at a time");
    assert_eq!(next(&c), None, "one at a time");
    // Given up half-way, the new one goes.
    let mut given_up = c.clone();
    given_up.trim(FIRST).expect("one too many");
    assert_eq!(given_up.disks(FIRST), [disk(1), disk(2)]);
    c.join(disk(4));
    c.trim(FIRST).expect("one too many");
    assert_eq!(c.disks(FIRST), [disk(2), disk(4)]);
    assert!(c.state.is_settled(c.record()));
    report(&mut c, [1, 5, 5, 30]);
    assert_eq!(next(&c), Some((4, 1)), "what was written meanwhile counts");
}

#[test]
fn shards_move_within_what_their_chunk_leaves_free() {
    let mut c = Cluster::placed(4, Policy::Parity { data: 2, parity: 1 });
    let shard = |n: u8| FIRST.shard(n);
    let of = |c: &Cluster, n: u8| number(c.disks(shard(n))[0]);
    let from = of(&c, 0);
    let free = (1..=4).find(|n| (0..3).all(|shard| of(&c, shard) != *n)).expect("four hosts, three shards");
    let mut used = [5; 4];
    (used[usize::from(from) - 1], used[usize::from(free) - 1]) = (30, 1);
    report(&mut c, used);
    let wanted = c.state.next_move(SPREAD, |_| true).expect("uneven");
    assert_eq!((number(wanted.from), number(wanted.to)), (from, free));
    let basis = c.basis();
    c.ok(Command::Move { basis, chunk: shard(0), from: disk(from), unix_s: 0 });
    assert_eq!(c.disks(shard(0)), [disk(from), disk(free)]);
    c.change(vec![SyncChange::Add { chunk: shard(0), disk: disk(free) }]).expect("in sync");
    c.trim(shard(0)).expect("one too many");
    assert_eq!(of(&c, 0), free);
}

#[test]
fn an_owner_moves_a_copy_while_the_guest_writes() {
    let mut lab = Lab::new(3);
    lab.write(0, 8);
    lab.command(Command::SetPolicy { object: OBJECT, from: mirror(3), to: mirror(2) }).expect("fewer");
    lab.pass(WHILE);
    let there = |lab: &Lab| lab.record().chunks[&CHUNK.index].in_sync().collect::<Vec<_>>();
    for _ in 0..3 {
        let before = there(&lab);
        let [from, stays] = before[..] else { panic!("{before:?}") };
        lab.command(Command::ReportUsage { used_extents: vec![(from, EXTENTS / 2), (stays, 1)] })
            .expect("known");
        lab.owner.move_component(lab.now, CHUNK.index, from, None);
        assert!(lab.owner.is_moving());
        let mut written = Vec::new();
        for block in 0..20 {
            written.push(lab.write(block * 7, 3));
            lab.pass(WHILE / 20);
        }
        assert!(written.iter().all(|tag| lab.result(*tag) == Some(&GuestResult::Done)));
        let after = there(&lab);
        assert!(!after.contains(&from) && after.contains(&stays) && after.len() == 2, "{before:?} {after:?}");
        assert!(lab.record().settled() && !lab.owner.is_moving());
        assert_eq!(lab.disks[&after[0]].blocks, lab.disks[&after[1]].blocks);
        lab.command(Command::ReportUsage { used_extents: vec![(from, 1)] }).expect("known");
    }
}

#[test]
fn a_move_that_has_no_place_or_no_target_any_more_ends() {
    let mut lab = Lab::new(2);
    lab.write(0, 8);
    lab.owner.move_component(lab.now, CHUNK.index, disk(1), None);
    lab.pass(WHILE);
    assert!(!lab.owner.is_moving() && lab.record().settled(), "two hosts, two copies");
    // The disk that it would go to is away: another owner takes it back.
    let mut lab = Lab::new(3);
    lab.write(0, 8);
    lab.command(Command::SetPolicy { object: OBJECT, from: mirror(3), to: mirror(2) }).expect("fewer");
    lab.pass(WHILE);
    let copies =
        |lab: &Lab| lab.record().chunks[&CHUNK.index].components.iter().map(|c| c.disk).collect::<Vec<_>>();
    let before = copies(&lab);
    let free = (1..=3).find(|n| !before.contains(&disk(*n))).expect("three");
    lab.away(free);
    lab.owner.move_component(lab.now, CHUNK.index, before[0], None);
    lab.pass(WHILE);
    assert_eq!(copies(&lab).len(), 3, "waits for it");
    lab.take_over();
    lab.pass(WHILE);
    assert_eq!(copies(&lab), before);
}

#[test]
fn a_move_whose_target_is_gone_for_good_is_taken_back() {
    let mut lab = Lab::new(3);
    lab.write(0, 8);
    lab.command(Command::SetPolicy { object: OBJECT, from: mirror(3), to: mirror(2) }).expect("fewer");
    lab.pass(WHILE);
    let copies =
        |lab: &Lab| lab.record().chunks[&CHUNK.index].components.iter().map(|c| c.disk).collect::<Vec<_>>();
    let before = copies(&lab);
    let free = (1..=3).find(|n| !before.contains(&disk(*n))).expect("three");
    lab.away(free);
    lab.owner.move_component(lab.now, CHUNK.index, before[0], None);
    lab.pass(WHILE);
    assert!(copies(&lab).len() == 3 && lab.owner.is_moving(), "it may come back");
    // Nowhere else could it go.
    lab.now.unix_s += 2 * 3_600;
    lab.pass(WHILE);
    assert!(!lab.owner.is_moving() && lab.record().settled());
    assert_eq!(copies(&lab), before);
}
