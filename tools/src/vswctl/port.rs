//! Ports as this host sees them, and what they are attached to.

use std::fmt::Write as _;

use bytes::Bytes;
use ferro_protocol::api::switch::{Attachment, LinkState, PortInfo, PortList};
use hyper::Method;
use serde::Serialize;

use super::args::AttachArgs;
use super::trace::path_word;
use super::values::AttachDevice;
use super::watch::link_cell;
use super::{Context, show};
use crate::failure::Result;
use crate::text::{Cell, Style, Table, facts, printable, shell_word};

pub(super) async fn list(context: &Context, group: Option<&str>) -> Result<()> {
    let mut list: PortList = context.client.get("/v1/ports").await?;
    list.ports.retain(|port| group.is_none_or(|group| port.group == group));
    let wide = context.terminal.is_wide();
    context.terminal.answer(&list, |list, paint| {
        let mut head =
            vec!["NAME", "GROUP", "MAC", "HOST", "ATTACHED TO", "LINK", ">FROM", ">TO", ">DROPPED"];
        if wide {
            head.extend([">MTU", "ADDRESSES", "DETAIL"]);
        }
        let mut table = Table::new(&head);
        for it in &list.ports {
            let name = if it.blocked {
                Cell::styled(Style::Warn, format!("{} (blocked)", it.name))
            } else {
                (&it.name).into()
            };
            let frames = |of: &dyn Fn(&ferro_protocol::api::switch::Counters) -> u64| -> Cell {
                it.counters.as_ref().map_or("-".to_owned(), |counters| of(counters).to_string()).into()
            };
            let mut row: Vec<Cell> = vec![
                name,
                (&it.group).into(),
                it.mac.to_string().into(),
                it.host_name.as_deref().unwrap_or("-").into(),
                it.attachment.as_ref().map_or("-".to_owned(), attached_to).into(),
                it.link.map_or("-".into(), link_cell),
                frames(&|counters| counters.from.frames),
                frames(&|counters| counters.to.frames),
                frames(&|counters| counters.drops()),
            ];
            if wide {
                row.extend([
                    it.mtu.to_string().into(),
                    show::list(&it.addresses).into(),
                    it.detail.as_deref().unwrap_or("-").into(),
                ]);
            }
            table.row(row);
        }
        table.render(paint, 0)
    })
}

fn attached_to(attachment: &Attachment) -> String {
    match attachment {
        Attachment::VhostUser { socket, connect, .. } => {
            let way = if *connect { "connects to " } else { "" };
            format!("{way}{}", socket.as_deref().unwrap_or("a vhost-user socket"))
        }
        Attachment::Tap { interface } => format!("TAP {interface}"),
    }
}

pub(super) async fn show(context: &Context, name: &str) -> Result<()> {
    let port: PortInfo = context.client.get(&format!("/v1/ports/{}", path_word(name)?)).await?;
    context.terminal.answer(&port, |port, paint| {
        let link = match port.link {
            None => "-".to_owned(),
            Some(LinkState::Up) => paint.text(Style::Good, "up"),
            Some(LinkState::Down) => paint.text(Style::Warn, "down"),
            Some(LinkState::Missing) => paint.text(Style::Bad, "missing"),
            Some(LinkState::Broken) => paint.text(Style::Bad, "broken"),
        };
        let detail = port.detail.as_ref().map_or(String::new(), |detail| format!(", {}", printable(detail)));
        let counters = port.counters.clone().unwrap_or_default();
        let flow =
            |flow: ferro_protocol::api::switch::Flow| format!("{} frames, {} bytes", flow.frames, flow.bytes);
        let mut out = facts(&[
            ("name", printable(&port.name)),
            ("port group", format!("{} of switch {}", printable(&port.group), printable(&port.switch))),
            ("MAC", port.mac.to_string()),
            ("addresses", printable(&show::list(&port.addresses))),
            ("MTU", port.mtu.to_string()),
            ("blocked", show::yes_no(port.blocked)),
            ("host", printable(port.host_name.as_deref().unwrap_or("-"))),
            ("attached to", printable(&port.attachment.as_ref().map_or("-".to_owned(), attached_to))),
            ("link", format!("{link}{detail}")),
            ("features", printable(&show::list(&port.features))),
            ("queues", port.queue_pairs.to_string()),
            ("from it", flow(counters.from)),
            ("to it", flow(counters.to)),
            ("dropped", counters.drops().to_string()),
        ]);
        for (cause, frames) in &counters.dropped {
            let _ = writeln!(out, "  {frames:>10}  {}", printable(cause));
        }
        out
    })
}

