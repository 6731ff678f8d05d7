//! `ferro-bench congestion`: what a guest's own TCP makes of a tunnel's congestion control.
//!
//! Two hosts with a wire between them, with our switch and with VXLAN, which has no control at all; TCP flows of one guest,
//! of two, and of one beside a flow that is in no tunnel; over a wire that is as fast as the machine, and through a
//! bottleneck with a short and a long queue. Of each: what arrived, what TCP had to send again, and how long a small packet
//! of the same guest takes meanwhile.
//!
//! What it must not know: the inside of the switch. It runs the daemons as an operator does.

mod lab;
mod probe;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use crate::process::Stop;
use crate::report::{Machine, write_json};
use crate::switch::ours::Programs;
use lab::Lab;

/// What to measure.
#[derive(Debug, Args)]
pub struct CongestionArgs {
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 6)]
    pub seconds: u64,
    /// How often each is repeated: the report has medians.
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Only overlays whose name contains this: `managed`, `cubic`, `vxlan`.
    #[arg(long, default_value = "")]
    pub only: String,
    /// Only cases whose name contains this: `open`, `short`, `long`, `beside`.
    #[arg(long, default_value = "")]
    pub case: String,
    /// The bottleneck's rate, in Mbit/s.
    #[arg(long, default_value_t = 500)]
    pub mbit: u64,
    /// The short queue, in KiB.
    #[arg(long, default_value_t = 256)]
    pub short_kib: u64,
    /// The long queue, in KiB.
    #[arg(long, default_value_t = 16 << 10)]
    pub long_kib: u64,
    /// Windows of the managed controller to measure, in KiB.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096])]
    pub window_kib: Vec<u32>,
    /// Write the report as JSON to this file; `-` is standard output.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What carries the guests' frames.
#[derive(Clone, Copy, Debug)]
enum Overlay {
    Ours { congestion: &'static str, window_kib: u32 },
    Vxlan,
}

impl Overlay {
    fn name(self) -> String {
        match self {
            Self::Ours { congestion, window_kib } => format!("{congestion}-{window_kib}"),
            Self::Vxlan => "vxlan".to_owned(),
        }
    }
}

/// The wire.
#[derive(Clone, Copy, Debug)]
enum Bottleneck {
    /// As fast as the machine.
    None,
    /// A token bucket with a queue.
    Queue { mbit_s: u64, bytes: u64 },
}

/// Whose flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flows {
    /// One guest's.
    One,
    /// Two guests' at once.
    Two,
    /// One guest's, and one that is in no tunnel.
    Beside,
    /// One guest's, while another sends UDP, half as much again as the wire carries, whatever becomes of it.
    Flood,
}

/// What a measurement found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Of the flows together.
    pub mbit_s: f64,
    /// Of each: with `beside`, the last is the one that is in no tunnel, with `flood` the UDP.
    pub flows_mbit_s: Vec<f64>,
    /// Segments that TCP sent again, of all flows.
    pub retransmits: u64,
    /// Round trips of the first guest's small packets meanwhile, in milliseconds.
    pub rtt_p50_ms: f64,
    /// The 99th percentile.
    pub rtt_p99_ms: f64,
    /// The longest.
    pub rtt_max_ms: f64,
    /// Of these packets, how many were not answered.
    pub lost: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// By overlay, then by case.
    results: BTreeMap<String, BTreeMap<String, Figures>>,
    machine: Machine,
}

/// Where a hidden helper sends its packets.
#[derive(Args, Debug)]
pub struct ProbeArgs {
    /// An echo's address.
    address: SocketAddr,
    /// How long, in milliseconds.
    milliseconds: u64,
}

impl ProbeArgs {
    /// Sends and prints.
    pub fn send(&self) -> anyhow::Result<()> {
        probe::send(self.address, Duration::from_millis(self.milliseconds))
    }
}

