//! [`State::apply`]: every command checked in full before anything is changed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId, Role, Seq, VolumeName};

use super::State;
use super::command::{Basis, Command, Outcome, Refused, SyncChange, TokenRefused};
use super::conversion::kin;
use super::level::FeatureLevel;
use super::placement;
use super::preference::Preference;
use super::provision::Provision;
use super::records::{
    ChunkRecord, Component, Content, Departure, DiskHealth, DiskRecord, HostRecord, Lock, LockKind,
    MaintenanceMode, ObjectRecord, Policy, Sync, TokenEntry,
};

pub(super) type Applied = Result<Outcome, Refused>;

const TOKENS_MAX: usize = 1_024;

/// What any new object has.
struct NewObject {
    object: ObjectId,
    name: VolumeName,
    size_bytes: u64,
    policy: Policy,
    unix_s: u64,
}

impl State {
    /// Carries out the command that stands at `index` in the log.
    pub fn apply(&mut self, index: u64, command: Command) -> Applied {
        let outcome = self.dispatch(index, command)?;
        self.revision = index;
        Ok(outcome)
    }

    fn dispatch(&mut self, index: u64, command: Command) -> Applied {
        match command {
            Command::PutHost { host } => self.put_host(host),
            Command::RemoveHost { host, unix_s: _ } => self.remove_host(index, host),
            Command::RenewLease { host } => self.renew_lease(host),
            Command::PutDisk { disk, host, path, capacity_extents, used_extents } => {
                self.put_disk(DiskRecord {
                    id: disk,
                    host,
                    path,
                    capacity_extents,
                    used_extents,
                    health: DiskHealth::Healthy,
                })
            }
            Command::ReportUsage { used_extents } => self.report_usage(&used_extents),
            Command::ReportRoom { seen, used_extents } => self.report_room(seen, &used_extents),
            Command::DiskDied { disk, reason } => self.disk_died(disk, reason),
            Command::RemoveDisk { disk, unix_s: _ } => self.remove_disk(index, disk),
            Command::CreateObject { object, name, size_bytes, policy, unix_s } => {
                let made = NewObject { object, name, size_bytes, policy, unix_s };
                self.create(index, made, Provision::default(), Preference::default())
            }
            Command::CreateProvisioned { object, name, size_bytes, policy, provision, unix_s } => {
                let made = NewObject { object, name, size_bytes, policy, unix_s };
                self.create(index, made, provision, Preference::default())
            }
            Command::CreatePreferred { object, name, size_bytes, policy, provision, preference, unix_s } => {
                let made = NewObject { object, name, size_bytes, policy, unix_s };
                self.create(index, made, provision, preference)
            }
            Command::Prefer { object, preference } => self.prefer(index, object, preference),
            Command::RaiseLevel { from, to, hosts } => self.raise_level(from, to, &hosts),
            Command::ReturnDisk { disk, removed } => self.return_disk(disk, removed),
            Command::Provision { object, provision } => self.provision(index, object, provision),
            Command::DeleteObject { object } => self.delete(object),
            Command::ResizeObject { object, size_bytes } => self.resize(index, object, size_bytes),
            Command::SetContent { object, epoch, content } => self.set_content(index, object, epoch, content),
            Command::Acquire { object, epoch, host, kind, unix_s } => {
                self.acquire(index, object, epoch, Lock { host, kind, since_unix_s: unix_s })
            }
            Command::Release { object, epoch, host } => self.release(index, object, epoch, host),
            Command::BreakLock { object, epoch, holder, lease } => {
                self.break_lock(index, object, epoch, holder, lease)
            }
            Command::PlaceChunk { basis, chunk, near } => self.place_chunk(index, basis, chunk, near),
            Command::ChangeSync { basis, changes, unix_s } => {
                self.change_sync(index, basis, &changes, unix_s)
            }
            Command::Repair { basis, chunk, drop, unix_s } => self.repair(index, basis, chunk, drop, unix_s),
            Command::PutToken { id, entry } => {
                let open = |t: &TokenEntry| t.expires_unix_s.saturating_add(86_400) > entry.expires_unix_s;
                if self.tokens.values().filter(|t| open(t)).count() >= TOKENS_MAX {
                    return Err(Refused::TooMuch(format!("{TOKENS_MAX} join tokens are open already")));
                }
                self.tokens.retain(|_, t| open(t));
                self.tokens.insert(id, entry);
                Ok(Outcome::Done)
            }
            Command::UseToken { id, secret_hash, unix_s } => self.use_token(id, secret_hash, unix_s),
            Command::PutDocument { name, basis, content } => self.put_document(index, name, basis, content),
            Command::DeleteDocument { name, basis } => self.delete_document(index, &name, basis),
            Command::LeaveDisk { disk, departure } => self.leave_disk(disk, departure),
            Command::LeaveHost { host, departure } => self.leave_host(host, departure),
            Command::Trim { basis, chunk } => self.trim(index, basis, chunk, None),
            Command::Move { basis, chunk, from, unix_s } => {
                self.move_component(index, basis, chunk, from, None, unix_s)
            }
            Command::ReportLoad { loads } => self.report_load(&loads),
            Command::MoveTo { basis, chunk, from, to, unix_s } => {
                self.move_to(index, basis, chunk, from, to, unix_s)
            }
            Command::TrimFrom { basis, chunk, disk, unix_s } => {
                self.trim_from(index, basis, chunk, disk, unix_s)
            }
            Command::SetPolicy { object, from, to } => self.set_policy(index, object, from, to),
            Command::Convert { object, epoch, step } => self.convert(index, object, epoch, step),
            Command::HostAway { host, lease, absence } => self.host_away(host, lease, absence),
            Command::SetHost { host, address, name, fault_domain } => {
                self.set_host(host, address, name, fault_domain)
            }
        }
    }

