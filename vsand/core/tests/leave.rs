//! Disks and hosts that leave: what is refused at once, what moves, what may go.

mod common;

use bytes::Bytes;
use common::cluster::{Cluster, FIRST, mirror, object};
use common::{Lab, disk, host};
use ferro_protocol::ids::{ChunkIndex, Seq, Version};
use ferro_protocol::units::BLOCK_BYTES;
use vsand_core::directory::{Basis, Command, Departure, FeatureLevel, LockKind, Refused, Sync};
use vsand_core::owner::guest::{GuestRequest, GuestResult};

const EMPTY: Option<Departure> = Some(Departure::WhenEmpty);

#[test]
fn a_component_moves_before_its_disk_goes() {
    let mut c = Cluster::placed(4, mirror(3));
    let leaves = c.disks(FIRST)[1];
    assert!(matches!(c.repair(FIRST, None), Err(Refused::TooMuch(_))), "all its components are there");
    c.ok(Command::LeaveDisk { disk: leaves, departure: EMPTY });
    assert!(!c.state.is_settled(c.record()));
    assert_eq!(c.trim(FIRST), Err(Refused::NothingSpare(ChunkIndex(0))), "there is none too many yet");

    c.repair(FIRST, None).expect("one more is placed");
    let new = *c.disks(FIRST).last().expect("four");
    assert!(c.disks(FIRST).contains(&leaves) && new != leaves && c.disks(FIRST).len() == 4);
    assert!(c.repair(FIRST, None).is_err(), "one more is enough");
    assert_eq!(c.trim(FIRST), Err(Refused::NothingSpare(ChunkIndex(0))), "the new one is empty");

    c.join(new);
    c.trim(FIRST).expect("three others are in sync");
    assert!(!c.disks(FIRST).contains(&leaves) && c.disks(FIRST).len() == 3);
    assert!(c.state.is_settled(c.record()) && !c.state.holds_components(&[leaves]));
    c.ok(Command::RemoveDisk { disk: leaves, unix_s: 0 });
    assert!(c.state.leaving().is_empty(), "nothing is left of it");
}

#[test]
fn a_move_that_is_taken_back_leaves_nothing_behind() {
    for in_sync in [false, true] {
        let mut c = Cluster::placed(4, mirror(3));
        let leaves = c.disks(FIRST)[0];
        c.ok(Command::LeaveDisk { disk: leaves, departure: EMPTY });
        c.repair(FIRST, None).expect("placed");
        let new = *c.disks(FIRST).last().expect("four");
        if in_sync {
            c.join(new);
        }
        c.ok(Command::LeaveDisk { disk: leaves, departure: None });
        assert!(!c.state.is_settled(c.record()), "one too many");
        c.trim(FIRST).expect("one goes");
        assert_eq!(c.disks(FIRST).len(), 3);
        assert!(in_sync || c.disks(FIRST).contains(&leaves), "the one that was never filled");
        assert!(c.state.is_settled(c.record()));
    }
}

#[test]
fn what_stays_keeps_its_fault_domains() {
    let mut c = Cluster::placed(3, mirror(3));
    // Another disk in the first one's host: that is where its component goes, and nowhere else can it.
    c.put_disk(11, 1, 1 << 20, 0);
    c.ok(Command::LeaveDisk { disk: disk(1), departure: EMPTY });
    c.repair(FIRST, None).expect("placed");
    assert_eq!(c.disks(FIRST).last(), Some(&disk(11)));
    c.join(disk(11));
    c.ok(Command::LeaveDisk { disk: disk(1), departure: None });
    c.trim(FIRST).expect("one of the two in host 1");
    let hosts: std::collections::BTreeSet<_> = c.disks(FIRST).iter().map(|d| c.state.disks[d].host).collect();
    assert_eq!(hosts.len(), 3, "three copies in two hosts are not what was asked for");
}

