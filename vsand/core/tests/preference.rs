//! Volumes that prefer sites and other places.

mod common;

use std::collections::BTreeMap;

use common::cluster::{Cluster, FIRST, create, host_record, mirror, number};
use common::{Lab, OBJECT, disk, host};
use ferro_protocol::fault_domain::{PLACES_MAX, site};
use ferro_protocol::ids::{ChunkIndex, DiskId, ObjectId};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{
    Command, FeatureLevel, HostRecord, LockKind, Policy, Preference, Provision, Refused, State, SyncChange,
};
use vsand_core::owner::guest::{GuestRequest, GuestResult};

const EXTENTS: u64 = 1 << 20;

/// Hosts with a disk each in these fault domains, owned by host 1; the emptiest disks are in the first ones.
fn cluster(domains: &[&str], policy: Policy) -> Cluster {
    let mut c = Cluster { state: State::default(), index: 0 };
    for (n, domain) in (1..).zip(domains) {
        c.ok(Command::PutHost { host: HostRecord { fault_domain: (*domain).to_owned(), ..host_record(n) } });
        c.put_disk(n, n, EXTENTS, 500 * u64::from(n));
    }
    c.raise();
    c.ok(create(policy));
    c.acquire(1, LockKind::Background).expect("nobody has it");
    c
}

fn prefer(c: &mut Cluster, places: &[&str], across_sites: bool) -> Result<(), Refused> {
    let places = places.iter().map(|place| (*place).to_owned()).collect();
    let preference = Preference { places, across_sites };
    c.apply(Command::Prefer { object: OBJECT, preference }).map(drop)
}

fn numbers(c: &Cluster, index: ChunkIndex) -> Vec<u8> {
    let mut numbers: Vec<u8> = c.disks(index).into_iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// How many components of the object there are in each site, each kind of record by itself.
fn by_site(c: &Cluster, of: impl Fn(ChunkIndex) -> bool) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for (_, chunk) in c.record().chunks.iter().filter(|(index, _)| of(**index)) {
        for component in &chunk.components {
            let domain = c.state.fault_domain(component.disk).expect("known");
            *count.entry(site(domain).to_owned()).or_insert(0) += 1;
        }
    }
    count
}

/// Moves what is to be moved until nothing is, as owners do.
fn settle(c: &mut Cluster) -> Vec<(u8, u8)> {
    let mut moves = Vec::new();
    while let Some(next) = c.state.next_move(0, |_| true) {
        let basis = c.basis();
        let (chunk, from, to) = (next.chunk, next.from, next.to);
        c.ok(Command::MoveTo { basis, chunk, from, to, unix_s: 0 });
        c.change(vec![SyncChange::Add { chunk, disk: to }]).expect("copied");
        while c.disks(chunk).len() > c.record().policy.components(chunk) {
            // As a next owner does, which does not know what was copied for which.
            c.trim(chunk).expect("one too many");
        }
        moves.push((number(next.from), number(next.to)));
        assert!(moves.len() < 100, "it does not end: {moves:?}");
    }
    moves
}

const SITES: [&str; 6] = ["lyon/a", "lyon/b", "lyon/c", "brest/a", "brest/b", "brest/c"];

#[test]
fn what_is_preferred_comes_before_what_is_emptier_or_near() {
    let mut c = cluster(&SITES, mirror(2));
    prefer(&mut c, &["brest"], false).expect("there are such hosts");
    c.place(FIRST).expect("there is room");
    assert_eq!(numbers(&c, FIRST), [4, 5], "also before the owner's own host");
    let mut c = cluster(&SITES, mirror(2));
    prefer(&mut c, &["lyon/c", "brest/c"], false).expect("there are such hosts");
    c.place(FIRST).expect("there is room");
    assert_eq!(numbers(&c, FIRST), [3, 6]);
}

