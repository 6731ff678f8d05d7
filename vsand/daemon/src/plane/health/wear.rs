//! Disks that are getting bad, slow ones among them; volumes that were not scrubbed, blocks that can't be mended.

use ferro_protocol::api::HealthLevel;
use ferro_protocol::ids::ChunkIndex;
use vsand_core::directory::DiskRecord;

use super::{Findings, reason, span};
use crate::member::kept::Kept;
use crate::member::scrub::book::{Book, DAY_S};
use crate::plane::view::View;

/// A disk with so many bad blocks is worth a look, one with fewer has only forgotten a few.
const BAD_BLOCKS_MANY: u64 = 10;
/// A slow disk takes so many times as long as the middle one of the others.
const SLOW_FACTOR: u64 = 4;
/// A disk that is faster than this, on average, is never slow.
const SLOW_US_MIN: u64 = 20_000;
/// Of fewer requests nothing is said.
const REQUESTS_MIN: u64 = 100;
/// So many others there must be.
const OTHERS_MIN: usize = 2;
/// A volume that was not scrubbed for so many times the time that is set is overdue.
const OVERDUE_FACTOR: u64 = 2;

pub(super) fn disks(view: &View, reasons: &mut Findings) {
    for disk in view.state.disks.values() {
        let Some(report) = view.disk_report(disk).filter(|report| report.bad_found > 0) else { continue };
        reasons.about("disk", disk.id);
        let host = super::host_name(&view.state, disk.host);
        let open = report.bad_found.saturating_sub(report.bad_mended);
        let mut message = format!(
            "disk {} of host {host} had {} bad blocks since it was opened, {} of them mended",
            disk.path, report.bad_found, report.bad_mended
        );
        let leaving = view.state.is_leaving(disk.id);
        let many = open > 0 || report.bad_found >= BAD_BLOCKS_MANY;
        let level = if many && !leaving { HealthLevel::Warning } else { HealthLevel::Ok };
        let next = match &report.errs_and_stays {
            _ if leaving => "wait until it has left, and replace it".to_owned(),
            Some(why) => {
                message = format!("{message}; it should leave the cluster and can't: {why}");
                "put that right, then it leaves by itself; replace it".to_owned()
            }
            None if many => format!(
                "look at it (`smartctl -a` on {host}), and take it out if it goes on: `vsanctl disk remove {}`",
                disk.id
            ),
            None => "nothing, unless there are more".to_owned(),
        };
        reasons.push(reason(level, "disk_errs", message, next));
    }
}

/// Disks that take much longer than the others.
pub(super) fn slow(view: &View, reasons: &mut Findings) {
    let paces: Vec<(&DiskRecord, u64)> = view
        .state
        .disks
        .values()
        .filter_map(|disk| Some((disk, view.disk_report(disk)?)))
        .filter(|(_, report)| report.failure.is_none() && report.late_requests >= REQUESTS_MIN)
        .map(|(disk, report)| (disk, report.late_mean_us))
        .collect();
    for (disk, mean_us) in &paces {
        let mut others: Vec<u64> =
            paces.iter().filter(|(other, _)| other.id != disk.id).map(|(_, us)| *us).collect();
        others.sort_unstable();
        let Some(middle) = others.get(others.len() / 2).filter(|_| others.len() >= OTHERS_MIN) else {
            return;
        };
        if *mean_us < SLOW_US_MIN || *mean_us < middle.saturating_mul(SLOW_FACTOR) {
            continue;
        }
        reasons.about("disk", disk.id);
        let host = super::host_name(&view.state, disk.host);
        reasons.push(reason(
            HealthLevel::Warning,
            "disk_slow",
            format!(
                "a request to disk {} of host {host} took {} ms on average in the last minutes; to the other disks {} ms",
                disk.path,
                mean_us / 1_000,
                *middle as f64 / 1_000.0
            ),
            format!(
                "look at it (`smartctl -a`, `iostat -x` on {host}); if it stays like that, replace it: `vsanctl disk remove {}`",
                disk.id
            ),
        ));
    }
}

