//! What a specification names: volumes and port groups. They are looked for when it is written down, so that a slip is seen at once and
//! not at the VM's first start.
//!
//! What can't be looked at now (a daemon does not answer) is let through, and so is what the specification named before: a start
//! looks again, because both may go at any time.

use ferro_protocol::api::switch::spec::PortSpec;
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_protocol::ids::VolumeName;
use ferro_protocol::net::NetName;
use hypervisor_core::spec::{Nic, Vm};

use super::Services;

/// The port that a card is to have.
pub(super) fn port_of(nic: &Nic) -> PortSpec {
    PortSpec {
        name: nic.port.to_string(),
        group: nic.group.to_string(),
        mac: nic.mac.to_string(),
        ..PortSpec::default()
    }
}

/// The commonest mistake gets its own words.
pub(super) fn missing_group(error: ApiError, nic: &Nic) -> ApiError {
    let missing = error.faults.iter().any(|fault| fault.problem.contains(nic.group.as_str()))
        || error.message.contains(&format!("port group {:?}", nic.group.as_str()));
    if missing && matches!(error.code, ErrorCode::InvalidNetwork | ErrorCode::GroupNotFound) {
        return ApiError::new(
            ErrorCode::GroupNotFound,
            format!("there is no port group {}, which the VM's network card is for", nic.group),
            format!("make it (`vswctl portgroup create {}`), or give the card another one", nic.group),
        )
        .with_faults(error.faults);
    }
    error
}

impl Services {
    /// Refuses a specification that names a volume or a port group that is surely not there, unless it named it `before`.
    pub async fn check_named(&self, vm: &Vm, before: Option<&Vm>) -> Result<(), ApiError> {
        let had_volume =
            |name: &VolumeName| before.is_some_and(|vm| vm.disks.iter().any(|disk| disk.volume == *name));
        for volume in vm.disks.iter().map(|disk| &disk.volume).filter(|name| !had_volume(name)) {
            match self.vsand.volume(volume).await {
                Err(error) if error.code == ErrorCode::VolumeNotFound => return Err(error),
                Err(error) => tracing::debug!(%volume, %error, "a VM's volume can't be looked at now"),
                Ok(_) => {}
            }
        }
        let had_group =
            |name: &NetName| before.is_some_and(|vm| vm.nics.iter().any(|nic| nic.group == *name));
        for nic in vm.nics.iter().filter(|nic| !had_group(&nic.group)) {
            match self.vswitchd.could_make(port_of(nic)).await.map_err(|error| missing_group(error, nic)) {
                Err(error) if error.code == ErrorCode::GroupNotFound => return Err(error),
                // Among others, that the port is there: then it is used.
                Err(error) => {
                    tracing::debug!(group = %nic.group, %error, "a VM's port could not be made now")
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}
