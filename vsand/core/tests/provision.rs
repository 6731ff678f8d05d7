//! Room that is kept for objects: counted from the command on that keeps it, and for nobody twice. Mirrors that are made where there
//! is no place for all their copies.

mod common;

use common::cluster::{Cluster, FIRST, mirror};
use common::{OBJECT, disk, host};
use ferro_protocol::ids::{ChunkIndex, ObjectId};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{Basis, Command, LockKind, Outcome, Policy, Provision, Refused, Sync};

/// Extents of a chunk.
const CHUNK_EXTENTS: u64 = 1_024;
/// Extents of each disk: 95 % of them hold a bit more than nine chunks.
const EXTENTS: u64 = 10 * CHUNK_EXTENTS;

/// Three empty hosts, and the object of eight chunks, none of which has a place.
fn cluster(policy: Policy) -> Cluster {
    let mut c = Cluster::new(if policy == PARITY { 4 } else { 3 }, policy);
    for n in 1..=3 {
        c.put_disk(n, n, EXTENTS, 0);
    }
    c
}

const PARITY: Policy = Policy::Parity { data: 2, parity: 1 };

fn share(percent: u8) -> Provision {
    Provision { percent, forced: false }
}

fn reserve(c: &mut Cluster, percent: u8) -> Result<Outcome, Refused> {
    c.apply(Command::Provision { object: OBJECT, provision: share(percent) })
}

fn other(n: u8) -> ObjectId {
    ObjectId::from_bytes([20 + n; 16])
}

fn create(c: &mut Cluster, n: u8, size_bytes: u64, percent: u8) -> Result<Outcome, Refused> {
    let name = format!("other{n}").parse().expect("a name");
    let policy = mirror(3);
    c.apply(Command::CreateProvisioned {
        object: other(n),
        name,
        size_bytes,
        policy,
        provision: share(percent),
        unix_s: 0,
    })
}

fn used(c: &Cluster) -> Vec<u64> {
    c.state.disks.values().map(|d| d.used_extents).collect()
}

#[test]
fn all_chunks_get_a_place_and_their_share_counts_as_used() {
    let mut c = cluster(mirror(3));
    reserve(&mut c, 50).expect("there is room");
    assert_eq!(c.record().chunks.len(), 8);
    assert_eq!(used(&c), [4 * CHUNK_EXTENTS; 3]);
    assert_eq!(c.state.kept_by_disk()[&disk(1)][&OBJECT], 4 * CHUNK_EXTENTS);
    // More of it, then all of it given back: what is counted goes down when the host says so.
    reserve(&mut c, 100).expect("there is room");
    assert!(c.state.provisioning.of(OBJECT) == share(100) && used(&c)[0] >= 8 * CHUNK_EXTENTS);
    reserve(&mut c, 0).expect("always");
    assert!(c.state.provisioning.of(OBJECT) == share(0) && c.state.kept_by_disk().is_empty());
    assert_eq!(c.record().chunks.len(), 8, "they keep their places");
}

#[test]
fn no_room_is_counted_on_twice() {
    let mut c = cluster(mirror(3));
    create(&mut c, 1, 5 * CHUNK_BYTES, 100).expect("there is room");
    assert_eq!(used(&c), [5 * CHUNK_EXTENTS; 3]);
    let refused = create(&mut c, 2, 5 * CHUNK_BYTES, 100);
    assert_eq!(refused, Err(Refused::NoSpaceToReserve { extents: 15 * CHUNK_EXTENTS }));
    assert!(!c.state.objects.contains_key(&other(2)), "nothing half-made stays");
    assert!(matches!(reserve(&mut c, 100), Err(Refused::NoSpaceToReserve { .. })));
    assert!(matches!(create(&mut c, 2, 5 * CHUNK_BYTES, 101), Err(Refused::TooMuch(_))));
    create(&mut c, 3, 4 * CHUNK_BYTES, 100).expect("just fits");
    create(&mut c, 4, 1 << 20, 100).expect("a small one takes what it may come to take, no chunk");
    assert_eq!(used(&c), [9 * CHUNK_EXTENTS + 1; 3]);
    // Nothing is left for one that takes what there is.
    let full = c.place(FIRST);
    assert_eq!(full, Ok(full.clone().expect("under 95 %")));
    c.ok(Command::ReportRoom {
        seen: c.state.provisioning.changed(),
        used_extents: vec![(disk(1), EXTENTS * 95 / 100)],
    });
    assert_eq!(c.place(ChunkIndex(1)), Err(Refused::NoRoom { needed: 3, found: 2 }));
    c.ok(Command::DeleteObject { object: other(1) });
    assert_eq!(c.state.provisioning.of(other(1)), share(0));
}

