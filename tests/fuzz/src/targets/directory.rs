//! Commands to the directory: each member applies whatever stands in the log, so one that panics takes all of them down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Role, Seq, VolumeName};
use vsand_core::directory::{
    Basis, Command, Content, Departure, HostRecord, Load, LockKind, ObjectRecord, Policy, Preference,
    Refused, State, SyncChange, TokenEntry,
};

use crate::Source;

const COMMANDS_MAX: usize = 128;

fn host_id(n: usize) -> HostId {
    HostId::from_bytes([n as u8 + 1; 16])
}

fn disk_id(n: usize) -> DiskId {
    DiskId::from_bytes([n as u8 + 0x21; 16])
}

fn object_id(n: usize) -> ObjectId {
    ObjectId::from_bytes([n as u8 + 0x41; 16])
}

fn name(n: usize) -> VolumeName {
    ["a", "b", "c", "d"][n % 4].parse().expect("it is a name")
}

fn host(n: usize, lease: u64) -> HostRecord {
    HostRecord {
        id: host_id(n),
        name: format!("h{n}"),
        address: SocketAddr::from(([192, 0, 2, n as u8], 7000)),
        fault_domain: format!("d{n}"),
        joined_unix_s: 1,
        lease,
    }
}

/// Five hosts with a disk each, and two objects that the first has open with one chunk placed: a mirror and one with parity.
fn beginning() -> Vec<Command> {
    let mut commands = Vec::new();
    for n in 0..5 {
        commands.push(Command::PutHost { host: host(n, 0) });
        commands.push(Command::PutDisk {
            disk: disk_id(n),
            host: host_id(n),
            path: format!("/disks/{n}"),
            capacity_extents: 10_000,
            used_extents: 10,
        });
    }
    let kind = LockKind::Exclusive { read_only: false };
    for (n, policy) in
        [Policy::Mirror { copies: 3 }, Policy::Parity { data: 2, parity: 1 }].into_iter().enumerate()
    {
        let object = object_id(n);
        commands.push(Command::CreateObject {
            object,
            name: name(n),
            size_bytes: 4 << 30,
            policy,
            unix_s: 2,
        });
        commands.push(Command::Acquire { object, epoch: Epoch(0), host: host_id(0), kind, unix_s: 3 });
        let basis = Basis { object, epoch: Epoch(1), revision: commands.len() as u64 };
        commands.push(Command::PlaceChunk { basis, chunk: ChunkIndex(0), near: host_id(0) });
    }
    commands
}

fn begun() -> Checked {
    let mut checked = Checked { state: State::default(), index: 0, domains_kept: true };
    for command in beginning() {
        checked.apply(&command).unwrap_or_else(|refused| panic!("{command:?}: {refused}"));
    }
    checked
}

/// A state whose promises are looked at after each command.
struct Checked {
    state: State,
    index: u64,
    /// No disk has come into another fault domain: then the directory keeps them apart.
    domains_kept: bool,
}

impl Checked {
    fn apply(&mut self, command: &Command) -> Result<(), Refused> {
        let before = self.state.clone();
        self.index += 1;
        match self.state.apply(self.index, command.clone()) {
            Ok(_) => self.check(&before, command),
            Err(refused) => {
                assert_eq!(self.state, before, "{command:?} was refused and changed something");
                // It is shown to people.
                let _said = refused.to_string();
                return Err(refused);
            }
        }
        Ok(())
    }

