//! `ferro-bench idle`: what a daemon uses while its volumes do nothing.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use crate::client::Client;
use crate::cluster::{Cluster, CommonArgs, DISK_GIB, Policy};
use crate::measure::ClientMode;
use crate::process::Stop;
use crate::report::{Machine, tell};
use crate::usage;

/// The most of a core that an idle daemon may use, percent.
pub const CPU_PERCENT_MAX: f64 = 1.0;
/// The most memory that an idle daemon may hold, MiB.
pub const RSS_MIB_MAX: f64 = 150.0;

/// `ferro-bench idle`'s arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct IdleArgs {
    /// How the volumes are kept: mirror:1, mirror:2 or mirror:3.
    #[arg(long, default_value = "mirror:1", value_parser = str::parse::<Policy>)]
    pub policy: Policy,
    /// How many volumes, each with a client attached that asks for nothing.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub volumes: u32,
    /// Seconds to watch.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Where, and what becomes of the figures.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// How long the cluster may settle before it is watched.
const SETTLE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct IdleDaemon {
    name: String,
    cpu_percent: f64,
    rss_mib: f64,
    pass: bool,
}

#[derive(Debug, Serialize)]
struct IdleReport {
    volumes: u32,
    seconds: u64,
    daemons: Vec<IdleDaemon>,
    machine: Machine,
}

/// Measures; whether all bars were met, or nobody asked.
pub fn idle(args: &IdleArgs, stop: &Stop) -> anyhow::Result<bool> {
    let machine = Machine::read();
    let directory = args.common.directory()?;
    let programs = args.common.programs(stop)?;
    let cluster = Cluster::start(&programs, &args.policy, &directory, DISK_GIB, stop)?;
    let mut clients = Vec::new();
    for number in 0..args.volumes {
        let socket = cluster.volume(&format!("idle-{number}"), "2G")?;
        clients
            .push(Client::attach(&socket, ClientMode::Sleeping).map_err(|error| cluster.with_logs(&error))?);
    }
    stop.sleep(SETTLE)?;
    let watched = cluster.watched();
    let before = usage::sample_all(&watched)?;
    let started = Instant::now();
    stop.sleep(Duration::from_secs(args.seconds))?;
    let after = usage::sample_all(&watched)?;
    let elapsed_s = started.elapsed().as_secs_f64();
    drop(clients);
    let daemons: Vec<IdleDaemon> = watched
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(process, (before, after))| {
            let cpu_percent = (after.cpu_s - before.cpu_s) / elapsed_s * 100.0;
            let rss_mib = usage::mib(after.rss_bytes);
            let pass = cpu_percent < CPU_PERCENT_MAX && rss_mib < RSS_MIB_MAX;
            IdleDaemon { name: process.name.clone(), cpu_percent, rss_mib, pass }
        })
        .collect();
    ensure!(!daemons.is_empty(), "no daemon was measured");
    let report = IdleReport { volumes: args.volumes, seconds: args.seconds, daemons, machine };
    tell(&report, &text(&report, args), args.common.json.as_deref())?;
    Ok(!args.common.check || report.daemons.iter().all(|daemon| daemon.pass))
}

fn text(report: &IdleReport, args: &IdleArgs) -> String {
    let mut text = format!(
        "{} idle volumes ({}), {} s; bars: under {CPU_PERCENT_MAX} % of a core, under {RSS_MIB_MAX} MiB\n",
        report.volumes,
        args.policy.text(),
        report.seconds
    );
    for daemon in &report.daemons {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<12}{:>8.2} %{:>9.1} MiB  {}",
            daemon.name,
            daemon.cpu_percent,
            daemon.rss_mib,
            if daemon.pass { "pass" } else { "FAIL" }
        );
    }
    text
}