#[test]
fn what_the_others_can_not_hold_is_refused_at_once() {
    let mut c = Cluster::placed(3, mirror(3));
    let leave = Command::LeaveDisk { disk: disk(2), departure: EMPTY };
    assert!(matches!(c.apply(leave), Err(Refused::CantMove { needed: 3, found: 2, .. })));
    let leave = Command::LeaveHost { host: host(2), departure: EMPTY };
    assert!(matches!(c.apply(leave), Err(Refused::CantMove { needed: 3, found: 2, .. })));
    // At once it may, as the others have it; then a copy is missing.
    c.ok(Command::LeaveHost { host: host(2), departure: Some(Departure::AtOnce) });
    c.ok(Command::RemoveHost { host: host(2), unix_s: 0 });
    assert_eq!(c.disks(FIRST).len(), 2);

    let mut c = Cluster::placed(4, mirror(3));
    let spare = (1..=4).map(disk).find(|d| !c.disks(FIRST).contains(d)).expect("one of four");
    let n = spare.as_bytes()[0];
    c.put_disk(n, n, 1_000, 600);
    let full = c.disks(FIRST)[0];
    let leave = Command::LeaveDisk { disk: full, departure: EMPTY };
    assert!(matches!(c.apply(leave.clone()), Err(Refused::NoSpaceElsewhere { extents: 500, .. })));
    c.put_disk(n, n, 1_200, 600);
    c.ok(leave);
}

#[test]
fn a_last_copy_never_goes_by_force() {
    let mut c = Cluster::placed(2, mirror(1));
    let only = c.disks(FIRST)[0];
    let leave = Command::LeaveDisk { disk: only, departure: Some(Departure::AtOnce) };
    assert!(matches!(c.apply(leave), Err(Refused::WouldLoseData { chunks: 1, .. })));
    c.ok(Command::LeaveDisk { disk: only, departure: EMPTY });
    let remove = Command::RemoveDisk { disk: only, unix_s: 0 };
    assert!(matches!(c.apply(remove), Err(Refused::WouldLoseData { .. })), "it is not empty yet");
    c.repair(FIRST, None).expect("the other disk takes it");
    let new = *c.disks(FIRST).last().expect("two");
    let stale = Sync::Stale { stale_seq: Seq(0), since_unix_s: 0 };
    assert_eq!(c.record().chunks[&ChunkIndex(0)].components[1].sync, stale, "it has nothing yet");
    c.join(new);
    c.trim(FIRST).expect("moved");
    assert_eq!(c.disks(FIRST), [new]);
}

#[test]
fn a_host_that_leaves_opens_nothing_and_repairs_do_not_keep_it() {
    let mut c = Cluster::placed(4, mirror(2));
    let guest = LockKind::Exclusive { read_only: false };
    let (leave, keep) = (
        Command::LeaveHost { host: host(1), departure: EMPTY },
        Command::LeaveHost { host: host(1), departure: None },
    );
    c.acquire(1, guest).expect("opened");
    assert!(matches!(c.apply(leave.clone()), Err(Refused::HoldsLock { .. })), "it is open there");
    let epoch = c.record().epoch;
    c.ok(Command::Release { object: object(), epoch, host: host(1) });
    c.ok(leave.clone());
    assert_eq!(c.acquire(1, guest), Err(Refused::HostLeaves(host(1))));
    c.ok(keep);
    c.acquire(1, LockKind::Background).expect("it stays, and may repair");
    c.ok(leave);
    c.repair(FIRST, None).expect("placed");
    let new = *c.disks(FIRST).last().expect("three");
    c.join(new);
    c.trim(FIRST).expect("moved");
    assert!(c.record().lock.is_some());
    c.ok(Command::RemoveHost { host: host(1), unix_s: 0 });
    assert!(c.record().lock.is_none() && c.state.leaving_hosts.is_empty());
}

#[test]
fn nothing_new_is_placed_on_a_disk_that_leaves() {
    let mut c = Cluster::placed(4, mirror(2));
    let spare = (1..=4).map(disk).filter(|d| !c.disks(FIRST).contains(d)).collect::<Vec<_>>();
    c.ok(Command::LeaveDisk { disk: spare[0], departure: EMPTY });
    c.ok(Command::LeaveDisk { disk: c.disks(FIRST)[0], departure: EMPTY });
    c.repair(FIRST, None).expect("placed");
    assert_eq!(c.disks(FIRST).last(), Some(&spare[1]));
    let last = Command::LeaveHost { host: host(spare[1].as_bytes()[0]), departure: EMPTY };
    assert!(matches!(c.apply(last), Err(Refused::CantMove { .. })), "all others leave already");
}