#[test]
fn it_is_no_condition() {
    let mut c = cluster(&SITES, mirror(3));
    prefer(&mut c, &["brest/a", "brest/b"], false).expect("there are such hosts");
    c.place(FIRST).expect("there is room");
    assert_eq!(numbers(&c, FIRST), [1, 4, 5], "the third copy is better elsewhere than nowhere");
    // One is full: what is new goes elsewhere, and comes back when there is room.
    let mut c = cluster(&SITES, mirror(2));
    prefer(&mut c, &["brest/a", "brest/b"], false).expect("there are such hosts");
    c.ok(Command::ReportUsage { used_extents: vec![(disk(4), EXTENTS)] });
    c.place(FIRST).expect("there is room");
    assert_eq!(numbers(&c, FIRST), [1, 5]);
    assert_eq!((settle(&mut c), c.state.misplaced(c.record())), (vec![], 1));
    c.ok(Command::ReportUsage { used_extents: vec![(disk(4), EXTENTS / 10)] });
    assert_eq!((settle(&mut c), c.state.misplaced(c.record())), (vec![(1, 4)], 0));
    assert_eq!(numbers(&c, FIRST), [4, 5]);
}

#[test]
fn copies_and_shards_are_spread_over_sites() {
    let mut c = cluster(&SITES, mirror(4));
    prefer(&mut c, &[], true).expect("two sites");
    c.place(FIRST).expect("there is room");
    assert_eq!(by_site(&c, |_| true).into_values().collect::<Vec<_>>(), [2, 2]);
    let mut c = cluster(&SITES, mirror(3));
    prefer(&mut c, &["brest"], true).expect("two sites");
    c.place(FIRST).expect("there is room");
    assert_eq!(by_site(&c, |_| true)["brest"], 2, "of as many as there are, more where it is preferred");
    let three = ["a/1", "a/2", "b/1", "b/2", "c/1", "c/2"];
    let mut c = cluster(&three, Policy::Parity { data: 4, parity: 2 });
    prefer(&mut c, &[], true).expect("three sites");
    for chunk in 0..3 {
        c.place(ChunkIndex(chunk)).expect("there is room");
    }
    let shards = by_site(&c, |index| index.role() != ChunkIndex(0).log().role());
    let logs = by_site(&c, |index| index.role() == ChunkIndex(0).log().role());
    assert_eq!(shards.into_values().collect::<Vec<_>>(), [6, 6, 6]);
    assert_eq!(logs.into_values().collect::<Vec<_>>(), [3, 3, 3]);
    // So a whole site may go.
    let gone = [disk(1), disk(2)].into();
    assert!(c.state.without(&gone).unavailable.is_empty());
}

#[test]
fn what_is_placed_already_moves_and_comes_to_an_end() {
    for (policy, places, across) in [
        (mirror(2), &["brest"][..], false),
        (mirror(3), &["brest"], true),
        (mirror(4), &[], true),
        (mirror(1), &["brest/c"], false),
        (Policy::Parity { data: 2, parity: 1 }, &["brest"], false),
        (Policy::Parity { data: 4, parity: 2 }, &["brest"], true),
    ] {
        let mut c = cluster(&SITES, policy);
        for chunk in 0..4 {
            c.place(ChunkIndex(chunk)).expect("there is room");
        }
        assert_eq!(settle(&mut c), [], "nothing is preferred");
        prefer(&mut c, places, across).expect("there are such hosts");
        let first = c.state.misplaced(c.record());
        let moves = settle(&mut c);
        assert_eq!(c.state.misplaced(c.record()), 0, "{policy:?} {places:?} {across} {moves:?}");
        assert!(first == 0 || !moves.is_empty());
        assert!(c.state.is_settled(c.record()));
        // And back again.
        prefer(&mut c, &["lyon"], false).expect("there are such hosts");
        settle(&mut c);
        assert_eq!(c.state.misplaced(c.record()), 0);
        prefer(&mut c, &[], false).expect("nothing");
        assert_eq!(c.state.preferences, State::default().preferences);
    }
}

