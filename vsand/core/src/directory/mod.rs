//! The content of the cluster directory: a deterministic state machine that each host replays from the Raft log.
//!
//! Invariants, kept by [`State::apply`] whatever command comes:
//! - a command that is refused changes nothing;
//! - an object's epoch only grows, by one with each `Acquire`;
//! - each placed chunk has at least one in-sync component, its components are on different disks, and no command but
//!   the owner's own (right epoch, latest revision) or the removal of a host or a disk touches them;
//! - a placed chunk of an object with parity has all its records: as many shards with an in-sync component as make its
//!   content, no two shards in one fault domain (but for what [`Command::SetHost`], [`Command::PutHost`] and a disk that is
//!   moved to another host bring about), and a log with an in-sync component;
//! - nothing new is placed on a disk that is leaving ([`leave`]);
//! - what a disk serves is known of disks that are there, and nothing of it below the level that brings this ([`load`]);
//! - a host that is away is so by the lease that it has not renewed since ([`absence`]);
//! - what is kept for an object ([`provision`]) is counted as used on its disks: no two reservations count on the same room;
//! - a disk that was removed comes back only by [`Command::ReturnDisk`], from the level on that brings this ([`level`]);
//! - an object without a name is the target of a conversion, and goes with it ([`conversion`]);
//! - a record's revision is the index of the command that last changed it.
//!
//! What it must not know: Raft, disks, clocks. Times are in the commands.

pub mod absence;
mod apply;
pub mod balance;
pub mod command;
pub mod conversion;
mod documents;
pub mod forecast;
pub mod leave;
pub mod level;
pub mod load;
pub mod maintenance;
pub mod placement;
pub mod preference;
pub mod provision;
pub mod records;
mod refused;
mod room;

use std::collections::BTreeMap;
use std::sync::Arc;

use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{DiskId, Epoch, HostId, ObjectId, VolumeName};
use serde::{Deserialize, Serialize};

pub use absence::{Absence, Absences};
pub use balance::{Move, Why};
pub use command::{Basis, Command, ConversionStep, Outcome, Refused, SyncChange, TokenRefused};
pub use conversion::{Conversion, Conversions};
pub use forecast::Forecast;
pub use level::{FeatureLevel, RemovedDisks};
pub use load::{Heat, Load, LoadRules, Loads};
pub use maintenance::Departures;
pub use preference::{Preference, Preferences};
pub use provision::{Provision, Provisioning};
pub use records::{
    ChunkRecord, Component, Content, Departure, DiskHealth, DiskRecord, HostRecord, Lock, LockKind,
    MaintenanceMode, ObjectRecord, Policy, Sync, TokenEntry,
};

/// A document of another daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// The index of the command that put it.
    pub revision: u64,
    /// What it says.
    pub content: String,
}

/// All that the cluster has agreed on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The hosts.
    pub hosts: BTreeMap<HostId, HostRecord>,
    /// The disks.
    pub disks: BTreeMap<DiskId, DiskRecord>,
    /// The objects.
    pub objects: BTreeMap<ObjectId, Arc<ObjectRecord>>,
    /// The objects by name.
    pub names: BTreeMap<VolumeName, ObjectId>,
    /// Join tokens that may still be used.
    pub tokens: BTreeMap<[u8; 16], TokenEntry>,
    /// What the other daemons keep here.
    pub documents: BTreeMap<DocumentName, Arc<Document>>,
    /// The index of the last command that changed anything.
    pub revision: u64,
    /// The hosts that are leaving, with all their disks, or are in maintenance.
    pub leaving_hosts: BTreeMap<HostId, Departure>,
    /// The disks that are leaving by themselves.
    pub leaving_disks: BTreeMap<DiskId, Departure>,
    /// The index of the last command that put or deleted a document: those who watch them miss no deletion.
    pub documents_revision: u64,
    /// What is kept for objects.
    pub provisioning: Provisioning,
    /// What all hosts understand.
    pub level: FeatureLevel,
    /// Disks that were removed and not returned since; none below [`FeatureLevel::REMOVED_DISKS`].
    pub removed_disks: RemovedDisks,
    /// Objects that become others; none below [`FeatureLevel::CONVERSIONS`].
    pub conversions: Conversions,
    /// Hosts that are away; none below [`FeatureLevel::ABSENCES`].
    pub absences: Absences,
    /// What volumes prefer; nothing below [`FeatureLevel::PREFERENCES`].
    pub preferences: Preferences,
    /// What disks have to serve; nothing below [`FeatureLevel::LOADS`].
    pub loads: Loads,
}

impl State {
    /// The object of this name.
    pub fn by_name(&self, name: &VolumeName) -> Option<&Arc<ObjectRecord>> {
        self.names.get(name).and_then(|id| self.objects.get(id))
    }

    /// The fault domain that a disk is in.
    pub fn fault_domain(&self, disk: DiskId) -> Option<&str> {
        let host = self.disks.get(&disk)?.host;
        self.hosts.get(&host).map(|h| h.fault_domain.as_str())
    }

    /// The objects that this host owns, with their epochs.
    pub fn locks_of(&self, host: HostId) -> impl Iterator<Item = (ObjectId, Epoch)> {
        self.objects
            .values()
            .filter(move |o| o.lock.is_some_and(|lock| lock.host == host))
            .map(|o| (o.id, o.epoch))
    }

    /// How many extents the components on each disk may come to take.
    pub fn promised_by_disk(&self) -> BTreeMap<DiskId, u64> {
        let mut promised = BTreeMap::new();
        for object in self.objects.values() {
            for (index, chunk) in &object.chunks {
                let extents = u64::from(object.policy.extents_max(*index));
                for component in &chunk.components {
                    *promised.entry(component.disk).or_insert(0) += extents;
                }
            }
        }
        promised
    }

    /// How many components each disk has.
    pub fn components_by_disk(&self) -> BTreeMap<DiskId, u64> {
        let mut count = BTreeMap::new();
        for component in self.objects.values().flat_map(|o| o.chunks.values()).flat_map(|c| &c.components) {
            *count.entry(component.disk).or_insert(0) += 1;
        }
        count
    }
}