    fn put_host(&mut self, mut host: HostRecord) -> Applied {
        if let Some(other) = self.hosts.values().find(|h| h.address == host.address && h.id != host.id) {
            return Err(Refused::AddressTaken { address: host.address, by: other.id });
        }
        if host.name.len() > 255 || host.fault_domain.len() > 255 {
            return Err(Refused::TooMuch("a host's name and fault domain have at most 255 bytes".to_owned()));
        }
        if let Some(known) = self.hosts.get(&host.id) {
            host.lease = known.lease;
            host.joined_unix_s = known.joined_unix_s;
        }
        self.hosts.insert(host.id, host);
        Ok(Outcome::Done)
    }

    fn set_host(
        &mut self,
        host: HostId,
        address: Option<SocketAddr>,
        name: Option<String>,
        fault_domain: Option<String>,
    ) -> Applied {
        let mut changed = self.hosts.get(&host).ok_or(Refused::NoHost(host))?.clone();
        // Until its lease begins, the host itself says what it is called, and would say so after this.
        if changed.lease == 0 && (name.is_some() || fault_domain.is_some()) {
            return Err(Refused::HostNotUp(host));
        }
        if let Some(name) = name {
            if let Some(other) = self.hosts.values().find(|h| h.name == name && h.id != host) {
                return Err(Refused::HostNameTaken { name, by: other.id });
            }
            changed.name = name;
        }
        changed.address = address.unwrap_or(changed.address);
        changed.fault_domain = fault_domain.unwrap_or(changed.fault_domain);
        self.put_host(changed)
    }

    fn remove_host(&mut self, index: u64, host: HostId) -> Applied {
        let record = self.hosts.get(&host).ok_or(Refused::NoHost(host))?;
        if self.hosts.len() == 1 {
            return Err(Refused::LastHost(host));
        }
        self.check_closed(host)?;
        let disks = self.disks_in(host);
        self.check_expendable(&format!("host {}", record.name), &disks)?;
        self.forget_disks(index, &disks);
        // Only repairs are left: they serve nobody, and another host goes on with them.
        let owned: Vec<ObjectId> = self.locks_of(host).map(|(object, _)| object).collect();
        for object in owned {
            self.drop_target(object);
            if let Some(object) = self.objects.get_mut(&object).map(Arc::make_mut) {
                object.lock = None;
                object.revision = index;
            }
        }
        self.leaving_hosts.remove(&host);
        self.absences.end(host);
        self.hosts.remove(&host);
        Ok(Outcome::Done)
    }

