//! The report: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::measure::{ClientMode, Figures, Peer, Table};
use crate::workload::{BURST, FLUSHED_WRITES, WORKLOADS, target_ratio};

/// What the figures were taken on.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Processes that wanted to run when the run began, over the last minute: figures from a busy machine are low.
    pub load_1min: f64,
}

impl Machine {
    /// This one, now: before a run, or the load is the run's own.
    pub fn read() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(": ")))
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned());
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpu,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load_1min: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN),
        }
    }
}

/// All of a run. The keys `ours`, `peer` and `ratio` are for programs to rely on; the others come beside them.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Ours, with the client of `client`.
    pub ours: Table,
    /// The peer's; empty without one.
    pub peer: Table,
    /// Our IOPS over the peer's, by workload.
    pub ratio: BTreeMap<String, f64>,
    /// Ours with a polling client, if asked for besides.
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub ours_polling: Table,
    /// The peer's with a polling client, where it has one.
    #[serde(skip_serializing_if = "Table::is_empty")]
    pub peer_polling: Table,
    /// The ratios aimed at.
    pub target: BTreeMap<String, f64>,
    /// Whether each was reached.
    pub pass: BTreeMap<String, bool>,
    /// The client of `ours`.
    pub client: ClientMode,
    /// The peer's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_name: Option<&'static str>,
    /// The policy, or what else was measured.
    pub subject: String,
    /// Where.
    pub machine: Machine,
}

impl Report {
    /// Puts figures side by side.
    pub fn new(
        subject: String,
        client: ClientMode,
        machine: Machine,
        ours: Table,
        peer: Option<(Peer, Table)>,
    ) -> Self {
        let mut report = Self {
            ours,
            peer: Table::new(),
            ratio: BTreeMap::new(),
            ours_polling: Table::new(),
            peer_polling: Table::new(),
            target: BTreeMap::new(),
            pass: BTreeMap::new(),
            client,
            peer_name: None,
            subject,
            machine,
        };
        if let Some((peer, figures)) = peer {
            report.peer_name = Some(peer.name());
            report.peer = figures;
            report.compare(peer);
        }
        report
    }

    fn compare(&mut self, peer: Peer) {
        let parity = self.subject.contains(" raid");
        for (name, ours) in &self.ours {
            let Some(theirs) = self.peer.get(name).filter(|theirs| theirs.iops > 0.0) else { continue };
            let ratio = ours.iops / theirs.iops;
            self.ratio.insert(name.clone(), (ratio * 1000.0).round() / 1000.0);
            // The targets are for a client that sleeps.
            if let (Some(target), ClientMode::Sleeping) = (target_ratio(peer, parity, name), self.client) {
                self.target.insert(name.clone(), target);
                self.pass.insert(name.clone(), ratio >= target);
            }
        }
    }

    /// Whether every ratio aimed at was reached.
    pub fn all_passed(&self) -> bool {
        self.pass.values().all(|&passed| passed)
    }

    /// The table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "{}, {} client, on {} × {}, Linux {}, load {:.2}",
            self.subject,
            self.client.name(),
            self.machine.cpus,
            self.machine.cpu,
            self.machine.kernel,
            self.machine.load_1min
        )?;
        self.write_comparison(text)?;
        if !(self.ours_polling.is_empty() && self.peer_polling.is_empty()) {
            writeln!(text, "\nWith a polling client")?;
            self.write_polling(text)?;
        }
        if self.ours.values().chain(self.peer.values()).any(|figures| !figures.daemons.is_empty()) {
            writeln!(
                text,
                "\nPer request, by daemon: processor time, times a thread slept; resident memory"
            )?;
            self.write_usage(text)?;
        }
        Ok(())
    }

    fn write_comparison(&self, text: &mut String) -> std::fmt::Result {
        let peer = self.peer_name.unwrap_or("");
        write!(text, "{:<24}{:>10}{:>10}{:>10}{:>9}", "", "IOPS", "p50 µs", "p99 µs", "MB/s")?;
        if self.peer_name.is_some() {
            write!(
                text,
                "  │ {peer:>8}{:>10}{:>10}{:>9}  │{:>8}{:>8}",
                "p50 µs", "p99 µs", "MB/s", "ratio", "target"
            )?;
        }
        writeln!(text)?;
        for name in names(&[&self.ours, &self.peer]) {
            write!(text, "{name:<24}{}", cells(self.ours.get(name), 10))?;
            if self.peer_name.is_some() {
                write!(text, "  │ {}  │", cells(self.peer.get(name), 8))?;
            }
            if let Some(ratio) = self.ratio.get(name) {
                write!(text, "{ratio:>8.2}")?;
            }
            if let (Some(target), Some(&passed)) = (self.target.get(name), self.pass.get(name)) {
                write!(text, "{target:>8.2}  {}", if passed { "pass" } else { "FAIL" })?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    fn write_polling(&self, text: &mut String) -> std::fmt::Result {
        for name in names(&[&self.ours_polling, &self.peer_polling]) {
            write!(text, "{name:<24}{}", cells(self.ours_polling.get(name), 10))?;
            if !self.peer_polling.is_empty() {
                write!(text, "  │ {}", cells(self.peer_polling.get(name), 8))?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    fn write_usage(&self, text: &mut String) -> std::fmt::Result {
        for name in names(&[&self.ours, &self.peer]) {
            write!(text, "{name:<24}")?;
            let figures = self.ours.get(name).into_iter().chain(self.peer.get(name));
            for daemon in figures.flat_map(|figures| &figures.daemons) {
                write!(
                    text,
                    "  {} {:.1} µs {:.2} sleeps {:.0} MiB",
                    daemon.name, daemon.cpu_us_per_op, daemon.sleeps_per_op, daemon.rss_mib
                )?;
            }
            writeln!(text)?;
        }
        Ok(())
    }
}

/// Prints a report, and writes it as JSON if that was asked for. Standard output is for one of the two.
pub fn tell(value: &impl Serialize, text: &str, json: Option<&Path>) -> anyhow::Result<()> {
    if json == Some(Path::new("-")) {
        eprint!("{text}");
    } else {
        print!("{text}");
    }
    json.map_or(Ok(()), |path| write_json(value, path))
}

/// Writes a value as JSON; `-` is standard output.
pub fn write_json(value: &impl Serialize, path: &Path) -> anyhow::Result<()> {
    let mut json = serde_json::to_string_pretty(value).context("writing JSON")?;
    json.push('\n');
    if path == Path::new("-") {
        print!("{json}");
        return Ok(());
    }
    std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))
}

/// The tables' names in the order of the workloads, then what else is there.
fn names<'a>(tables: &[&'a Table]) -> Vec<&'a str> {
    let there = |name: &str| tables.iter().any(|table| table.contains_key(name));
    let mut names: Vec<&str> =
        WORKLOADS.iter().chain([&FLUSHED_WRITES, &BURST]).map(|workload| workload.name).collect();
    names.retain(|name| there(name));
    for name in tables.iter().flat_map(|table| table.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn cells(figures: Option<&Figures>, first_width: usize) -> String {
    let Some(figures) = figures else {
        return format!("{:>first_width$}{:>10}{:>10}{:>9}", "–", "–", "–", "–");
    };
    format!(
        "{:>first_width$.0}{:>10.1}{:>10.1}{:>9.1}",
        figures.iops, figures.p50_us, figures.p99_us, figures.mb_s
    )
}
