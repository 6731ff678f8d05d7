//! Hosts in maintenance: what is refused, what moves, what stays; and what the loss of disks would mean.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::cluster::{Cluster, FIRST, host_record, mirror, number, object};
use common::{CHUNK, Lab, disk, host};
use ferro_protocol::ids::{ChunkIndex, DiskId, ObjectId, Seq};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{
    Basis, Command, Departure, LockKind, MaintenanceMode, Outcome, Policy, Refused, SyncChange,
};

use MaintenanceMode::{EnsureAccess, Full, NoMove};

impl Cluster {
    fn enter(&mut self, n: u8, mode: MaintenanceMode) -> Result<Outcome, Refused> {
        let departure = Some(Departure::Maintenance { mode, since_unix_s: 7 });
        self.apply(Command::LeaveHost { host: host(n), departure })
    }

    fn exit(&mut self, n: u8) {
        self.ok(Command::LeaveHost { host: host(n), departure: None });
    }

    fn fall_out(&mut self, disk: DiskId) {
        let (basis, chunk) = (self.basis(), ChunkIndex(0));
        let changes = vec![SyncChange::Remove { chunk, disk, stale_seq: Seq(1) }];
        self.ok(Command::ChangeSync { basis, changes, unix_s: 0 });
    }

    fn ready(&self, n: u8) -> Option<bool> {
        self.state.maintenance_ready(host(n))
    }
}

#[test]
fn with_another_copy_nothing_moves() {
    for mode in [NoMove, EnsureAccess] {
        let mut c = Cluster::placed(4, mirror(2));
        let n = number(c.disks(FIRST)[1]);
        assert_eq!(c.ready(n), None);
        c.enter(n, mode).expect("the other has it");
        assert_eq!(c.state.maintenance(host(n)), Some((mode, 7)));
        assert!(!c.state.is_host_leaving(host(n)) && c.state.leaving().is_empty());
        assert_eq!(c.ready(n), Some(true));
        assert!(c.state.is_settled(c.record()), "there is nothing to do");
        assert!(c.state.is_resting(disk(n)) && c.repair(FIRST, None).is_err());
        c.exit(n);
        assert!(c.state.resting().is_empty() && c.ready(n).is_none());
    }
}

#[test]
fn what_has_no_second_copy_moves_and_stays_there() {
    let mut c = Cluster::placed(3, mirror(1));
    let only = c.disks(FIRST)[0];
    let n = number(only);
    assert!(matches!(c.enter(n, NoMove), Err(Refused::WouldBeUnreadable { volumes: 1, .. })));
    c.enter(n, EnsureAccess).expect("the others have room");
    assert_eq!(c.ready(n), Some(false));
    assert!(!c.state.is_settled(c.record()));
    c.repair(FIRST, None).expect("it is to move");
    let new = *c.disks(FIRST).last().expect("two");
    assert_eq!((c.ready(n), c.trim(FIRST)), (Some(false), Err(Refused::NothingSpare(ChunkIndex(0)))));
    c.join(new);
    c.trim(FIRST).expect("the old one goes");
    assert_eq!((c.disks(FIRST), c.ready(n)), (vec![new], Some(true)));
    assert!(c.state.is_settled(c.record()));
    c.exit(n);
    assert!(c.state.is_settled(c.record()), "and nothing moves back");
}

#[test]
fn what_has_no_second_copy_moves_to_where_it_may_stay() {
    let mut c = Cluster::placed(3, mirror(1));
    let n = number(c.disks(FIRST)[0]);
    let others: Vec<u8> = (1..=3).filter(|other| *other != n).collect();
    c.enter(others[0], EnsureAccess).expect("it has nothing");
    c.enter(n, EnsureAccess).expect("the third has room");
    c.repair(FIRST, None).expect("it is to move");
    assert_eq!(
        c.disks(FIRST).last(),
        Some(&disk(others[1])),
        "not to another host that is to be switched off"
    );
    let mut c = Cluster::placed(2, mirror(1));
    let n = number(c.disks(FIRST)[0]);
    c.enter(3 - n, EnsureAccess).expect("it has nothing");
    assert!(matches!(c.enter(n, EnsureAccess), Err(Refused::CantMove { needed: 1, found: 0, .. })));
}