    fn renew_lease(&mut self, host: HostId) -> Applied {
        let record = self.hosts.get_mut(&host).ok_or(Refused::NoHost(host))?;
        // It only has to differ from before; a counter that wraps still does.
        record.lease = record.lease.wrapping_add(1);
        let counter = record.lease;
        self.absences.end(host);
        Ok(Outcome::Lease { counter, locks: self.locks_of(host).collect() })
    }

    fn put_disk(&mut self, disk: DiskRecord) -> Applied {
        if !self.hosts.contains_key(&disk.host) {
            return Err(Refused::NoHost(disk.host));
        }
        if self.removed_disks.at(disk.id).is_some() {
            return Err(Refused::DiskRemoved(disk.id));
        }
        if disk.path.len() > 4_096 {
            return Err(Refused::TooMuch("a disk's path has at most 4096 bytes".to_owned()));
        }
        self.disks.insert(disk.id, disk);
        Ok(Outcome::Done)
    }

    fn report_usage(&mut self, used_extents: &[(DiskId, u64)]) -> Applied {
        for (disk, used) in used_extents {
            if let Some(record) = self.disks.get_mut(disk) {
                record.used_extents = *used;
            }
        }
        Ok(Outcome::Done)
    }

    fn disk_died(&mut self, disk: DiskId, reason: String) -> Applied {
        let record = self.disks.get_mut(&disk).ok_or(Refused::NoDisk(disk))?;
        record.health = DiskHealth::Dead(reason.chars().take(1_024).collect());
        Ok(Outcome::Done)
    }

    fn remove_disk(&mut self, index: u64, disk: DiskId) -> Applied {
        let record = self.disks.get(&disk).ok_or(Refused::NoDisk(disk))?;
        self.check_expendable(&format!("disk {}", record.path), &[disk])?;
        self.forget_disks(index, &[disk]);
        Ok(Outcome::Done)
    }

    /// Refuses if a chunk has an in-sync component on `disks` and none on another disk that works; with parity, if its log
    /// has none, or too few of its shards have one.
    pub(super) fn check_expendable(&self, what: &str, disks: &[DiskId]) -> Result<(), Refused> {
        let mut chunks = 0;
        let mut example = None;
        let works = |disk| self.disks.get(&disk).is_some_and(|d| d.health == DiskHealth::Healthy);
        let stays = |chunk: &ChunkRecord| chunk.in_sync().any(|d| !disks.contains(&d) && works(d));
        let goes = |chunk: &ChunkRecord| chunk.in_sync().any(|d| disks.contains(&d)) && !stays(chunk);
        for object in self.objects.values() {
            let enough = |shard: ChunkIndex| {
                object.shards(shard).filter(|(_, s)| stays(s)).count() >= object.policy.sufficient()
            };
            let needed = |index: ChunkIndex| match index.role() {
                Role::Whole | Role::Log => true,
                Role::Shard(_) => !enough(index),
            };
            let lost = object.chunks.iter().filter(|(index, record)| goes(record) && needed(**index));
            let lost = lost.map(|(index, _)| index.base()).collect::<BTreeSet<ChunkIndex>>().len();
            if lost > 0 {
                chunks += lost;
                example.get_or_insert_with(|| object.name.clone());
            }
        }
        match example {
            Some(example) => Err(Refused::WouldLoseData { what: what.to_owned(), chunks, example }),
            None => Ok(()),
        }
    }

