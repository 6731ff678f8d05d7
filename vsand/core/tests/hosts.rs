//! What is said of a host after it joined: its name, its fault domain, its address.

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{Basis, Command, HostRecord, LockKind, Outcome, Policy, Refused, State};

fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

fn disk(n: u8) -> DiskId {
    DiskId::from_bytes([n; 16])
}

fn record(n: u8) -> HostRecord {
    HostRecord {
        id: host(n),
        name: format!("h{n}"),
        address: ([10, 0, 0, n], 7_000).into(),
        fault_domain: format!("h{n}"),
        joined_unix_s: 7,
        lease: 0,
    }
}

fn set(n: u8, name: Option<&str>, fault_domain: Option<&str>) -> Command {
    let (name, fault_domain) = (name.map(str::to_owned), fault_domain.map(str::to_owned));
    Command::SetHost { host: host(n), address: None, name, fault_domain }
}

struct Cluster(State, u64);

impl Cluster {
    /// Three hosts with a disk each.
    fn new() -> Self {
        let mut cluster = Self(State::default(), 0);
        for n in 1..=3 {
            cluster.apply(Command::PutHost { host: record(n) }).expect("a new host");
            let (path, capacity_extents) = (format!("/d{n}"), 1 << 20);
            let put =
                Command::PutDisk { disk: disk(n), host: host(n), path, capacity_extents, used_extents: 0 };
            cluster.apply(put).expect("a new disk");
        }
        cluster
    }

    fn apply(&mut self, command: Command) -> Result<Outcome, Refused> {
        self.1 += 1;
        let before = self.0.clone();
        let result = self.0.apply(self.1, command);
        assert!(result.is_ok() || self.0 == before, "a refused command changed something");
        result
    }

    fn come_up(&mut self, n: u8) {
        self.apply(Command::RenewLease { host: host(n) }).expect("it is known");
    }
}

#[test]
fn a_host_is_renamed_once_it_has_come_up() {
    let mut c = Cluster::new();
    assert_eq!(c.apply(set(2, Some("new"), None)), Err(Refused::HostNotUp(host(2))));
    assert_eq!(c.apply(set(2, None, Some("rack"))), Err(Refused::HostNotUp(host(2))));
    c.come_up(2);
    assert_eq!(c.apply(set(2, Some("new"), None)), Ok(Outcome::Done));
    assert_eq!(c.apply(set(2, None, Some("rack"))), Ok(Outcome::Done));
    let expected =
        HostRecord { name: "new".to_owned(), fault_domain: "rack".to_owned(), lease: 1, ..record(2) };
    assert_eq!(c.0.hosts[&host(2)], expected, "the rest of it stays");
    assert_eq!(c.apply(set(2, Some("new"), None)), Ok(Outcome::Done), "its own name is free for it");
    // The address is the host's own to say, whenever it comes up elsewhere.
    let address = ([10, 0, 0, 9], 7_000).into();
    let moved =
        |n| Command::SetHost { host: host(n), address: Some(address), name: None, fault_domain: None };
    assert_eq!(c.apply(moved(3)), Ok(Outcome::Done));
    assert_eq!(c.apply(moved(2)), Err(Refused::AddressTaken { address, by: host(3) }));
    assert_eq!(c.0.hosts[&host(2)], expected);
}

#[test]
fn what_a_host_can_not_be_called_is_refused() {
    let mut c = Cluster::new();
    c.come_up(1);
    let taken = Refused::HostNameTaken { name: "h3".to_owned(), by: host(3) };
    assert_eq!(c.apply(set(1, Some("h3"), Some("rack"))), Err(taken));
    assert_eq!(c.apply(set(9, Some("x"), None)), Err(Refused::NoHost(host(9))));
    let long = "x".repeat(256);
    assert!(matches!(c.apply(set(1, Some(&long), None)), Err(Refused::TooMuch(_))));
    assert!(matches!(c.apply(set(1, None, Some(&long))), Err(Refused::TooMuch(_))));
}

#[test]
fn a_new_fault_domain_counts_for_what_is_placed_from_then_on() {
    let mut c = Cluster::new();
    let object = ObjectId::from_bytes([9; 16]);
    let (name, policy) = ("v".parse().expect("a name"), Policy::Mirror { copies: 3 });
    c.apply(Command::CreateObject { object, name, size_bytes: 2 * CHUNK_BYTES, policy, unix_s: 0 })
        .expect("three domains");
    let kind = LockKind::Exclusive { read_only: false };
    let epoch = c.0.objects[&object].epoch;
    c.apply(Command::Acquire { object, epoch, host: host(1), kind, unix_s: 0 }).expect("nobody has it");
    let place = |c: &mut Cluster, chunk| {
        let record = &c.0.objects[&object];
        let basis = Basis { object, epoch: record.epoch, revision: record.revision };
        c.apply(Command::PlaceChunk { basis, chunk: ChunkIndex(chunk), near: host(1) })
    };
    place(&mut c, 0).expect("three domains");
    let before = c.0.objects[&object].clone();
    for n in [2, 3] {
        c.come_up(n);
        c.apply(set(n, None, Some("rack"))).expect("it is up");
    }
    assert_eq!(c.0.objects[&object], before, "what is placed stays, and its owner is not disturbed");
    assert_eq!(place(&mut c, 1), Err(Refused::NoRoom { needed: 3, found: 2 }));
    c.apply(set(3, None, Some("rack-3"))).expect("it is up");
    place(&mut c, 1).expect("three domains again");
}
