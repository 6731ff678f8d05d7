//! What may leave the cluster without losing data.

mod common;

use common::cluster::{Cluster, FIRST, mirror};
use common::disk;
use ferro_protocol::ids::DiskId;
use vsand_core::directory::{Command, Refused, State};

/// Three hosts with a disk each, and a chunk mirrored on two of them: those disks, the owner's first.
fn cluster() -> (State, [DiskId; 2]) {
    let cluster = Cluster::placed(3, mirror(2));
    let disks = cluster.disks(FIRST).try_into().expect("two components");
    (cluster.state, disks)
}

#[test]
fn a_copy_on_a_dead_disk_is_no_copy() {
    let (mut state, [one, other]) = cluster();
    let remove = |disk| Command::RemoveDisk { disk, unix_s: 0 };
    assert!(state.clone().apply(100, remove(one)).is_ok(), "the other copy is good");
    state.apply(101, Command::DiskDied { disk: other, reason: "EIO".to_owned() }).expect("accepted");
    assert!(matches!(state.clone().apply(102, remove(one)), Err(Refused::WouldLoseData { chunks: 1, .. })));
    assert!(state.clone().apply(102, remove(other)).is_ok(), "the dead one may go");
    let spare = (1..=3).map(disk).find(|d| *d != one && *d != other).expect("three disks");
    assert!(state.apply(102, remove(spare)).is_ok(), "and one without components in any case");
}
