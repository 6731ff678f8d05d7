//! What Prometheus reads: how this host and its VMs are, in `OpenMetrics` text.
//!
//! What it must not know: how anything is found out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

use ferro_protocol::api::HealthLevel;
use ferro_protocol::api::vm::{HypervisorStatus, VmName, VmState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::machine::Snapshot;
use crate::machine::process::usage;

/// Microseconds on a clock that only goes forward.
pub(crate) fn now_us() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(ORIGIN.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX)
}

type Row = (Vec<(&'static str, String)>, u64);

/// All metrics of this host.
pub(crate) fn render(
    status: &HypervisorStatus,
    vms: &BTreeMap<VmName, Snapshot>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("hypervisord");
    registry.register_collector(Box::new(Scrape { status: status.clone(), vms: vms.clone() }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    status: HypervisorStatus,
    vms: BTreeMap<VmName, Snapshot>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (out, status) = (&mut encoder, &self.status);
        let health = match status.health.level {
            HealthLevel::Ok => 0,
            HealthLevel::Warning => 1,
            HealthLevel::Critical => 2,
        };
        let one = |value: u64| vec![(Vec::new(), value)];
        gauge(out, "health", "0 well, 1 with a warning, 2 critical", one(health))?;
        gauge(out, "directory", "Whether the cluster directory answers", one(u64::from(status.directory)))?;
        if let Some(own) = status.hosts.iter().find(|host| host.capacity.host == status.host) {
            let (cpu, memory) = (own.capacity.cpu, own.capacity.memory);
            gauge(out, "memory_usable_bytes", "Memory for VMs", one(memory.usable_bytes))?;
            gauge(out, "memory_granted_bytes", "Memory that VMs were given", one(memory.granted_bytes))?;
            gauge(out, "memory_reserved_bytes", "Memory that is reserved", one(memory.reserved_bytes))?;
            gauge(out, "memory_free_bytes", "Memory for the next VM", one(memory.free_bytes))?;
            gauge(out, "cpus", "Processors for VMs", one(u64::from(cpu.count)))?;
            gauge(out, "virtual_cpus", "Virtual processors that run", one(u64::from(cpu.virtual_count)))?;
            gauge(
                out,
                "cpu_reserved_percent",
                "Percent of a processor that are reserved",
                one(u64::from(cpu.reserved_percent)),
            )?;
        }
        let rows = |value: &dyn Fn(&Snapshot) -> Option<u64>| -> Vec<Row> {
            let labels = |name: &VmName| vec![("vm", name.to_string())];
            self.vms.iter().filter_map(|(name, vm)| Some((labels(name), value(vm)?))).collect()
        };
        let up = rows(&|vm| Some(u64::from(vm.status.state == VmState::Running)));
        gauge(out, "vm_up", "Whether a VM of this host runs", up)?;
        let failed = rows(&|vm| Some(u64::from(vm.status.state == VmState::Failed)));
        gauge(out, "vm_failed", "Whether a VM of this host has failed", failed)?;
        let restarts = rows(&|vm| Some(u64::from(vm.status.restarts)));
        gauge(out, "vm_restarts", "Restarts by itself within the last hour", restarts)?;
        let process = |vm: &Snapshot| usage(vm.status.process.as_ref()?.pid);
        counter(out, "vm_cpu_time_us", "Processor time of a VM's vmm", rows(&|vm| Some(process(vm)?.0)))?;
        gauge(out, "vm_resident_bytes", "Memory of a VM's vmm", rows(&|vm| Some(process(vm)?.1)))
    }
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Vec<Row>) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Vec<Row>) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
