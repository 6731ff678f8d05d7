//! `trace`: what would happen to a frame.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ferro_protocol::api::switch::{NetworkConfig, PortInfo, TraceAnswer, TraceFrom, TraceRequest};
use ferro_protocol::net::Mac;

use super::Context;
use super::args::TraceArgs;
use super::frame::{self, Payload};
use crate::failure::{Exit, Failure, Result};
use crate::text::{Paint, Style, count, printable};

/// Stands for a machine of the physical network, unless one is given: a locally administered address.
const STRANGER: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

pub(super) async fn trace(context: &Context, options: TraceArgs) -> Result<()> {
    let (from, port) = if let Some(uplink) = options.from.strip_prefix("uplink:") {
        (TraceFrom::Uplink(uplink.to_owned()), None)
    } else {
        let name = options.from.strip_prefix("port:").unwrap_or(&options.from);
        let port: PortInfo = context.client.get(&format!("/v1/ports/{}", path_word(name)?)).await?;
        (TraceFrom::Port(name.to_owned()), Some(port))
    };
    let frame = if let Some(hex) = &options.frame {
        hex.chars().filter(|c| !c.is_whitespace() && *c != ':').collect()
    } else {
        let bytes = build(context, &options, port.as_ref()).await?;
        bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    };
    let answer: TraceAnswer = context.client.post("/v1/trace", &TraceRequest { from, frame }).await?;
    context.terminal.answer(&answer, steps)
}

/// A name as it may stand in a path: the daemon checks it, but it must get there in one piece.
pub(super) fn path_word(name: &str) -> Result<&str> {
    match name.parse::<ferro_protocol::net::NetName>() {
        Ok(_) => Ok(name),
        Err(bad) => Err(Failure::new(Exit::Usage, "bad_name", bad.to_string(), "check the name")),
    }
}

async fn build(context: &Context, options: &TraceArgs, port: Option<&PortInfo>) -> Result<Vec<u8>> {
    let src = match &options.src {
        Some(text) => mac(text)?,
        None => port.map_or(STRANGER, |port| port.mac),
    };
    let dst = match &options.dst {
        None => Mac::BROADCAST,
        Some(text) => destination(context, text).await?,
    };
    let own = || {
        let own = port.into_iter().flat_map(|port| &port.addresses).find_map(|text| text.parse().ok());
        own.unwrap_or(Ipv4Addr::UNSPECIFIED)
    };
    let from = options.from_ip.unwrap_or_else(own);
    let payload = match (options.arp, options.to_ip) {
        (Some(to), _) => Payload::Arp { from, to },
        (None, Some(to)) => Payload::Ping { from, to },
        (None, None) => Payload::Nothing,
    };
    Ok(frame::build(dst, src, options.vlan, payload, options.length))
}

async fn destination(context: &Context, text: &str) -> Result<Mac> {
    if let Ok(mac) = text.parse() {
        return Ok(mac);
    }
    let NetworkConfig { spec, .. } = context.client.get("/v1/config").await?;
    let Some(port) = spec.ports.iter().find(|port| port.name == text) else {
        let message = format!("{text:?} is neither a MAC address nor the name of a port");
        let next = "write 52:54:00:12:34:56, or a name that `vswctl port list` shows";
        return Err(Failure::usage(message, next));
    };
    mac(&port.mac)
}

fn mac(text: &str) -> Result<Mac> {
    text.parse()
        .map_err(|bad: ferro_protocol::net::BadMac| Failure::usage(bad.to_string(), "check the address"))
}

fn steps(answer: &TraceAnswer, paint: Paint) -> String {
    let mut out = String::new();
    for (at, step) in answer.steps.iter().enumerate() {
        let style = match step.step.as_str() {
            "sent" | "mirrored" | "answered" => Style::Good,
            "withheld" | "shaped" => Style::Warn,
            "dropped" => Style::Bad,
            _ => Style::Plain,
        };
        let cause = step.cause.as_ref().map_or(String::new(), |cause| format!(" [{}]", printable(cause)));
        let _ = writeln!(out, "{:>3}  {}{cause}", at + 1, paint.text(style, &printable(&step.text)));
    }
    let copies = match answer.copies {
        0 => "nothing would leave the switch".to_owned(),
        some => {
            format!("{} would leave the switch", count(u64::from(some), "copy").replace("copys", "copies"))
        }
    };
    let _ = writeln!(out, "\n{copies}");
    out
}
