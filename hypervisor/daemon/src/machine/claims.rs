//! What the VMs of this host were promised, and which volumes they use: two that start at the same time must not both be given
//! the last of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferro_protocol::api::vm::{CpuCapacity, MemoryCapacity, VmName, VmmKind};
use ferro_protocol::api::{ApiError, ErrorCode, FaultLine};
use hypervisor_core::admission::{Claim, Room, admit, capacity};
use hypervisor_core::cgroup::{Limits, limits};
use hypervisor_core::spec::Vm;

use crate::host::groups::Group;

#[derive(Debug)]
struct Promised {
    vm: Vm,
    kind: VmmKind,
    claim: Claim,
    group: Option<Group>,
}

/// The promises of this host.
#[derive(Debug, Default)]
pub struct Claims(Mutex<BTreeMap<VmName, Promised>>);

impl Claims {
    fn all(&self) -> MutexGuard<'_, BTreeMap<VmName, Promised>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises a VM what it asks for, if there is so much.
    pub fn admit(&self, room: &Room, host: &str, vm: &Vm, kind: VmmKind) -> Result<(), ApiError> {
        let mut all = self.all();
        for disk in &vm.disks {
            let user = all.iter().find(|(name, other)| {
                **name != vm.name && other.vm.disks.iter().any(|its| its.volume == disk.volume)
            });
            if let Some((user, _)) = user {
                let message = format!("volume {} is open on this host for VM {user}", disk.volume);
                let next = format!("stop that VM (`vmctl stop {user}`), or give this one another volume");
                return Err(ApiError::new(ErrorCode::ObjectInUse, message, next));
            }
        }
        let others = all.iter().filter(|(name, _)| **name != vm.name).map(|(_, promised)| &promised.claim);
        let claim = admit(room, others, vm, kind).map_err(|short| {
            let lines = short.iter().map(ToString::to_string).collect::<Vec<_>>();
            let message = format!("host {host} has no room for VM {}: {}", vm.name, lines.join("; "));
            let next = "stop another VM, ask for less, or start it on another host (`vmctl start --host`)";
            let faults = lines.into_iter().map(|problem| FaultLine {
                kind: "host".to_owned(),
                name: host.to_owned(),
                problem,
            });
            ApiError::new(ErrorCode::NoCapacity, message, next).with_faults(faults.collect())
        })?;
        all.insert(vm.name.clone(), Promised { vm: vm.clone(), kind, claim, group: None });
        Ok(())
    }

    /// Promises a VM that runs already what it has.
    pub fn adopt(&self, vm: &Vm, kind: VmmKind, group: Option<Group>) {
        let claim = Claim::of(vm, kind);
        self.all().insert(vm.name.clone(), Promised { vm: vm.clone(), kind, claim, group });
    }

    /// Says in which group a VM is.
    pub fn set_group(&self, vm: &VmName, group: Option<Group>) {
        if let Some(promised) = self.all().get_mut(vm) {
            promised.group = group;
        }
    }

    /// Takes a promise back.
    pub fn give_back(&self, vm: &VmName) {
        self.all().remove(vm);
    }

    /// What is there, promised and free.
    pub fn capacity(&self, room: &Room) -> (CpuCapacity, MemoryCapacity) {
        capacity(room, self.all().values().map(|promised| &promised.claim))
    }

    /// What each VM's group is to be set to now.
    pub fn limits(&self, room: &Room) -> BTreeMap<VmName, (Option<Group>, Limits)> {
        let all = self.all();
        let vms: Vec<(&Vm, VmmKind)> = all.values().map(|promised| (&promised.vm, promised.kind)).collect();
        let cpus = u32::try_from(room.cpus.len()).unwrap_or(u32::MAX);
        let limits = limits(&vms, cpus, room.memory_bytes.saturating_sub(room.kept_bytes));
        let groups = all.iter().map(|(name, promised)| (name.clone(), promised.group.clone()));
        groups.zip(limits).map(|((name, group), limits)| (name, (group, limits))).collect()
    }
}