    fn forget_disks(&mut self, index: u64, disks: &[DiskId]) {
        for disk in disks {
            self.disks.remove(disk);
            self.leaving_disks.remove(disk);
            self.loads.forget(*disk);
            self.remember_removed(index, *disk);
        }
        for object in self.objects.values_mut() {
            let touched =
                object.chunks.values().any(|c| c.components.iter().any(|c| disks.contains(&c.disk)));
            if touched {
                let object = Arc::make_mut(object);
                object.revision = index;
                for chunk in object.chunks.values_mut() {
                    chunk.components.retain(|c| !disks.contains(&c.disk));
                }
            }
        }
    }

    fn create(
        &mut self,
        index: u64,
        new: NewObject,
        provision: Provision,
        preference: Preference,
    ) -> Applied {
        let NewObject { object, name, size_bytes, policy, unix_s } = new;
        if let Some(by) = self.names.get(&name) {
            return Err(Refused::NameTaken { name, by: *by });
        }
        if let Some(known) = self.objects.get(&object) {
            return Err(Refused::NameTaken { name: known.name.clone(), by: object });
        }
        if self.level >= FeatureLevel::CONVERSIONS
            && let Some((by, _)) = self.objects.range(kin(object)).next()
        {
            return Err(Refused::NameTaken { name, by: *by });
        }
        if !ObjectRecord::good_size(size_bytes) {
            return Err(Refused::BadSize(size_bytes));
        }
        policy.check()?;
        provision.check(policy)?;
        self.check_preference(&preference)?;
        // What has nothing kept for it is placed when it is written; that it could be is checked now.
        placement::check_place(self, policy, provision.forced)?;
        let record = Arc::new(ObjectRecord {
            id: object,
            name: name.clone(),
            size_bytes,
            policy,
            content: Content::Whole,
            epoch: Epoch(0),
            lock: None,
            chunks: std::collections::BTreeMap::new(),
            created_unix_s: unix_s,
            revision: index,
        });
        self.names.insert(name.clone(), object);
        self.objects.insert(object, record);
        self.preferences.set(object, preference);
        let made = self.provision(index, object, provision);
        if made.is_err() {
            self.names.remove(&name);
            self.objects.remove(&object);
            self.preferences.forget(object);
        }
        made
    }

    fn delete(&mut self, object: ObjectId) -> Applied {
        let record = self.volume(object)?;
        if let Some(lock) = record.lock
            && lock.kind != LockKind::Background
        {
            return Err(Refused::Locked { object, holder: lock.host, kind: lock.kind });
        }
        let name = record.name.clone();
        self.end_conversion(object);
        self.names.remove(&name);
        self.objects.remove(&object);
        self.provisioning.forget(object);
        self.preferences.forget(object);
        Ok(Outcome::Done)
    }

    fn resize(&mut self, index: u64, object: ObjectId, size_bytes: u64) -> Applied {
        let record = self.volume(object)?;
        if size_bytes < record.size_bytes {
            return Err(Refused::Shrink { now: record.size_bytes, wanted: size_bytes });
        }
        if !ObjectRecord::good_size(size_bytes) {
            return Err(Refused::BadSize(size_bytes));
        }
        let provision = self.provisioning.of(object);
        let mut grown = ObjectRecord::clone(record);
        grown.size_bytes = size_bytes;
        self.keep(&mut grown, provision)?;
        if provision.percent > 0 {
            self.provisioning.touch(index);
        }
        self.drop_target(object);
        self.change(index, object, |record| {
            record.size_bytes = size_bytes;
            record.chunks = grown.chunks;
        })
    }

    fn set_content(&mut self, index: u64, object: ObjectId, epoch: Epoch, content: Content) -> Applied {
        let record = self.volume(object)?;
        if record.epoch != epoch {
            return Err(Refused::WrongEpoch { now: record.epoch });
        }
        self.change(index, object, |record| record.content = content)
    }