#[test]
fn what_grows_keeps_its_share_or_stays_as_it_is() {
    let mut c = cluster(mirror(3));
    let resize = |chunks| Command::ResizeObject { object: other(1), size_bytes: chunks * CHUNK_BYTES };
    create(&mut c, 1, CHUNK_BYTES / 2, 100).expect("there is room");
    assert_eq!(used(&c), [CHUNK_EXTENTS / 2; 3]);
    c.ok(resize(4));
    assert_eq!(c.state.objects[&other(1)].chunks.len(), 4);
    assert!(used(&c).iter().all(|n| *n >= 4 * CHUNK_EXTENTS), "{:?}", used(&c));
    assert!(matches!(c.apply(resize(12)), Err(Refused::NoSpaceToReserve { .. })));
    assert_eq!(c.state.objects[&other(1)].size_bytes, 4 * CHUNK_BYTES);
}

#[test]
fn a_host_that_has_not_heard_of_it_does_not_count_it_away() {
    let mut c = cluster(mirror(3));
    let before = c.state.provisioning.changed();
    reserve(&mut c, 100).expect("there is room");
    let says = |c: &Cluster, seen: u64, n: u64| {
        let mut c = c.clone();
        c.ok(Command::ReportRoom { seen, used_extents: vec![(disk(1), n)] });
        used(&c)[0]
    };
    let changed = c.state.provisioning.changed();
    assert_eq!(says(&c, before, 3), 8 * CHUNK_EXTENTS);
    assert_eq!(says(&c, before, 9_000), 9_000);
    assert_eq!(says(&c, changed, 3), 3);
}

#[test]
fn a_component_goes_only_where_its_share_has_room() {
    let mut c = cluster(mirror(2));
    reserve(&mut c, 100).expect("there is room");
    let on_disk = |c: &Cluster, n: u8| c.state.kept_by_disk()[&disk(n)][&OBJECT];
    assert_eq!((1..=3).map(|n| on_disk(&c, n)).sum::<u64>(), 16 * CHUNK_EXTENTS);
    let gone = c.disks(FIRST)[0];
    c.ok(Command::DiskDied { disk: gone, reason: "it did".to_owned() });
    let changes = vec![vsand_core::directory::SyncChange::Remove {
        chunk: FIRST,
        disk: gone,
        stale_seq: ferro_protocol::ids::Seq(0),
    }];
    c.change(changes).expect("one is left");
    let target = c.state.disks.keys().copied().find(|d| !c.disks(FIRST).contains(d)).expect("the third");
    let room = |c: &mut Cluster, used: u64| {
        c.ok(Command::ReportRoom { seen: u64::MAX, used_extents: vec![(target, used)] });
    };
    room(&mut c, EXTENTS * 9 / 10);
    assert!(matches!(c.repair(FIRST, Some(gone)), Err(Refused::NoRoom { .. })), "its share would not fit");
    room(&mut c, EXTENTS * 8 / 10);
    c.repair(FIRST, Some(gone)).expect("it fits");
    assert_eq!(c.state.disks[&target].used_extents, EXTENTS * 8 / 10 + CHUNK_EXTENTS);
}

