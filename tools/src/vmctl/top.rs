//! `top`: rates out of the differences between samples of what each VM of this host uses.

use std::time::Duration;

use ferro_protocol::api::format_size;
use ferro_protocol::api::vm::{VmInfo, VmList, VmName, VmState, VmStats};
use serde::Serialize;

use super::Context;
use super::args::TopOptions;
use crate::failure::{Exit, Result};
use crate::terminal::between_rounds;
use crate::text::{Cell, Table};

/// What a VM used between two samples.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Line {
    name: VmName,
    cpus: u32,
    /// Of one processor; none if there is no sample of the same run to compare with.
    cpu_percent: Option<f64>,
    memory_bytes: u64,
    resident_bytes: u64,
    /// What the guest has given back.
    balloon_bytes: Option<u64>,
    read_iops: Option<f64>,
    read_mb_s: Option<f64>,
    write_iops: Option<f64>,
    write_mb_s: Option<f64>,
    sent_mb_s: Option<f64>,
    received_mb_s: Option<f64>,
}

#[derive(Serialize)]
struct Picture {
    interval_seconds: f64,
    vms: Vec<Line>,
}

pub(super) async fn top(context: &Context, options: TopOptions) -> Result<()> {
    let terminal = context.terminal;
    let mut before = sample(context, &options.names).await?;
    let mut round = 0_u64;
    while options.count.is_none_or(|count| round < count) {
        tokio::time::sleep(Duration::from_secs(options.interval)).await;
        let after = sample(context, &options.names).await?;
        let lines =
            after.iter().map(|now| line(before.iter().find(|then| then.name == now.name), now)).collect();
        let picture = Picture { interval_seconds: options.interval as f64, vms: lines };
        if terminal.is_json() {
            terminal.json_line(&picture)?;
        } else {
            let text = if picture.vms.is_empty() {
                "no VM runs on this host\n".to_owned()
            } else {
                table(&picture.vms).render(terminal.paint(), 0)
            };
            terminal.print(&format!("{}{text}", between_rounds(true, round)))?;
        }
        before = after;
        round += 1;
    }
    Ok(())
}

/// What the named VMs use, or all that run here. One that ends meanwhile is left out, unless it was named.
async fn sample(context: &Context, names: &[VmName]) -> Result<Vec<VmStats>> {
    let (wanted, named) = if names.is_empty() {
        let list: VmList = context.client.get("/v1/vms").await?;
        let runs = |vm: &VmInfo| vm.here && matches!(vm.status.state, VmState::Running | VmState::Paused);
        (list.vms.into_iter().filter(runs).map(|vm| vm.name).collect(), false)
    } else {
        (names.to_vec(), true)
    };
    let mut all = Vec::with_capacity(wanted.len());
    for name in wanted {
        match context.client.get(&format!("/v1/vms/{name}/stats")).await {
            Ok(stats) => all.push(stats),
            Err(failure) if !named && matches!(failure.exit, Exit::NotFound | Exit::Conflict) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(all)
}

fn line(then: Option<&VmStats>, now: &VmStats) -> Line {
    // Another run counts from zero, on a clock of its own.
    let then = then.filter(|then| then.incarnation == now.incarnation && then.at_us < now.at_us);
    let seconds = then.map_or(0.0, |then| (now.at_us - then.at_us) as f64 / 1e6);
    let rate = |of: &dyn Fn(&VmStats) -> Option<u64>| -> Option<f64> {
        Some(of(now)?.saturating_sub(of(then?)?) as f64 / seconds)
    };
    let disks = |of: &'static dyn Fn(&ferro_protocol::api::OperationCounters) -> u64| {
        rate(&move |stats: &VmStats| stats.disks.iter().map(|disk| disk.counters.as_ref().map(of)).sum())
    };
    let nics = |of: &'static dyn Fn(&ferro_protocol::api::switch::Counters) -> u64| {
        rate(&move |stats: &VmStats| stats.nics.iter().map(|nic| nic.counters.as_ref().map(of)).sum())
    };
    let mega = |rate: Option<f64>| rate.map(|bytes| bytes / 1e6);
    Line {
        name: now.name.clone(),
        cpus: now.cpus,
        cpu_percent: rate(&|stats| Some(stats.cpu_time_us)).map(|us| us / 1e4),
        memory_bytes: now.memory_bytes,
        resident_bytes: now.resident_bytes,
        balloon_bytes: now.balloon.as_ref().map(|balloon| balloon.actual_bytes),
        read_iops: disks(&|it| it.reads),
        read_mb_s: mega(disks(&|it| it.read_bytes)),
        write_iops: disks(&|it| it.writes),
        write_mb_s: mega(disks(&|it| it.write_bytes)),
        sent_mb_s: mega(nics(&|it| it.from.bytes)),
        received_mb_s: mega(nics(&|it| it.to.bytes)),
    }
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(&[
        "VM",
        ">CPUS",
        ">CPU",
        ">MEMORY",
        ">RESIDENT",
        ">BALLOON",
        ">READ/S",
        ">MB/S",
        ">WRITE/S",
        ">MB/S",
        ">SENT MB/S",
        ">RECEIVED MB/S",
    ]);
    let whole = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
    let tenth = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    for it in lines {
        let cells: Vec<Cell> = vec![
            it.name.as_str().into(),
            it.cpus.to_string().into(),
            it.cpu_percent.map_or("-".to_owned(), |percent| format!("{percent:.0}%")).into(),
            format_size(it.memory_bytes).into(),
            format_size(it.resident_bytes).into(),
            it.balloon_bytes.map_or("-".to_owned(), format_size).into(),
            whole(it.read_iops).into(),
            tenth(it.read_mb_s).into(),
            whole(it.write_iops).into(),
            tenth(it.write_mb_s).into(),
            tenth(it.sent_mb_s).into(),
            tenth(it.received_mb_s).into(),
        ];
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferro_protocol::api::OperationCounters;
    use ferro_protocol::api::vm::DiskStats;

    fn stats(at_us: u64, cpu_time_us: u64, reads: Option<u64>) -> VmStats {
        let counters =
            reads.map(|reads| OperationCounters { reads, read_bytes: reads * 1000, ..Default::default() });
        VmStats {
            name: "web1".parse().unwrap(),
            at_us,
            incarnation: 7,
            cpus: 2,
            cpu_time_us,
            memory_bytes: 1 << 29,
            resident_bytes: 1 << 28,
            balloon: None,
            disks: vec![DiskStats { volume: "root".parse().unwrap(), counters }],
            nics: Vec::new(),
        }
    }

    #[test]
    fn rates_are_differences_of_one_run() {
        let (then, now) = (stats(1_000_000, 500_000, Some(100)), stats(3_000_000, 3_500_000, Some(2_100)));
        let seen = line(Some(&then), &now);
        assert_eq!(
            (seen.cpu_percent, seen.read_iops, seen.read_mb_s),
            (Some(150.0), Some(1000.0), Some(1.0))
        );
        assert_eq!(seen.sent_mb_s, Some(0.0), "it has no network card");
        let other = VmStats { incarnation: 8, ..then.clone() };
        for then in [None, Some(&other), Some(&now)] {
            assert_eq!(line(then, &now).cpu_percent, None);
        }
        assert_eq!(
            line(Some(&then), &stats(3_000_000, 0, None)).read_iops,
            None,
            "the disk's daemon does not answer"
        );
    }
}
