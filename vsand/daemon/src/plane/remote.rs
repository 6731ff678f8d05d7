//! What one host knows that the directory does not: how its open volumes, their resyncs and its disks are. Each host answers
//! others with a [`HostReport`] in JSON; fields may be added, and a reader ignores those that it does not know.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, HostId, ObjectId};
use ferro_protocol::units::BLOCK_BYTES;
use serde::{Deserialize, Serialize};
use vsand_core::directory::FeatureLevel;
use vsand_core::owner::{ResyncView, Trouble};
use vsand_core::time::Instant;
use vsand_core::volume::ConversionView;

use crate::data::clock;
use crate::data::port::{Command, VolumeView};
use crate::data::stats::Snapshot;
use crate::member::Member;
use crate::member::network::REPORT;

/// A host that answers does so within this time; what a person sees must not wait for one that does not.
const REPORT_MAX: Duration = Duration::from_millis(700);
/// Rates are taken over at least this time.
const RATE_OVER_MIN: Duration = Duration::from_millis(500);
/// A rate that was not looked at for so long says nothing any more.
const RATE_OVER_MAX: Duration = Duration::from_secs(30);
/// How long the count of extents may be reused: it walks all components of a disk.
const USAGE_AGE_MAX: Duration = Duration::from_secs(3);

/// How one host is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostReport {
    /// The version of its `vsand`.
    pub version: String,
    /// When its certificate ends, in seconds since 1970.
    pub certificate_expires_unix_s: u64,
    /// The objects that it owns now.
    pub volumes: Vec<VolumeReport>,
    /// The disks that it has, served or not.
    pub disks: Vec<DiskReport>,
    /// The last feature level that it knows.
    #[serde(default)]
    pub feature_level_known: FeatureLevel,
}

/// One object as its owner sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeReport {
    /// The object.
    pub object: ObjectId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Whether a VMM is connected to its socket.
    pub attached: bool,
    /// What keeps its I/O waiting.
    pub troubles: Vec<TroubleReport>,
    /// The resyncs that run, one a disk.
    pub resyncs: Vec<ResyncReport>,
    /// How the volume is getting on that it is being made into.
    #[serde(default)]
    pub conversion: Option<ConversionReport>,
}

/// How a conversion is getting on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConversionReport {
    /// How far the copy has come, in bytes of the volume.
    pub copied_bytes: u64,
    /// Why it does not go on.
    pub waits: Option<String>,
}

/// What keeps I/O waiting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleReport {
    /// A disk has no space left.
    Full(DiskId),
    /// A new chunk finds no place.
    NoPlace(ChunkIndex),
    /// A disk answers some requests and not others.
    Stuck(DiskId),
    /// No good component of a chunk answers.
    Unreachable(ChunkIndex),
    /// The directory does not answer.
    NoDirectory,
}

/// The chunks of one object that are being copied to one disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResyncReport {
    /// The disk.
    pub disk: DiskId,
    /// How many chunks are being copied.
    pub chunks: u32,
    /// What there is to copy of them, as far as is known.
    pub total_bytes: u64,
    /// What is copied.
    pub done_bytes: u64,
    /// How fast it goes.
    pub bytes_per_second: u64,
}

/// One disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskReport {
    /// The disk.
    pub disk: DiskId,
    /// Why it is not served.
    pub failure: Option<String>,
    /// Its size in extents.
    pub extents: u64,
    /// How many are in use.
    pub extents_used: u64,
    /// How many are kept for volumes and not in use yet.
    #[serde(default)]
    pub extents_kept: u64,
    /// Blocks that failed their checksum since it was opened.
    pub bad_blocks: u64,
    /// Those of them that were told apart: one that is read again and again counts once.
    #[serde(default)]
    pub bad_found: u64,
    /// How many of these were written anew since.
    #[serde(default)]
    pub bad_mended: u64,
    /// It errs too often, and this is why it stays.
    #[serde(default)]
    pub errs_and_stays: Option<String>,
    /// Requests to its files in the last minutes.
    #[serde(default)]
    pub late_requests: u64,
    /// How long one of them took on average, in microseconds.
    #[serde(default)]
    pub late_mean_us: u64,
    /// How many extents each object takes up here.
    pub objects: Vec<(ObjectId, u64)>,
}

impl DiskReport {
    /// Of a disk of which nothing more is known.
    pub(super) fn new(disk: DiskId) -> Self {
        Self {
            disk,
            failure: None,
            extents: 0,
            extents_used: 0,
            extents_kept: 0,
            bad_blocks: 0,
            bad_found: 0,
            bad_mended: 0,
            errs_and_stays: None,
            late_requests: 0,
            late_mean_us: 0,
            objects: Vec::new(),
        }
    }
}