#[test]
fn full_moves_everything_or_is_refused_at_once() {
    let mut c = Cluster::placed(3, mirror(3));
    assert!(matches!(c.enter(2, Full), Err(Refused::CantMove { needed: 3, found: 2, .. })));
    let mut c = Cluster::placed(4, mirror(3));
    let leaves = c.disks(FIRST)[1];
    let n = number(leaves);
    c.enter(n, Full).expect("the fourth takes it");
    assert!(c.state.is_leaving(leaves) && !c.state.is_host_leaving(host(n)));
    c.repair(FIRST, None).expect("placed");
    let new = *c.disks(FIRST).last().expect("four");
    c.join(new);
    assert_eq!(c.ready(n), Some(false));
    c.trim(FIRST).expect("three others are in sync");
    assert_eq!(c.ready(n), Some(true));
    assert!(!c.disks(FIRST).contains(&leaves));
    // It may come back, or leave for good.
    c.ok(Command::LeaveHost { host: host(n), departure: Some(Departure::WhenEmpty) });
    assert!(c.state.is_host_leaving(host(n)) && c.state.maintenance(host(n)).is_none());
    assert_eq!(c.enter(n, NoMove), Err(Refused::HostLeaves(host(n))));
}

#[test]
fn the_last_good_copy_is_kept_whatever_else_is_away() {
    let mut c = Cluster::placed(3, mirror(2));
    let (first, second) = (c.disks(FIRST)[0], c.disks(FIRST)[1]);
    c.fall_out(first);
    for mode in [NoMove, EnsureAccess] {
        let refused = c.enter(number(second), mode);
        assert!(matches!(refused, Err(Refused::WouldBeUnreadable { .. })), "{refused:?}");
    }
    c.enter(number(first), NoMove).expect("it has nothing that is good");
    c.join(first);
    let refused = c.enter(number(second), EnsureAccess);
    assert!(
        matches!(refused, Err(Refused::WouldBeUnreadable { .. })),
        "the other is in maintenance: {refused:?}"
    );
    c.exit(number(first));
    c.enter(number(second), EnsureAccess).expect("both are good");
    c.fall_out(first);
    assert_eq!(c.ready(number(second)), Some(false), "the other has fallen out since");
}

#[test]
fn a_repair_waits_for_who_is_worked_on() {
    let mut c = Cluster::placed(4, mirror(2));
    let away = c.disks(FIRST)[1];
    let n = number(away);
    let repair = |c: &mut Cluster| {
        let (basis, chunk) = (c.basis(), ChunkIndex(0));
        c.apply(Command::Repair { basis, chunk, drop: Some(away), unix_s: 0 })
    };
    c.enter(n, EnsureAccess).expect("the other has it");
    c.fall_out(away);
    assert_eq!(repair(&mut c), Err(Refused::InMaintenance(host(n))));
    // Not when its disk is dead, nor when it is to move, nor afterwards.
    let mut dead = Cluster { state: c.state.clone(), index: c.index };
    dead.ok(Command::DiskDied { disk: away, reason: "broken".to_owned() });
    repair(&mut dead).expect("it does not come back with its host");
    let mut full = Cluster { state: c.state.clone(), index: c.index };
    full.enter(n, Full).expect("the others have room");
    repair(&mut full).expect("everything moves");
    c.exit(n);
    repair(&mut c).expect("nobody works on it");
}

#[test]
fn of_what_is_lost_in_part_no_more_is_lost() {
    let mut c = Cluster::placed(4, mirror(2));
    let (basis, chunk) = (c.basis(), ChunkIndex(1));
    c.ok(Command::PlaceChunk { basis, chunk, near: host(3) });
    let of = |c: &Cluster, n: u32| -> BTreeSet<DiskId> {
        c.record().chunks[&ChunkIndex(n)].components.iter().map(|c| c.disk).collect()
    };
    let (one, other) = (of(&c, 0), of(&c, 1));
    let lonely = other.difference(&one).next().copied().expect("they are not in the same places");
    // All copies of the first chunk are away, and all of the second but one.
    let mut away: BTreeSet<DiskId> = one.union(&other).copied().collect();
    away.remove(&lonely);
    assert_eq!(c.state.lost_without(&[lonely], &away), BTreeSet::from([object()]));
    away.insert(lonely);
    assert_eq!(c.state.lost_without(&[lonely], &away), BTreeSet::from([object()]), "away itself");
    assert!(c.state.lost_without(&[lonely], &BTreeSet::new()).is_empty());
}

