//! What the cluster directory holds of VMs, as documents:
//!
//! - `vm/spec/<name>`: what a VM is made of ([`SpecDocument`]); its revision is the VM's;
//! - `vm/run/<name>`: which host has it, and what is wanted of it ([`RunDocument`]);
//! - `vm/host/<id>`: what a host says of its VMs and of what it has free ([`HostDocument`]).
//!
//! Each begins with its format, and one of a later format is refused, not guessed.
//!
//! A wish travels by `vm/run`: whoever is asked writes it there with the next number, the VM's host follows it and says in
//! its own document how far it has come.

use std::collections::BTreeMap;

use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::{HostCapacity, VmName, VmPower, VmSpec, VmStatus};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{Epoch, HostId};
use ferro_protocol::net::NetName;
use serde::{Deserialize, Serialize};

/// What all of them begin with.
pub const PREFIX: &str = "vm/";
const SPEC: &str = "vm/spec/";
const RUN: &str = "vm/run/";
const HOST: &str = "vm/host/";

/// The format of the documents here.
///
/// - 1: the first.
pub const FORMAT: u32 = 1;

/// What a VM is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpecDocument {
    /// [`FORMAT`].
    pub format: u32,
    /// What it says.
    pub spec: VmSpec,
}

/// What is to happen to a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// It is to run.
    Start,
    /// Its guest is to switch off.
    Stop {
        /// Within so many seconds.
        timeout_s: u32,
        /// Then it is killed.
        force: bool,
    },
    /// It is to end now.
    Kill,
    /// It is to begin anew.
    Reset,
    /// It is to stand still.
    Pause,
    /// It is to go on.
    Resume,
}

/// Which host has a VM, and what is wanted of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunDocument {
    /// [`FORMAT`].
    pub format: u32,
    /// The host.
    pub host: HostId,
    /// The epoch of its first disk's lock, once that is taken; none of a VM without disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// What it is meant to do.
    pub wanted: VmPower,
    /// How often it was begun.
    pub incarnation: u64,
    /// Counts the orders: a host carries out one that is higher than the last it has seen, and none twice.
    pub order: u64,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<Verb>,
    /// The switch ports that were made for it. Whoever has it takes them away at its end, also after a host that could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetName>,
}

/// What a host says of one VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostVm {
    /// How it is.
    pub status: VmStatus,
    /// The last order of `vm/run` that came to its end.
    #[serde(default)]
    pub order: u64,
    /// Why that was not done, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ApiError>,
}

/// What a host says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostDocument {
    /// [`FORMAT`].
    pub format: u32,
    /// Goes up as long as its daemon lives.
    pub beat: u64,
    /// What it has.
    pub capacity: HostCapacity,
    /// Its VMs: those that it has, and those that failed or ended there and are nobody else's since.
    pub vms: BTreeMap<VmName, HostVm>,
}

fn name(text: String) -> DocumentName {
    // VMs' names and hosts' ids are no longer than a part of a document's name, and of its letters.
    text.try_into().expect("a name of names is a document's")
}

/// Where a VM's specification stands.
pub fn spec_name(vm: &VmName) -> DocumentName {
    name(format!("{SPEC}{vm}"))
}

/// Where it stands whose a VM is.
pub fn run_name(vm: &VmName) -> DocumentName {
    name(format!("{RUN}{vm}"))
}

/// Where a host's words stand.
pub fn host_name(host: HostId) -> DocumentName {
    name(format!("{HOST}{host}"))
}

/// What a document is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// What a VM is made of.
    Spec(VmName),
    /// Whose it is.
    Run(VmName),
    /// A host.
    Host(HostId),
}

/// What the document of this name is about; none of ours has another name.
pub fn subject(name: &DocumentName) -> Option<Subject> {
    let name = name.as_str();
    if let Some(vm) = name.strip_prefix(SPEC) {
        return vm.parse().ok().map(Subject::Spec);
    }
    if let Some(vm) = name.strip_prefix(RUN) {
        return vm.parse().ok().map(Subject::Run);
    }
    name.strip_prefix(HOST)?.parse().ok().map(Subject::Host)
}
