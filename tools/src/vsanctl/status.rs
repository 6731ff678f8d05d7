//! `status` and `resync`.

use std::fmt::Write as _;

use ferro_protocol::api::{
    Redundancy, ResyncInfo, ResyncKind, ResyncList, ResyncState, ResyncTotals, Status, format_size,
};

use super::Context;
use super::cluster::host_table;
use super::volume::volume_table;
use crate::common;
use crate::failure::Result;
use crate::terminal::{Terminal, WatchOptions};
use crate::text::{Cell, Paint, Style, Table, count, duration, health_lines, percent, printable, rate};

/// How many volumes `status` lists before it says how many more there are. Those that need attention come first.
const VOLUMES_SHOWN: usize = 20;

pub(super) async fn status(context: &Context, options: WatchOptions) -> Result<()> {
    common::status(&context.client, context.terminal, options, "/v1/status", glance).await
}

fn glance(status: &Status, paint: Paint, wide: bool) -> String {
    let mut out = health_lines(&status.health, paint);
    if !status.muted.is_empty() {
        let muted = format!("muted: {} (`vsanctl health`)", printable(&status.muted.join(", ")));
        let _ = writeln!(out, "          {}", paint.text(Style::Dim, &muted));
    }
    match &status.cluster {
        None => {
            let _ = writeln!(out, "cluster   none: this host is in no cluster yet");
        }
        Some(cluster) => {
            let quorum = if cluster.quorum {
                paint.text(Style::Good, "quorum")
            } else {
                paint.text(Style::Bad, "no quorum")
            };
            let voters = count(u64::from(cluster.voters), "voter");
            let _ = writeln!(out, "cluster   {}, {voters}, {quorum}", cluster.id);
        }
    }
    let capacity = &status.capacity;
    let _ = writeln!(
        out,
        "capacity  {} of {} used ({}), {} of {} online, {} provisioned",
        format_size(capacity.used_bytes),
        format_size(capacity.total_bytes),
        percent(capacity.used_bytes, capacity.total_bytes.max(1)),
        capacity.disks_online,
        count(u64::from(capacity.disks), "disk"),
        format_size(capacity.provisioned_bytes)
    );
    let _ = writeln!(out, "resync    {}", resync_line(&status.resync));
    if !status.hosts.is_empty() {
        let _ = writeln!(out, "\n{}", paint.text(Style::Dim, &count(status.hosts.len() as u64, "host")));
        out += &host_table(&status.hosts, wide).render(paint, 2);
    }
    if status.cluster.is_some() {
        volumes(&mut out, status, paint, wide);
    }
    out
}

fn volumes(out: &mut String, status: &Status, paint: Paint, wide: bool) {
    let mut sorted: Vec<_> = status.volumes.iter().collect();
    // Stable: within the same state they stay in the order of their names.
    sorted.sort_by_key(|volume| match volume.redundancy {
        Redundancy::Unavailable => 0,
        Redundancy::Degraded => 1,
        Redundancy::Resyncing => 2,
        Redundancy::Healthy => 3,
    });
    let mut title = count(sorted.len() as u64, "volume");
    for (state, word) in [
        (Redundancy::Unavailable, "unavailable"),
        (Redundancy::Degraded, "degraded"),
        (Redundancy::Resyncing, "resyncing"),
    ] {
        let number = sorted.iter().filter(|volume| volume.redundancy == state).count();
        if number > 0 {
            let _ = write!(title, ", {number} {word}");
        }
    }
    let _ = writeln!(out, "\n{}", paint.text(Style::Dim, &title));
    if sorted.is_empty() {
        return;
    }
    let shown = if wide { sorted.len() } else { sorted.len().min(VOLUMES_SHOWN) };
    *out += &volume_table(sorted[..shown].iter().copied(), wide).render(paint, 2);
    if shown < sorted.len() {
        let _ = writeln!(out, "  and {} more: vsanctl volume list", sorted.len() - shown);
    }
}

fn resync_line(totals: &ResyncTotals) -> String {
    if totals.running == 0 && totals.waiting == 0 {
        return "none".to_owned();
    }
    let mut line = format!("{} running, {} waiting", totals.running, totals.waiting);
    // What those that wait have to copy is known when their turn comes.
    if totals.total_bytes > 0 {
        let _ = write!(
            line,
            ": {} of {} ({})",
            format_size(totals.done_bytes),
            format_size(totals.total_bytes),
            percent(totals.done_bytes, totals.total_bytes)
        );
    }
    if totals.running > 0 {
        let _ = write!(line, ", {}", rate(totals.bytes_per_second));
    }
    if let Some(left) = totals.eta_seconds {
        let _ = write!(line, ", {} left", duration(left));
    }
    line
}

pub(super) async fn resyncs(context: &Context) -> Result<()> {
    let list: ResyncList = context.client.get("/v1/resyncs").await?;
    let terminal: Terminal = context.terminal;
    terminal.answer(&list, |list, paint| {
        if list.resyncs.is_empty() {
            return "no resync is running or waiting\n".to_owned();
        }
        let mut out = resync_table(&list.resyncs).render(paint, 0);
        let _ = writeln!(out, "\n{}", resync_line(&list.totals));
        out
    })
}

/// A figure of a resync, if what it has to copy is known yet.
fn known(resync: &ResyncInfo, figure: String) -> String {
    if resync.total_bytes == 0 { "-".to_owned() } else { figure }
}

fn resync_table(resyncs: &[ResyncInfo]) -> Table {
    let mut table = Table::new(&[
        "VOLUME",
        "TO HOST",
        "DISK",
        "KIND",
        "STATE",
        ">CHUNKS LEFT",
        ">DONE",
        ">OF",
        ">%",
        ">RATE",
        ">TIME",
    ]);
    for resync in resyncs {
        let (style, state) = match resync.state {
            ResyncState::Running => (Style::Good, "running"),
            ResyncState::Queued => (Style::Plain, "queued"),
            ResyncState::Delayed => (Style::Warn, "delayed"),
        };
        let time = match (resync.state, resync.eta_seconds) {
            (_, None) => "-".to_owned(),
            (ResyncState::Delayed, Some(until)) => format!("in {}", duration(until)),
            (_, Some(left)) => format!("{} left", duration(left)),
        };
        let speed =
            if resync.state == ResyncState::Running { rate(resync.bytes_per_second) } else { "-".to_owned() };
        table.row(vec![
            resync.volume.as_ref().map_or_else(|| resync.object.to_string(), ToString::to_string).into(),
            (&resync.host_name).into(),
            resync.disk.to_string()[..8].into(),
            match resync.kind {
                ResyncKind::Delta => "delta",
                ResyncKind::Full => "full",
            }
            .into(),
            Cell::styled(style, state),
            resync.chunks_remaining.to_string().into(),
            known(resync, format_size(resync.done_bytes)).into(),
            known(resync, format_size(resync.total_bytes)).into(),
            known(resync, percent(resync.done_bytes, resync.total_bytes)).into(),
            speed.into(),
            time.into(),
        ]);
    }
    table
}