pub(super) fn volumes(view: &View, reasons: &mut Findings) {
    let Some(book) = Book::of(&view.state) else { return };
    let overdue_s = view.scrub_every_days.saturating_mul(OVERDUE_FACTOR * DAY_S);
    for record in view.state.volumes().filter(|record| record.chunks_from(ChunkIndex(0)).next().is_some()) {
        reasons.about("volume", record.id);
        let entry = book.entry(record.id);
        let name = &record.name;
        let waited = view.unix_s.saturating_sub(entry.unscrubbed_since(record));
        if overdue_s > 0 && waited > overdue_s {
            reasons.push(reason(
                HealthLevel::Warning,
                "scrub_overdue",
                format!("volume {name} was not scrubbed as a whole for {}", span(waited)),
                "`vsanctl scrub status` says how far it is; `scrub.rate_mib_s` of vsand.toml makes it faster",
            ));
        }
        if entry.left_bad() > 0 {
            reasons.push(reason(
                HealthLevel::Warning,
                "scrub_left_bad",
                format!(
                    "the latest scrub of volume {name} could not mend {} bad blocks",
                    entry.left_bad()
                ),
                format!("bring back the copies that are away, then `vsanctl scrub start {name}`; what can't be mended then comes from a backup"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vsand_core::directory::Document;

    use super::super::super::view::View;
    use super::super::super::view::tests::{healthy, host_id};
    use super::*;

    fn found(view: &View) -> Vec<(String, HealthLevel)> {
        super::super::findings(view).into_iter().map(|f| (f.reason.code, f.reason.level)).collect()
    }

    fn bad(view: &mut View, found: u64, mended: u64, stays: Option<&str>) {
        let report = &mut view.reports.get_mut(&host_id(2)).unwrap().disks[0];
        (report.bad_found, report.bad_mended) = (found, mended);
        report.errs_and_stays = stays.map(str::to_owned);
    }

    #[test]
    fn a_disk_with_many_bad_blocks_is_named() {
        let mut view = healthy();
        bad(&mut view, 2, 2, None);
        assert_eq!(found(&view), [("disk_errs".to_owned(), HealthLevel::Ok)]);
        bad(&mut view, 2, 1, None);
        assert_eq!(found(&view), [("disk_errs".to_owned(), HealthLevel::Warning)]);
        bad(&mut view, 60, 60, Some("no room"));
        let finding = super::super::findings(&view).pop().unwrap();
        assert_eq!(finding.reason.level, HealthLevel::Warning);
        assert!(
            finding.reason.message.contains("60 bad blocks") && finding.reason.message.contains("no room")
        );
    }

    #[test]
    fn a_disk_that_is_much_slower_than_the_others_is_named() {
        let mut view = healthy();
        let set = |view: &mut View, n: u8, requests, mean_us| {
            let report = &mut view.reports.get_mut(&host_id(n)).unwrap().disks[0];
            (report.late_requests, report.late_mean_us) = (requests, mean_us);
        };
        for (n, mean_us) in [(1, 3_000), (2, 90_000), (3, 5_000)] {
            set(&mut view, n, 1_000, mean_us);
        }
        let named = super::super::findings(&view);
        assert_eq!(named.len(), 1, "{named:?}");
        assert!(named[0].reason.message.contains("90 ms") && named[0].reason.message.contains("5 ms"));
        set(&mut view, 1, 99, 3_000);
        assert!(found(&view).is_empty(), "one other disk says nothing");
        set(&mut view, 1, 1_000, 80_000);
        assert!(found(&view).is_empty(), "they are all slow");
        for (n, mean_us) in [(1, 100), (2, 19_000), (3, 90)] {
            set(&mut view, n, 1_000, mean_us);
        }
        assert!(found(&view).is_empty(), "fast enough");
    }

    #[test]
    fn a_volume_that_was_not_scrubbed_is_named() {
        let mut view = healthy();
        view.unix_s = 1_000 + 28 * DAY_S;
        assert!(found(&view).is_empty());
        view.unix_s += 1;
        assert_eq!(found(&view), [("scrub_overdue".to_owned(), HealthLevel::Warning)]);
        view.scrub_every_days = 0;
        assert!(found(&view).is_empty(), "nobody wants it");
        view.scrub_every_days = 14;
        let object = *view.state.objects.keys().next().unwrap();
        let mut book = Book::default();
        let state = Arc::make_mut(&mut view.state);
        let entry = book.edit(state, object);
        entry.begin(5_000_000);
        entry.add(&vsand_core::owner::ScrubEnd { blocks: 9, found: 3, mended: 1, ..Default::default() });
        entry.end(5_000_000);
        let content = serde_json::to_string(&book).unwrap();
        state.documents.insert(Book::document(), Arc::new(Document { revision: 1, content }));
        assert_eq!(found(&view), [("scrub_left_bad".to_owned(), HealthLevel::Warning)]);
    }
}