/// What `port attach -o json` prints: the API's answer and what QEMU needs.
#[derive(Serialize)]
struct Attached<'a> {
    #[serde(flatten)]
    port: &'a PortInfo,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    qemu_arguments: Vec<String>,
}

pub(super) async fn attach(context: &Context, options: AttachArgs) -> Result<()> {
    let AttachArgs { name, device, vhost_socket: socket, connect, queues, interface } = options;
    let to = match (device, interface) {
        (AttachDevice::Tap, interface) => Attachment::Tap { interface: interface.unwrap_or_default() },
        (AttachDevice::VhostUser, None) => Attachment::VhostUser { socket, connect, queue_pairs: queues },
        (AttachDevice::VhostUser, Some(_)) => {
            let message = format!("port {name}: an interface is for --to tap");
            return Err(crate::failure::Failure::usage(message, "give --to tap, or leave out --interface"));
        }
    };
    let path = format!("/v1/ports/{}/attachment", path_word(&name)?);
    let port: PortInfo = context.client.put(&path, &to).await?;
    let shown = Attached { qemu_arguments: qemu_arguments(&port), port: &port };
    let terminal = context.terminal;
    if terminal.is_json() {
        return terminal.json(&shown);
    }
    let attachment = port.attachment.as_ref().map_or("-".to_owned(), attached_to);
    if terminal.quiet {
        return terminal.print(&format!("{}\n", printable(&attachment)));
    }
    let mut out = format!("port {} is attached: {}\n", printable(&port.name), printable(&attachment));
    if !shown.qemu_arguments.is_empty() {
        out += "\nQEMU arguments (the guest's memory must be shared: `memory-backend-memfd,share=on`):\n";
        for pair in shown.qemu_arguments.chunks(2) {
            let words: Vec<String> = pair.iter().map(|word| shell_word(word)).collect();
            let _ = writeln!(out, "  {}", printable(&words.join(" ")));
        }
    }
    terminal.print(&out)
}

/// The arguments for QEMU 7.2 and later, pairs of an option and its value. `reconnect` has it wait for a daemon that is
/// being restarted.
fn qemu_arguments(port: &PortInfo) -> Vec<String> {
    let Some(Attachment::VhostUser { socket: Some(socket), connect, queue_pairs }) = &port.attachment else {
        return Vec::new();
    };
    // QEMU's ids begin with a letter; a port's name may not. In an option list it reads two commas as one.
    let (id, socket) = (format!("vsw-{}", port.name), socket.replace(',', ",,"));
    let side = if *connect { "server=on,wait=off" } else { "reconnect=1" };
    let (mut queues, mut several) = (String::new(), String::new());
    if *queue_pairs > 1 {
        queues = format!(",queues={queue_pairs}");
        several = format!(",mq=on,vectors={}", 2 * u32::from(*queue_pairs) + 2);
    }
    [
        ("-chardev", format!("socket,id={id},path={socket},{side}")),
        ("-netdev", format!("vhost-user,id=net-{id},chardev={id}{queues}")),
        ("-device", format!("virtio-net-pci,netdev=net-{id},mac={}{several}", port.mac)),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .collect()
}

/// What `-o json` prints of a port that was taken off.
#[derive(Serialize)]
struct Detached<'a> {
    name: &'a str,
}

pub(super) async fn detach(context: &Context, name: &str) -> Result<()> {
    let path = format!("/v1/ports/{}/attachment", path_word(name)?);
    context.client.bytes(Method::DELETE, &path, None::<(Bytes, &'static str)>).await?;
    context.terminal.done(&Detached { name }, |it| format!("port {} is detached from this host", it.name))
}
