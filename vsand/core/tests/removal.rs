//! What may leave the cluster without losing data.

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{Basis, Command, HostRecord, LockKind, Outcome, Policy, Refused, State};

fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

fn disk(n: u8) -> DiskId {
    DiskId::from_bytes([n; 16])
}

/// Three hosts with a disk each, and a chunk mirrored on two of them: those disks, the owner's first.
fn cluster(state: &mut State) -> [DiskId; 2] {
    let mut index = 0;
    let mut apply = |command| {
        index += 1;
        state.apply(index, command).expect("accepted")
    };
    for n in 1..=3 {
        let record = HostRecord {
            id: host(n),
            name: format!("h{n}"),
            address: ([10, 0, 0, n], 7_000).into(),
            fault_domain: format!("h{n}"),
            joined_unix_s: 0,
            lease: 0,
        };
        apply(Command::PutHost { host: record });
        let (path, capacity_extents) = (format!("/d{n}"), 1 << 20);
        apply(Command::PutDisk { disk: disk(n), host: host(n), path, capacity_extents, used_extents: 0 });
    }
    let object = ObjectId::from_bytes([9; 16]);
    let name = "v".parse().expect("a name");
    let policy = Policy::Mirror { copies: 2 };
    apply(Command::CreateObject { object, name, size_bytes: CHUNK_BYTES, policy, unix_s: 0 });
    let kind = LockKind::Background;
    let epoch = ferro_protocol::ids::Epoch(0);
    let Outcome::Object(record) = apply(Command::Acquire { object, epoch, host: host(1), kind, unix_s: 0 })
    else {
        panic!("no record")
    };
    let basis = Basis { object, epoch: record.epoch, revision: record.revision };
    let chunk = ChunkIndex(0);
    let Outcome::Object(record) = apply(Command::PlaceChunk { basis, chunk, near: host(1) }) else {
        panic!("no record")
    };
    let disks: Vec<DiskId> = record.chunks[&chunk].in_sync().collect();
    disks.try_into().expect("two components")
}

#[test]
fn a_copy_on_a_dead_disk_is_no_copy() {
    let mut state = State::default();
    let [one, other] = cluster(&mut state);
    let remove = |disk| Command::RemoveDisk { disk, unix_s: 0 };
    assert!(state.clone().apply(100, remove(one)).is_ok(), "the other copy is good");
    state.apply(101, Command::DiskDied { disk: other, reason: "EIO".to_owned() }).expect("accepted");
    assert!(matches!(state.clone().apply(102, remove(one)), Err(Refused::WouldLoseData { chunks: 1, .. })));
    assert!(state.clone().apply(102, remove(other)).is_ok(), "the dead one may go");
    let spare = (1..=3).map(disk).find(|d| *d != one && *d != other).expect("three disks");
    assert!(state.apply(102, remove(spare)).is_ok(), "and one without components in any case");
}
