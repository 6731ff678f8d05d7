//! VMs as they are: `list` and `show`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use ferro_protocol::api::format_size;
use ferro_protocol::api::vm::spec::{BootSpec, DiskSpec, RestartSpec, VmmSpec};
use ferro_protocol::api::vm::{
    ExitReport, VmInfo, VmList, VmName, VmPower, VmSpec, VmState, VmStatus, VmmKind,
};

use super::Context;
use crate::failure::Result;
use crate::text::{Cell, Paint, Style, Table, duration, facts, printable};

pub(super) async fn list(context: &Context, host: Option<&str>) -> Result<()> {
    let mut list: VmList = context.client.get("/v1/vms").await?;
    if let Some(host) = host {
        let is_there = |vm: &VmInfo| {
            vm.host_name.as_deref() == Some(host) || vm.host.is_some_and(|id| id.to_string() == host)
        };
        list.vms.retain(is_there);
    }
    let wide = context.terminal.is_wide();
    context.terminal.answer(&list, |list, paint| vm_table(&list.vms, wide).render(paint, 0))
}

pub(super) fn state_style(state: VmState) -> Style {
    match state {
        VmState::Running => Style::Good,
        VmState::Off => Style::Plain,
        VmState::Starting | VmState::Paused | VmState::Stopping => Style::Warn,
        VmState::Crashed | VmState::Failed | VmState::Unknown => Style::Bad,
    }
}

/// The VMs.
pub(super) fn vm_table(vms: &[VmInfo], wide: bool) -> Table {
    let mut head = vec!["NAME", "STATE", "HOST", ">CPUS", ">MEMORY", "FOR", "DISKS", "NETWORKS"];
    if wide {
        head.extend(["RUN BY", ">PID", ">EPOCH", ">RESTARTS", "DETAIL"]);
    }
    let mut table = Table::new(&head);
    let now = now_unix_s();
    for vm in vms {
        let status = &vm.status;
        let mut row: Vec<Cell> = vec![
            vm.name.as_str().into(),
            Cell::styled(state_style(status.state), status.state.as_str()),
            host_name(vm).into(),
            vm.spec.cpus.to_string().into(),
            format_size(vm.spec.memory_bytes).into(),
            since(status).map_or("-".to_owned(), |at| duration(now.saturating_sub(at))).into(),
            joined(vm.spec.disks.iter().map(disk_word)).into(),
            joined(vm.spec.nics.iter().map(|nic| nic.portgroup.clone())).into(),
        ];
        if wide {
            row.push(status.process.as_ref().map_or("-", |it| kind_name(it.kind)).into());
            row.push(status.process.as_ref().map_or("-".to_owned(), |it| it.pid.to_string()).into());
            row.push(status.epoch.map_or("-".to_owned(), |epoch| epoch.0.to_string()).into());
            row.push(status.restarts.to_string().into());
            row.push(status.detail.as_deref().unwrap_or("-").into());
        }
        table.row(row);
    }
    table
}

/// Since when it has been in its state. A VM that was never started has been off since nobody knows when.
fn since(status: &VmStatus) -> Option<u64> {
    (status.since_unix_s > 0).then_some(status.since_unix_s)
}

pub(super) fn host_name(vm: &VmInfo) -> String {
    vm.host_name.clone().or_else(|| vm.host.map(|id| id.to_string())).unwrap_or_else(|| "-".to_owned())
}

fn joined(words: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = words.collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}

fn disk_word(disk: &DiskSpec) -> String {
    if disk.read_only { format!("{} (read-only)", disk.volume) } else { disk.volume.clone() }
}

pub(super) fn kind_name(kind: VmmKind) -> &'static str {
    match kind {
        VmmKind::Kvm => "vmm (KVM)",
        VmmKind::Qemu => "QEMU",
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) async fn show(context: &Context, name: &VmName) -> Result<()> {
    let vm = context.vm(name).await?;
    context.terminal.answer(&vm, one_vm)
}

