//! `status`.

use std::fmt::Write as _;

use ferro_protocol::api::switch::{ConfigSource, HostApplied, HostProgress, SwitchStatus};

use super::Context;
use super::watch::{tunnel_table, uplink_table};
use crate::common;
use crate::failure::Result;
use crate::terminal::WatchOptions;
use crate::text::{Cell, Paint, Style, Table, count, health_lines, printable};

pub(super) async fn status(context: &Context, options: WatchOptions) -> Result<()> {
    common::status(&context.client, context.terminal, options, "/v1/status", glance).await
}

fn glance(status: &SwitchStatus, paint: Paint, wide: bool) -> String {
    let mut out = health_lines(&status.health, paint);
    let _ =
        writeln!(out, "host      {}, vswitchd {}", printable(&status.host_name), printable(&status.version));
    let source = match status.source {
        ConfigSource::Directory => "from the cluster directory".to_owned(),
        ConfigSource::LocalCopy => {
            paint.text(Style::Warn, "from this host's copy: the cluster directory can't be reached")
        }
        ConfigSource::File => "from the settings file: this host is alone".to_owned(),
    };
    let behind = if status.applied_revision == status.revision {
        String::new()
    } else {
        let text = format!(", {} in force here", status.applied_revision);
        paint.text(Style::Warn, &text)
    };
    let _ = writeln!(out, "config    revision {}{behind}, {source}", status.revision);
    if let Some(it) = &status.unconfirmed {
        let text = format!(
            "revision {} is undone in {} s unless `vswctl confirm {}` is run: {}",
            it.revision,
            it.seconds_left,
            it.revision,
            printable(&it.reason)
        );
        let _ = writeln!(out, "          {}", paint.text(Style::Warn, &text));
    }
    let ports = &status.ports;
    let _ = writeln!(
        out,
        "network   {}, {}, {}: {} attached here, {} up",
        count(u64::from(status.switches), "switch").replace("switchs", "switches"),
        count(u64::from(status.groups), "port group"),
        count(u64::from(ports.defined), "port"),
        ports.attached,
        ports.up
    );
    for it in &status.frozen {
        let (vni, option) = match it.vni {
            Some(vni) => (format!(" of VNI {vni}"), format!(" --vni {vni}")),
            None => (String::new(), String::new()),
        };
        let text = format!("address {}{vni} is frozen: two machines have it", it.mac);
        let _ = writeln!(out, "          {}", paint.text(Style::Warn, &text));
        let _ =
            writeln!(out, "            next: take one away, then `vswctl mac release {}{option}`", it.mac);
    }
    if status.hosts.len() > 1 {
        let _ = writeln!(out, "\n{}", paint.text(Style::Dim, &count(status.hosts.len() as u64, "host")));
        out += &host_table(&status.hosts).render(paint, 2);
    }
    if !status.uplinks.is_empty() {
        let _ = writeln!(out, "\n{}", paint.text(Style::Dim, &count(status.uplinks.len() as u64, "uplink")));
        out += &uplink_table(&status.uplinks, wide).render(paint, 2);
    }
    if !status.tunnels.is_empty() {
        let _ = writeln!(out, "\n{}", paint.text(Style::Dim, &count(status.tunnels.len() as u64, "tunnel")));
        out += &tunnel_table(&status.tunnels, wide).render(paint, 2);
    }
    out
}

fn host_table(hosts: &[HostApplied]) -> Table {
    let mut table = Table::new(&["HOST", "CONFIG", ">REVISION", "DETAIL"]);
    for it in hosts {
        let (style, word) = match it.progress {
            HostProgress::Applied => (Style::Good, "applied"),
            HostProgress::Pending => (Style::Warn, "pending"),
            HostProgress::Unreachable => (Style::Bad, "unreachable"),
            HostProgress::Failed => (Style::Bad, "failed"),
            HostProgress::RolledBack => (Style::Bad, "rolled back"),
        };
        table.row(vec![
            format!("{}{}", it.name, if it.this_host { "*" } else { "" }).into(),
            Cell::styled(style, word),
            it.revision.map_or("-".to_owned(), |revision| revision.to_string()).into(),
            it.detail.as_deref().unwrap_or("-").into(),
        ]);
    }
    table
}
