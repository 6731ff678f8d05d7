//! What this host has of a VM, written down before it is done: a daemon that ends at any instant finds it here and either goes on
//! with it or gives it back.
//!
//! ```text
//!   volume "root" held ──► port "web1.0" made ──► attached ──► group ──► process      each written before its step
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::{ExitReport, VmName, VmPower, VmSpec, VmmKind};
use ferro_protocol::ids::{Epoch, VolumeName};
use ferro_protocol::net::NetName;
use ferro_transport::stored::{self, Kind, StoredError};
use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use crate::host::groups::Group;

const KIND: Kind = Kind { program: "hypervisord", name: "vm", version: 1 };
/// What the names of these files end with.
const ENDING: &str = ".vm";

/// A volume whose lock this VM has, or was about to take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldVolume {
    /// Which.
    pub name: VolumeName,
    /// Its socket, once it is open.
    pub socket: Option<String>,
    /// How many queues it has.
    pub queues: u16,
    /// The guest may only read.
    pub read_only: bool,
}

/// A switch port that this VM has, or was about to take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldPort {
    /// Which.
    pub name: NetName,
    /// It was made for this VM and goes with it.
    pub made: bool,
    /// Its socket, once it is attached.
    pub socket: Option<String>,
    /// Bytes of its largest packet.
    pub mtu: u32,
}

/// The processes of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Processes {
    /// The one that writes down how the other ends.
    pub keeper: ProcessId,
    /// The vmm.
    pub vmm: ProcessId,
}

/// Everything that is to be given back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// Volumes, in the order that they were opened in.
    pub volumes: Vec<HeldVolume>,
    /// Ports, in the order that they were attached in.
    pub ports: Vec<HeldPort>,
    /// The control group.
    pub group: Option<Group>,
    /// The folder with the sockets.
    pub folder: bool,
    /// The processes.
    pub processes: Option<Processes>,
}

impl Held {
    /// Whether there is nothing to be given back.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What this host has of a VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What the present run was started with.
    pub spec: VmSpec,
    /// What runs it.
    pub kind: VmmKind,
    /// Why that one.
    pub kind_why: Option<String>,
    /// What it is meant to do.
    pub wanted: VmPower,
    /// Whether the present run had begun.
    pub launched: bool,
    /// Which run it is.
    pub incarnation: u64,
    /// The epoch of its first disk's lock.
    pub epoch: Option<Epoch>,
    /// What it has.
    pub held: Held,
    /// Why it failed, if it did.
    pub failure: Option<ApiError>,
    /// How it last ended.
    pub last_exit: Option<ExitReport>,
    /// When it was started again by itself: seconds since 1970.
    pub restarts_unix_s: Vec<u64>,
    /// The last order out of the directory that came to its end.
    pub order: u64,
    /// Why that was not done, if it was not.
    pub refused: Option<ApiError>,
}

impl Record {
    /// Of a VM that was never here.
    pub fn new(spec: VmSpec) -> Self {
        Self {
            spec,
            kind: VmmKind::Kvm,
            kind_why: None,
            wanted: VmPower::Off,
            launched: false,
            incarnation: 0,
            epoch: None,
            held: Held::default(),
            failure: None,
            last_exit: None,
            restarts_unix_s: Vec::new(),
            order: 0,
            refused: None,
        }
    }

    /// Writes it down.
    pub fn save(&self, state_dir: &Path, name: &VmName) -> Result<(), StoredError> {
        stored::save(&path(state_dir, name), KIND, self)
    }
}

fn path(state_dir: &Path, name: &VmName) -> PathBuf {
    state_dir.join(format!("{name}{ENDING}"))
}

/// Forgets a VM.
pub fn remove(state_dir: &Path, name: &VmName) -> std::io::Result<()> {
    match std::fs::remove_file(path(state_dir, name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All that was written down. One that is damaged is reported, and its VM is not touched.
pub fn load_all(state_dir: &Path) -> std::io::Result<BTreeMap<VmName, Record>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(state_dir)? {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|name| name.strip_suffix(ENDING)?.parse::<VmName>().ok());
        let Some(name) = name else { continue };
        match stored::load(&path(state_dir, &name), KIND) {
            Ok(Some(record)) => {
                all.insert(name, record);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(vm = %name, %error, "what was known of a VM can't be used: if it runs, nobody looks after it");
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let name: VmName = "web.1".parse().unwrap();
        let mut record = Record::new(VmSpec::named("web.1", 16 << 20));
        record.held.ports.push(HeldPort { name: "p".parse().unwrap(), made: true, socket: None, mtu: 1500 });
        record.save(dir.path(), &name).unwrap();
        assert_eq!(load_all(dir.path()).unwrap(), BTreeMap::from([(name.clone(), record)]));
        std::fs::write(dir.path().join("other.vm"), "junk").unwrap();
        assert_eq!(load_all(dir.path()).unwrap().len(), 1);
        remove(dir.path(), &name).unwrap();
        remove(dir.path(), &name).unwrap();
        assert!(load_all(dir.path()).unwrap().is_empty());
    }
}