#[test]
fn what_finds_no_room_keeps_no_other_volume_waiting() {
    let mut c = cluster(&SITES, mirror(1));
    c.place(FIRST).expect("there is room");
    c.ok(Command::ReportUsage { used_extents: vec![(disk(4), EXTENTS)] });
    // Before the other in every order, with more parts than are tried in one look.
    let object = ObjectId::from_bytes([1; 16]);
    c.ok(Command::CreatePreferred {
        object,
        name: "a".parse().expect("a name"),
        size_bytes: CHUNK_BYTES * 100,
        policy: mirror(1),
        provision: Provision { percent: 100, forced: false },
        preference: Preference { places: vec!["brest/a".to_owned()], across_sites: false },
        unix_s: 0,
    });
    assert_eq!(c.state.misplaced(&c.state.objects[&object]), 100);
    prefer(&mut c, &["brest/b"], false).expect("there are such hosts");
    let next = c.state.next_move(0, |_| true).expect("there is room in brest/b");
    assert_eq!((next.object, number(next.to)), (OBJECT, 5));
}

#[test]
fn fullness_moves_nothing_farther_and_repairs_stay_near() {
    let mut c = cluster(&SITES, mirror(2));
    prefer(&mut c, &["brest"], false).expect("there are such hosts");
    c.place(FIRST).expect("there is room");
    let report = |c: &mut Cluster, used: [u64; 6]| {
        let used = (1..).zip(used).map(|(n, percent)| (disk(n), EXTENTS * percent / 100 + 1));
        c.ok(Command::ReportUsage { used_extents: used.collect() });
    };
    report(&mut c, [1, 1, 1, 90, 90, 90]);
    assert_eq!(c.state.next_move(10, |_| true), None, "lyon is emptier, and not preferred");
    report(&mut c, [1, 1, 1, 90, 96, 96]);
    assert_eq!(c.state.next_move(10, |_| true), None, "there is room in lyon only");
    report(&mut c, [1, 1, 1, 90, 90, 50]);
    let next = c.state.next_move(10, |_| true).expect("uneven within brest");
    assert_eq!(number(next.to), 6);
    let stale_seq = ferro_protocol::ids::Seq(0);
    c.change(vec![SyncChange::Remove { chunk: FIRST, disk: disk(4), stale_seq }]).expect("one is left");
    c.repair(FIRST, Some(disk(4))).expect("there is a place");
    assert_eq!(numbers(&c, FIRST), [5, 6]);
}

#[test]
fn what_can_not_be_is_refused_with_nothing_changed() {
    let mut c = cluster(&SITES, mirror(2));
    assert_eq!(prefer(&mut c, &["lyon", "nice"], false), Err(Refused::NoSuchPlace("nice".to_owned())));
    assert_eq!(prefer(&mut c, &["lyon/"], false), Err(Refused::NoSuchPlace("lyon/".to_owned())));
    assert!(matches!(prefer(&mut c, &[""], false), Err(Refused::TooMuch(_))));
    assert!(matches!(prefer(&mut c, &["lyon"; PLACES_MAX + 1], false), Err(Refused::TooMuch(_))));
    let other = ObjectId::from_bytes([77; 16]);
    let preference = Preference { places: vec!["lyon".to_owned()], across_sites: false };
    let refused = c.apply(Command::Prefer { object: other, preference });
    assert_eq!(refused, Err(Refused::NoObject(other)));
    let mut one = cluster(&["lyon/a", "lyon/b"], mirror(2));
    assert_eq!(prefer(&mut one, &[], true), Err(Refused::OneSite("lyon".to_owned())));
    // Without a slash each fault domain is a site.
    assert_eq!(prefer(&mut cluster(&["a", "b"], mirror(2)), &[], true), Ok(()));
}

