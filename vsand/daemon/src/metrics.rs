//! What Prometheus reads: the counters of this host's data loop, disks, directory and resyncs, in `OpenMetrics` text.
//!
//! The data loop counts without atomics and hands out a copy; each scrape encodes that copy. What it must not know: how
//! anything is counted.

use std::fmt;
use std::time::Duration;

use ferro_protocol::units::{BLOCK_BYTES, EXTENT_BYTES};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use vsand_core::directory::{ObjectRecord, Sync};
use vsand_directory::{Role, Status};
use vsand_store::FileIo;

use crate::api::fail;
use crate::data::clock;
use crate::data::port::Command;
use crate::data::stats::{BOUNDS_US, Histogram, Snapshot, VolumeStats};
use crate::member::Member;

type Labels = Vec<(&'static str, String)>;
type Row<T> = (Labels, T);

/// All metrics of this host.
pub async fn text(member: Option<&Member>) -> Result<String, ferro_protocol::api::ApiError> {
    let sample = match member {
        Some(member) => Some(Sample::take(member).await?),
        None => None,
    };
    encode(sample).map_err(|error| fail::internal("writing the metrics", error))
}

fn encode(sample: Option<Sample>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("vsand");
    registry.register_collector(Box::new(Scrape { sample }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What was there at one time.
#[derive(Debug)]
struct Sample {
    snapshot: Snapshot,
    /// By the snapshot's order; volumes that were deleted meanwhile by their id.
    volume_names: Vec<String>,
    disk_paths: Vec<String>,
    directory: Status,
    leads: bool,
    hosts: usize,
    /// How long the renewal of this host's lease is ago, as seen in the directory.
    lease_age: Option<Duration>,
    stale_components: usize,
    /// Chunks and blocks that this host has scrubbed.
    scrubbed: (u64, u64),
}

impl Sample {
    async fn take(member: &Member) -> Result<Self, ferro_protocol::api::ApiError> {
        let gone = |error| fail::internal("asking the data loop for its counters", error);
        let snapshot = *member.data.ask(Command::Snapshot).await.map_err(gone)?;
        let state = member.state();
        let name = |record: Option<&std::sync::Arc<ObjectRecord>>| record.map(|r| r.name.to_string());
        let volume_names = snapshot
            .volumes
            .iter()
            .map(|(view, _)| name(state.objects.get(&view.object)).unwrap_or_else(|| view.object.to_string()))
            .collect();
        let disk_paths = snapshot
            .disks
            .iter()
            .map(|(disk, _, _)| {
                member.disks.path_of(*disk).map_or_else(|| disk.to_string(), |p| p.display().to_string())
            })
            .collect();
        let directory = member.directory.status();
        let components = state.objects.values().flat_map(|o| o.chunks.values()).flat_map(|c| &c.components);
        let stale_components = components.filter(|c| matches!(c.sync, Sync::Stale { .. })).count();
        Ok(Self {
            volume_names,
            disk_paths,
            leads: directory.role == Role::Leader,
            hosts: state.hosts.len(),
            scrubbed: member.scrubs.done(),
            lease_age: member.watcher().silent_for(clock::mono(), member.host()),
            stale_components,
            snapshot,
            directory,
        })
    }

    fn volumes<'a, T>(&'a self, of: impl Fn(&'a VolumeStats) -> T + 'a) -> Vec<Row<T>> {
        let names = self.volume_names.iter();
        names
            .zip(&self.snapshot.volumes)
            .map(|(name, (_, stats))| (vec![("volume", name.clone())], of(stats)))
            .collect()
    }

    /// One row a volume and kind of request.
    fn operations<'a, T>(&'a self, of: impl Fn(&'a crate::data::stats::IoStats) -> T) -> Vec<Row<T>> {
        let mut rows = Vec::new();
        for (name, (_, stats)) in self.volume_names.iter().zip(&self.snapshot.volumes) {
            for (kind, io) in [("read", &stats.read), ("write", &stats.write), ("zero", &stats.zero)] {
                rows.push((vec![("volume", name.clone()), ("operation", kind.to_owned())], of(io)));
            }
        }
        rows
    }

    /// One row a disk and direction.
    fn files<'a, T>(&'a self, of: impl Fn(&'a FileIo) -> T) -> Vec<Row<T>> {
        let mut rows = Vec::new();
        for (path, (_, stats, _)) in self.disk_paths.iter().zip(&self.snapshot.disks) {
            for (kind, io) in [("read", &stats.files.read), ("write", &stats.files.write)] {
                rows.push((vec![("disk", path.clone()), ("operation", kind.to_owned())], of(io)));
            }
        }
        rows
    }

    fn disks<T>(&self, of: impl Fn(&vsand_store::StoreStats) -> T) -> Vec<Row<T>> {
        let paths = self.disk_paths.iter();
        paths
            .zip(&self.snapshot.disks)
            .map(|(path, (_, stats, _))| (vec![("disk", path.clone())], of(stats)))
            .collect()
    }
}

#[derive(Debug)]
struct Scrape {
    sample: Option<Sample>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let version = vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1)];
        gauge(out, "build", "The version that runs", version)?;
        gauge(out, "member", "Whether this host is in a cluster", one(u64::from(self.sample.is_some())))?;
        let Some(sample) = &self.sample else { return Ok(()) };
        volumes(out, sample)?;
        stages(out, sample)?;
        disks(out, sample)?;
        cluster(out, sample)
    }
}

fn volumes(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    counter(out, "volume_operations", "Completed requests of guests", sample.operations(|io| io.ops))?;
    counter(out, "volume_bytes", "Bytes of completed requests of guests", sample.operations(|io| io.bytes))?;
    counter(out, "volume_errors", "Requests of guests that failed", sample.volumes(|v| v.errors))?;
    let limited = sample.volumes(|v| v.limited.as_secs_f64());
    seconds_counter(out, "volume_limited_seconds", "How long requests waited because of limits", limited)?;
    let histograms = sample.operations(|io| Seconds(&io.latency));
    histogram(out, "volume_latency_seconds", "From a request's descriptor to its completion", histograms)?;
    let views = || sample.volume_names.iter().zip(&sample.snapshot.volumes);
    let each = |of: &dyn Fn(&crate::data::port::VolumeView) -> u64| {
        views().map(|(name, (view, _))| (vec![("volume", name.clone())], of(view))).collect::<Vec<_>>()
    };
    gauge(out, "volume_in_flight", "Requests under way", each(&|v| v.in_flight as u64))?;
    gauge(out, "volume_serving", "Whether every placed chunk serves", each(&|v| u64::from(v.serving)))?;
    gauge(out, "volume_troubles", "What keeps I/O waiting", each(&|v| v.troubles.len() as u64))?;
    gauge(out, "volume_attached", "Whether a VMM is connected", each(&|v| u64::from(v.attached)))?;
    let blocks = |of: &dyn Fn(&vsand_core::owner::ResyncView) -> u32| {
        each(&|v| v.resyncs.iter().map(|r| u64::from(of(r)) * BLOCK_BYTES as u64).sum())
    };
    gauge(out, "resync_running", "Components that are being resynced", each(&|v| v.resyncs.len() as u64))?;
    gauge(out, "resync_total_bytes", "What running resyncs have to copy", blocks(&|r| r.blocks_total))?;
    gauge(out, "resync_done_bytes", "What running resyncs have copied", blocks(&|r| r.blocks_done))
}

/// A latency histogram a stage: the ring as a whole; within it the network, the journal (a batch with its flush), and the
/// flushes of the disks' data files, which checkpoints wait for.
fn stages(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    let mut ring = Histogram::default();
    for (_, stats) in &sample.snapshot.volumes {
        for io in [&stats.read, &stats.write, &stats.zero] {
            ring.merge(&io.latency);
        }
    }
    let (mut journal, mut flush) = (Histogram::default(), Histogram::default());
    for (_, stats, _) in &sample.snapshot.disks {
        journal.merge(&stats.journal);
        flush.merge(&stats.flush);
    }
    let stages =
        [("ring", &ring), ("network", &sample.snapshot.network), ("journal", &journal), ("flush", &flush)];
    let rows = stages.into_iter().map(|(stage, h)| (vec![("stage", stage.to_owned())], Seconds(h))).collect();
    histogram(out, "stage_latency_seconds", "Where the time of requests goes", rows)?;
    counter(out, "loop_turns", "Turns of the data loop", one(sample.snapshot.turns))?;
    counter(out, "loop_sleeps", "How often the data loop went to sleep", one(sample.snapshot.sleeps))
}

fn disks(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    let extents = |n: u32| u64::from(n) * EXTENT_BYTES;
    gauge(out, "disk_capacity_bytes", "Size of the disk", sample.disks(|d| extents(d.extents)))?;
    gauge(out, "disk_used_bytes", "Taken", sample.disks(|d| extents(d.extents_used)))?;
    let help = "Kept for volumes and not taken yet";
    gauge(out, "disk_kept_bytes", help, sample.disks(|d| extents(d.extents_kept)))?;
    let paths = sample.disk_paths.iter().zip(&sample.snapshot.disks);
    let dead =
        paths.map(|(path, (_, _, dead))| (vec![("disk", path.clone())], u64::from(dead.is_some()))).collect();
    gauge(out, "disk_dead", "Whether the disk has failed", dead)?;
    counter(out, "disk_bytes", "Bytes that its files took or gave", sample.files(|io| io.bytes))?;
    let latency = sample.files(|io| Seconds(&io.latency));
    histogram(out, "disk_latency_seconds", "How long each of them took", latency)?;
    let help =
        "What the disk has to serve, averaged: requests a second, and one more for each 64 KiB in them";
    let loads = sample.disk_paths.iter().zip(&sample.snapshot.disks);
    let load = |disk| sample.snapshot.loads.get(disk).map_or(0, |known| known.load.0);
    let loads = loads.map(|(path, (disk, ..))| (vec![("disk", path.clone())], load(disk))).collect();
    gauge(out, "disk_load", help, loads)?;
    gauge(out, "disk_in_flight", "Requests under way on the disk", sample.disks(|d| d.in_flight as u64))?;
    gauge(out, "disk_queued", "Changes that wait for a batch", sample.disks(|d| d.queued as u64))?;
    gauge(out, "journal_bytes", "Size of the journal", sample.disks(|d| d.journal_bytes))?;
    gauge(
        out,
        "journal_used_bytes",
        "What the next checkpoint frees",
        sample.disks(|d| d.journal_used_bytes),
    )?;
    gauge(
        out,
        "journal_overlay_blocks",
        "Blocks that wait for their place",
        sample.disks(|d| d.overlay_blocks as u64),
    )?;
    counter(out, "journal_batches", "Batches written, a flush each", sample.disks(|d| d.batches))?;
    counter(out, "journal_records", "Changes in them", sample.disks(|d| d.records))?;
    let seconds = sample.disks(|d| d.journal.sum_ns as f64 / 1e9);
    seconds_counter(
        out,
        "journal_batch_seconds",
        "Time that batches took to be stable, flush included",
        seconds,
    )?;
    counter(out, "disk_data_flushes", "Flushes of the data file", sample.disks(|d| d.data_flushes))?;
    counter(out, "disk_destages", "Writes of blocks to their place", sample.disks(|d| d.destages))?;
    counter(out, "disk_destaged_blocks", "Blocks in them", sample.disks(|d| d.destaged_blocks))?;
    counter(
        out,
        "disk_absorbed_blocks",
        "Blocks that were written again before they had gone to their place",
        sample.disks(|d| d.absorbed_blocks),
    )?;
    counter(
        out,
        "disk_direct_writes",
        "Changes whose data went straight to its place",
        sample.disks(|d| d.direct_writes),
    )?;
    counter(
        out,
        "disk_promoted_extents",
        "Staged extents that were put in force, without writing their data again",
        sample.disks(|d| d.promoted_extents),
    )?;
    counter(out, "disk_data_reads", "Reads of the data file", sample.disks(|d| d.data_reads))?;
    counter(out, "disk_checkpoints", "Checkpoints", sample.disks(|d| d.checkpoints))?;
    counter(out, "disk_bad_blocks", "Blocks that failed their checksum", sample.disks(|d| d.bad_blocks))?;
    let bad = |of: &dyn Fn(&vsand_core::replica::BadCounts) -> u64| {
        let disks = sample.disk_paths.iter().zip(&sample.snapshot.disks);
        let value = |disk| sample.snapshot.bad.get(disk).map_or(0, of);
        disks.map(|(path, (disk, ..))| (vec![("disk", path.clone())], value(disk))).collect::<Vec<_>>()
    };
    gauge(out, "disk_bad_blocks_open", "Blocks that are bad and not mended", bad(&|b| b.open))?;
    counter(out, "disk_mended_blocks", "Bad blocks that were written anew", bad(&|b| b.mended))?;
    counter(out, "scrubbed_chunks", "Parts of volumes that this host has scrubbed", one(sample.scrubbed.0))?;
    let bytes = sample.scrubbed.1 * BLOCK_BYTES as u64;
    counter(out, "scrubbed_bytes", "Bytes that disks have read for that", one(bytes))
}

fn cluster(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    let directory = &sample.directory;
    gauge(out, "directory_leader", "Whether this host leads the directory", one(u64::from(sample.leads)))?;
    let quorum = u64::from(!directory.without_quorum);
    gauge(out, "directory_quorum", "Whether the directory has a quorum", one(quorum))?;
    gauge(out, "directory_term", "Number of the leadership", one(directory.term))?;
    gauge(out, "directory_applied_index", "Last entry applied here", one(directory.applied_index))?;
    let behind = directory.last_log_index.saturating_sub(directory.applied_index);
    gauge(out, "directory_unapplied_entries", "Entries in the log that are not applied yet", one(behind))?;
    gauge(out, "directory_voters", "Hosts that vote", one(directory.voters().len() as u64))?;
    let lag = directory
        .members
        .iter()
        .filter_map(|(host, member)| Some((vec![("host", host.to_string())], member.lag_entries?)))
        .collect();
    gauge(out, "directory_lag_entries", "Entries that a member lacks, as its leader sees it", lag)?;
    gauge(out, "hosts", "Hosts of the cluster", one(sample.hosts as u64))?;
    let stale = sample.stale_components as u64;
    gauge(out, "stale_components", "Components of the cluster that are not in sync", one(stale))?;
    let age = sample.lease_age.into_iter().map(|age| (Vec::new(), age.as_secs_f64())).collect();
    seconds_gauge(out, "lease_age_seconds", "Since the last renewal of this host's lease", age)
}

fn one<T>(value: T) -> Vec<Row<T>> {
    vec![(Vec::new(), value)]
}

fn rows<T>(
    out: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    rows: Vec<Row<T>>,
    mut write: impl FnMut(T, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        if labels.is_empty() {
            // The only row: without labels there is nothing to tell another from it.
            return write(value, metric);
        }
        write(value, metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, all: Vec<Row<u64>>) -> fmt::Result {
    rows(out, (name, help, MetricType::Gauge), all, |value, to| ConstGauge::new(value).encode(to))
}

fn seconds_gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, all: Vec<Row<f64>>) -> fmt::Result {
    rows(out, (name, help, MetricType::Gauge), all, |value, to| ConstGauge::new(value).encode(to))
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, all: Vec<Row<u64>>) -> fmt::Result {
    rows(out, (name, help, MetricType::Counter), all, |value, to| ConstCounter::new(value).encode(to))
}

fn seconds_counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: Vec<Row<f64>>,
) -> fmt::Result {
    rows(out, (name, help, MetricType::Counter), all, |value, to| ConstCounter::new(value).encode(to))
}

fn histogram(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: Vec<Row<Seconds<'_>>>,
) -> fmt::Result {
    rows(out, (name, help, MetricType::Histogram), all, |value, to| value.write(to))
}

/// A histogram in the unit of Prometheus.
struct Seconds<'a>(&'a Histogram);