#[test]
fn shards_keep_their_part_and_the_log_its_own() {
    let mut c = cluster(PARITY);
    c.put_disk(4, 4, EXTENTS, 0);
    reserve(&mut c, 100).expect("there is room");
    // Each chunk: three shards of half a chunk, and two copies of a log of 64 extents.
    assert_eq!(used(&c).iter().sum::<u64>(), 8 * (3 * CHUNK_EXTENTS / 2 + 2 * 64));
    assert_eq!(c.record().chunks.len(), 8 * 4);
}

#[test]
fn an_owner_goes_on_with_chunks_that_it_did_not_place() {
    let mut c = cluster(mirror(3));
    c.acquire(2, LockKind::Exclusive { read_only: false }).expect("a repair gives way");
    c.place(FIRST).expect("there is room");
    let basis = c.basis();
    reserve(&mut c, 10).expect("there is room");
    assert!(matches!(
        c.apply(Command::PlaceChunk { basis, chunk: ChunkIndex(1), near: host(2) }),
        Err(Refused::Overtaken(_))
    ));
    assert_eq!(c.basis(), Basis { object: OBJECT, epoch: basis.epoch, revision: c.index - 1 });
}

#[test]
fn a_forced_mirror_has_the_copies_that_there_is_place_for_and_gets_the_others_later() {
    let mut c = Cluster::new(2, mirror(2));
    c.ok(Command::DeleteObject { object: OBJECT });
    let create = |policy, forced| Command::CreateProvisioned {
        object: OBJECT,
        name: "v".parse().expect("a name"),
        size_bytes: 8 * CHUNK_BYTES,
        policy,
        provision: Provision { percent: 0, forced },
        unix_s: 0,
    };
    assert_eq!(c.apply(create(mirror(3), false)), Err(Refused::NoRoom { needed: 3, found: 2 }));
    assert_eq!(c.apply(create(PARITY, true)), Err(Refused::CantForce));
    c.ok(create(mirror(3), true));
    c.acquire(1, LockKind::Background).expect("nobody has it");
    c.place(FIRST).expect("two of three");
    assert_eq!(c.disks(FIRST), [disk(1), disk(2)]);
    assert!(!c.record().fully_redundant() && !c.record().settled());
    assert!(matches!(c.repair(FIRST, None), Err(Refused::NoRoom { needed: 3, .. })));
    // Not more than it needs, and no second copy of a chunk where one is.
    c.ok(Command::PutHost { host: common::cluster::host_record(3) });
    c.put_disk(3, 3, EXTENTS, 0);
    c.repair(FIRST, None).expect("there is a place now");
    assert!(matches!(c.record().chunks[&FIRST].components[2].sync, Sync::Stale { .. }));
    c.join(disk(3));
    assert!(c.record().settled());
    assert!(matches!(c.repair(FIRST, None), Err(Refused::TooMuch(_))));
}

#[test]
fn a_forced_mirror_needs_one_place_at_least_and_may_ask_for_more_copies_than_there_are() {
    let mut c = cluster(mirror(2));
    let forced = |percent| Provision { percent, forced: true };
    let set = |to| Command::SetPolicy { object: OBJECT, from: mirror(2), to };
    assert_eq!(c.apply(set(mirror(4))), Err(Refused::NoRoom { needed: 4, found: 3 }));
    c.ok(Command::Provision { object: OBJECT, provision: forced(10) });
    c.ok(set(mirror(4)));
    assert_eq!((c.record().policy, c.record().chunks.len()), (mirror(4), 8));
    let mut c = cluster(mirror(2));
    for n in 1..=3 {
        c.put_disk(n, n, EXTENTS, EXTENTS);
    }
    c.ok(Command::Provision { object: OBJECT, provision: forced(0) });
    assert_eq!(c.place(FIRST), Err(Refused::NoRoom { needed: 2, found: 0 }));
    assert!(matches!(
        c.apply(Command::Provision { object: OBJECT, provision: forced(1) }),
        Err(Refused::NoRoom { .. })
    ));
}
