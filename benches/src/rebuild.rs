//! `ferro-bench rebuild`: what a host's death costs: how fast what it held is made anew where nobody asks for anything, and how long
//! a guest's requests take meanwhile.
//!
//! ```text
//!   a host more than the policy needs, the volume filled
//!     kill one, and wait until its components are rebuilt on the others   ──► idle: bytes a second, beside the disk's own
//!     start it again: empty, a place for the next
//!     the guest's peak; half of it, at a pace                            ──► p99 before
//!     kill another, the same pace while its components are rebuilt       ──► p99 during
//! ```
//!
//! A daemon is killed, its disk with it; after a repair delay of half a minute the cluster takes both for gone.
//!
//! All hosts have their disks on this machine's, where a rebuild's reads and writes are in each other's way. With `--disk-mib-s` each has
//! a speed of its own ([`crate::disk_limit`]), as disks of many machines do.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ferro_protocol::api::{DiskList, Redundancy, VolumeInfo};
use serde::Serialize;

use crate::client::{Client, Surroundings};
use crate::cluster::{Cluster, CommonArgs, DISK_GIB, Policy, Setup};
use crate::measure::{ClientMode, Figures, SCRIPT_MB_BYTES};
use crate::peer_qsd::{Aio, Qsd};
use crate::process::Stop;
use crate::report::{Machine, tell};
use crate::workload::{PREFILL, PREFILL_REQUESTS, READ_AND_WRITE, Times, Until, WORKLOADS, Workload};

/// The least part of the slowest disk's or link's speed that a rebuild is to reach while nobody asks for anything.
const IDLE_PART_MIN: f64 = 0.7;
/// The most that a guest's p99 may grow by while something is rebuilt, at half of its peak.
const P99_GROWTH_MAX: f64 = 2.0;
/// The mix of `WORKLOADS` that the guest does.
const MIX: &str = "randrw70_4k_qd32";
const VOLUME: &str = "bench";
/// As long as a shard's disk is waited for in any case, so that everything is rebuilt at once.
const REPAIR_DELAY_S: u64 = 30;
const BEGIN_TIMEOUT: Duration = Duration::from_secs(120);
const REBUILD_TIMEOUT: Duration = Duration::from_secs(1800);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `ferro-bench rebuild`'s arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct RebuildArgs {
    /// How the volume is kept: mirror:2, mirror:3, raid5:2+1, raid5:4+1, raid6:2+2 or raid6:4+2.
    #[arg(long, default_value = "mirror:3", value_parser = str::parse::<Policy>)]
    pub policy: Policy,
    /// Seconds measured of each.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// What a rebuild may copy a second beside a busy guest, in MiB, instead of the default (`resync_mib_per_s`).
    #[arg(long, value_name = "N")]
    pub resync_mib_per_s: Option<u64>,
    /// What each daemon may read and write of its disk a second, in MiB each way, as a disk of its own would have it. Without it all
    /// share what this machine's disk does. Needs root.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub disk_mib_s: Option<u32>,
    /// Where, and what becomes of the figures.
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Serialize)]
struct Idle {
    /// What the dead host's disk held.
    lost_mib: f64,
    seconds: f64,
    mib_s: f64,
    /// What each host's disk takes: as much as it may, or what this machine's does, sequentially, through `qemu-storage-daemon`.
    disk_mib_s: f64,
    part: f64,
    /// Where all hosts have their disks on this machine's.
    shared: Option<SharedDisk>,
    /// Of the first.
    pass: bool,
}

/// What this machine's disk copies onto itself, half of what it reads and writes at once, in MiB a second.
#[derive(Clone, Copy, Debug, Serialize)]
struct SharedDisk {
    copy_mib_s: f64,
    /// The same with a flush after each write, as what is rebuilt is flushed before it counts.
    flushed_copy_mib_s: f64,
}

/// What a host's disk does where nothing else wants it, in MiB a second.
#[derive(Clone, Copy, Debug)]
struct DiskSpeed {
    write: f64,
    shared: Option<SharedDisk>,
}

#[derive(Debug, Serialize)]
struct Guest {
    peak: Figures,
    /// Requests a second that were asked for afterwards.
    pace: f64,
    before: Figures,
    during: Figures,
    /// How long the rebuild took in all.
    rebuild_seconds: f64,
    p99_growth: f64,
    pass: bool,
}

#[derive(Debug, Serialize)]
struct RebuildReport {
    policy: String,
    idle: Idle,
    guest: Guest,
    machine: Machine,
}