    fn check(&mut self, before: &State, command: &Command) {
        let state = &self.state;
        let stays = |disk: &DiskId| state.disks.contains_key(disk);
        self.domains_kept &= before
            .disks
            .keys()
            .filter(|disk| stays(disk))
            .all(|disk| before.fault_domain(*disk) == state.fault_domain(*disk));
        assert_eq!(state.revision, self.index);
        let by_name: BTreeMap<_, _> = state.objects.values().map(|o| (o.name.clone(), o.id)).collect();
        assert_eq!(by_name, state.names, "{command:?}: names and objects differ");
        for (id, object) in &state.objects {
            assert_eq!(object.id, *id);
            if let Some(lock) = object.lock {
                assert!(state.hosts.contains_key(&lock.host), "{command:?}: a lock of no host");
            }
            for (chunk, record) in &object.chunks {
                assert!(chunk.base().0 < object.chunks_total(), "{command:?}: a chunk past the end");
                let known = object.policy.records(*chunk).any(|index| index == *chunk);
                let all = object.policy.records(*chunk).all(|index| object.chunks.contains_key(&index));
                assert!(
                    known && all,
                    "{command:?}: a chunk's records are not those that its policy asks for"
                );
                match chunk.role() {
                    Role::Whole | Role::Log => {
                        assert!(record.in_sync().next().is_some(), "{command:?}: no component is in sync");
                    }
                    Role::Shard(_) => self.check_shards(object, *chunk, command),
                }
                let disks: BTreeSet<_> = record.components.iter().map(|c| c.disk).collect();
                assert_eq!(disks.len(), record.components.len(), "{command:?}: two components on one disk");
                assert!(disks.iter().all(|d| state.disks.contains_key(d)), "{command:?}: a disk is gone");
                // Those that leave are built anew elsewhere while they are still there.
                let most = 2 * object.policy.components(*chunk);
                assert!(disks.len() <= most, "{command:?}: too many components");
            }
            let Some(old) = before.objects.get(id) else { continue };
            if object == old {
                continue;
            }
            assert_eq!(object.revision, self.index, "{command:?}: a change without its revision");
            let steps = object.epoch.0.checked_sub(old.epoch.0);
            let acquired = u32::from(matches!(command, Command::Acquire { .. }));
            assert_eq!(steps, Some(acquired), "{command:?}: the epoch went from {:?}", old.epoch);
        }
        assert!(state.disks.values().all(|disk| state.hosts.contains_key(&disk.host)), "a disk of no host");
    }

    fn check_shards(&self, object: &ObjectRecord, chunk: ChunkIndex, command: &Command) {
        let in_sync = object.shards(chunk).filter(|(_, shard)| shard.in_sync().next().is_some()).count();
        assert!(in_sync >= object.policy.sufficient(), "{command:?}: {in_sync} shards are in sync");
        if !self.domains_kept {
            return;
        }
        let domains = |index| {
            let components = object.chunks.get(&index).into_iter().flat_map(|shard| &shard.components);
            components.filter_map(|c| self.state.fault_domain(c.disk)).collect::<BTreeSet<&str>>()
        };
        for (other, _) in object.other_shards(chunk) {
            assert!(
                domains(chunk).is_disjoint(&domains(other)),
                "{command:?}: two shards share a fault domain"
            );
        }
    }
}

/// Encoded commands, one behind the other, applied to a small cluster.
pub(super) fn commands(data: &[u8]) {
    let mut checked = begun();
    let mut rest = data;
    for _ in 0..COMMANDS_MAX {
        let Ok((command, behind)) = postcard::take_from_bytes::<Command>(rest) else { return };
        rest = behind;
        // Refused or not: what matters is looked at there.
        let _outcome = checked.apply(&command);
    }
}

