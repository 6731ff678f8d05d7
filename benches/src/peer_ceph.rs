//! The cluster peer: Ceph, by way of a script (`ceph.sh up|bench|down DIR`) that sets up a throw-away cluster of three
//! `BlueStore` OSDs with three replicas, runs fio's `rbd` engine over the workloads and prints a line for each:
//! `NAME IOPS p50_us p99_us MB/s`.
//!
//! Whatever happens, the cluster is brought down again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::cluster::{ensure_space, temp_dir};
use crate::measure::{Figures, Table};
use crate::process::{self, Stop};
use crate::workload::{PREFILL, WORKLOADS};

/// What the script needs, and the packages that have it.
const TOOLS: [(&str, &str); 7] = [
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("ceph-mgr", "ceph-mgr"),
    ("ceph", "ceph-common"),
    ("rbd", "ceph-common"),
    ("fio", "fio"),
    ("jq", "jq"),
];
const UP_TIMEOUT: Duration = Duration::from_secs(300);
const BENCH_TIMEOUT: Duration = Duration::from_secs(1200);
const DOWN_TIMEOUT: Duration = Duration::from_secs(120);
/// Three OSDs hold the volume three times, and `RocksDB` and slack beside it.
const SPACE_BYTES: u64 = 12 << 30;

/// The script's place unless told otherwise: beside the checkout.
pub fn default_script() -> PathBuf {
    process::package().join("../../shared/peers/ceph.sh")
}

/// Checks that all is there, before the long part of a run begins.
pub fn check(script: &Path) -> anyhow::Result<()> {
    ensure!(
        script.is_file(),
        "{} is not there: name the script that runs the Ceph peer with --peer-script",
        script.display()
    );
    let missing = missing_packages(&std::env::var("PATH").unwrap_or_default());
    ensure!(missing.is_empty(), "the Ceph peer needs: apt install {}", missing.join(" "));
    Ok(())
}

fn missing_packages(path: &str) -> Vec<&'static str> {
    let there = |tool: &str| path.split(':').any(|directory| Path::new(directory).join(tool).is_file());
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !there(tool)).map(|&(_, package)| package).collect();
    packages.dedup();
    packages
}

/// Runs the peer from nothing to nothing; each line is shown as it comes. [`check`] comes first.
pub fn bench(script: &Path, pool: Option<&str>, directory: &Path, stop: &Stop) -> anyhow::Result<Table> {
    ensure_space(directory, SPACE_BYTES)?;
    let ceph = Ceph { script, directory: temp_dir(directory)? };
    eprintln!("peer: starting Ceph in {}", ceph.directory.path().display());
    process::output(&mut ceph.command("up"), UP_TIMEOUT, stop)?;
    let mut table = Table::new();
    let mut bench = ceph.command("bench");
    bench.args(pool);
    process::run(&mut bench, BENCH_TIMEOUT, stop, |line| {
        let (name, figures) = parse_line(line).with_context(|| format!("the script printed {line:?}"))?;
        eprintln!("peer: {name:<20} {:>9.0} IOPS", figures.iops);
        table.insert(name, figures);
        Ok(())
    })?;
    for workload in &WORKLOADS {
        ensure!(table.contains_key(workload.name), "the peer's script gave no figures for {}", workload.name);
    }
    Ok(table)
}

struct Ceph<'a> {
    script: &'a Path,
    directory: TempDir,
}

impl Ceph<'_> {
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(self.script).arg(verb).arg(self.directory.path());
        command
    }
}

impl Drop for Ceph<'_> {
    fn drop(&mut self) {
        eprintln!("peer: bringing Ceph down");
        // Its own `Stop`: it must come down also when we were interrupted.
        let down = process::output(&mut self.command("down"), DOWN_TIMEOUT, &Stop::default());
        if let Err(error) = down {
            eprintln!("ferro-bench: Ceph may still run in {}: {error:#}", self.directory.path().display());
        }
    }
}

/// Parses a line of the script's.
pub fn parse_line(line: &str) -> anyhow::Result<(String, Figures)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let &[name, iops, p50, p99, mb_s] = fields.as_slice() else {
        bail!("{} fields instead of 5: NAME IOPS p50 p99 MB/s", fields.len());
    };
    let known = name == PREFILL.name || WORKLOADS.iter().any(|workload| workload.name == name);
    ensure!(known, "no workload is named {name:?}");
    let number = |text: &str| -> anyhow::Result<f64> {
        let value: f64 = text.parse().with_context(|| format!("{text:?} is no number"))?;
        ensure!(value.is_finite() && value >= 0.0, "{text:?} is no measured figure");
        Ok(value)
    };
    let figures = Figures {
        iops: number(iops)?,
        p50_us: number(p50)?,
        p99_us: number(p99)?,
        mb_s: number(mb_s)?,
        daemons: Vec::new(),
    };
    Ok((name.to_owned(), figures))
}
