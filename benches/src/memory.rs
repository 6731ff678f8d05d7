//! `ferro-bench memory`: what a large volume's metadata costs the daemons, beyond what a small one does: just after it was written all over,
//! and when nobody has asked for anything for a while.
//!
//! One block in each extent is written: what the daemons know of an extent does not depend on how many of its blocks are. The disks need
//! room for the whole volume, or a file system that allocates without writing, on a sparse file:
//!
//! ```text
//! truncate -s 4T big.img && mkfs.xfs -q big.img && mount -o loop big.img /mnt/big
//! ferro-bench memory --gib 1024 --dir /mnt/big
//! ```

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::client::{Client, Surroundings};
use crate::cluster::{Cluster, CommonArgs, Policy, Setup};
use crate::measure::ClientMode;
use crate::process::Stop;
use crate::report::{Machine, tell};
use crate::usage;
use crate::workload::{Access, SMALL_BYTES, Until, Workload};

/// The most that all daemons together may take for each TiB of a volume in use, MiB.
const BUSY_MIB_MAX: f64 = 1024.0;
/// The same of one that nobody asks for anything.
const IDLE_MIB_MAX: f64 = 64.0;

/// Writes a block of each extent.
const FILL: Workload = Workload {
    name: "a block in each MiB",
    access: Access::EachMib,
    read_percent: 0,
    block_bytes: SMALL_BYTES,
    depth: 32,
    flush_each: false,
    burst: None,
};

/// `ferro-bench memory`'s arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct MemoryArgs {
    /// How the volume is kept: mirror:1 to mirror:3, raid5:2+1, raid5:4+1, raid6:2+2 or raid6:4+2.
    #[arg(long, default_value = "mirror:1", value_parser = str::parse::<Policy>)]
    pub policy: Policy,
    /// How large it is.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=8192))]
    pub gib: u32,
    /// Seconds without a request before the idle volume is measured.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_seconds: u64,
    /// Where, and what becomes of the figures.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Resident memory at a moment, MiB, of each daemon.
#[derive(Clone, Debug, Serialize)]
struct Moment {
    what: &'static str,
    daemons_mib: Vec<f64>,
}

impl Moment {
    fn of(what: &'static str, cluster: &Cluster) -> anyhow::Result<Self> {
        let samples = usage::sample_all(&cluster.watched())?;
        let daemons_mib: Vec<f64> = samples.iter().map(|sample| usage::mib(sample.rss_bytes)).collect();
        eprintln!("{what}: {:.0} MiB in all", daemons_mib.iter().sum::<f64>());
        Ok(Self { what, daemons_mib })
    }

    fn total_mib(&self) -> f64 {
        self.daemons_mib.iter().sum()
    }
}

#[derive(Debug, Serialize)]
struct MemoryReport {
    policy: String,
    gib: u32,
    moments: Vec<Moment>,
    /// What the volume takes of all daemons together, by the TiB: in use, and idle.
    busy_mib_per_tib: f64,
    idle_mib_per_tib: f64,
    pass: bool,
    machine: Machine,
}

/// Measures; whether all bars were met, or nobody asked.
pub fn memory(args: &MemoryArgs, stop: &Stop) -> anyhow::Result<bool> {
    let machine = Machine::read();
    let directory = args.common.directory()?;
    let programs = args.common.programs(stop)?;
    // What a disk keeps for itself comes to 1/64 and a little, and nothing is placed on one that is nearly full.
    let setup = Setup {
        hosts: args.policy.hosts(),
        disk_gib: args.gib + args.gib / 8 + 4,
        config: String::new(),
        disk_bytes_per_s: None,
    };
    let cluster = Cluster::start_as(&programs, &args.policy, setup, &directory, stop)?;
    let moments = measure(&cluster, args, stop).map_err(|error| cluster.with_logs(&error))?;
    let before = moments[0].total_mib();
    let per_tib = |moment: &Moment| (moment.total_mib() - before) * 1024.0 / f64::from(args.gib);
    let (busy, idle) = (per_tib(&moments[1]), per_tib(&moments[2]));
    let report = MemoryReport {
        policy: args.policy.text().to_owned(),
        gib: args.gib,
        moments,
        busy_mib_per_tib: busy,
        idle_mib_per_tib: idle,
        pass: busy <= BUSY_MIB_MAX && idle <= IDLE_MIB_MAX,
        machine,
    };
    tell(&report, &text(&report), args.common.json.as_deref())?;
    Ok(!args.common.check || report.pass)
}

fn measure(cluster: &Cluster, args: &MemoryArgs, stop: &Stop) -> anyhow::Result<Vec<Moment>> {
    let around = Surroundings { stop, watched: &[] };
    // A small one first: what any volume costs, and what the first requests make the daemons allocate, is not the large one's.
    let small = cluster.volume("small", "2G")?;
    let mut client = Client::attach(&small, ClientMode::Sleeping)?;
    client.run(&FILL, Until::Requests(2048), &around)?;
    stop.sleep(Duration::from_secs(args.idle_seconds.min(30)))?;
    // With its client: a guest's memory that a daemon has mapped counts as the daemon's, once here and once below.
    let before = Moment::of("a small volume", cluster)?;
    drop(client);
    let large = cluster.volume("large", &format!("{}G", args.gib))?;
    let mut client = Client::attach(&large, ClientMode::Sleeping)?;
    let figures = client.run(&FILL, Until::Requests(u64::from(args.gib) * 1024), &around)?;
    eprintln!("{:.0} blocks a second", figures.iops);
    let written = Moment::of("beside a large one that was just written", cluster)?;
    stop.sleep(Duration::from_secs(args.idle_seconds))?;
    let idle = Moment::of("the same, idle", cluster)?;
    Ok(vec![before, written, idle])
}

fn text(report: &MemoryReport) -> String {
    let mut text = format!("a volume of {} GiB, {}: resident memory\n", report.gib, report.policy);
    for moment in &report.moments {
        let each: Vec<String> = moment.daemons_mib.iter().map(|mib| format!("{mib:.0}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<42}{:>8.0} MiB ({})", moment.what, moment.total_mib(), each.join(" + "));
    }
    let _ = writeln!(
        text,
        "for each TiB: {:.0} MiB just written (bar {BUSY_MIB_MAX}), {:.0} MiB idle (bar {IDLE_MIB_MAX})  {}",
        report.busy_mib_per_tib,
        report.idle_mib_per_tib,
        if report.pass { "pass" } else { "FAIL" }
    );
    text
}