pub(super) fn command_seeds() -> Vec<Vec<u8>> {
    let object = object_id(0);
    let basis = Basis { object, epoch: Epoch(1), revision: 13 };
    let (chunk, disk) = (ChunkIndex(0), disk_id(1));
    let entry = TokenEntry { secret_hash: [4; 32], expires_unix_s: 1_000 };
    let more = vec![
        Command::ChangeSync {
            basis,
            changes: vec![SyncChange::Remove { chunk, disk, stale_seq: Seq(9) }],
            unix_s: 4,
        },
        Command::Repair { basis: Basis { revision: 17, ..basis }, chunk, drop: Some(disk), unix_s: 5 },
        Command::RenewLease { host: host_id(1) },
        Command::ReportUsage { used_extents: vec![(disk, 77)] },
        Command::DiskDied { disk, reason: "it smokes".to_owned() },
        Command::ResizeObject { object, size_bytes: 8 << 30 },
        Command::SetContent { object, epoch: Epoch(1), content: Content::Importing },
        Command::BreakLock { object, epoch: Epoch(1), holder: host_id(0), lease: 0 },
        Command::PutToken { id: [1; 16], entry },
        Command::UseToken { id: [1; 16], secret_hash: [4; 32], unix_s: 6 },
        Command::PutDocument { name: "k/1".parse().expect("a name"), basis: 0, content: "{}".to_owned() },
        Command::DeleteDocument { name: "k/1".parse().expect("a name"), basis: 9 },
        Command::Release { object, epoch: Epoch(1), host: host_id(0) },
        Command::DeleteObject { object },
        Command::RemoveDisk { disk, unix_s: 7 },
        Command::RemoveHost { host: host_id(2), unix_s: 7 },
        Command::LeaveDisk { disk, departure: Some(Departure::WhenEmpty) },
        Command::LeaveHost { host: host_id(2), departure: Some(Departure::AtOnce) },
        Command::Trim { basis, chunk },
        Command::Prefer {
            object,
            preference: Preference { places: vec!["a".to_owned()], across_sites: true },
        },
        Command::ReportLoad { loads: vec![(disk, Load(500))] },
        Command::MoveTo { basis, chunk, from: disk, to: disk_id(3), unix_s: 8 },
        Command::TrimFrom { basis, chunk, disk, unix_s: 9 },
        Command::SetHost {
            host: host_id(1),
            address: None,
            name: Some("h1-new".to_owned()),
            fault_domain: Some("d0".to_owned()),
        },
    ];
    let encode = |command: &Command| postcard::to_stdvec(command).expect("plain data encodes");
    let mut seeds: Vec<Vec<u8>> = more.iter().map(encode).collect();
    seeds.push(seeds.concat());
    seeds.extend(beginning().iter().map(encode));
    seeds
}

/// Commands made of the input's choices, most of which name what is there: they get further than encoded ones.
pub(super) fn script(data: &[u8]) {
    let mut source = Source::new(data);
    let mut checked = begun();
    for _ in 0..COMMANDS_MAX {
        if source.is_empty() {
            return;
        }
        let command = choose(&mut source, &checked.state);
        // As above.
        let _outcome = checked.apply(&command);
    }
}

/// What the proposer believes of an object: mostly what is so.
fn believed(source: &mut Source<'_>, state: &State) -> Basis {
    let object = object_id(source.below(3));
    let record = state.objects.get(&object);
    let mut basis = Basis {
        object,
        epoch: record.map_or(Epoch(0), |o| o.epoch),
        revision: record.map_or(0, |o| o.revision),
    };
    if source.rarely(8) {
        basis.epoch = Epoch(source.number() as u32);
    }
    if source.rarely(8) {
        basis.revision = source.number();
    }
    basis
}

/// A chunk that may be there, or one of its records.
fn chunk(source: &mut Source<'_>) -> ChunkIndex {
    match source.below(16) {
        0 => ChunkIndex(source.number() as u32),
        n @ 1..=9 => ChunkIndex((n % 5) as u32),
        n @ 10..=13 => ChunkIndex(0).shard((n - 10) as u8),
        _ => ChunkIndex(0).log(),
    }
}