impl Seconds<'_> {
    fn write(&self, mut to: MetricEncoder<'_>) -> fmt::Result {
        // The last bucket is the one without a bound; the crate writes it as +Inf.
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets).collect();
        to.encode_histogram::<NoLabelSet>(self.0.sum_ns as f64 / 1e9, self.0.count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn sample() -> Sample {
        let mut snapshot = Snapshot { turns: 7, ..Snapshot::default() };
        snapshot.network.add(Duration::from_micros(15));
        snapshot.network.add(Duration::from_secs(60));
        for (journal_us, flush_us) in [(40, 700), (60, 900)] {
            let mut stats = vsand_store::StoreStats::default();
            stats.journal.add(Duration::from_micros(journal_us));
            stats.flush.add(Duration::from_micros(flush_us));
            stats.files.read.bytes = 4096;
            stats.files.read.latency.add(Duration::from_micros(90));
            let disk = ferro_protocol::ids::DiskId::from_bytes([journal_us as u8; 16]);
            snapshot.disks.push((disk, stats, None));
        }
        let busy = crate::data::stats::DiskLoad { load: vsand_core::directory::Load(250), settled: true };
        snapshot.loads.insert(ferro_protocol::ids::DiskId::from_bytes([60; 16]), busy);
        let directory = Status {
            role: Role::Leader,
            leader: None,
            term: 3,
            members: BTreeMap::new(),
            last_log_index: 12,
            applied_index: 10,
            snapshot_index: 0,
            contact: None,
            without_quorum: true,
            fault: None,
        };
        Sample {
            snapshot,
            volume_names: Vec::new(),
            disk_paths: vec!["/a".to_owned(), "/b".to_owned()],
            directory,
            leads: true,
            hosts: 1,
            lease_age: None,
            stale_components: 0,
            scrubbed: (3, 2),
        }
    }

    #[test]
    fn a_scrape_reads_as_prometheus_wants_it() {
        let text = encode(Some(sample())).unwrap();
        for line in [
            "vsand_member 1",
            "vsand_loop_turns_total 7",
            "vsand_directory_term 3",
            "vsand_scrubbed_bytes_total 8192",
            "vsand_disk_bad_blocks_open{disk=\"/a\"} 0",
            "vsand_disk_load{disk=\"/b\"} 250",
            "vsand_disk_load{disk=\"/a\"} 0",
            "vsand_directory_unapplied_entries 2",
            "vsand_stage_latency_seconds_count{stage=\"network\"} 2",
            "vsand_stage_latency_seconds_bucket{le=\"0.00002\",stage=\"network\"} 1",
            "vsand_stage_latency_seconds_bucket{le=\"+Inf\",stage=\"network\"} 2",
            "# HELP vsand_stage_latency_seconds Where the time of requests goes",
            "# TYPE vsand_stage_latency_seconds histogram",
            "vsand_stage_latency_seconds_count{stage=\"ring\"} 0",
            "vsand_stage_latency_seconds_bucket{le=\"0.00005\",stage=\"journal\"} 1",
            "vsand_stage_latency_seconds_bucket{le=\"0.0001\",stage=\"journal\"} 2",
            "vsand_stage_latency_seconds_bucket{le=\"+Inf\",stage=\"journal\"} 2",
            "vsand_stage_latency_seconds_bucket{le=\"0.0005\",stage=\"flush\"} 0",
            "vsand_stage_latency_seconds_bucket{le=\"0.001\",stage=\"flush\"} 2",
            "vsand_disk_bytes_total{disk=\"/a\",operation=\"read\"} 4096",
            "vsand_disk_bytes_total{disk=\"/b\",operation=\"write\"} 0",
            "vsand_disk_latency_seconds_bucket{le=\"0.00005\",disk=\"/a\",operation=\"read\"} 0",
            "vsand_disk_latency_seconds_bucket{le=\"0.0001\",disk=\"/a\",operation=\"read\"} 1",
            "vsand_journal_batch_seconds_total{disk=\"/a\"} 0.00004",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(encode(None).unwrap().contains("vsand_member 0\n"));
    }
}
