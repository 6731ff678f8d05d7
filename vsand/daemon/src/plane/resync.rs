//! Resyncs: which components are to be brought up to date, how far that is and how long it takes. Pure.

use std::collections::BTreeMap;

use ferro_protocol::api::{ResyncInfo, ResyncKind, ResyncList, ResyncState, ResyncTotals};
use ferro_protocol::ids::{DiskId, HostId, Seq};
use vsand_core::directory::{ObjectRecord, Sync};

use super::errors::host_name;
use super::remote::ResyncReport;
use super::view::View;

/// The stale components of one object on one disk.
struct Stale {
    chunks: u32,
    full: bool,
    since_unix_s: u64,
}

/// All resyncs, running ones first.
pub(super) fn list(view: &View) -> ResyncList {
    let mut resyncs: Vec<ResyncInfo> = view.state.objects.values().flat_map(|o| of_object(view, o)).collect();
    let order = |state: ResyncState| match state {
        ResyncState::Running => 0,
        ResyncState::Queued => 1,
        ResyncState::Delayed => 2,
    };
    resyncs.sort_by(|a, b| {
        (order(a.state), &a.volume, &a.host_name, a.disk).cmp(&(
            order(b.state),
            &b.volume,
            &b.host_name,
            b.disk,
        ))
    });
    let totals = totals(&resyncs);
    ResyncList { resyncs, totals }
}

fn of_object(view: &View, record: &ObjectRecord) -> Vec<ResyncInfo> {
    let mut stale: BTreeMap<DiskId, Stale> = BTreeMap::new();
    for component in record.chunks.values().flat_map(|c| &c.components) {
        if let Sync::Stale { stale_seq, since_unix_s } = component.sync {
            let entry = stale.entry(component.disk).or_insert(Stale { chunks: 0, full: true, since_unix_s });
            entry.chunks += 1;
            entry.full &= stale_seq == Seq(0);
            entry.since_unix_s = entry.since_unix_s.min(since_unix_s);
        }
    }
    let running = view.volume_report(record).map(|r| r.resyncs.as_slice()).unwrap_or_default();
    stale
        .into_iter()
        .map(|(disk, stale)| one(view, record, disk, &stale, running.iter().find(|r| r.disk == disk)))
        .collect()
}

fn one(
    view: &View,
    record: &ObjectRecord,
    disk: DiskId,
    stale: &Stale,
    running: Option<&ResyncReport>,
) -> ResyncInfo {
    let host = view.state.disks.get(&disk).map(|d| d.host);
    let progress = match running {
        Some(_) => ResyncState::Running,
        None if view.is_disk_reachable(disk) => ResyncState::Queued,
        None => ResyncState::Delayed,
    };
    let (mut total_bytes, done_bytes, bytes_per_second, copying) = match running {
        Some(r) => (r.total_bytes, r.done_bytes, r.bytes_per_second, r.chunks.max(1)),
        None => (0, 0, 0, 0),
    };
    // What the chunks that wait have to copy is not known before their turn: about as much as those that run.
    if copying > 0 {
        total_bytes += total_bytes / u64::from(copying) * u64::from(stale.chunks.saturating_sub(copying));
    }
    let eta_seconds = match progress {
        ResyncState::Running => eta(total_bytes - done_bytes, bytes_per_second),
        ResyncState::Queued => None,
        ResyncState::Delayed => Some((stale.since_unix_s + view.repair_delay_s).saturating_sub(view.unix_s)),
    };
    ResyncInfo {
        object: record.id,
        volume: Some(record.name.clone()),
        disk,
        host: host.unwrap_or(HostId::from_bytes([0; 16])),
        host_name: host.map_or_else(String::new, |host| host_name(&view.state, host)),
        kind: if stale.full { ResyncKind::Full } else { ResyncKind::Delta },
        state: progress,
        chunks_remaining: stale.chunks,
        done_bytes,
        total_bytes,
        bytes_per_second,
        eta_seconds,
    }
}

fn eta(left_bytes: u64, bytes_per_second: u64) -> Option<u64> {
    (bytes_per_second > 0).then(|| left_bytes.div_ceil(bytes_per_second))
}

fn totals(resyncs: &[ResyncInfo]) -> ResyncTotals {
    let mut totals = ResyncTotals::default();
    for resync in resyncs {
        if resync.state == ResyncState::Running {
            totals.running += 1;
            // All run side by side: the last to end counts.
            totals.eta_seconds = totals.eta_seconds.max(resync.eta_seconds);
        } else {
            totals.waiting += 1;
        }
        totals.done_bytes += resync.done_bytes;
        totals.total_bytes += resync.total_bytes;
        totals.bytes_per_second += resync.bytes_per_second;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::super::remote::VolumeReport;
    use super::super::view::tests::{disk_id, healthy, host_id, kill, stale};
    use super::*;

    #[test]
    fn a_component_whose_host_is_away_waits_for_it() {
        let mut view = healthy();
        assert_eq!(list(&view).resyncs, []);
        kill(&mut view, 3);
        stale(&mut view, 3, 9);
        let all = list(&view);
        assert_eq!(all.totals.waiting, 1);
        let one = &all.resyncs[0];
        assert_eq!((one.state, one.kind), (ResyncState::Delayed, ResyncKind::Delta));
        assert_eq!(one.eta_seconds, Some(3_500), "stale since 1900, now 2000, delay 3600");
    }

    #[test]
    fn a_running_resync_says_how_far_it_is() {
        let mut view = healthy();
        stale(&mut view, 2, 0);
        assert_eq!(list(&view).resyncs[0].state, ResyncState::Queued);
        let record = view.state.objects.values().next().unwrap().clone();
        let report = ResyncReport {
            disk: disk_id(2),
            chunks: 1,
            total_bytes: 1_000,
            done_bytes: 400,
            bytes_per_second: 100,
        };
        view.reports.get_mut(&host_id(1)).unwrap().volumes.push(VolumeReport {
            object: record.id,
            epoch: record.epoch,
            attached: true,
            troubles: Vec::new(),
            conversion: None,
            resyncs: vec![report],
        });
        let all = list(&view);
        let one = &all.resyncs[0];
        assert_eq!((one.state, one.kind, one.eta_seconds), (ResyncState::Running, ResyncKind::Full, Some(6)));
        assert_eq!((all.totals.running, all.totals.done_bytes, all.totals.eta_seconds), (1, 400, Some(6)));
    }
}
