//! What a daemon used, read from `/proc` as anyone may: processor time, memory, and how often its threads went to
//! sleep. Wake-ups are what small requests pay for most, so they are counted.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, bail};
use serde::Serialize;

/// A process under observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The name in reports.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

/// What one process had used at one moment since it started.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// User and system time.
    pub cpu_s: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Times each thread gave up its processor to wait, by thread id.
    sleeps: BTreeMap<u32, u64>,
}

/// What one process used over a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// Which.
    pub name: String,
    /// User and system time per request, microseconds.
    pub cpu_us_per_op: f64,
    /// Times its threads went to sleep, per request.
    pub sleeps_per_op: f64,
    /// Resident memory at the end, MiB.
    pub rss_mib: f64,
}

/// Reads what a process has used.
pub fn sample(pid: u32) -> anyhow::Result<Sample> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone: see its log"))?;
    let (cpu_ticks, rss_pages) =
        parse_stat(&stat).with_context(|| format!("/proc/{pid}/stat reads {stat:?}"))?;
    let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
    Ok(Sample {
        cpu_s: cpu_ticks as f64 / ticks_per_s,
        rss_bytes: rss_pages * rustix::param::page_size() as u64,
        sleeps: thread_sleeps(pid)?,
    })
}

/// Samples several.
pub fn sample_all(watched: &[Watched]) -> anyhow::Result<Vec<Sample>> {
    watched.iter().map(|process| sample(process.pid)).collect()
}

/// What happened between two samples of a process, shared out over `ops` requests.
pub fn between(name: &str, before: &Sample, after: &Sample, ops: u64) -> Usage {
    let ops = ops.max(1) as f64;
    // A thread that ended in between is not counted, one that started is.
    let sleeps: u64 = after
        .sleeps
        .iter()
        .map(|(tid, now)| now.saturating_sub(before.sleeps.get(tid).copied().unwrap_or(0)))
        .sum();
    let hundredth = |value: f64| (value * 100.0).round() / 100.0;
    Usage {
        name: name.to_owned(),
        cpu_us_per_op: hundredth((after.cpu_s - before.cpu_s) * 1e6 / ops),
        sleeps_per_op: hundredth(sleeps as f64 / ops),
        rss_mib: hundredth(mib(after.rss_bytes)),
    }
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 20) as f64
}

/// User plus system time in clock ticks, and resident pages: fields 14, 15 and 24 of proc(5)'s `stat`. The name, field
/// 2, may hold spaces and brackets, so counting starts after its last bracket.
pub fn parse_stat(stat: &str) -> anyhow::Result<(u64, u64)> {
    let Some((_, rest)) = stat.rsplit_once(')') else { bail!("no process name") };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| -> anyhow::Result<u64> {
        let text = fields.get(number - 3).with_context(|| format!("no field {number}"))?;
        text.parse().with_context(|| format!("field {number} is {text:?}"))
    };
    Ok((field(14)? + field(15)?, field(24)?))
}

fn thread_sleeps(pid: u32) -> anyhow::Result<BTreeMap<u32, u64>> {
    let tasks = format!("/proc/{pid}/task");
    let mut sleeps = BTreeMap::new();
    for entry in fs::read_dir(&tasks).with_context(|| format!("listing {tasks}"))? {
        let entry = entry.with_context(|| format!("listing {tasks}"))?;
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .and_then(|text| text.trim().parse().ok());
        if let Some(count) = count {
            sleeps.insert(tid, count);
        }
    }
    Ok(sleeps)
}