impl From<&Trouble> for TroubleReport {
    fn from(trouble: &Trouble) -> Self {
        match trouble {
            Trouble::Full(disk) => Self::Full(*disk),
            Trouble::Stuck(disk) => Self::Stuck(*disk),
            Trouble::NoPlace(chunk) => Self::NoPlace(*chunk),
            Trouble::Unreachable(chunk) => Self::Unreachable(*chunk),
            Trouble::NoDirectory => Self::NoDirectory,
        }
    }
}

/// What reports need from one time to the next.
#[derive(Debug, Default)]
pub struct Reporter {
    inner: Mutex<Inner>,
}

type Usage = BTreeMap<DiskId, BTreeMap<ObjectId, u64>>;

#[derive(Debug, Default)]
struct Inner {
    rates: Rates,
    usage: Option<(Instant, Arc<Usage>)>,
}

impl Reporter {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // Nothing in here is left half-done by a panic but estimates.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn usage(&self, member: &Member, now: Instant) -> Option<Arc<Usage>> {
        let fresh = |inner: &mut Inner| inner.usage.clone().filter(|(at, _)| now.since(*at) < USAGE_AGE_MAX);
        if let Some((_, usage)) = self.with(fresh) {
            return Some(usage);
        }
        let inventory = member.data.ask(Command::Inventory).await.ok()?;
        let mut usage = Usage::new();
        for (disk, entries) in inventory {
            let of_disk = usage.entry(disk).or_default();
            for entry in entries {
                *of_disk.entry(entry.chunk.object).or_insert(0) += u64::from(entry.extents);
            }
        }
        let usage = Arc::new(usage);
        self.with(|inner| inner.usage = Some((now, Arc::clone(&usage))));
        Some(usage)
    }
}

/// Rates of resyncs, from how far they were when last looked at.
#[derive(Debug, Default)]
struct Rates {
    seen: BTreeMap<(ObjectId, DiskId), Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    done: BTreeMap<ChunkIndex, u32>,
    bytes_per_s: u64,
}

impl Rates {
    /// The rate at which these copies, all to one disk, go now.
    fn observe(&mut self, now: Instant, object: ObjectId, disk: DiskId, views: &[&ResyncView]) -> u64 {
        let done: BTreeMap<ChunkIndex, u32> = views.iter().map(|v| (v.chunk, v.blocks_done)).collect();
        let known = self.seen.get(&(object, disk)).filter(|s| now.since(s.at) < RATE_OVER_MAX);
        let bytes_per_s = match known {
            Some(seen) if now.since(seen.at) < RATE_OVER_MIN => return seen.bytes_per_s,
            Some(seen) => {
                let moved = |(chunk, now): (&ChunkIndex, &u32)| {
                    u64::from(now.saturating_sub(seen.done.get(chunk).copied().unwrap_or(0)))
                };
                rate(done.iter().map(moved).sum(), now.since(seen.at))
            }
            None => views.iter().map(|v| rate(u64::from(v.blocks_done), v.running)).sum(),
        };
        self.seen.insert((object, disk), Seen { at: now, done, bytes_per_s });
        bytes_per_s
    }

    fn forget_old(&mut self, now: Instant) {
        self.seen.retain(|_, seen| now.since(seen.at) < RATE_OVER_MAX);
    }
}

impl From<&ConversionView> for ConversionReport {
    fn from(view: &ConversionView) -> Self {
        Self { copied_bytes: view.copied_bytes, waits: view.waits.clone() }
    }
}

fn rate(blocks: u64, over: Duration) -> u64 {
    let ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
    blocks.saturating_mul(BLOCK_BYTES as u64).saturating_mul(1_000) / ms
}

fn resyncs(rates: &mut Rates, now: Instant, view: &VolumeView) -> Vec<ResyncReport> {
    let mut by_disk: BTreeMap<DiskId, Vec<&ResyncView>> = BTreeMap::new();
    for resync in &view.resyncs {
        by_disk.entry(resync.disk).or_default().push(resync);
    }
    by_disk
        .into_iter()
        .map(|(disk, views)| {
            let bytes = |blocks: &dyn Fn(&ResyncView) -> u32| {
                views.iter().map(|v| u64::from(blocks(v)) * BLOCK_BYTES as u64).sum::<u64>()
            };
            ResyncReport {
                disk,
                chunks: views.len() as u32,
                total_bytes: bytes(&|v| v.blocks_total),
                done_bytes: bytes(&|v| v.blocks_done.min(v.blocks_total)),
                bytes_per_second: rates.observe(now, view.object, disk, &views),
            }
        })
        .collect()
}

