//! What Prometheus reads: the counters of this host's data loop, disks, directory and resyncs, in OpenMetrics text.
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

use crate::api::fail;
use crate::data::clock;
use crate::data::port::Command;
use crate::data::stats::{BOUNDS_US, Histogram, Snapshot, VolumeStats};
use crate::member::Member;

type Labels = Vec<(&'static str, String)>;
type Row<T> = (Labels, T);

/// All metrics of this host.
pub async fn text(member: Option<&Member>) -> Result<String, ferro_protocol::api::ApiError> {
    let mut registry = Registry::with_prefix("vsand");
    let sample = match member {
        Some(member) => Some(Sample::take(member).await?),
        None => None,
    };
    registry.register_collector(Box::new(Scrape { sample }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map_err(|error| fail::internal("writing the metrics", error))?;
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
        gauge(out, "member", "Whether this host is in a cluster", one(i64::from(self.sample.is_some())))?;
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
    let histograms = sample.operations(|io| Seconds(&io.latency));
    histogram(out, "volume_latency_seconds", "From a request's descriptor to its completion", histograms)?;
    let views = || sample.volume_names.iter().zip(&sample.snapshot.volumes);
    let each = |of: &dyn Fn(&crate::data::port::VolumeView) -> i64| {
        views().map(|(name, (view, _))| (vec![("volume", name.clone())], of(view))).collect::<Vec<_>>()
    };
    gauge(out, "volume_in_flight", "Requests under way", each(&|v| v.in_flight as i64))?;
    gauge(out, "volume_serving", "Whether every placed chunk serves", each(&|v| i64::from(v.serving)))?;
    gauge(out, "volume_troubles", "What keeps I/O waiting", each(&|v| v.troubles.len() as i64))?;
    gauge(out, "volume_attached", "Whether a VMM is connected", each(&|v| i64::from(v.attached)))?;
    let blocks = |of: &dyn Fn(&vsand_core::owner::ResyncView) -> u32| {
        each(&|v| v.resyncs.iter().map(|r| i64::from(of(r)) * BLOCK_BYTES as i64).sum())
    };
    gauge(out, "resync_running", "Components that are being resynced", each(&|v| v.resyncs.len() as i64))?;
    gauge(out, "resync_total_bytes", "What running resyncs have to copy", blocks(&|r| r.blocks_total))?;
    gauge(out, "resync_done_bytes", "What running resyncs have copied", blocks(&|r| r.blocks_done))
}

/// A latency histogram a stage: the ring as a whole, and within it the network. What the journal takes, its flush included, is
/// counted by each disk ([`disks`]).
fn stages(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    let mut ring = Histogram::default();
    for (_, stats) in &sample.snapshot.volumes {
        for io in [&stats.read, &stats.write, &stats.zero] {
            ring.buckets.iter_mut().zip(io.latency.buckets).for_each(|(sum, n)| *sum += n);
            ring.count += io.latency.count;
            ring.sum_ns = ring.sum_ns.saturating_add(io.latency.sum_ns);
        }
    }
    let stages = [("ring", &ring), ("network", &sample.snapshot.network)];
    let rows = stages.into_iter().map(|(stage, h)| (vec![("stage", stage.to_owned())], Seconds(h))).collect();
    histogram(out, "stage_latency_seconds", "Where the time of requests goes", rows)?;
    counter(out, "loop_turns", "Turns of the data loop", one(sample.snapshot.turns))?;
    counter(out, "loop_sleeps", "How often the data loop went to sleep", one(sample.snapshot.sleeps))
}

fn disks(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    let extents = |n: u32| i64::from(n) * EXTENT_BYTES as i64;
    gauge(out, "disk_capacity_bytes", "Size of the disk", sample.disks(|d| extents(d.extents)))?;
    gauge(out, "disk_used_bytes", "Taken", sample.disks(|d| extents(d.extents_used)))?;
    let paths = sample.disk_paths.iter().zip(&sample.snapshot.disks);
    let dead =
        paths.map(|(path, (_, _, dead))| (vec![("disk", path.clone())], i64::from(dead.is_some()))).collect();
    gauge(out, "disk_dead", "Whether the disk has failed", dead)?;
    gauge(out, "disk_in_flight", "Requests under way on the disk", sample.disks(|d| d.in_flight as i64))?;
    gauge(out, "disk_queued", "Changes that wait for a batch", sample.disks(|d| d.queued as i64))?;
    gauge(out, "journal_bytes", "Size of the journal", sample.disks(|d| d.journal_bytes as i64))?;
    gauge(
        out,
        "journal_used_bytes",
        "What the next checkpoint frees",
        sample.disks(|d| d.journal_used_bytes as i64),
    )?;
    gauge(
        out,
        "journal_overlay_blocks",
        "Blocks that wait for their place",
        sample.disks(|d| d.overlay_blocks as i64),
    )?;
    counter(out, "journal_batches", "Batches written, a flush each", sample.disks(|d| d.batches))?;
    counter(out, "journal_records", "Changes in them", sample.disks(|d| d.records))?;
    let seconds = sample.disks(|d| d.batch_ns as f64 / 1e9);
    seconds_counter(
        out,
        "journal_batch_seconds",
        "Time that batches took to be stable, flush included",
        seconds,
    )?;
    counter(out, "disk_data_flushes", "Flushes of the data file", sample.disks(|d| d.data_flushes))?;
    counter(out, "disk_destages", "Writes of blocks to their place", sample.disks(|d| d.destages))?;
    counter(
        out,
        "disk_direct_writes",
        "Changes whose data went straight to its place",
        sample.disks(|d| d.direct_writes),
    )?;
    counter(out, "disk_data_reads", "Reads of the data file", sample.disks(|d| d.data_reads))?;
    counter(out, "disk_checkpoints", "Checkpoints", sample.disks(|d| d.checkpoints))?;
    counter(out, "disk_bad_blocks", "Blocks that failed their checksum", sample.disks(|d| d.bad_blocks))
}

fn cluster(out: &mut DescriptorEncoder<'_>, sample: &Sample) -> fmt::Result {
    let directory = &sample.directory;
    gauge(out, "directory_leader", "Whether this host leads the directory", one(i64::from(sample.leads)))?;
    let quorum = i64::from(!directory.without_quorum);
    gauge(out, "directory_quorum", "Whether the directory has a quorum", one(quorum))?;
    gauge(out, "directory_term", "Number of the leadership", one(directory.term as i64))?;
    gauge(out, "directory_applied_index", "Last entry applied here", one(directory.applied_index as i64))?;
    let behind = directory.last_log_index.saturating_sub(directory.applied_index);
    gauge(
        out,
        "directory_unapplied_entries",
        "Entries in the log that are not applied yet",
        one(behind as i64),
    )?;
    gauge(out, "directory_voters", "Hosts that vote", one(directory.voters().len() as i64))?;
    let lag = directory
        .members
        .iter()
        .filter_map(|(host, member)| Some((vec![("host", host.to_string())], member.lag_entries? as i64)))
        .collect();
    gauge(out, "directory_lag_entries", "Entries that a member lacks, as its leader sees it", lag)?;
    gauge(out, "hosts", "Hosts of the cluster", one(sample.hosts as i64))?;
    let stale = sample.stale_components as i64;
    gauge(out, "stale_components", "Components of the cluster that are not in sync", one(stale))?;
    let age = sample.lease_age.map_or(f64::NAN, |age| age.as_secs_f64());
    let mut family = out.encode_descriptor(
        "lease_age_seconds",
        "Since the last renewal of this host's lease",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(age).encode(family.encode_family(&NO_LABELS)?)
}

const NO_LABELS: [(&str, String); 0] = [];

fn one<T>(value: T) -> Vec<Row<T>> {
    vec![(Vec::new(), value)]
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Vec<Row<i64>>) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    rows.into_iter()
        .try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: Vec<Row<u64>>) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    rows.into_iter()
        .try_for_each(|(labels, value)| ConstCounter::new(value).encode(family.encode_family(&labels)?))
}

fn seconds_counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: Vec<Row<f64>>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    rows.into_iter()
        .try_for_each(|(labels, value)| ConstCounter::new(value).encode(family.encode_family(&labels)?))
}

/// A histogram in the unit of Prometheus.
struct Seconds<'a>(&'a Histogram);

impl Seconds<'_> {
    fn write(&self, mut to: MetricEncoder<'_>) -> fmt::Result {
        // The last bucket is the one without a bound; the crate writes it as +Inf.
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets).collect();
        to.encode_histogram::<NoLabelSet>(self.0.sum_ns as f64 / 1e9, self.0.count, &buckets, None)
    }
}

fn histogram(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: Vec<Row<Seconds<'_>>>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
    rows.into_iter().try_for_each(|(labels, value)| value.write(family.encode_family(&labels)?))
}
