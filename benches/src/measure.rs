//! What a run yields: figures by workload, as the peer's script defines them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::usage::Usage;

/// Bytes in one of the script's "MB": fio reports KiB/s and the script divides by 1000, so 1000 KiB. About 2 % more
/// than 10^6 bytes; ours is counted the same way, or the two could not be compared.
pub const SCRIPT_MB_BYTES: f64 = 1_024_000.0;

/// The longest latency the histogram tells apart; more counts as this.
const LATENCY_MAX: Duration = Duration::from_secs(120);

/// Whom to compare with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Peer {
    /// A throw-away Ceph cluster: three `BlueStore` OSDs, three replicas, fio's `rbd` engine.
    Ceph,
    /// `qemu-storage-daemon` exporting a raw file over vhost-user-blk, driven by the same client as ours.
    Qsd,
}

impl Peer {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ceph => "ceph",
            Self::Qsd => "qsd",
        }
    }
}

/// How the client learns that a request is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientMode {
    /// It sleeps on the completion eventfd, as a guest does. The targets are for this one.
    Sleeping,
    /// It spins on the used ring and is never notified; one core is its own.
    Polling,
}

impl ClientMode {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sleeping => "sleeping",
            Self::Polling => "polling",
        }
    }
}

/// One workload's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests completed a second, reads and writes together.
    pub iops: f64,
    /// Median time from submission to completion, microseconds; of a mix, that of the direction with more requests.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// Throughput in the script's MB (see [`SCRIPT_MB_BYTES`]) a second.
    pub mb_s: f64,
    /// What each daemon used for it, where we can see it.
    #[serde(skip_serializing_if = "Vec::is_empty", default, skip_deserializing)]
    pub daemons: Vec<Usage>,
}

/// Figures by workload name.
pub type Table = BTreeMap<String, Figures>;

/// Collects the latencies of one workload.
#[derive(Debug)]
pub struct Latencies {
    reads: Histogram<u64>,
    writes: Histogram<u64>,
}

impl Latencies {
    /// Nothing collected. Three significant digits up to two minutes, as fio keeps about as many.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)
            .context("making a latency histogram")?;
        Ok(Self { reads: histogram.clone(), writes: histogram })
    }

    /// Adds one completed request.
    pub fn record(&mut self, is_read: bool, latency: Duration) {
        let histogram = if is_read { &mut self.reads } else { &mut self.writes };
        histogram.saturating_record(latency.as_nanos() as u64);
    }

    /// How many requests were added.
    pub fn count(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    /// The figures, of requests of `block_bytes` completed within `measured`.
    pub fn figures(&self, block_bytes: usize, measured: Duration) -> Figures {
        let iops = self.count() as f64 / measured.as_secs_f64();
        let larger = if self.writes.len() > self.reads.len() { &self.writes } else { &self.reads };
        let micros = |quantile| (larger.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0;
        Figures {
            iops: tenth(iops),
            p50_us: micros(0.50),
            p99_us: micros(0.99),
            mb_s: tenth(iops * block_bytes as f64 / SCRIPT_MB_BYTES),
            daemons: Vec::new(),
        }
    }
}

/// Rounded to one decimal: more digits would claim more than was measured.
fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