fn choose(source: &mut Source<'_>, state: &State) -> Command {
    let kind = source.below(24);
    let basis = believed(source, state);
    let (object, epoch) = (basis.object, basis.epoch);
    let (host_n, disk_n) = (source.below(5), source.below(6));
    let (host_of, disk) = (host_id(host_n), disk_id(disk_n));
    let chunk = chunk(source);
    let unix_s = source.number();
    match kind {
        0 => Command::PutHost { host: host(host_n, source.number()) },
        1 => Command::RemoveHost { host: host_of, unix_s },
        2 => Command::RenewLease { host: host_of },
        3 => Command::PutDisk {
            disk,
            host: host_of,
            path: String::new(),
            capacity_extents: source.number().saturating_mul(64),
            used_extents: source.number(),
        },
        4 => Command::ReportUsage { used_extents: vec![(disk, source.number())] },
        5 => Command::DiskDied { disk, reason: "x".repeat(source.number().min(5_000) as usize) },
        6 => Command::RemoveDisk { disk, unix_s },
        7 => Command::CreateObject {
            object,
            name: name(source.below(4)),
            size_bytes: source.number().saturating_mul(4096),
            policy: match source.below(16) {
                copies @ 0..=5 => Policy::Mirror { copies: copies as u8 },
                n => Policy::Parity { data: (n % 5) as u8, parity: (n % 3) as u8 },
            },
            unix_s,
        },
        8 => Command::DeleteObject { object },
        9 => Command::ResizeObject { object, size_bytes: source.number().saturating_mul(1 << 28) },
        10 => Command::SetContent { object, epoch, content: Content::Importing },
        11 => {
            let read_only = source.rarely(2);
            let kinds = [LockKind::Exclusive { read_only }, LockKind::Transfer, LockKind::Background];
            Command::Acquire { object, epoch, host: host_of, kind: kinds[source.below(3)], unix_s }
        }
        12 => Command::Release { object, epoch, host: host_of },
        13 => {
            let lease = state.hosts.get(&host_of).map_or(0, |h| h.lease);
            let lease = if source.rarely(4) { source.number() } else { lease };
            Command::BreakLock { object, epoch, holder: host_of, lease }
        }
        14 | 15 => Command::PlaceChunk { basis, chunk, near: host_of },
        16 => {
            let change = |source: &mut Source<'_>| {
                let disk = disk_id(source.below(6));
                if source.rarely(3) {
                    SyncChange::Add { chunk, disk }
                } else {
                    SyncChange::Remove { chunk, disk, stale_seq: Seq(source.number()) }
                }
            };
            let changes = (0..source.below(4)).map(|_| change(source)).collect();
            Command::ChangeSync { basis, changes, unix_s }
        }
        17 => {
            let drop = (!source.rarely(3)).then_some(disk);
            Command::Repair { basis, chunk, drop, unix_s }
        }
        18 => {
            let id = [source.byte() % 4; 16];
            let entry = TokenEntry { secret_hash: [source.byte() % 2; 32], expires_unix_s: source.number() };
            if source.rarely(2) {
                Command::UseToken { id, secret_hash: entry.secret_hash, unix_s }
            } else {
                Command::PutToken { id, entry }
            }
        }
        19 | 20 => {
            let departures = [None, Some(Departure::WhenEmpty), Some(Departure::AtOnce)];
            let departure = departures[source.below(3)];
            if source.rarely(2) {
                Command::LeaveHost { host: host_of, departure }
            } else {
                Command::LeaveDisk { disk, departure }
            }
        }
        21 => Command::Trim { basis, chunk },
        22 => Command::SetHost {
            host: host_of,
            address: source.rarely(4).then(|| host(host_n, 0).address),
            name: source.rarely(2).then(|| format!("h{}", source.below(5))),
            fault_domain: source.rarely(2).then(|| format!("d{}", source.below(5))),
        },
        _ => {
            let name: DocumentName = format!("k/{}", source.below(4)).parse().expect("a name");
            let basis = state.documents.get(&name).map_or(0, |document| document.revision);
            if source.rarely(3) {
                Command::DeleteDocument { name, basis }
            } else {
                Command::PutDocument { name, basis, content: "c".repeat(source.below(64)) }
            }
        }
    }
}

pub(super) fn script_seeds() -> Vec<Vec<u8>> {
    super::patterns(600)
}