#[test]
fn fewer_copies_are_kept_where_they_can_be_had() {
    for n in 0..3 {
        let mut c = Cluster::placed(3, mirror(3));
        let away = c.disks(FIRST)[n];
        c.enter(number(away), EnsureAccess).expect("two others have it");
        let (from, to) = (Policy::Mirror { copies: 3 }, Policy::Mirror { copies: 2 });
        c.ok(Command::SetPolicy { object: object(), from, to });
        c.trim(FIRST).expect("one too many");
        assert!(!c.disks(FIRST).contains(&away) && c.disks(FIRST).len() == 2, "{:?}", c.disks(FIRST));
    }
}

#[test]
fn shards_are_spared_as_many_as_the_parity_stands() {
    let mut c = Cluster::placed(6, Policy::Parity { data: 4, parity: 2 });
    for n in [1, 2] {
        c.enter(n, EnsureAccess).expect("two of six can go");
        assert_eq!(c.ready(n), Some(true), "{n}");
    }
    let refused = c.enter(3, NoMove);
    assert!(matches!(refused, Err(Refused::WouldBeUnreadable { .. })), "a third can not: {refused:?}");
    assert!(matches!(c.enter(3, Full), Err(Refused::CantMove { needed: 6, .. })), "six of six are needed");
}

#[test]
fn volumes_that_are_open_there_come_first() {
    let guest = LockKind::Exclusive { read_only: false };
    let mut c = Cluster::placed(4, mirror(2));
    c.acquire(1, guest).expect("opened");
    for mode in [EnsureAccess, Full] {
        assert!(matches!(c.enter(1, mode), Err(Refused::HoldsLock { .. })));
    }
    c.enter(1, NoMove).expect("that moves nothing, and nobody");
    let epoch = c.record().epoch;
    c.ok(Command::Release { object: object(), epoch, host: host(1) });
    c.acquire(1, guest).expect("and does not keep anybody out");
    let epoch = c.record().epoch;
    c.ok(Command::Release { object: object(), epoch, host: host(1) });
    c.enter(1, EnsureAccess).expect("closed");
    assert_eq!(c.acquire(1, guest), Err(Refused::InMaintenance(host(1))));
    c.acquire(1, LockKind::Background).expect("a repair is nobody's opening");
    assert_eq!(c.acquire(1, guest), Err(Refused::InMaintenance(host(1))), "and does not become one");
    let departure = Some(Departure::Maintenance { mode: Full, since_unix_s: 0 });
    assert_eq!(c.apply(Command::LeaveDisk { disk: disk(1), departure }), Err(Refused::NotOfDisks));
}

#[test]
fn new_chunks_go_elsewhere_while_there_is_an_elsewhere() {
    let mut c = Cluster::placed(4, mirror(3));
    c.enter(2, NoMove).expect("entered");
    let (other, name) = (ObjectId::from_bytes([8; 16]), "w".parse().expect("a name"));
    let policy = Policy::Mirror { copies: 3 };
    c.ok(Command::CreateObject { object: other, name, size_bytes: 2 * CHUNK_BYTES, policy, unix_s: 0 });
    let (epoch, kind) = (c.state.objects[&other].epoch, LockKind::Background);
    c.ok(Command::Acquire { object: other, epoch, host: host(2), kind, unix_s: 0 });
    for chunk in [ChunkIndex(0), ChunkIndex(1)] {
        let record = &c.state.objects[&other];
        let basis = Basis { object: other, epoch: record.epoch, revision: record.revision };
        c.ok(Command::PlaceChunk { basis, chunk, near: host(2) });
        let placed = c.state.objects[&other].chunks[&chunk].in_sync().any(|d| d == disk(2));
        // With the second one there is nowhere else.
        assert_eq!(placed, chunk == ChunkIndex(1));
        c.enter(3, NoMove).ok();
        let remove = Command::DiskDied { disk: disk(4), reason: "broken".to_owned() };
        c.ok(remove);
    }
}

