//! What the API asks of the daemon: one method a verb.
//!
//! The handlers have checked everything that can be checked without knowing the cluster: names are names, numbers within
//! their bounds. What depends on state is the implementation's to answer, with an [`ApiError`] that names the thing and the
//! next step. A method that fails leaves nothing half-made behind.
//!
//! A client may go away in the middle of a call and the future is then dropped at its next `await`: what must not be left
//! half-done is done by a task of its own.

use async_trait::async_trait;
use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::spec::{DiskSpec, NicSpec};
use ferro_protocol::api::vm::{
    ConsoleInfo, HostCapacity, HypervisorStatus, VmInfo, VmLog, VmName, VmSpec, VmStats,
};
use ferro_protocol::ids::VolumeName;
use hypervisor_core::documents::Verb;

/// An answer or why there is none.
pub type Result<T> = std::result::Result<T, ApiError>;

/// What the API asks of the daemon.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// The hypervisor at a glance. Answers without a directory too.
    async fn status(&self) -> Result<HypervisorStatus>;
    /// What this host has.
    async fn host(&self) -> Result<HostCapacity>;
    /// All VMs of the cluster, by name.
    async fn vms(&self) -> Result<Vec<VmInfo>>;
    /// One VM.
    async fn vm(&self, name: &VmName) -> Result<VmInfo>;
    /// Make a VM; what its specification leaves open is chosen.
    async fn create(&self, spec: VmSpec) -> Result<VmInfo>;
    /// Replace the specification of a VM that is off: that with revision `basis`, or whatever is there.
    async fn replace(&self, name: &VmName, spec: VmSpec, basis: Option<u64>) -> Result<VmInfo>;
    /// Delete a VM that is off. Its volumes stay.
    async fn delete(&self, name: &VmName) -> Result<()>;
    /// Start a VM on the host of this name, or here. Done when it runs.
    async fn start(&self, name: &VmName, host: Option<String>) -> Result<VmInfo>;
    /// Do something else with a VM, wherever it is. Done when it is so.
    async fn order(&self, name: &VmName, verb: Verb) -> Result<VmInfo>;
    /// Give a VM that is off one more disk.
    async fn attach_disk(&self, name: &VmName, disk: DiskSpec) -> Result<VmInfo>;
    /// Take a disk from a VM that is off.
    async fn detach_disk(&self, name: &VmName, volume: &VolumeName) -> Result<VmInfo>;
    /// Give a VM that is off one more network card.
    async fn attach_nic(&self, name: &VmName, nic: NicSpec) -> Result<VmInfo>;
    /// Take a network card, by its place from 0, from a VM that is off.
    async fn detach_nic(&self, name: &VmName, index: usize) -> Result<VmInfo>;
    /// What a VM of this host uses.
    async fn stats(&self, name: &VmName) -> Result<VmStats>;
    /// The last lines of the console's log of a VM of this host; of the run that failed before, if `previous`.
    async fn log(&self, name: &VmName, previous: bool, lines: u32) -> Result<VmLog>;
    /// Where the console of a VM of this host is.
    async fn console(&self, name: &VmName) -> Result<ConsoleInfo>;
    /// This host's counters now, as Prometheus reads them (`OpenMetrics` text).
    async fn metrics(&self) -> Result<String>;
}