/// Measures. There is nothing to miss.
pub fn congestion(args: &CongestionArgs, stop: &Stop) -> anyhow::Result<()> {
    anyhow::ensure!((2..=600).contains(&args.seconds), "--seconds: give from 2 to 600");
    anyhow::ensure!((1..=99).contains(&args.rounds), "--rounds: give from 1 to 99");
    anyhow::ensure!((10..=40_000).contains(&args.mbit), "--mbit: give from 10 to 40000");
    let machine = Machine::read();
    let programs = Programs::find()?;
    let managed = args.window_kib.iter().map(|kib| Overlay::Ours { congestion: "managed", window_kib: *kib });
    let cubic = Overlay::Ours { congestion: "cubic", window_kib: 4096 };
    let overlays: Vec<Overlay> = managed.chain([cubic, Overlay::Vxlan]).collect();
    let (overlays, cases) = (chosen(overlays, &args.only, |it| it.name())?, cases(args)?);
    let mut all: BTreeMap<String, BTreeMap<String, Vec<Figures>>> = BTreeMap::new();
    for overlay in overlays {
        let lab = Lab::start(&programs, overlay, stop).with_context(|| overlay.name())?;
        for (name, bottleneck, flows) in &cases {
            lab.narrow(*bottleneck, stop)?;
            for _ in 0..args.rounds {
                let time = Duration::from_secs(args.seconds);
                let figures = measure(&lab, *flows, args.mbit * 3 / 2, time, stop)
                    .with_context(|| format!("{} {name}", overlay.name()))?;
                eprintln!("{:<14} {name:<13} {}", overlay.name(), line(&figures));
                let table = all.entry(overlay.name()).or_default();
                table.entry(name.clone()).or_default().push(figures);
            }
        }
    }
    let medians = |table: BTreeMap<String, Vec<Figures>>| {
        table.into_iter().map(|(case, figures)| (case, median(figures))).collect()
    };
    let results = all.into_iter().map(|(overlay, table)| (overlay, medians(table))).collect();
    let report = Report { results, machine };
    for (overlay, table) in &report.results {
        for (case, figures) in table {
            println!("{overlay:<14} {case:<13} {}", line(figures));
        }
    }
    if let Some(path) = &args.json {
        write_json(&report, path)?;
    }
    Ok(())
}

fn chosen<T>(all: Vec<T>, only: &str, name: impl Fn(&T) -> String) -> anyhow::Result<Vec<T>> {
    let found: Vec<T> = all.into_iter().filter(|it| name(it).contains(only)).collect();
    anyhow::ensure!(!found.is_empty(), "{only}: nothing to measure has that in its name");
    Ok(found)
}

fn cases(args: &CongestionArgs) -> anyhow::Result<Vec<(String, Bottleneck, Flows)>> {
    let queue = |kib: u64| Bottleneck::Queue { mbit_s: args.mbit, bytes: kib << 10 };
    let wires =
        [("open", Bottleneck::None), ("short", queue(args.short_kib)), ("long", queue(args.long_kib))];
    let flows = [("", Flows::One), ("-x2", Flows::Two), ("-beside", Flows::Beside), ("-flood", Flows::Flood)];
    let all = wires.iter().flat_map(|(wire, bottleneck)| {
        flows.iter().map(move |(suffix, flows)| (format!("{wire}{suffix}"), *bottleneck, *flows))
    });
    // Where there is no bottleneck, the processor is shared and not the wire.
    let sensible = all.filter(|(_, wire, flows)| {
        !matches!((wire, flows), (Bottleneck::None, Flows::Beside | Flows::Flood))
    });
    chosen(sensible.collect(), &args.case, |(name, ..)| name.clone())
}