/// Measures; whether all bars were met, or nobody asked.
pub fn rebuild(args: &RebuildArgs, stop: &Stop) -> anyhow::Result<bool> {
    ensure!(args.policy.hosts() > 1, "{} has nothing to be rebuilt from", args.policy.text());
    let machine = Machine::read();
    let directory = args.common.directory()?;
    let disk = match args.disk_mib_s {
        Some(limit) => DiskSpeed { write: limit.into(), shared: None },
        None => disk_speed(&directory, stop)?,
    };
    let programs = args.common.programs(stop)?;
    let mut config = format!("repair_delay_s = {REPAIR_DELAY_S}\n");
    if let Some(rate) = args.resync_mib_per_s {
        // Writing to a String cannot fail.
        let _ = writeln!(config, "resync_mib_per_s = {rate}");
    }
    let disk_bytes_per_s = args.disk_mib_s.map(|mib| u64::from(mib) << 20);
    let setup = Setup { hosts: args.policy.hosts() + 1, disk_gib: DISK_GIB, config, disk_bytes_per_s };
    let mut cluster = Cluster::start_as(&programs, &args.policy, setup, &directory, stop)?;
    let (idle, guest) = measure(&mut cluster, args, disk, stop).map_err(|error| cluster.with_logs(&error))?;
    let report = RebuildReport { policy: args.policy.text().to_owned(), idle, guest, machine };
    tell(&report, &text(&report), args.common.json.as_deref())?;
    Ok(!args.common.check || report.idle.pass && report.guest.pass)
}

fn measure(
    cluster: &mut Cluster,
    args: &RebuildArgs,
    disk: DiskSpeed,
    stop: &Stop,
) -> anyhow::Result<(Idle, Guest)> {
    let mix = WORKLOADS.iter().find(|workload| workload.name == MIX).context("the mix is gone")?;
    let socket = cluster.volume(VOLUME, "2G")?;
    let mut client = Client::attach(&socket, ClientMode::Sleeping)?;
    let around = Surroundings { stop, watched: &[] };
    client.run(&PREFILL, Until::Requests(PREFILL_REQUESTS), &around)?;

    let (host, lost_mib) = fullest(cluster)?;
    eprintln!("idle: {host} dies with {lost_mib:.0} MiB");
    cluster.kill(&host)?;
    let began = wait_for_rebuild(cluster, stop)?;
    let seconds = wait_for_health(cluster, began, stop)?;
    let mib_s = lost_mib / seconds;
    let part = mib_s / disk.write;
    let idle = Idle {
        lost_mib,
        seconds,
        mib_s,
        disk_mib_s: disk.write,
        part,
        shared: disk.shared,
        pass: part >= IDLE_PART_MIN,
    };
    eprintln!("idle: {mib_s:.0} MiB/s");

    cluster.start_again(&host)?;
    let guest = beside_a_guest(cluster, &mut client, mix, args, &around)?;
    Ok((idle, guest))
}

fn beside_a_guest(
    cluster: &mut Cluster,
    client: &mut Client,
    mix: &Workload,
    args: &RebuildArgs,
    around: &Surroundings<'_>,
) -> anyhow::Result<Guest> {
    let stop = around.stop;
    let times = Times { ramp: Duration::from_secs(2), measured: Duration::from_secs(args.seconds) };
    let peak = client.run(mix, Until::Time(times), around)?;
    let pace = peak.iops / 2.0;
    eprintln!("guest: {:.0} IOPS at its peak", peak.iops);
    let before = client.run_at_pace(mix, pace, times, around)?;
    eprintln!("guest: p99 {:.0} µs at half of it", before.p99_us);
    let (host, lost_mib) = fullest(cluster)?;
    eprintln!("guest: {host} dies with {lost_mib:.0} MiB");
    cluster.kill(&host)?;
    // It goes on while the host is missed and until the repair delay is over.
    let killed = Instant::now();
    while redundancy(cluster)? != Redundancy::Resyncing {
        ensure!(killed.elapsed() < BEGIN_TIMEOUT, "nothing was rebuilt in {} s", BEGIN_TIMEOUT.as_secs());
        let brief = Times { ramp: Duration::ZERO, measured: Duration::from_secs(1) };
        client.run_at_pace(mix, pace, brief, around)?;
    }
    let began = Instant::now();
    let during = client.run_at_pace(mix, pace, times, around)?;
    ensure!(
        redundancy(cluster)? == Redundancy::Resyncing,
        "the rebuild was over before {} s were measured: choose fewer --seconds, or a lower --resync-mib-per-s",
        args.seconds
    );
    eprintln!("guest: p99 {:.0} µs while it is rebuilt", during.p99_us);
    let rebuild_seconds = wait_for_health(cluster, began, stop)?;
    let p99_growth = during.p99_us / before.p99_us;
    let pass = p99_growth <= P99_GROWTH_MAX;
    Ok(Guest { peak, pace, before, during, rebuild_seconds, p99_growth, pass })
}

