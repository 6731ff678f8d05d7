//! An object becomes another: what the directory makes of the steps.

mod common;

use common::cluster::{Cluster, FIRST, object};
use common::{disk, host};
use ferro_protocol::ids::{ChunkIndex, ObjectId};
use vsand_core::directory::conversion::lineage;
use vsand_core::directory::{
    Command, Conversion, ConversionStep, FeatureLevel, LockKind, Outcome, Policy, Provision, Refused,
};

const MIRROR: Policy = Policy::Mirror { copies: 2 };
const RAID5: Policy = Policy::Parity { data: 2, parity: 1 };
const RAID6: Policy = Policy::Parity { data: 2, parity: 2 };

/// Four hosts at the last level, and a mirror with a chunk.
fn cluster() -> Cluster {
    let mut c = Cluster::placed(4, MIRROR);
    let hosts = (1..=4).map(host).collect();
    c.ok(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts });
    c
}

fn set(c: &mut Cluster, from: Policy, to: Policy) -> Result<Outcome, Refused> {
    let object = of_volume(c);
    c.apply(Command::SetPolicy { object, from, to })
}

/// What the volume is now.
fn of_volume(c: &Cluster) -> ObjectId {
    *c.state.names.values().next().expect("a volume")
}

fn step(c: &mut Cluster, step: ConversionStep) -> Result<Outcome, Refused> {
    let epoch = c.state.objects[&object()].epoch;
    c.apply(Command::Convert { object: object(), epoch, step })
}

fn begin(c: &mut Cluster) -> ObjectId {
    match step(c, ConversionStep::Begin) {
        Ok(Outcome::Object(target)) => target.id,
        other => panic!("{other:?}"),
    }
}

fn targets(c: &Cluster) -> Vec<ObjectId> {
    c.state.objects.keys().copied().filter(|id| c.state.is_target(*id)).collect()
}

#[test]
fn a_target_takes_the_place_of_what_it_was_filled_from() {
    let mut c = cluster();
    assert!(c.state.is_settled(c.record()));
    set(&mut c, MIRROR, RAID5).expect("there is room");
    assert_eq!(c.state.conversions.of(object()), Some(Conversion { to: RAID5, target: None }));
    assert!(!c.state.is_settled(c.record()), "a closed volume is taken care of");
    assert_eq!(c.record().policy, MIRROR, "it is what it was");
    let target = begin(&mut c);
    assert_eq!(targets(&c), [target]);
    assert_eq!(lineage(target), lineage(object()));
    let made = c.state.objects[&target].clone();
    assert_eq!((made.policy, made.epoch, made.lock), (RAID5, c.record().epoch, c.record().lock));
    assert!(made.chunks.is_empty());
    assert_eq!(c.state.volumes().map(|v| v.id).collect::<Vec<_>>(), [object()]);
    step(&mut c, ConversionStep::End { target: object() }).expect_err("that is not its target");
    let (lock, epoch) = (c.record().lock, c.record().epoch);
    let ended = step(&mut c, ConversionStep::End { target }).expect("it is whole");
    assert_eq!(of_volume(&c), target);
    assert!(!c.state.objects.contains_key(&object()) && targets(&c).is_empty());
    let now = &c.state.objects[&target];
    assert_eq!((now.policy, now.epoch, now.lock), (RAID5, epoch, lock));
    assert!(c.state.conversions.iter().next().is_none());
    // Its owner did not hear the answer, and asks again.
    let again = c.apply(Command::Convert { object: object(), epoch, step: ConversionStep::End { target } });
    assert_eq!(again, Ok(ended));
    // Somebody else has taken it since: no answer to the former owner.
    c.apply(Command::Acquire { object: target, epoch, host: host(2), kind: LockKind::Background, unix_s: 0 })
        .expect("free");
    let late = c.apply(Command::Convert { object: object(), epoch, step: ConversionStep::End { target } });
    assert_eq!(late, Err(Refused::NoObject(object())));
}

#[test]
fn a_target_goes_with_whatever_changes_owner_size_or_mind() {
    let kind = LockKind::Background;
    let ends: [fn(&mut Cluster); 6] = [
        |c| drop(c.acquire(2, LockKind::Background).expect("it gives way")),
        |c| {
            let epoch = c.record().epoch;
            c.ok(Command::Release { object: object(), epoch, host: host(1) });
        },
        |c| {
            let size_bytes = c.record().size_bytes + 4096;
            c.ok(Command::ResizeObject { object: object(), size_bytes });
        },
        |c| drop(step(c, ConversionStep::Drop).expect("dropped")),
        |c| {
            let provision = Provision { percent: 1, forced: false };
            c.ok(Command::Provision { object: object(), provision });
        },
        |c| {
            let epoch = c.record().epoch;
            c.ok(Command::BreakLock { object: object(), epoch, holder: host(1), lease: 0 });
        },
    ];
    for (n, end) in ends.iter().enumerate() {
        let mut c = cluster();
        set(&mut c, MIRROR, RAID5).expect("there is room");
        let former = begin(&mut c);
        let target = begin(&mut c);
        assert_ne!(former, target, "begun anew");
        assert_eq!(targets(&c), [target]);
        end(&mut c);
        assert!(!c.state.objects.contains_key(&target), "end {n}");
        assert_eq!(c.state.conversions.of(object()), Some(Conversion { to: RAID5, target: None }), "end {n}");
        if c.record().lock.is_none() {
            step(&mut c, ConversionStep::Begin).expect_err("nobody owns it");
            c.acquire(3, kind).expect("free");
        }
        begin(&mut c);
        // As it is after all.
        set(&mut c, MIRROR, MIRROR).expect("stopped");
        assert!(c.state.conversions.of(object()).is_none() && targets(&c).is_empty());
        assert_eq!(step(&mut c, ConversionStep::Begin), Err(Refused::NotConverting(object())));
    }
}

