//! `ferro-bench storage` and `ferro-bench socket`: the workloads on ours, then on the peer, one after the other, so
//! that neither disturbs the other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::client::{Client, Surroundings};
use crate::cluster::{Cluster, CommonArgs, DISK_GIB, Policy};
use crate::measure::{ClientMode, Peer, Table};
use crate::peer_ceph;
use crate::peer_qsd::{Aio, Qsd};
use crate::process::Stop;
use crate::report::{Machine, Report, tell};
use crate::usage::Watched;
use crate::workload::{
    BURST, FLUSHED_WRITES, PAUSE, PREFILL, PREFILL_REQUESTS, Times, Until, WORKLOADS, Workload,
};

/// Which clients to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Clients {
    /// The one the targets are for.
    Sleeping,
    /// The one that spins.
    Polling,
    /// First the one, then the other.
    Both,
}

impl Clients {
    fn main(self) -> ClientMode {
        match self {
            Self::Sleeping | Self::Both => ClientMode::Sleeping,
            Self::Polling => ClientMode::Polling,
        }
    }

    fn also_polling(self) -> bool {
        self == Self::Both
    }
}

/// What to run and for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The client: one that sleeps on its eventfd as a guest does, one that polls, or both.
    #[arg(long, value_enum, default_value_t = Clients::Sleeping)]
    pub client: Clients,
    /// Seconds measured for each workload, instead of the peer script's 12 (with a ramp of at most 3).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: Option<u64>,
    /// Only this workload; may be given more than once.
    #[arg(long = "only", value_name = "NAME", value_parser = workload_named)]
    pub only: Vec<Workload>,
}

fn workload_named(name: &str) -> anyhow::Result<Workload> {
    let mut all = WORKLOADS.iter().chain([&FLUSHED_WRITES, &BURST]);
    let Some(workload) = all.clone().find(|workload| workload.name == name) else {
        let names: Vec<&str> = all.by_ref().map(|workload| workload.name).collect();
        bail!("no such workload; there are {}", names.join(", "));
    };
    Ok(*workload)
}

impl Plan {
    fn times(&self) -> Times {
        self.seconds.map_or(Times::PEER, |seconds| Times {
            ramp: Times::PEER.ramp.min(Duration::from_secs(seconds)),
            measured: Duration::from_secs(seconds),
        })
    }

    fn until(&self, workload: &Workload) -> Until {
        workload.burst.map_or_else(|| Until::Time(self.times()), Until::Requests)
    }

    fn workloads(&self, with_flushed: bool) -> Vec<Workload> {
        if !self.only.is_empty() {
            return self.only.clone();
        }
        let mut all = WORKLOADS.to_vec();
        all.push(BURST);
        if with_flushed {
            all.push(FLUSHED_WRITES);
        }
        all
    }
}

/// `ferro-bench storage`'s arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct StorageArgs {
    /// How the volume is kept: mirror:1, mirror:2, mirror:3, raid5:2+1, raid5:4+1, raid6:2+2 or raid6:4+2.
    #[arg(long, default_value = "mirror:3", value_parser = str::parse::<Policy>)]
    pub policy: Policy,
    /// Whom to compare with, in the same run.
    #[arg(long, value_enum)]
    pub peer: Option<Peer>,
    /// Measure the peer only.
    #[arg(long, requires = "peer")]
    pub peer_only: bool,
    /// The script that runs the Ceph peer [default: ../shared/peers/ceph.sh beside the checkout].
    #[arg(long, value_name = "PATH")]
    pub peer_script: Option<PathBuf>,
    /// The Ceph peer's pool: rbd (three replicas) or ec21 (two data chunks and one of parity) [default: what is like the policy].
    #[arg(long, requires = "peer")]
    pub pool: Option<String>,
    /// How the qsd peer reaches its file.
    #[arg(long, value_enum, default_value_t = Aio::IoUring)]
    pub qsd_aio: Aio,
    /// Where, and what becomes of the figures.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to run.
    #[command(flatten)]
    pub plan: Plan,
}

/// Runs ours and the peer; whether all targets were met.
pub fn storage(args: &StorageArgs, stop: &Stop) -> anyhow::Result<bool> {
    let machine = Machine::read();
    let script = args.peer_script.clone().unwrap_or_else(peer_ceph::default_script);
    if args.peer == Some(Peer::Ceph) {
        peer_ceph::check(&script)?;
    }
    let like = (args.policy.has_parity()).then_some("ec21");
    let pool = args.pool.as_deref().or(like);
    let directory = args.common.directory()?;
    let workloads = args.plan.workloads(args.peer == Some(Peer::Qsd));
    let (ours, ours_polling) =
        if args.peer_only { Default::default() } else { run_ours(args, &workloads, &directory, stop)? };
    let (peer, peer_polling) = match args.peer {
        None => (None, Table::new()),
        Some(Peer::Ceph) => {
            (Some((Peer::Ceph, peer_ceph::bench(&script, pool, &directory, stop)?)), Table::new())
        }
        Some(Peer::Qsd) => {
            let qsd = Qsd::start(args.qsd_aio, &directory, stop)?;
            let (main, polling) =
                run_clients(qsd.socket(), &workloads, &args.plan, &qsd.watched(), "peer", stop)?;
            (Some((Peer::Qsd, main)), polling)
        }
    };
    let subject =
        if args.peer_only { "peer only".to_owned() } else { format!("vsand {}", args.policy.text()) };
    let mut report = Report::new(subject, args.plan.client.main(), machine, ours, peer);
    report.ours_polling = ours_polling;
    report.peer_polling = peer_polling;
    tell(&report, &report.text(), args.common.json.as_deref())?;
    Ok(!args.common.check || report.all_passed())
}