fn measure(lab: &Lab, flows: Flows, flood_mbit: u64, time: Duration, stop: &Stop) -> anyhow::Result<Figures> {
    let (one, other) = (lab::guest(0, 1), lab::guest(1, 1));
    let to = match flows {
        Flows::One => vec![(one, None)],
        Flows::Two => vec![(one, None), (other, None)],
        Flows::Beside => vec![(one, None), (lab::wire(1), None)],
        Flows::Flood => vec![(one, None), (other, Some(flood_mbit))],
    };
    std::thread::scope(|scope| {
        let flows: Vec<_> =
            to.iter().map(|(to, flood)| scope.spawn(move || lab.iperf(*to, *flood, time, stop))).collect();
        // TCP's first second does not count, neither here nor there.
        let waited = stop.sleep(Duration::from_secs(1));
        let probed = waited.and_then(|()| lab.probe(time.saturating_sub(Duration::from_secs(1)), stop));
        let mut figures = Figures::default();
        for flow in flows {
            let report = flow.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            let number = |path: &str| report.pointer(path).and_then(serde_json::Value::as_f64);
            // Of UDP, older releases only say what was sent and how much of it was lost.
            let udp = || {
                Some(number("/end/sum/bits_per_second")? * (1.0 - number("/end/sum/lost_percent")? / 100.0))
            };
            let rate = number("/end/sum/lost_percent")
                .map_or_else(|| number("/end/sum_received/bits_per_second"), |_| udp());
            let rate = rate.context("iperf3 reports no rate")?;
            figures.flows_mbit_s.push((rate / 1e5).round() / 10.0);
            figures.mbit_s += (rate / 1e5).round() / 10.0;
            let again = report.pointer("/end/sum_sent/retransmits").and_then(serde_json::Value::as_u64);
            figures.retransmits += again.unwrap_or(0);
        }
        round_trips(&probed?, &mut figures)?;
        Ok(figures)
    })
}

/// Reads what [`probe::send`] printed.
fn round_trips(text: &str, into: &mut Figures) -> anyhow::Result<()> {
    let (mut times, mut lost) = (Vec::new(), 0_u64);
    for line in text.lines() {
        let number = |text: &str| text.parse::<u64>().with_context(|| format!("the probe said {line:?}"));
        match line.strip_prefix(probe::LOST) {
            Some(count) => lost = number(count)?,
            None => times.push(number(line)?),
        }
    }
    anyhow::ensure!(!times.is_empty(), "no small packet was answered");
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share).round() as usize;
        (times[index] as f64 / 1e4).round() / 100.0
    };
    (into.rtt_p50_ms, into.rtt_p99_ms, into.rtt_max_ms) = (at(0.5), at(0.99), at(1.0));
    into.lost = lost as f64 / (lost + times.len() as u64) as f64;
    Ok(())
}

/// The one in the middle by what arrived.
fn median(mut figures: Vec<Figures>) -> Figures {
    figures.sort_by(|a, b| a.mbit_s.total_cmp(&b.mbit_s));
    let middle = figures.len() / 2;
    figures.swap_remove(middle)
}

fn line(it: &Figures) -> String {
    let Figures { mbit_s, flows_mbit_s, retransmits, rtt_p50_ms, rtt_p99_ms, rtt_max_ms, lost } = it;
    let each: Vec<String> = flows_mbit_s.iter().map(|rate| format!("{rate:.0}")).collect();
    let (each, lost) = (each.join(" + "), lost * 100.0);
    format!(
        "{mbit_s:7.0} Mb/s ({each})  again {retransmits:6}  rtt ms p50 {rtt_p50_ms:.2} p99 {rtt_p99_ms:.2} max {rtt_max_ms:.2}  lost {lost:.1} %"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_s_words_are_read() {
        let mut figures = Figures::default();
        let mut lines: Vec<String> = (1..=100).map(|n| (n * 1_000_000).to_string()).collect();
        lines.push("lost 100".to_owned());
        round_trips(&lines.join("\n"), &mut figures).unwrap();
        assert_eq!((figures.rtt_p50_ms, figures.rtt_p99_ms, figures.rtt_max_ms), (51.0, 99.0, 100.0));
        assert!((figures.lost - 0.5).abs() < 1e-9);
        assert!(round_trips("lost 3\n", &mut figures).is_err());
        assert!(round_trips("sing\n", &mut figures).is_err());
    }
}