    fn acquire(&mut self, index: u64, object: ObjectId, epoch: Epoch, lock: Lock) -> Applied {
        if !self.hosts.contains_key(&lock.host) {
            return Err(Refused::NoHost(lock.host));
        }
        let record = self.volume(object)?;
        // A repair is no opening: who has only that can't open it where nothing is to be opened.
        let holds =
            record.lock.is_some_and(|held| held.host == lock.host && held.kind != LockKind::Background);
        if lock.kind != LockKind::Background && !holds {
            match self.leaving_hosts.get(&lock.host) {
                Some(Departure::WhenEmpty | Departure::AtOnce) => return Err(Refused::HostLeaves(lock.host)),
                Some(Departure::Maintenance {
                    mode: MaintenanceMode::EnsureAccess | MaintenanceMode::Full,
                    ..
                }) => return Err(Refused::InMaintenance(lock.host)),
                Some(Departure::Maintenance { mode: MaintenanceMode::NoMove, .. }) | None => {}
            }
        }
        if let Some(held) = record.lock
            && held.host != lock.host
            && held.kind != LockKind::Background
        {
            return Err(Refused::Locked { object, holder: held.host, kind: held.kind });
        }
        if record.epoch != epoch {
            return Err(Refused::WrongEpoch { now: record.epoch });
        }
        let next =
            epoch.next().ok_or_else(|| Refused::TooMuch("the object has used up its epochs".to_owned()))?;
        self.drop_target(object);
        self.change(index, object, |record| {
            record.epoch = next;
            record.lock = Some(lock);
        })
    }

    fn release(&mut self, index: u64, object: ObjectId, epoch: Epoch, host: HostId) -> Applied {
        let record = self.volume(object)?;
        if record.epoch != epoch || record.lock.is_none_or(|lock| lock.host != host) {
            return Err(Refused::NotHolder(host));
        }
        self.drop_target(object);
        self.change(index, object, |record| record.lock = None)
    }

    fn break_lock(
        &mut self,
        index: u64,
        object: ObjectId,
        epoch: Epoch,
        holder: HostId,
        lease: u64,
    ) -> Applied {
        let record = self.volume(object)?;
        if record.epoch != epoch || record.lock.is_none_or(|lock| lock.host != holder) {
            return Err(Refused::NotHolder(holder));
        }
        if self.hosts.get(&holder).is_some_and(|host| host.lease != lease) {
            return Err(Refused::LeaseAlive(holder));
        }
        self.drop_target(object);
        self.change(index, object, |record| record.lock = None)
    }

    fn place_chunk(&mut self, index: u64, basis: Basis, chunk: ChunkIndex, near: HostId) -> Applied {
        let record = self.owned(basis)?;
        if chunk.0 >= record.chunks_total() {
            return Err(Refused::NoComponent(chunk));
        }
        if record.policy.records(chunk).any(|index| record.chunks.contains_key(&index)) {
            return Err(Refused::Overtaken(Arc::clone(record)));
        }
        let placed = placement::place_chunk(self, record, chunk, near)?;
        self.change(index, basis.object, |record| record.put(placed))
    }

    fn change_sync(&mut self, index: u64, basis: Basis, changes: &[SyncChange], unix_s: u64) -> Applied {
        let before = self.owned(basis)?;
        let mut after = ObjectRecord::clone(before);
        for change in changes {
            let (index, disk, sync) = match *change {
                SyncChange::Add { chunk, disk } => (chunk, disk, Sync::InSync),
                SyncChange::Remove { chunk, disk, stale_seq } => {
                    (chunk, disk, Sync::Stale { stale_seq, since_unix_s: unix_s })
                }
            };
            let chunk = after.chunks.get_mut(&index).ok_or(Refused::NoComponent(index))?;
            let component =
                chunk.components.iter_mut().find(|c| c.disk == disk).ok_or(Refused::NoComponent(index))?;
            // A component that is stale already keeps the older, more careful mark.
            if component.in_sync() || sync == Sync::InSync {
                component.sync = sync;
            }
            // Shards are counted when all is done: one may fall out while another comes back.
            if chunk.in_sync().next().is_none() && !matches!(index.role(), Role::Shard(_)) {
                return Err(Refused::LastInSync(index));
            }
        }
        let good = |record: &ObjectRecord, chunk| {
            record.shards(chunk).filter(|(_, shard)| shard.in_sync().next().is_some()).count()
        };
        let needed = before.policy.sufficient();
        for change in changes {
            let (SyncChange::Add { chunk, .. } | SyncChange::Remove { chunk, .. }) = *change;
            let left = good(&after, chunk);
            if left < needed && left < good(before, chunk) {
                return Err(Refused::TooFewShards { chunk: chunk.base(), needed, left });
            }
        }
        self.change(index, basis.object, |record| record.chunks = after.chunks)
    }

