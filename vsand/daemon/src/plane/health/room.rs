//! Disks that fill up, and what they can't keep for volumes any more.

use ferro_protocol::api::{DiskInfo, HealthLevel, format_size};

use super::{Findings, reason};
use crate::api::fail::MAKE_ROOM;
use crate::plane::view::View;

/// From here on nothing new is placed on a disk.
const FULL_PERCENT: u64 = 95;
/// From here on somebody should think of more disks.
const NEARLY_FULL_PERCENT: u64 = 80;

/// Of a disk that is online.
pub(super) fn disk(view: &View, disk: &DiskInfo, what: &str, reasons: &mut Findings) {
    let kept = view.state.disks.get(&disk.id).map_or(0, |record| view.kept_bytes_of_disk(record));
    let taken = disk.used_bytes.saturating_add(kept);
    if disk.capacity_bytes == 0 {
        return;
    }
    if taken > disk.capacity_bytes {
        let short = format_size(taken - disk.capacity_bytes);
        reasons.push(reason(
            HealthLevel::Warning,
            "reserve_uncovered",
            format!("{what} lacks {short} of what it is to keep for volumes"),
            format!("{MAKE_ROOM}; or keep less: `vsanctl volume reserve NAME PERCENT`"),
        ));
    }
    // In this order nothing overflows: a disk has less than 2^52 bytes.
    let percent = taken.saturating_mul(100) / disk.capacity_bytes;
    let (code, effect) = match percent {
        FULL_PERCENT.. => ("disk_full", ": nothing new is placed on it"),
        NEARLY_FULL_PERCENT.. => ("disk_nearly_full", ""),
        _ => return,
    };
    let with = if kept > 0 {
        format!(", with {} that are kept for volumes", format_size(kept))
    } else {
        String::new()
    };
    let message = format!("{what} is {percent} % full{with}{effect}");
    reasons.push(reason(HealthLevel::Warning, code, message, MAKE_ROOM));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{codes, shown};
    use crate::plane::view::tests::{healthy, host_id};

    #[test]
    fn what_is_kept_counts_and_what_is_not_covered_is_said() {
        let mut view = healthy();
        let found = |view: &_| {
            let health = shown(view);
            let codes: Vec<String> = codes(&health).into_iter().map(str::to_owned).collect();
            let messages: Vec<String> = health.reasons.iter().map(|r| r.message.clone()).collect();
            (codes, messages.join("\n"))
        };
        let disk = &mut view.reports.get_mut(&host_id(3)).unwrap().disks[0];
        // Of 1,000 extents.
        (disk.extents_used, disk.extents_kept) = (500, 350);
        let (codes, message) = found(&view);
        assert_eq!(codes, ["disk_nearly_full"]);
        assert!(message.contains("is 85 % full, with 350 MiB that are kept for volumes"), "{message}");
        view.reports.get_mut(&host_id(3)).unwrap().disks[0].extents_kept = 510;
        let (codes, message) = found(&view);
        assert_eq!(codes, ["reserve_uncovered", "disk_full"]);
        assert!(message.contains("lacks 10 MiB of what it is to keep"), "{message}");
    }
}