fn run_ours(
    args: &StorageArgs,
    workloads: &[Workload],
    directory: &Path,
    stop: &Stop,
) -> anyhow::Result<(Table, Table)> {
    let programs = args.common.programs(stop)?;
    eprintln!("ours: starting {} vsand", args.policy.hosts());
    let cluster = Cluster::start(&programs, &args.policy, directory, DISK_GIB, stop)?;
    let socket = cluster.volume("bench", "2G")?;
    run_clients(&socket, workloads, &args.plan, &cluster.watched(), "ours", stop)
        .map_err(|error| cluster.with_logs(&error))
}

/// `ferro-bench socket`'s arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct SocketArgs {
    /// A vhost-user-blk socket with at least 2 GiB behind it. What is on it is overwritten.
    pub socket: PathBuf,
    /// A process whose use of the machine to report; may be given more than once.
    #[arg(long = "pid")]
    pub pids: Vec<u32>,
    /// Leave the volume as it is instead of filling it first.
    #[arg(long)]
    pub no_prefill: bool,
    /// Write the figures as JSON to this file (- for standard output).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// What to run.
    #[command(flatten)]
    pub plan: Plan,
}

/// Runs the workloads on a socket that is there already.
pub fn socket(args: &SocketArgs, stop: &Stop) -> anyhow::Result<()> {
    let machine = Machine::read();
    let watched: Vec<Watched> =
        args.pids.iter().map(|&pid| Watched { name: format!("pid {pid}"), pid }).collect();
    let around = Surroundings { stop, watched: &watched };
    if !args.no_prefill {
        prefill(&args.socket, &around, "socket")?;
    }
    let workloads = args.plan.workloads(false);
    let main = run_all(&args.socket, args.plan.client.main(), &workloads, &args.plan, &around, "socket")?;
    let mut report =
        Report::new(args.socket.display().to_string(), args.plan.client.main(), machine, main, None);
    if args.plan.client.also_polling() {
        report.ours_polling =
            run_all(&args.socket, ClientMode::Polling, &workloads, &args.plan, &around, "socket")?;
    }
    tell(&report, &report.text(), args.json.as_deref())
}

/// Fills the volume, then runs the workloads with each client asked for: the main one's figures and, if asked for
/// besides, the polling one's.
fn run_clients(
    socket: &Path,
    workloads: &[Workload],
    plan: &Plan,
    watched: &[Watched],
    who: &str,
    stop: &Stop,
) -> anyhow::Result<(Table, Table)> {
    let around = Surroundings { stop, watched };
    prefill(socket, &around, who)?;
    let main = run_all(socket, plan.client.main(), workloads, plan, &around, who)?;
    let polling = if plan.client.also_polling() {
        run_all(socket, ClientMode::Polling, workloads, plan, &around, who)?
    } else {
        Table::new()
    };
    Ok((main, polling))
}

fn prefill(socket: &Path, around: &Surroundings<'_>, who: &str) -> anyhow::Result<()> {
    let mut client = Client::attach(socket, ClientMode::Sleeping)?;
    let figures = client.run(&PREFILL, Until::Requests(PREFILL_REQUESTS), around)?;
    eprintln!("{who}: {:<20} {:>9.0} MB/s", PREFILL.name, figures.mb_s);
    Ok(())
}

fn run_all(
    socket: &Path,
    mode: ClientMode,
    workloads: &[Workload],
    plan: &Plan,
    around: &Surroundings<'_>,
    who: &str,
) -> anyhow::Result<Table> {
    let mut client = Client::attach(socket, mode)?;
    let mut table = Table::new();
    for workload in workloads {
        if workload.burst.is_some() {
            around.stop.sleep(PAUSE)?;
        }
        let figures = client
            .run(workload, plan.until(workload), around)
            .with_context(|| format!("{who}, {} client", mode.name()))?;
        eprintln!("{who}: {:<24} {:>9.0} IOPS ({} client)", workload.name, figures.iops, mode.name());
        table.insert(workload.name.to_owned(), figures);
    }
    Ok(table)
}