#[test]
fn nobody_opens_changes_or_deletes_a_target() {
    let mut c = cluster();
    set(&mut c, MIRROR, RAID5).expect("there is room");
    let target = begin(&mut c);
    let (epoch, none) = (c.record().epoch, Err(Refused::NoObject(target)));
    let kind = LockKind::Background;
    for command in [
        Command::Acquire { object: target, epoch, host: host(1), kind, unix_s: 0 },
        Command::Release { object: target, epoch, host: host(1) },
        Command::BreakLock { object: target, epoch, holder: host(1), lease: 0 },
        Command::ResizeObject { object: target, size_bytes: 1 << 40 },
        Command::DeleteObject { object: target },
        Command::SetPolicy { object: target, from: RAID5, to: MIRROR },
    ] {
        assert_eq!(c.apply(command), none);
    }
    c.ok(Command::DeleteObject { object: object() });
    assert!(c.state.objects.is_empty() && c.state.names.is_empty());
    assert!(c.state.conversions.iter().next().is_none());
}

#[test]
fn what_can_not_be_converted_is_refused_and_changes_nothing() {
    let mut c = Cluster::placed(4, MIRROR);
    assert_eq!(set(&mut c, MIRROR, RAID5), Err(Refused::OtherMethod), "not all hosts know how");
    let hosts: Vec<_> = (1..=4).map(host).collect();
    c.ok(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts });
    let six = Policy::Parity { data: 4, parity: 2 };
    assert!(matches!(set(&mut c, MIRROR, six), Err(Refused::NoRoom { needed: 6, found: 4 })));
    // Disks that are too full for both.
    let full = (1..=4).map(|n| (disk(n), (1 << 20) / 100 * 96)).collect();
    c.ok(Command::ReportUsage { used_extents: full });
    let refused = set(&mut c, MIRROR, RAID6);
    assert!(matches!(refused, Err(Refused::NoRoom { .. } | Refused::NoSpaceFor { .. })), "{refused:?}");
    c.ok(Command::ReportUsage { used_extents: (1..=4).map(|n| (disk(n), 500)).collect() });
    set(&mut c, MIRROR, RAID6).expect("there is room");
    // While it is imported or exported its object must not change.
    let epoch = c.record().epoch;
    c.ok(Command::Release { object: object(), epoch, host: host(1) });
    c.acquire(1, LockKind::Transfer).expect("free");
    assert!(matches!(step(&mut c, ConversionStep::Begin), Err(Refused::Locked { .. })));
    let epoch = c.record().epoch;
    c.ok(Command::Release { object: object(), epoch, host: host(1) });
    c.acquire(1, LockKind::Background).expect("free");
    let target = begin(&mut c);
    let late = Command::Convert { object: object(), epoch, step: ConversionStep::End { target } };
    assert!(matches!(c.apply(late), Err(Refused::WrongEpoch { .. })), "of a former owner");
    let twin = lineage(object());
    let mut bytes = [3; 16];
    bytes[..8].copy_from_slice(&twin);
    let (id, name) = (ObjectId::from_bytes(bytes), "w".parse().expect("a name"));
    let create = Command::CreateObject { object: id, name, size_bytes: 4096, policy: MIRROR, unix_s: 0 };
    assert!(
        matches!(c.apply(create), Err(Refused::NameTaken { .. })),
        "its objects would be taken for the other's"
    );
}

#[test]
fn a_target_ends_only_when_it_is_whole_and_keeps_what_was_kept() {
    let mut c = cluster();
    let provision = Provision { percent: 10, forced: false };
    c.ok(Command::Provision { object: object(), provision });
    set(&mut c, MIRROR, RAID5).expect("there is room");
    let target = begin(&mut c);
    assert_eq!(c.state.provisioning.of(target), provision);
    let placed = c.state.objects[&target].chunks_from(ChunkIndex(0)).count();
    assert_eq!(placed, c.record().chunks_total() as usize, "there is a place for all of it");
    let shard = FIRST.shard(0);
    let lost = c.state.objects[&target].chunks[&shard].components[0].disk;
    let record = &c.state.objects[&target];
    let basis =
        vsand_core::directory::Basis { object: target, epoch: record.epoch, revision: record.revision };
    let change = vsand_core::directory::SyncChange::Remove {
        chunk: shard,
        disk: lost,
        stale_seq: ferro_protocol::ids::Seq(0),
    };
    c.ok(Command::ChangeSync { basis, changes: vec![change], unix_s: 0 });
    assert_eq!(step(&mut c, ConversionStep::End { target }), Err(Refused::NotWhole(target)));
    let record = &c.state.objects[&target];
    let basis =
        vsand_core::directory::Basis { object: target, epoch: record.epoch, revision: record.revision };
    let change = vsand_core::directory::SyncChange::Add { chunk: shard, disk: lost };
    c.ok(Command::ChangeSync { basis, changes: vec![change], unix_s: 0 });
    step(&mut c, ConversionStep::End { target }).expect("it is whole");
    assert_eq!(c.state.provisioning.of(target), provision);
    assert_eq!(c.state.provisioning.of(object()), Provision::default());
}
