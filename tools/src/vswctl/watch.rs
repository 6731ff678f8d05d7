//! Uplinks, tunnels and addresses.

use std::fmt::Write as _;

use ferro_protocol::api::switch::{
    LinkState, MacInfo, MacKind, MacPage, MacPlace, MacRelease, TunnelInfo, TunnelList, UplinkInfo,
    UplinkList,
};
use ferro_protocol::net::Mac;
use hyper::Method;
use serde::Serialize;

use super::args::MacListArgs;
use super::{Context, show};
use crate::failure::{Failure, Result};
use crate::text::{Cell, Style, Table, duration};

pub(super) fn link_cell(link: LinkState) -> Cell {
    match link {
        LinkState::Up => Cell::styled(Style::Good, "up"),
        LinkState::Down => Cell::styled(Style::Warn, "down"),
        LinkState::Missing => Cell::styled(Style::Bad, "missing"),
        LinkState::Broken => Cell::styled(Style::Bad, "broken"),
    }
}

pub(super) async fn uplinks(context: &Context) -> Result<()> {
    let list: UplinkList = context.client.get("/v1/uplinks").await?;
    let terminal = context.terminal;
    terminal.answer(&list, |list, paint| uplink_table(&list.uplinks, terminal.is_wide()).render(paint, 0))
}

pub(super) fn uplink_table(uplinks: &[UplinkInfo], wide: bool) -> Table {
    let mut head = vec!["UPLINK", "SWITCH", "LINK", ">SPEED", "USED BY", ">RECEIVED", ">SENT", ">DROPPED"];
    if wide {
        head.push("DETAIL");
    }
    let mut table = Table::new(&head);
    for it in uplinks {
        let speed = it.speed_mbit_s.map_or("-".to_owned(), |mbit| match mbit {
            gbit if gbit.is_multiple_of(1000) && gbit > 0 => format!("{} Gb/s", gbit / 1000),
            mbit => format!("{mbit} Mb/s"),
        });
        let mut row: Vec<Cell> = vec![
            (&it.name).into(),
            (&it.switch).into(),
            link_cell(it.link),
            speed.into(),
            show::list(&it.used_by).into(),
            it.counters.from.frames.to_string().into(),
            it.counters.to.frames.to_string().into(),
            it.counters.drops().to_string().into(),
        ];
        if wide {
            row.push(it.detail.as_deref().unwrap_or("-").into());
        }
        table.row(row);
    }
    table
}

pub(super) async fn tunnels(context: &Context) -> Result<()> {
    let list: TunnelList = context.client.get("/v1/tunnels").await?;
    let terminal = context.terminal;
    terminal.answer(&list, |list, paint| tunnel_table(&list.tunnels, terminal.is_wide()).render(paint, 0))
}

/// A line a path; a host without any has one all the same.
pub(super) fn tunnel_table(tunnels: &[TunnelInfo], wide: bool) -> Table {
    let mut head = vec!["HOST", "STATE", "FROM", "TO", "PATH", ">RTT", ">RECEIVED", ">SENT", ">LOST"];
    if wide {
        head.extend([">DROPPED", ">DATAGRAM", "NETWORKS", "DETAIL"]);
    }
    let mut table = Table::new(&head);
    for it in tunnels {
        let (style, word) = if it.alive { (Style::Good, "up") } else { (Style::Bad, "down") };
        let since = it.since_s.map_or(String::new(), |s| format!(" for {}", duration(s)));
        let networks: Vec<String> = it.networks.iter().map(ToString::to_string).collect();
        let begin = || vec![(&it.host_name).into(), Cell::styled(style, format!("{word}{since}"))];
        let end =
            || -> [Cell; 2] { [show::list(&networks).into(), it.detail.as_deref().unwrap_or("-").into()] };
        for path in &it.paths {
            let mut row: Vec<Cell> = begin();
            row.extend([
                (&path.local).into(),
                (&path.remote).into(),
                if path.alive { Cell::styled(Style::Good, "up") } else { Cell::styled(Style::Bad, "down") },
                path.rtt_us.map_or("-".to_owned(), |us| format!("{us} us")).into(),
                path.received.to_string().into(),
                path.sent.to_string().into(),
                path.lost.to_string().into(),
            ]);
            if wide {
                row.push(path.dropped.to_string().into());
                row.push(path.datagram_bytes_max.map_or("-".to_owned(), |bytes| bytes.to_string()).into());
                row.extend(end());
            }
            table.row(row);
        }
        if it.paths.is_empty() {
            let mut row: Vec<Cell> = begin();
            row.extend(std::iter::repeat_with(|| Cell::from("-")).take(7));
            if wide {
                row.extend(["-".into(), "-".into()]);
                row.extend(end());
            }
            table.row(row);
        }
    }
    table
}

pub(super) async fn macs(context: &Context, options: MacListArgs) -> Result<()> {
    let mut filter = format!("frozen={}", options.frozen);
    if let Some(vni) = options.vni {
        let _ = write!(filter, "&vni={vni}");
    }
    if let Some(text) = &options.mac {
        let _ = write!(filter, "&mac={}", address(text)?);
    }
    let mut all = MacPage { macs: Vec::new(), next: None };
    loop {
        let after = all.next.take().map_or(String::new(), |next| format!("&after={next}"));
        let page: MacPage = context.client.get(&format!("/v1/macs?{filter}{after}")).await?;
        // A page that brings nothing new and says that there is more would never end.
        let more = !page.macs.is_empty();
        all.macs.extend(page.macs);
        all.next = page.next.filter(|_| more);
        if all.next.is_none() {
            break;
        }
    }
    context.terminal.answer(&all, |all, paint| mac_table(&all.macs).render(paint, 0))
}

fn address(text: &str) -> Result<Mac> {
    text.parse()
        .map_err(|bad: ferro_protocol::net::BadMac| Failure::usage(bad.to_string(), "check the address"))
}

fn mac_table(macs: &[MacInfo]) -> Table {
    let mut table = Table::new(&["NETWORK", ">VLAN", "MAC", "AT", "KNOWN"]);
    for it in macs {
        let network = match (it.vni, &it.switch) {
            (Some(vni), _) => format!("VNI {vni}"),
            (None, Some(switch)) => switch.clone(),
            (None, None) => "-".to_owned(),
        };
        let vlan = match it.vlan {
            Some(vlan) => vlan.to_string(),
            None if it.all_vlans => "all".to_owned(),
            None => "-".to_owned(),
        };
        let at = match &it.place {
            MacPlace::Port { name } => format!("port {name}"),
            MacPlace::Host { name, .. } => format!("host {name}"),
            MacPlace::Uplink { name } => format!("uplink {name}"),
        };
        let known = match (it.kind, it.frozen) {
            (_, true) => Cell::styled(Style::Bad, "frozen: two machines have it"),
            (MacKind::Known, false) => "as a port's".into(),
            (MacKind::Learned, false) => "learned".into(),
        };
        table.row(vec![network.into(), vlan.into(), it.mac.to_string().into(), at.into(), known]);
    }
    table
}

/// What `-o json` prints of a release.
#[derive(Serialize)]
struct Released<'a> {
    #[serde(flatten)]
    release: &'a MacRelease,
}

pub(super) async fn release(context: &Context, mac: &str, vni: Option<u32>) -> Result<()> {
    let release = MacRelease { vni, mac: address(mac)? };
    context.client.empty(Method::POST, "/v1/macs/release", Some(&release)).await?;
    let done = Released { release: &release };
    context.terminal.done(&done, |done| format!("address {} may move again", done.release.mac))
}