#[test]
fn a_loss_is_reckoned_without_being_one() {
    let c = Cluster::placed(4, mirror(3));
    let before = c.state.clone();
    let one = BTreeSet::from([c.disks(FIRST)[0]]);
    let forecast = c.state.without(&one);
    assert!(forecast.is_safe() && forecast.extents == 500 && forecast.touched.len() == 1, "{forecast:?}");
    let two: BTreeSet<_> = c.disks(FIRST).into_iter().take(2).collect();
    let forecast = c.state.without(&two);
    assert!(
        forecast.unavailable.is_empty() && forecast.homeless.len() == 1,
        "two places are missing: {forecast:?}"
    );
    let all: BTreeSet<_> = c.disks(FIRST).into_iter().collect();
    let forecast = c.state.without(&all);
    assert!(
        forecast.unavailable.len() == 1 && forecast.extents == 0,
        "nothing is left to build it from: {forecast:?}"
    );
    assert!(c.state.without(&BTreeSet::new()).touched.is_empty());
    assert_eq!(c.state, before);

    // Parity: any two of six may go, and with a seventh host one of them finds a place.
    let c = Cluster::placed(6, Policy::Parity { data: 4, parity: 2 });
    let gone = |n: u8| (1..=n).map(disk).collect::<BTreeSet<_>>();
    assert!(c.state.without(&gone(2)).unavailable.is_empty());
    assert!(!c.state.without(&gone(1)).homeless.is_empty());
    assert!(!c.state.without(&gone(3)).unavailable.is_empty());
    let c = Cluster::placed(7, Policy::Parity { data: 4, parity: 2 });
    for n in 1..=7 {
        let forecast = c.state.without(&BTreeSet::from([disk(n)]));
        assert!(forecast.is_safe(), "{n}: {forecast:?}");
    }
}

/// An object on hosts 1 and 2, and a host 3 that has room; host 2's copy has been stale for days.
fn with_a_stale_copy(resting: &[DiskId]) -> Lab {
    let mut lab = Lab::new(2);
    lab.write(0, 1);
    lab.state.apply(1_000, Command::PutHost { host: host_record(3) }).expect("accepted");
    let (path, capacity_extents) = ("/d3".to_owned(), 1 << 20);
    let put = Command::PutDisk { disk: disk(3), host: host(3), path, capacity_extents, used_extents: 0 };
    lab.state.apply(1_001, put).expect("accepted");
    lab.owner.handle_resting(lab.now, &resting.iter().copied().collect());
    lab.away(2);
    lab.write(1, 1);
    lab.pass(Duration::from_secs(3));
    lab.now.unix_s += 100_000;
    lab
}

fn placed_on(lab: &Lab) -> Vec<DiskId> {
    lab.record().chunks[&CHUNK.index].components.iter().map(|c| c.disk).collect()
}

#[test]
fn a_host_in_maintenance_is_waited_for() {
    let mut lab = with_a_stale_copy(&[disk(2)]);
    lab.pass(Duration::from_secs(9));
    assert_eq!(placed_on(&lab), [disk(1), disk(2)], "far beyond the repair delay it is not replaced");
    lab.owner.handle_resting(lab.now, &BTreeSet::new());
    lab.pass(Duration::from_secs(4));
    assert_eq!(placed_on(&lab), [disk(1), disk(2)], "and has some seconds for its connections");
    lab.pass(Duration::from_secs(3));
    assert_eq!(placed_on(&lab), [disk(1), disk(3)], "afterwards it is");
}

#[test]
fn who_comes_back_from_maintenance_is_not_replaced() {
    let mut lab = with_a_stale_copy(&[disk(2)]);
    lab.owner.handle_resting(lab.now, &BTreeSet::new());
    lab.pass(Duration::from_secs(4));
    lab.back(2);
    lab.pass(Duration::from_secs(9));
    assert_eq!(placed_on(&lab), [disk(1), disk(2)]);
    assert!(lab.record().chunks[&CHUNK.index].in_sync().any(|d| d == disk(2)), "it has caught up");
}

#[test]
fn a_new_owner_gives_a_disk_time_to_answer() {
    let mut lab = with_a_stale_copy(&[]);
    lab.take_over();
    lab.away(2);
    lab.pass(Duration::from_secs(4));
    assert_eq!(placed_on(&lab), [disk(1), disk(2)], "it may only not be connected yet");
    lab.pass(Duration::from_secs(3));
    assert_eq!(placed_on(&lab), [disk(1), disk(3)]);
}
