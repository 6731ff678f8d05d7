//! A hypervisor without VMs, that holds the API's handlers to what they promise.

use async_trait::async_trait;
use ferro_protocol::api::vm::spec::{DiskSpec, NicSpec};
use ferro_protocol::api::vm::{
    ConsoleInfo, HostCapacity, HypervisorStatus, LOG_LINES_MAX, VmInfo, VmLog, VmName, VmPower, VmSpec,
    VmStats, VmStatus,
};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_protocol::ids::VolumeName;
use hypervisor_core::documents::Verb;
use hypervisord::api::control::{ControlPlane, Result};

/// It has no VM, and can make any.
pub(super) struct StandIn;

fn nothing<T>() -> Result<T> {
    Err(ApiError::new(ErrorCode::VmNotFound, "there is no such VM", "make it"))
}

fn made(spec: VmSpec) -> Result<VmInfo> {
    let (spec, vm) = super::checked(spec).map_err(|faults| {
        ApiError::new(ErrorCode::InvalidVm, "it can't be like this", "change it").with_faults(faults)
    })?;
    let status = VmStatus::never_started();
    let (host, host_name) = (None, None);
    Ok(VmInfo {
        name: vm.name,
        spec,
        revision: 1,
        wanted: VmPower::Off,
        host,
        host_name,
        here: false,
        status,
    })
}

fn one(name: &VmName) -> VmSpec {
    let mut spec = VmSpec::named(name.as_str(), 1 << 30);
    spec.disks.push(DiskSpec { volume: "root".into(), read_only: false });
    spec
}

#[async_trait]
impl ControlPlane for StandIn {
    async fn status(&self) -> Result<HypervisorStatus> {
        nothing()
    }
    async fn host(&self) -> Result<HostCapacity> {
        nothing()
    }
    async fn vms(&self) -> Result<Vec<VmInfo>> {
        Ok(Vec::new())
    }
    async fn vm(&self, name: &VmName) -> Result<VmInfo> {
        made(one(name))
    }
    async fn create(&self, spec: VmSpec) -> Result<VmInfo> {
        made(spec)
    }
    async fn replace(&self, name: &VmName, spec: VmSpec, _: Option<u64>) -> Result<VmInfo> {
        assert_eq!(spec.name, name.as_str(), "a name stays");
        made(spec)
    }
    async fn delete(&self, _: &VmName) -> Result<()> {
        Ok(())
    }
    async fn start(&self, _: &VmName, _: Option<String>) -> Result<VmInfo> {
        nothing()
    }
    async fn order(&self, _: &VmName, verb: Verb) -> Result<VmInfo> {
        if let Verb::Stop { timeout_s, .. } = verb {
            assert!(timeout_s <= 3600);
        }
        nothing()
    }
    async fn attach_disk(&self, name: &VmName, disk: DiskSpec) -> Result<VmInfo> {
        let mut spec = one(name);
        spec.disks.push(disk);
        made(spec)
    }
    async fn detach_disk(&self, _: &VmName, _: &VolumeName) -> Result<VmInfo> {
        nothing()
    }
    async fn attach_nic(&self, name: &VmName, nic: NicSpec) -> Result<VmInfo> {
        let mut spec = one(name);
        spec.nics.push(nic);
        made(spec)
    }
    async fn detach_nic(&self, _: &VmName, _: usize) -> Result<VmInfo> {
        nothing()
    }
    async fn stats(&self, _: &VmName) -> Result<VmStats> {
        nothing()
    }
    async fn log(&self, _: &VmName, _: bool, lines: u32) -> Result<VmLog> {
        assert!((1..=LOG_LINES_MAX).contains(&lines));
        Ok(VmLog { text: String::new(), cut: false })
    }
    async fn console(&self, _: &VmName) -> Result<ConsoleInfo> {
        nothing()
    }
    async fn metrics(&self) -> Result<String> {
        Ok(String::new())
    }
}
