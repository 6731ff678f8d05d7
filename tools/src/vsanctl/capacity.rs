//! `capacity`: the room there is, what takes it, and what a loss would mean.

use std::fmt::Write as _;

use ferro_protocol::api::{CapacityReport, LossForecast, LossKind, format_size};

use super::Context;
use crate::failure::Result;
use crate::text::{Cell, Paint, Style, Table, count, facts, percent, printable};

/// How many volumes are named.
const NAMED: usize = 3;

pub(super) async fn capacity(context: &Context, disks: bool) -> Result<()> {
    let report: CapacityReport = context.client.get("/v1/capacity").await?;
    context.terminal.answer(&report, |report, paint| shown(report, paint, disks))
}

fn shown(report: &CapacityReport, paint: Paint, disks: bool) -> String {
    let totals = &report.totals;
    let used = percent(totals.used_bytes, totals.total_bytes.max(1));
    let mut out = facts(&[
        ("size", format_size(totals.total_bytes)),
        ("used", format!("{} ({used}), all copies and parity counted", format_size(totals.used_bytes))),
        ("free", format!("{} for new data", format_size(totals.free_bytes))),
        ("reserved", format!("{} for data that is placed already", format_size(totals.reserved_bytes))),
        ("kept", format!("{} for volumes, not written yet", format_size(totals.kept_bytes))),
        ("provisioned", format!("{}, each volume once", format_size(totals.provisioned_bytes))),
        ("promised", format!("{} if all volumes were full", format_size(totals.promised_bytes))),
        ("savings", format!("{} by thin volumes", format_size(totals.thin_savings_bytes))),
    ]);
    let mut hosts = Table::new(&["HOST", "FAULT DOMAIN", ">DISKS", ">USED", ">SIZE", ">%", ">PROMISED"]);
    for host in &report.hosts {
        hosts.row(vec![
            (&host.name).into(),
            (&host.fault_domain).into(),
            host.disks.to_string().into(),
            format_size(host.used_bytes).into(),
            format_size(host.total_bytes).into(),
            percent(host.used_bytes, host.total_bytes.max(1)).into(),
            format_size(host.promised_bytes).into(),
        ]);
    }
    let _ = write!(out, "\n{}", hosts.render(paint, 0));
    if !report.policies.is_empty() {
        let mut policies = Table::new(&["POLICY", ">VOLUMES", ">PROVISIONED", ">STORED", ">PROMISED"]);
        for policy in &report.policies {
            policies.row(vec![
                (&policy.policy).into(),
                policy.volumes.to_string().into(),
                format_size(policy.provisioned_bytes).into(),
                format_size(policy.stored_bytes).into(),
                format_size(policy.promised_bytes).into(),
            ]);
        }
        let _ = write!(out, "\n{}", policies.render(paint, 0));
    }
    let wanted = |loss: &&LossForecast| disks || loss.kind != LossKind::Disk;
    let mut losses = Table::new(&["IF LOST", ">VOLUMES", ">TO REBUILD", ">USED AFTER", "THEN"]);
    for loss in report.losses.iter().filter(wanted) {
        let (style, then) = outcome(loss);
        losses.row(vec![
            (&loss.name).into(),
            loss.volumes.to_string().into(),
            format_size(loss.rebuild_bytes).into(),
            format!("{}%", loss.used_percent_after).into(),
            Cell::styled(style, then),
        ]);
    }
    if !losses.is_empty() {
        let _ = write!(out, "\n{}", losses.render(paint, 0));
    }
    out
}

fn outcome(loss: &LossForecast) -> (Style, String) {
    let named = |number: u32, names: &[ferro_protocol::ids::VolumeName]| {
        let mut text: Vec<String> = names.iter().take(NAMED).map(ToString::to_string).collect();
        let more = (number as usize).saturating_sub(text.len());
        if more > 0 {
            text.push(format!("{more} more"));
        }
        printable(&text.join(", "))
    };
    if loss.unavailable > 0 {
        let volumes = count(u64::from(loss.unavailable), "volume");
        return (
            Style::Bad,
            format!("{volumes} can't be read: {}", named(loss.unavailable, &loss.unavailable_volumes)),
        );
    }
    if loss.unplaced > 0 {
        let volumes = count(u64::from(loss.unplaced), "volume");
        return (
            Style::Warn,
            format!("{volumes} not rebuilt, no place: {}", named(loss.unplaced, &loss.unplaced_volumes)),
        );
    }
    (Style::Good, "all is rebuilt".to_owned())
}
