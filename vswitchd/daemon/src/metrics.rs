//! What Prometheus reads: the counters of this host's ports, uplinks and tunnels, and how the worker is, in `OpenMetrics`
//! text. Frames and bytes are counted as they pass the switch: what is segmented later counts as one frame.
//!
//! What it must not know: how anything is counted, or asked for.

use std::fmt;

use ferro_protocol::api::HealthLevel;
use ferro_protocol::api::switch::{ConfigSource, Counters, LinkState, PortInfo, SwitchStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;
type Row = (Labels, u64);

/// How the worker is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Worker {
    /// Turns of its loop.
    pub turns: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// Addresses in its table.
    pub addresses: u64,
    /// Frames that wait for their time.
    pub delayed: u64,
    /// Frames that captures missed.
    pub capture_missed: u64,
}

/// What there was at one time.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// The switch at a glance.
    pub status: SwitchStatus,
    /// The ports; those that are not attached here are not shown.
    pub ports: Vec<PortInfo>,
    /// The worker.
    pub worker: Worker,
    /// What the gateways of port groups saw and said, by group: names and counts.
    pub gateways: Vec<(String, Vec<(&'static str, u64)>)>,
}

/// All metrics of this host.
pub fn text(sample: Sample) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("vswitchd");
    registry.register_collector(Box::new(Scrape(sample)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(Sample);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (out, Sample { status, ports, worker, gateways }) = (&mut encoder, &self.0);
        switch(out, status)?;
        let attached = || ports.iter().filter(|port| port.attachment.is_some());
        let here = attached().map(|port| {
            let labels = vec![("port", port.name.clone()), ("group", port.group.clone())];
            (labels, port.counters.clone().unwrap_or_default())
        });
        passed(out, "port", "a port", &here.collect::<Vec<_>>())?;
        let up = attached().map(|port| {
            let labels = vec![("port", port.name.clone()), ("group", port.group.clone())];
            (labels, u64::from(port.link == Some(LinkState::Up)))
        });
        gauge(out, "port_up", "Whether frames can pass", up.collect())?;
        uplinks(out, status)?;
        tunnels(out, status)?;
        let events = gateways.iter().flat_map(|(group, counts)| {
            let labels = |what: &str| vec![("group", group.clone()), ("what", what.to_owned())];
            counts.iter().map(move |(what, count)| (labels(what), *count))
        });
        counter(out, "gateway_events", "What gateways saw and said", events.collect())?;
        counter(out, "loop_turns", "Turns of the worker's loop", one(worker.turns))?;
        counter(out, "loop_sleeps", "How often the worker went to sleep", one(worker.sleeps))?;
        gauge(out, "addresses", "Addresses in the table", one(worker.addresses))?;
        gauge(out, "delayed_frames", "Frames that wait for the rate of their port", one(worker.delayed))?;
        counter(out, "capture_missed", "Frames that captures missed", one(worker.capture_missed))
    }
}

fn switch(out: &mut DescriptorEncoder<'_>, status: &SwitchStatus) -> fmt::Result {
    gauge(out, "build", "The version that runs", vec![(vec![("version", status.version.clone())], 1)])?;
    let health = match status.health.level {
        HealthLevel::Ok => 0,
        HealthLevel::Warning => 1,
        HealthLevel::Critical => 2,
    };
    gauge(out, "health", "0 is as it should be, 1 a warning, 2 critical", one(health))?;
    gauge(out, "config_revision", "The newest configuration that is known", one(status.revision))?;
    gauge(out, "config_applied_revision", "The configuration in force", one(status.applied_revision))?;
    let local = u64::from(status.source == ConfigSource::LocalCopy);
    gauge(out, "config_local_copy", "Whether the directory can't be reached", one(local))?;
    gauge(out, "frozen_addresses", "Addresses that too many claim", one(status.frozen.len() as u64))?;
    gauge(out, "groups", "Port groups", one(u64::from(status.groups)))?;
    gauge(out, "ports", "Ports of the configuration", one(u64::from(status.ports.defined)))
}

fn uplinks(out: &mut DescriptorEncoder<'_>, status: &SwitchStatus) -> fmt::Result {
    let labels = |it: &ferro_protocol::api::switch::UplinkInfo| {
        vec![("uplink", it.name.clone()), ("switch", it.switch.clone())]
    };
    let passing = status.uplinks.iter().map(|it| (labels(it), it.counters.clone()));
    passed(out, "uplink", "an uplink", &passing.collect::<Vec<_>>())?;
    let up = status.uplinks.iter().map(|it| (labels(it), u64::from(it.link == LinkState::Up)));
    gauge(out, "uplink_up", "Whether frames can pass", up.collect())
}

fn tunnels(out: &mut DescriptorEncoder<'_>, status: &SwitchStatus) -> fmt::Result {
    let host = |it: &ferro_protocol::api::switch::TunnelInfo| vec![("host", it.host_name.clone())];
    let passing = status.tunnels.iter().map(|it| (host(it), it.counters.clone()));
    passed(out, "tunnel", "another host", &passing.collect::<Vec<_>>())?;
    let up = status.tunnels.iter().map(|it| (host(it), u64::from(it.alive)));
    gauge(out, "tunnel_up", "Whether the host answers on any path", up.collect())?;
    let mut paths = Vec::new();
    for it in &status.tunnels {
        for path in &it.paths {
            let mut labels = host(it);
            labels.extend([("local", path.local.clone()), ("remote", path.remote.clone())]);
            paths.push((labels, path));
        }
    }
    let each = |of: &dyn Fn(&ferro_protocol::api::switch::TunnelPath) -> Option<u64>| -> Vec<Row> {
        paths.iter().filter_map(|(labels, path)| Some((labels.clone(), of(path)?))).collect()
    };
    gauge(out, "path_up", "Whether the path works", each(&|path| Some(u64::from(path.alive))))?;
    gauge(out, "path_rtt_microseconds", "Round trip", each(&|path| path.rtt_us))?;
    let largest = |path: &ferro_protocol::api::switch::TunnelPath| path.datagram_bytes_max.map(u64::from);
    gauge(out, "path_datagram_bytes", "The largest datagram that gets through", each(&largest))?;
    counter(out, "path_sent", "Datagrams sent", each(&|path| Some(path.sent)))?;
    counter(out, "path_received", "Datagrams received", each(&|path| Some(path.received)))?;
    counter(out, "path_lost", "Datagrams lost on the way there", each(&|path| Some(path.lost)))?;
    counter(out, "path_dropped", "Datagrams that the path did not take", each(&|path| Some(path.dropped)))
}

/// Frames, bytes and drops of one kind of place.
fn passed(
    out: &mut DescriptorEncoder<'_>,
    kind: &str,
    what: &str,
    all: &[(Labels, Counters)],
) -> fmt::Result {
    let directed = |of: &dyn Fn(&ferro_protocol::api::switch::Flow) -> u64| -> Vec<Row> {
        let mut rows = Vec::new();
        for (labels, counters) in all {
            for (direction, flow) in [("from", &counters.from), ("to", &counters.to)] {
                let mut labels = labels.clone();
                labels.push(("direction", direction.to_owned()));
                rows.push((labels, of(flow)));
            }
        }
        rows
    };
    let frames = directed(&|flow| flow.frames);
    counter(out, &format!("{kind}_frames"), &format!("Frames from and to {what}"), frames)?;
    let bytes = directed(&|flow| flow.bytes);
    counter(out, &format!("{kind}_bytes"), &format!("Bytes from and to {what}"), bytes)?;
    let drops = all.iter().flat_map(|(labels, counters)| {
        counters.dropped.iter().map(|(cause, count)| {
            let mut labels = labels.clone();
            labels.push(("cause", cause.clone()));
            (labels, *count)
        })
    });
    counter(out, &format!("{kind}_drops"), &format!("Frames of {what} that went nowhere"), drops.collect())
}

fn one(value: u64) -> Vec<Row> {
    vec![(Vec::new(), value)]
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Vec<Row>) -> fmt::Result {
    write(out, name, help, MetricType::Gauge, rows, ConstGauge::new)
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Vec<Row>) -> fmt::Result {
    write(out, name, help, MetricType::Counter, rows, ConstCounter::new)
}

fn write<M: EncodeMetric>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    rows: Vec<Row>,
    metric: impl Fn(u64) -> M,
) -> fmt::Result {
    let mut to = out.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        if labels.is_empty() {
            // The only row: without labels there is nothing to tell another from it.
            return metric(value).encode(to);
        }
        metric(value).encode(to.encode_family(&labels)?)?;
    }
    Ok(())
}