#[test]
fn a_new_volume_is_placed_where_it_prefers_and_leaves_nothing_behind() {
    let mut c = cluster(&SITES, mirror(2));
    let object = ObjectId::from_bytes([10; 16]);
    let new = |percent, places: &[&str]| Command::CreatePreferred {
        object,
        name: "thick".parse().expect("a name"),
        size_bytes: CHUNK_BYTES * 100,
        policy: mirror(2),
        provision: Provision { percent, forced: false },
        preference: Preference {
            places: places.iter().map(|p| (*p).to_owned()).collect(),
            across_sites: false,
        },
        unix_s: 0,
    };
    assert!(c.apply(new(100, &["nice"])).is_err());
    c.ok(new(100, &["brest"]));
    let record = &c.state.objects[&object];
    let on = |n: u8| record.chunks.values().flat_map(|c| &c.components).any(|c| c.disk == disk(n));
    assert_eq!((on(1), on(2), on(3), on(4)), (false, false, false, true), "all of it is placed at once");
    c.ok(Command::DeleteObject { object });
    assert!(c.state.preferences.is_empty());
    // Refused for want of room: nothing stays of it.
    let domains = |d: DiskId| (d, EXTENTS * 94 / 100);
    c.ok(Command::ReportUsage { used_extents: (1..=6).map(disk).map(domains).collect() });
    assert!(matches!(c.apply(new(100, &["brest"])), Err(Refused::NoSpaceToReserve { .. })));
    assert!(c.state.preferences.is_empty());
}

#[test]
fn a_conversion_ends_where_the_volume_prefers() {
    let mut c = cluster(&SITES, mirror(2));
    prefer(&mut c, &["brest"], false).expect("there are such hosts");
    c.place(FIRST).expect("there is room");
    let to = Policy::Parity { data: 2, parity: 1 };
    c.ok(Command::SetPolicy { object: OBJECT, from: mirror(2), to });
    let epoch = c.record().epoch;
    let step = vsand_core::directory::ConversionStep::Begin;
    c.ok(Command::Convert { object: OBJECT, epoch, step });
    let target = c.state.conversions.of(OBJECT).and_then(|conversion| conversion.target).expect("begun");
    assert_eq!(c.state.preferences.of(target).places, ["brest"]);
    let record = &c.state.objects[&target];
    let basis =
        vsand_core::directory::Basis { object: target, epoch: record.epoch, revision: record.revision };
    c.ok(Command::PlaceChunk { basis, chunk: FIRST, near: host(1) });
    let record = &c.state.objects[&target];
    let used = record.chunks.values().flat_map(|c| &c.components).map(|c| number(c.disk));
    assert!(used.into_iter().all(|n| n >= 4), "{record:?}");
    assert_eq!(
        Command::Prefer { object: OBJECT, preference: Preference::default() }.since(),
        FeatureLevel(5)
    );
}

#[test]
fn an_owner_reads_in_its_own_site_before_others() {
    let mut lab = Lab::new(3);
    lab.write(0, 1);
    // Which copy is read is seen by what is only there.
    for n in [2, 3] {
        lab.disks.get_mut(&disk(n)).expect("there").blocks[0].1 = Some(vec![n; 4096].into());
    }
    for (n, domain) in [(1, "lyon/a"), (2, "brest/a"), (3, "lyon/b")] {
        let fault_domain = Some(domain.to_owned());
        lab.state.hosts.get_mut(&host(n)).expect("there").lease = 1;
        lab.command(Command::SetHost { host: host(n), address: None, name: None, fault_domain })
            .expect("known");
    }
    let read = |lab: &mut Lab| {
        let tag = lab.begin(GuestRequest::Read { offset: 0, bytes: 4096 });
        match lab.result(tag) {
            Some(GuestResult::Data(pieces)) => pieces[0][0],
            other => panic!("{other:?}"),
        }
    };
    lab.away(1);
    assert_eq!(read(&mut lab), 2, "nobody has said where they are");
    let near = lab.state.disks_near(host(1));
    assert_eq!(near, [disk(1), disk(3)].into());
    lab.owner.handle_near(&near);
    assert_eq!(read(&mut lab), 3);
}