/// How this host is; `None` when its data loop has ended.
pub async fn own_report(member: &Member) -> Option<HostReport> {
    let snapshot: Box<Snapshot> = member.data.ask(Command::Snapshot).await.ok()?;
    let now = clock::mono();
    let usage = member.reporter.usage(member, now).await?;
    let volumes = member.reporter.with(|inner| {
        inner.rates.forget_old(now);
        let one = |(view, _): &(VolumeView, _)| VolumeReport {
            object: view.object,
            epoch: view.epoch,
            attached: view.attached,
            troubles: view.troubles.iter().map(TroubleReport::from).collect(),
            resyncs: resyncs(&mut inner.rates, now, view),
            conversion: view.conversion.as_ref().map(ConversionReport::from),
        };
        snapshot.volumes.iter().map(one).collect()
    });
    let mut disks: Vec<DiskReport> = snapshot
        .disks
        .iter()
        .map(|(disk, stats, dead)| DiskReport {
            disk: *disk,
            failure: dead.clone(),
            extents: u64::from(stats.extents),
            extents_used: u64::from(stats.extents_used),
            extents_kept: u64::from(stats.extents_kept),
            bad_blocks: stats.bad_blocks,
            bad_found: snapshot.bad.get(disk).map_or(0, |bad| bad.found),
            bad_mended: snapshot.bad.get(disk).map_or(0, |bad| bad.mended),
            errs_and_stays: member.erring.refusal(*disk),
            late_requests: member.paces.of(*disk).requests,
            late_mean_us: member.paces.of(*disk).mean_us,
            objects: usage.get(disk).into_iter().flatten().map(|(object, n)| (*object, *n)).collect(),
        })
        .collect();
    for (disk, reason) in member.disks.failures() {
        disks.push(DiskReport { failure: Some(reason), ..DiskReport::new(disk) });
    }
    Some(HostReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        certificate_expires_unix_s: member.identity.current().validity().not_after.as_secs(),
        volumes,
        disks,
        feature_level_known: FeatureLevel::NEWEST,
    })
}

/// The answer to another host that asks how this one is.
pub async fn report(member: &Member) -> Option<Vec<u8>> {
    let report = own_report(member).await?;
    serde_json::to_vec(&report).inspect_err(|error| tracing::error!(%error, "a report does not encode")).ok()
}

/// Asks these hosts, all at once, how they are; those that don't answer soon are left out.
pub(super) async fn gather(member: &Member, hosts: &[HostId]) -> BTreeMap<HostId, HostReport> {
    let state = member.state();
    let asked = hosts.iter().filter_map(|host| state.hosts.get(host)).map(|host| async move {
        if host.id == member.host() {
            return own_report(member).await.map(|report| (host.id, report));
        }
        let call = member.peers.call(host.id, host.address, REPORT, &[], REPORT_MAX);
        // A connection that is being made is waited for no longer than an answer.
        let answer = match tokio::time::timeout(REPORT_MAX, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(host = %host.id, %error, "a host did not say how it is");
                return None;
            }
            Err(_) => return None,
        };
        match serde_json::from_slice(&answer) {
            Ok(report) => Some((host.id, report)),
            Err(error) => {
                tracing::warn!(host = %host.id, %error, "a host's report can't be read");
                None
            }
        }
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(blocks_done: u32, running_s: u64) -> ResyncView {
        ResyncView {
            chunk: ChunkIndex(0),
            disk: DiskId::from_bytes([1; 16]),
            blocks_total: 100_000,
            blocks_done,
            running: Duration::from_secs(running_s),
        }
    }

    #[test]
    fn a_rate_is_of_late_and_not_of_the_beginning() {
        let (object, disk) = (ObjectId::from_bytes([2; 16]), DiskId::from_bytes([1; 16]));
        let at = |s: u64| Instant(s * 1_000_000_000);
        let mut rates = Rates::default();
        assert_eq!(rates.observe(at(10), object, disk, &[&view(1_000, 10)]), 100 * 4096);
        assert_eq!(
            rates.observe(at(10), object, disk, &[&view(5_000, 10)]),
            100 * 4096,
            "too soon for a new one"
        );
        assert_eq!(rates.observe(at(12), object, disk, &[&view(21_000, 12)]), 10_000 * 4096);
        assert_eq!(
            rates.observe(at(100), object, disk, &[&view(50_000, 100)]),
            500 * 4096,
            "the old one says nothing"
        );
    }

    #[test]
    fn a_report_of_a_later_version_is_read() {
        let text = r#"{"version":"9","certificate_expires_unix_s":1,"volumes":[],"disks":[],"more":{"a":1}}"#;
        let report: HostReport = serde_json::from_str(text).unwrap();
        assert_eq!(report.version, "9");
        let trouble = TroubleReport::Full(DiskId::from_bytes([1; 16]));
        let text = serde_json::to_string(&trouble).unwrap();
        assert_eq!(serde_json::from_str::<TroubleReport>(&text).unwrap(), trouble);
    }
}