fn one_vm(vm: &VmInfo, paint: Paint) -> String {
    let (status, spec) = (&vm.status, &vm.spec);
    let ago = |at: u64| duration(now_unix_s().saturating_sub(at));
    let state = paint.text(state_style(status.state), status.state.as_str());
    let wanted = match vm.wanted {
        VmPower::Off => "to be off",
        VmPower::On => "to run",
        VmPower::Paused => "to be paused",
    };
    let here = if vm.here { " (this host)" } else { "" };
    let mut lines = vec![
        ("name", vm.name.to_string()),
        (
            "state",
            format!(
                "{state}{}, meant {wanted}",
                since(status).map_or(String::new(), |at| format!(" for {}", ago(at)))
            ),
        ),
    ];
    if let Some(detail) = &status.detail {
        lines.push(("detail", paint.text(Style::Warn, &printable(detail))));
    }
    lines.push(("host", format!("{}{here}", printable(&host_name(vm)))));
    if let Some(process) = &status.process {
        let why = process.why.as_ref().map_or(String::new(), |why| format!(": {}", printable(why)));
        lines.push(("run by", format!("{}, process {}{why}", kind_name(process.kind), process.pid)));
    } else {
        lines.push(("run by", vmm_word(spec.vmm).to_owned()));
    }
    lines.push(("processors", processors(spec)));
    lines.push(("memory", memory(spec)));
    lines.push(("boots", boot(&spec.boot)));
    let restart = match spec.restart {
        RestartSpec::Never => "never",
        RestartSpec::OnFailure => "on failure",
    };
    let often = match status.restarts {
        0 => String::new(),
        1 => ", once within the last hour".to_owned(),
        times => format!(", {times} times within the last hour"),
    };
    lines.push(("restarted", format!("{restart}{often}")));
    if let Some(exit) = &status.last_exit {
        lines.push(("last end", last_end(exit, &ago(exit.at_unix_s), vm.name.as_str())));
    }
    if let Some(epoch) = status.epoch {
        lines.push(("epoch", epoch.0.to_string()));
    }
    facts(&lines) + &devices(spec, paint)
}

fn last_end(exit: &ExitReport, ago: &str, name: &str) -> String {
    let log = if exit.log_kept {
        format!(" (`vmctl logs {name} --previous` has its console)")
    } else {
        String::new()
    };
    format!("{ago} ago: {}{log}", printable(&exit.detail))
}

fn vmm_word(vmm: VmmSpec) -> &'static str {
    match vmm {
        VmmSpec::Auto => "vmm where KVM runs stock kernels, else QEMU",
        VmmSpec::Kvm => "vmm (KVM)",
        VmmSpec::Qemu => "QEMU",
    }
}

fn processors(spec: &VmSpec) -> String {
    let cpu = &spec.cpu;
    let mut text = format!("{}, {} shares", spec.cpus, cpu.shares);
    if cpu.reservation_percent > 0 {
        let _ = write!(text, ", {}% reserved", cpu.reservation_percent);
    }
    if let Some(limit) = cpu.limit_percent {
        let _ = write!(text, ", at most {limit}%");
    }
    if let Some(affinity) = &cpu.affinity {
        let _ = write!(text, ", on the host's {}", printable(affinity));
    }
    text
}

fn memory(spec: &VmSpec) -> String {
    let memory = &spec.memory;
    let mut text = format!("{}, {} shares", format_size(spec.memory_bytes), memory.shares);
    if memory.reservation_bytes > 0 {
        let _ = write!(text, ", {} reserved", format_size(memory.reservation_bytes));
    }
    if let Some(limit) = memory.limit_bytes {
        let _ = write!(text, ", at most {}", format_size(limit));
    }
    if let Some(pages) = memory.huge_pages {
        let _ = write!(text, ", in pages of {}iB", pages.as_str());
    }
    text += if memory.balloon { ", with a balloon" } else { ", without a balloon" };
    text
}

fn boot(boot: &BootSpec) -> String {
    match boot {
        BootSpec::Volume(it) => {
            let entry = it.entry.as_ref().map_or(String::new(), |entry| format!(", entry {entry:?}"));
            let more =
                it.cmdline_append.as_ref().map_or(String::new(), |more| format!(", with {more:?} added"));
            printable(&format!("what its first volume brings{entry}{more}"))
        }
        BootSpec::Files(it) => {
            let initrd = it.initrd.as_ref().map_or(String::new(), |path| format!(", {path}"));
            printable(&format!("{}{initrd}, {:?}", it.kernel, it.cmdline))
        }
    }
}

fn devices(spec: &VmSpec, paint: Paint) -> String {
    let mut out = String::new();
    if !spec.disks.is_empty() {
        let mut table = Table::new(&[">DISK", "VOLUME", "ACCESS"]);
        for (at, disk) in spec.disks.iter().enumerate() {
            let access = if disk.read_only { "read-only" } else { "read, write" };
            table.row(vec![at.to_string().into(), (&disk.volume).into(), access.into()]);
        }
        let _ = write!(out, "\n{}", table.render(paint, 0));
    }
    if !spec.nics.is_empty() {
        let mut table = Table::new(&[">NIC", "PORT GROUP", "PORT", "MAC"]);
        for (at, nic) in spec.nics.iter().enumerate() {
            let word = |it: &Option<String>| -> Cell { it.as_deref().unwrap_or("-").into() };
            table.row(vec![at.to_string().into(), (&nic.portgroup).into(), word(&nic.port), word(&nic.mac)]);
        }
        let _ = write!(out, "\n{}", table.render(paint, 0));
    }
    out
}