#[test]
fn a_component_that_is_in_sync_goes_in_two_steps() {
    let mut c = Cluster::placed(4, mirror(3));
    let hosts = c.state.hosts.keys().copied().collect();
    c.ok(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts });
    let leaves = c.disks(FIRST)[1];
    c.ok(Command::LeaveDisk { disk: leaves, departure: EMPTY });
    c.repair(FIRST, None).expect("placed");
    c.join(*c.disks(FIRST).last().expect("four"));
    let basis = c.basis();
    let trim = Command::Trim { basis, chunk: FIRST };
    c.ok(trim.clone());
    let component = c.record().chunks[&FIRST].components.iter().find(|c| c.disk == leaves).copied();
    assert!(component.is_some_and(|c| !c.in_sync()), "its owner must know first: {component:?}");
    assert!(
        matches!(c.apply(trim), Err(Refused::Overtaken(_))),
        "who has not heard of the first can't do the second"
    );
    c.trim(FIRST).expect("it goes");
    assert!(!c.disks(FIRST).contains(&leaves) && c.state.is_settled(c.record()));
}

#[test]
fn what_a_component_answers_that_has_gone_counts_for_nothing() {
    for partial in [false, true] {
        let mut lab = Lab::new(3);
        let hosts = lab.state.hosts.keys().copied().collect();
        lab.command(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts })
            .expect("asked");
        lab.write(0, 8);
        lab.command(Command::SetPolicy { object: object(), from: mirror(3), to: mirror(2) }).expect("fewer");
        lab.command(Command::ReportUsage { used_extents: vec![(disk(1), 1 << 19)] })
            .expect("the first is the fullest");
        // A read, or a write of a part of a block, which is one too.
        lab.disk(1).keep_back = true;
        let tag = if partial {
            lab.begin(GuestRequest::Write { offset: 512, data: Bytes::from(vec![7; 512]) })
        } else {
            lab.begin(GuestRequest::Read { offset: 0, bytes: BLOCK_BYTES as u64 })
        };
        assert_eq!(lab.result(tag), None);
        for _ in 0..2 {
            let record = lab.record();
            let basis = Basis { object: object(), epoch: record.epoch, revision: record.revision };
            lab.command(Command::Trim { basis, chunk: FIRST }).expect("one too many");
        }
        assert!(!lab.record().chunks[&FIRST].components.iter().any(|c| c.disk == disk(1)));
        // It is removed there, and only then the disk does what it was asked before.
        lab.disk(1).blocks.fill((Version::NEVER, None));
        lab.give_back(1);
        let block = lab.disks[&disk(2)].blocks[0].1.clone().expect("written");
        assert!(
            block[1_024..].iter().all(|byte| *byte == block[4_095] && *byte != 0),
            "zeros were written back"
        );
        match lab.result(tag) {
            Some(GuestResult::Done) => assert!(partial && block[512..1_024] == [7; 512]),
            Some(GuestResult::Data(data)) => assert_eq!(data.concat(), block),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn of_one_too_many_the_one_goes_that_does_not_answer() {
    let mut lab = Lab::new(3);
    let hosts = lab.state.hosts.keys().copied().collect();
    lab.command(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts })
        .expect("asked");
    lab.write(0, 8);
    lab.command(Command::ReportUsage { used_extents: vec![(disk(1), 1 << 19)] })
        .expect("the first is the fullest");
    // As far as the directory knows it is there.
    lab.away(3);
    lab.command(Command::SetPolicy { object: object(), from: mirror(3), to: mirror(2) }).expect("fewer");
    lab.pass(std::time::Duration::from_secs(4));
    let left: Vec<_> = lab.record().chunks[&FIRST].components.iter().map(|c| (c.disk, c.in_sync())).collect();
    assert_eq!(left, [(disk(1), true), (disk(2), true)]);
}
