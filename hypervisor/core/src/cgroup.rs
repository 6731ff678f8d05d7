//! Shares, reservations and limits as values of control groups (Linux, `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! cgroup v2 has weights and maxima of processor time, and no minimum. But the VMs' groups are siblings, so a minimum is a
//! matter of the right weights: what a VM is entitled to is its reservation and, of what nobody reserved, a part by its
//! shares; weights in that proportion give each at least its reservation whenever all want everything. They are computed anew
//! whenever a VM comes or goes. Memory is the same with `memory.low`, below which a group is reclaimed from only when nothing
//! else is left, and the reservation itself is `memory.min`, which is never reclaimed.
//!
//! What it must not know: where groups are, and who writes to them.

use ferro_protocol::api::vm::VmmKind;

use crate::admission::overhead_bytes;
use crate::cpus::CpuSet;
use crate::spec::Vm;

/// `cpu.max`'s period, in microseconds.
const PERIOD_US: u64 = 100_000;
/// The bounds of `cpu.weight`.
const WEIGHT: (u64, u64) = (1, 10_000);

/// What one VM's group is set to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: u64,
    /// `cpu.max`: percent of one processor.
    pub cpu_max_percent: Option<u32>,
    /// `cpuset.cpus`.
    pub cpus: Option<CpuSet>,
    /// `memory.min`, in bytes.
    pub memory_min: u64,
    /// `memory.low`, in bytes.
    pub memory_low: u64,
    /// `memory.max`, in bytes.
    pub memory_max: Option<u64>,
}

/// What all VMs of a host are set to, in their order.
pub fn limits(vms: &[(&Vm, VmmKind)], cpus: u32, usable_bytes: u64) -> Vec<Limits> {
    let weights = weights(vms, cpus);
    let low = protections(vms, usable_bytes);
    let each = vms.iter().zip(weights).zip(low);
    each.map(|(((vm, kind), cpu_weight), memory_low)| {
        let overhead = overhead_bytes(*kind);
        Limits {
            cpu_weight,
            cpu_max_percent: vm.cpu.limit_percent,
            cpus: vm.cpu.affinity.as_ref().map(|affinity| affinity.all()),
            memory_min: if vm.memory.reservation_bytes == 0 {
                0
            } else {
                vm.memory.reservation_bytes.saturating_add(overhead)
            },
            memory_low,
            memory_max: vm.memory.limit_bytes.map(|limit| limit.saturating_add(overhead)),
        }
    })
    .collect()
}

/// What each is entitled to: its reservation, and its part by shares of what is left of `all`.
fn entitled(parts: &[(u64, u64)], all: u64) -> Vec<u128> {
    let reserved: u128 = parts.iter().map(|(reserved, _)| u128::from(*reserved)).sum();
    let shares: u128 = parts.iter().map(|(_, shares)| u128::from(*shares)).sum();
    let left = u128::from(all).saturating_sub(reserved);
    parts
        .iter()
        .map(|(reserved, own)| u128::from(*reserved) + left * u128::from(*own) / shares.max(1))
        .collect()
}

fn weights(vms: &[(&Vm, VmmKind)], cpus: u32) -> Vec<u64> {
    // In thousandths of a percent, so that small parts of many do not vanish.
    let parts: Vec<(u64, u64)> = vms
        .iter()
        .map(|(vm, _)| (u64::from(vm.cpu.reservation_percent) * 1_000, u64::from(vm.cpu.shares)))
        .collect();
    let entitled = entitled(&parts, u64::from(cpus) * 100_000);
    let most = entitled.iter().copied().max().unwrap_or(1).max(1);
    let scaled = entitled.iter().map(|part| part * u128::from(WEIGHT.1) / most);
    scaled.map(|weight| u64::try_from(weight).unwrap_or(WEIGHT.1).clamp(WEIGHT.0, WEIGHT.1)).collect()
}

fn protections(vms: &[(&Vm, VmmKind)], usable_bytes: u64) -> Vec<u64> {
    let parts: Vec<(u64, u64)> =
        vms.iter().map(|(vm, _)| (vm.memory.reservation_bytes, u64::from(vm.memory.shares))).collect();
    let whole = vms.iter().map(|(vm, _)| vm.memory.limit_bytes.unwrap_or(vm.memory_bytes));
    let entitled = entitled(&parts, usable_bytes);
    entitled
        .into_iter()
        .zip(whole)
        .map(|(part, whole)| u64::try_from(part).unwrap_or(u64::MAX).min(whole))
        .collect()
}

impl Limits {
    /// The files of a group and what is written to each.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let max = |max: Option<u64>| max.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        let quota = self.cpu_max_percent.map(|percent| u64::from(percent) * PERIOD_US / 100);
        vec![
            ("cpu.weight", self.cpu_weight.to_string()),
            ("cpu.max", format!("{} {PERIOD_US}", max(quota))),
            ("cpuset.cpus", self.cpus.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("memory.min", self.memory_min.to_string()),
            ("memory.low", self.memory_low.to_string()),
            ("memory.max", max(self.memory_max)),
        ]
    }

    /// The same as properties of a systemd scope (systemd.resource-control(5)).
    pub fn properties(&self) -> Vec<String> {
        let infinite = |value: Option<String>| value.unwrap_or_else(|| "infinity".to_owned());
        let quota = self.cpu_max_percent.map(|percent| format!("{percent}%")).unwrap_or_default();
        vec![
            format!("CPUWeight={}", self.cpu_weight),
            format!("CPUQuota={quota}"),
            format!("AllowedCPUs={}", self.cpus.as_ref().map(ToString::to_string).unwrap_or_default()),
            format!("MemoryMin={}", self.memory_min),
            format!("MemoryLow={}", self.memory_low),
            format!("MemoryMax={}", infinite(self.memory_max.map(|bytes| bytes.to_string()))),
        ]
    }
}