    fn repair(
        &mut self,
        index: u64,
        basis: Basis,
        chunk: ChunkIndex,
        drop: Option<DiskId>,
        unix_s: u64,
    ) -> Applied {
        let record = self.owned(basis)?;
        let needed = record.policy.components(chunk);
        let now = record.chunks.get(&chunk).ok_or(Refused::NoComponent(chunk))?;
        if let Some(drop) = drop
            && now.components.iter().find(|c| c.disk == drop).is_none_or(Component::in_sync)
        {
            return Err(Refused::NoComponent(chunk));
        }
        if let Some(waited) = drop.filter(|disk| self.is_waited_for(record.policy, *disk)) {
            let host = self.disks.get(&waited).map(|d| d.host).ok_or(Refused::NoDisk(waited))?;
            return Err(Refused::InMaintenance(host));
        }
        let staying = now.components.iter().filter(|c| !self.is_emptied(record.policy, c.disk)).count();
        if drop.is_none() && (staying >= needed || now.components.len() >= 2 * needed) {
            return Err(Refused::TooMuch(format!("chunk {chunk} has all its components")));
        }
        let disk = placement::place_one_more(self, record, chunk, drop, None)?;
        self.keep_on(index, basis.object, chunk, disk);
        self.change(index, basis.object, |record| {
            let components = &mut record.chunks.entry(chunk).or_default().components;
            components.retain(|c| Some(c.disk) != drop);
            components
                .push(Component { disk, sync: Sync::Stale { stale_seq: Seq(0), since_unix_s: unix_s } });
        })
    }

    fn use_token(&mut self, id: [u8; 16], secret_hash: [u8; 32], unix_s: u64) -> Applied {
        let entry = self.tokens.get(&id).ok_or(Refused::Token(TokenRefused::Unknown))?;
        // Hashes of 256 random bits are compared: how long it takes tells nothing of the secret.
        if entry.secret_hash != secret_hash {
            return Err(Refused::Token(TokenRefused::Forged));
        }
        if entry.expires_unix_s <= unix_s {
            return Err(Refused::Token(TokenRefused::Expired));
        }
        self.tokens.remove(&id);
        Ok(Outcome::Done)
    }

    pub(super) fn object(&self, object: ObjectId) -> Result<&Arc<ObjectRecord>, Refused> {
        self.objects.get(&object).ok_or(Refused::NoObject(object))
    }

    /// The object, if it has a name: what is only being filled goes the way of what it is to take the place of.
    pub(super) fn volume(&self, object: ObjectId) -> Result<&Arc<ObjectRecord>, Refused> {
        self.object(object).and_then(|record| {
            if self.is_target(object) { Err(Refused::NoObject(object)) } else { Ok(record) }
        })
    }

    /// The object, if the proposer is its owner and has seen its latest record.
    pub(super) fn owned(&self, basis: Basis) -> Result<&Arc<ObjectRecord>, Refused> {
        let record = self.object(basis.object)?;
        if record.epoch != basis.epoch || record.lock.is_none() {
            return Err(Refused::WrongEpoch { now: record.epoch });
        }
        if record.revision != basis.revision {
            return Err(Refused::Overtaken(Arc::clone(record)));
        }
        Ok(record)
    }

    pub(super) fn change(
        &mut self,
        index: u64,
        object: ObjectId,
        change: impl FnOnce(&mut ObjectRecord),
    ) -> Applied {
        let record = self.objects.get_mut(&object).ok_or(Refused::NoObject(object))?;
        let inner = Arc::make_mut(record);
        change(inner);
        inner.revision = index;
        Ok(Outcome::Object(Arc::clone(record)))
    }
}