/// The host, other than the one with the guest, whose disk holds most, and how much, in MiB.
fn fullest(cluster: &Cluster) -> anyhow::Result<(String, f64)> {
    let list: DiskList = cluster.ask(&["disk", "list"])?;
    let volume: VolumeInfo = cluster.ask(&["volume", "show", VOLUME])?;
    let owner = volume.owner.context("the volume is not open")?.host;
    let others = list.disks.into_iter().filter(|disk| disk.host != owner);
    let disk = others.max_by_key(|disk| disk.used_bytes).context("there is no other disk")?;
    Ok((disk.host_name, disk.used_bytes as f64 / f64::from(1 << 20)))
}

fn redundancy(cluster: &Cluster) -> anyhow::Result<Redundancy> {
    let volume: VolumeInfo = cluster.ask(&["volume", "show", VOLUME])?;
    Ok(volume.redundancy)
}

/// When the rebuild was first seen to run: the dead host was missed first, and then components in its place were there to be filled.
fn wait_for_rebuild(cluster: &Cluster, stop: &Stop) -> anyhow::Result<Instant> {
    let (killed, mut missed) = (Instant::now(), false);
    while killed.elapsed() < BEGIN_TIMEOUT {
        match redundancy(cluster)? {
            Redundancy::Resyncing => return Ok(Instant::now()),
            Redundancy::Healthy if missed => bail!("it was rebuilt before it could be looked at"),
            Redundancy::Healthy => {}
            Redundancy::Degraded | Redundancy::Unavailable => missed = true,
        }
        stop.sleep(LOOK_EVERY)?;
    }
    bail!("nothing was rebuilt in {} s", BEGIN_TIMEOUT.as_secs())
}

/// How long it takes from `began` until everything is there again, in seconds.
fn wait_for_health(cluster: &Cluster, began: Instant, stop: &Stop) -> anyhow::Result<f64> {
    while began.elapsed() < REBUILD_TIMEOUT {
        if redundancy(cluster)? == Redundancy::Healthy {
            return Ok(began.elapsed().as_secs_f64());
        }
        stop.sleep(LOOK_EVERY)?;
    }
    bail!("it was not rebuilt in {} s", REBUILD_TIMEOUT.as_secs())
}

/// Measured through `qemu-storage-daemon`, sequentially: writes by themselves, then reads and writes in turn, without flushes and with.
fn disk_speed(directory: &Path, stop: &Stop) -> anyhow::Result<DiskSpeed> {
    let qsd = Qsd::start(Aio::IoUring, directory, stop)?;
    let mut client = Client::attach(qsd.socket(), ClientMode::Sleeping)?;
    let around = Surroundings { stop, watched: &[] };
    let mut mib_s = |workload| -> anyhow::Result<f64> {
        let figures = client.run(workload, Until::Requests(PREFILL_REQUESTS), &around)?;
        Ok(figures.mb_s * SCRIPT_MB_BYTES / f64::from(1 << 20))
    };
    let write = mib_s(&PREFILL)?;
    let shared = SharedDisk {
        copy_mib_s: mib_s(&READ_AND_WRITE)? / 2.0,
        flushed_copy_mib_s: mib_s(&Workload { flush_each: true, ..READ_AND_WRITE })? / 2.0,
    };
    Ok(DiskSpeed { write, shared: Some(shared) })
}

fn text(report: &RebuildReport) -> String {
    let RebuildReport { policy, idle, guest, .. } = report;
    let verdict = |pass: bool| if pass { "pass" } else { "FAIL" };
    let shared = idle.shared.map_or_else(String::new, |shared| {
        format!(
            "; {:.2} of the {:.0} that it copies onto itself, {:.2} of the {:.0} with a flush after each write",
            idle.mib_s / shared.copy_mib_s,
            shared.copy_mib_s,
            idle.mib_s / shared.flushed_copy_mib_s,
            shared.flushed_copy_mib_s
        )
    });
    format!(
        "{policy}, a host's {:.0} MiB rebuilt while nobody asks for anything: {:.1} s, {:.0} MiB/s, {:.2} of the disk's {:.0} (bar {IDLE_PART_MIN})  {}{shared}\n\
         {policy}, {MIX} at {:.0} IOPS, half of its peak: p50 {:.0} µs and p99 {:.0} before, {:.0} and {:.0} during a rebuild of {:.1} s: p99 x{:.2} (bar {P99_GROWTH_MAX})  {}\n",
        idle.lost_mib,
        idle.seconds,
        idle.mib_s,
        idle.part,
        idle.disk_mib_s,
        verdict(idle.pass),
        guest.pace,
        guest.before.p50_us,
        guest.before.p99_us,
        guest.during.p50_us,
        guest.during.p99_us,
        guest.rebuild_seconds,
        guest.p99_growth,
        verdict(guest.pass),
    )
}
