//! `host` and `status`.

use std::fmt::Write as _;

use ferro_protocol::api::format_size;
use ferro_protocol::api::vm::{HostCapacity, HypervisorHost, HypervisorStatus};

use super::Context;
use crate::common;
use crate::failure::Result;
use crate::terminal::WatchOptions;
use crate::text::{Cell, Paint, Style, Table, count, duration, facts, health_lines, printable};

pub(super) async fn host(context: &Context) -> Result<()> {
    let host: HostCapacity = context.client.get("/v1/host").await?;
    context.terminal.answer(&host, capacity)
}

fn capacity(host: &HostCapacity, paint: Paint) -> String {
    let (cpu, memory) = (&host.cpu, &host.memory);
    let can =
        |yes: bool| paint.text(if yes { Style::Good } else { Style::Warn }, if yes { "yes" } else { "no" });
    let mut lines = vec![
        ("host", format!("{} ({})", printable(&host.host_name), host.host)),
        (
            "processors",
            format!(
                "{}, {} given to VMs that run",
                cpu.count,
                count(u64::from(cpu.virtual_count), "virtual one")
            ),
        ),
        (
            "reserved",
            format!(
                "{}% of {}% of one, {}% free",
                cpu.reserved_percent, cpu.reservable_percent, cpu.free_percent
            ),
        ),
        (
            "memory",
            format!(
                "{}, {} for VMs: {} given to them, {} of that reserved",
                format_size(memory.total_bytes),
                format_size(memory.usable_bytes),
                format_size(memory.granted_bytes),
                format_size(memory.reserved_bytes)
            ),
        ),
        ("free", format_size(memory.free_bytes)),
    ];
    let huge = [(memory.huge_2m_free_bytes, "2 MiB"), (memory.huge_1g_free_bytes, "1 GiB")];
    let huge: Vec<String> = huge
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, page)| format!("{} in pages of {page}", format_size(*bytes)))
        .collect();
    let huge = if huge.is_empty() { "none free".to_owned() } else { huge.join(", ") + " free" };
    lines.push(("huge pages", huge));
    lines.push(("KVM", format!("{}, {}", can(host.kvm.stock_kernels), printable(&host.kvm.detail))));
    lines.push(("QEMU", host.qemu.as_ref().map_or_else(|| can(false), |path| printable(path))));
    lines
        .push(("limits kept", format!("{}, {}", can(host.limits_enforced), printable(&host.control_groups))));
    facts(&lines)
}

pub(super) async fn status(context: &Context, options: WatchOptions) -> Result<()> {
    common::status(&context.client, context.terminal, options, "/v1/status", glance).await
}

fn glance(status: &HypervisorStatus, paint: Paint, wide: bool) -> String {
    let mut out = health_lines(&status.health, paint);
    let _ = writeln!(
        out,
        "host      {}, hypervisord {}",
        printable(&status.host_name),
        printable(&status.version)
    );
    let directory = if status.directory {
        "answers".to_owned()
    } else {
        paint.text(Style::Warn, "can't be reached: of other hosts the last that is known is shown")
    };
    let _ = writeln!(out, "directory {directory}");
    let vms = &status.vms;
    let failed = match vms.failed {
        0 => String::new(),
        some => paint.text(Style::Bad, &format!(", {some} failed")),
    };
    let _ = writeln!(out, "VMs       {} defined, {} running{failed}", vms.defined, vms.running);
    if !status.hosts.is_empty() {
        let _ = writeln!(out, "\n{}", paint.text(Style::Dim, &count(status.hosts.len() as u64, "host")));
        out += &host_table(&status.hosts, status, wide).render(paint, 2);
    }
    out
}

fn host_table(hosts: &[HypervisorHost], status: &HypervisorStatus, wide: bool) -> Table {
    let mut head = vec!["HOST", "STATE", ">VMS", ">CPUS", ">RESERVED", ">MEMORY", ">FREE", "RUNS"];
    if wide {
        head.extend([">VIRTUAL CPUS", "LIMITS KEPT", "KVM", "ID"]);
    }
    let mut table = Table::new(&head);
    for it in hosts {
        let capacity = &it.capacity;
        let state = match (it.answers, it.silent_s) {
            (true, _) => Cell::styled(Style::Good, "online"),
            (false, Some(seconds)) => Cell::styled(Style::Bad, format!("silent for {}", duration(seconds))),
            (false, None) => Cell::styled(Style::Bad, "silent"),
        };
        let failed = if it.vms.failed > 0 { format!(" ({} failed)", it.vms.failed) } else { String::new() };
        let runs = match (capacity.kvm.stock_kernels, &capacity.qemu) {
            (true, _) => "vmm (KVM)",
            (false, Some(_)) => "QEMU's emulation",
            (false, None) => "nothing",
        };
        let this = if capacity.host == status.host { "*" } else { "" };
        let mut row: Vec<Cell> = vec![
            format!("{}{this}", capacity.host_name).into(),
            state,
            format!("{}{failed}", it.vms.active).into(),
            capacity.cpu.count.to_string().into(),
            format!("{}%", capacity.cpu.reserved_percent).into(),
            format_size(capacity.memory.usable_bytes).into(),
            format_size(capacity.memory.free_bytes).into(),
            runs.into(),
        ];
        if wide {
            row.push(capacity.cpu.virtual_count.to_string().into());
            row.push(if capacity.limits_enforced { "yes" } else { "no" }.into());
            row.push((&capacity.kvm.detail).into());
            row.push(capacity.host.to_string().into());
        }
        table.row(row);
    }
    table
}
