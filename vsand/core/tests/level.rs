//! What the cluster's feature level keeps apart, and what the second level brings: disks that were removed stay away.

mod common;

use common::cluster::{Cluster, mirror};
use common::{disk, host};
use ferro_protocol::ids::DiskId;
use vsand_core::directory::{Command, FeatureLevel, Outcome, Refused, State};

fn raise(state: &State, from: u16, to: u16) -> Command {
    let hosts = state.hosts.keys().copied().collect();
    Command::RaiseLevel { from: FeatureLevel(from), to: FeatureLevel(to), hosts }
}

/// Three hosts with a disk each that hold nothing, at this level.
fn cluster(level: u16) -> State {
    let mut state = Cluster::new(3, mirror(2)).state;
    if level > 1 {
        let raise = raise(&state, 1, level);
        state.apply(50, raise).expect("accepted");
    }
    state
}

fn put(disk: DiskId) -> Command {
    Command::PutDisk { disk, host: host(1), path: "/d".to_owned(), capacity_extents: 100, used_extents: 0 }
}

fn remove(disk: DiskId) -> Command {
    Command::RemoveDisk { disk, unix_s: 0 }
}

#[test]
fn the_level_only_grows_and_only_while_the_hosts_are_those_that_were_asked() {
    let mut state = cluster(1);
    assert_eq!(state.level, FeatureLevel(1));
    let asked = raise(&state, 1, 2);
    let mut fewer = state.clone();
    fewer.apply(99, Command::RemoveHost { host: host(3), unix_s: 0 }).expect("it holds nothing");
    assert_eq!(fewer.apply(100, asked.clone()), Err(Refused::OtherHosts));
    assert_eq!(state.apply(100, asked.clone()), Ok(Outcome::Done));
    let now = FeatureLevel(2);
    assert_eq!((state.level, state.revision), (now, 100));
    let same = raise(&state, 2, 2);
    let down = raise(&state, 2, 1);
    for command in [asked, same, down] {
        assert_eq!(state.apply(101, command), Err(Refused::OtherLevel { now }));
    }
}

#[test]
fn a_removed_disk_is_put_back_by_nobody_who_does_not_mean_it() {
    let mut state = cluster(2);
    state.apply(100, remove(disk(1))).expect("it holds nothing");
    // A host that said so before and is heard only now, or that was away.
    assert_eq!(state.apply(101, put(disk(1))), Err(Refused::DiskRemoved(disk(1))));
    assert!(!state.disks.contains_key(&disk(1)));
    assert_eq!(state.removed_disks.at(disk(1)), Some(100));

    // Its return was meant for another removal.
    let of_another = Command::ReturnDisk { disk: disk(1), removed: 99 };
    assert_eq!(state.apply(102, of_another), Err(Refused::NoDisk(disk(1))));
    let returned = Command::ReturnDisk { disk: disk(1), removed: 100 };
    state.apply(103, returned.clone()).expect("that one");
    state.apply(104, put(disk(1))).expect("it was given to the cluster again");
    state.apply(105, remove(disk(1))).expect("it holds nothing");
    assert_eq!(state.apply(106, returned), Err(Refused::NoDisk(disk(1))), "late: it was removed once more");
    assert_eq!(state.apply(107, put(disk(1))), Err(Refused::DiskRemoved(disk(1))));
}

#[test]
fn the_disks_of_a_removed_host_are_remembered_too() {
    let mut state = cluster(2);
    state.apply(100, Command::RemoveHost { host: host(3), unix_s: 0 }).expect("it holds nothing");
    assert_eq!(state.removed_disks.iter().collect::<Vec<_>>(), [disk(3)]);
    assert_eq!(state.apply(101, put(disk(3))), Err(Refused::DiskRemoved(disk(3))));
}

#[test]
fn below_its_level_nothing_is_remembered() {
    let mut state = cluster(1);
    state.apply(100, remove(disk(1))).expect("it holds nothing");
    // As a host of the former release has it, which is in the cluster and must come to the same state.
    assert_eq!(state.removed_disks.iter().count(), 0);
    state.apply(101, put(disk(1))).expect("as ever");
    let raise = raise(&state, 1, 2);
    state.apply(102, raise).expect("accepted");
    assert!(state.disks.contains_key(&disk(1)));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut state = cluster(2);
    let many = 5_000_u64;
    for n in 0..many {
        let id = DiskId::from_bytes((u128::from(n) + 1_000).to_be_bytes());
        state.apply(200 + 2 * n, put(id)).expect("a new one");
        state.apply(201 + 2 * n, remove(id)).expect("it holds nothing");
    }
    assert_eq!(state.removed_disks.iter().count(), 4_096);
    let first = DiskId::from_bytes(1_000_u128.to_be_bytes());
    let last = DiskId::from_bytes((u128::from(many) + 999).to_be_bytes());
    assert_eq!((state.removed_disks.at(first), state.removed_disks.at(last)), (None, Some(199 + 2 * many)));
}

#[test]
fn commands_say_from_which_level_on_they_are_understood() {
    assert_eq!(Command::ReturnDisk { disk: disk(1), removed: 1 }.since(), FeatureLevel(2));
    assert_eq!(put(disk(1)).since(), FeatureLevel::OLDEST);
    assert!(FeatureLevel::default().is_known() && FeatureLevel::NEWEST.is_known());
    assert!(!FeatureLevel(0).is_known() && !FeatureLevel(FeatureLevel::NEWEST.0 + 1).is_known());
}
