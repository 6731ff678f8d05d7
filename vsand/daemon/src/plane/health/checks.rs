//! The list of checks: what each looks at, and what it means when it finds something. A code, once given, keeps its meaning.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::api::{HealthCheck, HealthLevel};

use super::Finding;

/// A check, for people.
pub(super) struct Check {
    pub code: &'static str,
    pub title: &'static str,
    pub explanation: &'static str,
}

const fn check(code: &'static str, title: &'static str, explanation: &'static str) -> Check {
    Check { code, title, explanation }
}

/// Every check there is, by code.
pub(super) const CHECKS: &[Check] = &[
    check(
        "certificate_expiring",
        "hosts' certificates renew themselves",
        "A host's certificate has less than five days left and should have renewed itself at two thirds of its 30 days. \
         When it has ended, no other host talks to that one.",
    ),
    check(
        "conversion_waits",
        "volumes become what they are to become",
        "A volume is to be kept in another way (`vsanctl policy apply`), and the copying does not go on. It is complete and safe as it was before; \
         the room for what was copied is free again, and it is tried again from time to time.",
    ),
    check(
        "copies_share_fault_domain",
        "copies are in different fault domains",
        "Fault domains of hosts were changed after copies were placed. One failure can take more copies than the \
         policy allows for.",
    ),
    check(
        "disk_errs",
        "disks keep what they are given",
        "Blocks of a disk did not hold what was written there. They are read from other copies and written anew, so nothing \
         is lost; but a disk with many of them is about to die, and is sent away when there are too many \
         (`scrub.bad_blocks_max` of vsand.toml).",
    ),
    check(
        "disk_failed",
        "disks work",
        "A write or a flush of a disk went wrong, and it is taken for dead until somebody revives it. What it held is \
         rebuilt elsewhere at once, where there is a place.",
    ),
    check(
        "disk_full",
        "disks take new data",
        "A disk is over 95 % full, with what it keeps for volumes. Nothing new is placed on it; what is placed there already can still grow until it is \
         full, and then its volumes' writes wait.",
    ),
    check(
        "disk_leaving",
        "no disk is on its way out",
        "Somebody is removing a disk. Nothing is wrong: what it holds is copied elsewhere first.",
    ),
    check(
        "disk_nearly_full",
        "disks have room",
        "A disk is over 80 % full, with what it keeps for volumes. Thin volumes grow, so plan for more room now.",
    ),
    check(
        "disk_offline",
        "disks of live hosts are served",
        "A host is up and one of its disks is not served: not mounted, damaged, or another cluster's. Volumes with a \
         copy there have one copy fewer.",
    ),
    check(
        "disk_slow",
        "disks are about as fast as each other",
        "A disk's requests took many times as long as those of the cluster's other disks, over some minutes. Writes wait for the \
         slowest of their copies, so it slows down every volume with a copy there.",
    ),
    check(
        "disk_stuck",
        "disks answer everything",
        "A disk answers some requests and never others, as drives do that are about to die. Volumes go on with their \
         other copies.",
    ),
    check(
        "host_leaving",
        "no host is on its way out",
        "Somebody is removing a host. Nothing is wrong: what its disks hold is copied elsewhere first.",
    ),
    check(
        "host_maintenance",
        "no host is in maintenance",
        "Somebody works on a host. Nothing is rebuilt because it is away, and no new data is placed there while others have room. \
         Nothing is wrong, but do not forget to end it.",
    ),
    check(
        "host_not_up",
        "hosts that joined have come up",
        "A host was let in over two minutes ago and was never heard of.",
    ),
    check(
        "host_offline",
        "hosts are online",
        "A host's lease has ended: it is down, cut off or frozen. Volumes with copies there have one copy fewer; after \
         the repair delay they are rebuilt elsewhere.",
    ),
    check(
        "host_removed",
        "this host is in its cluster",
        "This host was taken out of its cluster and serves nothing any more.",
    ),
    check("no_cluster", "this host is in a cluster", "This host is in no cluster yet and can hold nothing."),
    check(
        "no_disks",
        "the cluster has disks",
        "There is no disk in the whole cluster, so nothing can be stored.",
    ),
    check(
        "no_quorum",
        "the directory has a quorum",
        "Less than half of the directory's voters are in touch. Nothing can be made, opened, repaired or changed, and \
         volumes whose copies fail meanwhile wait.",
    ),
    check(
        "owner_offline",
        "hosts with open volumes are online",
        "A volume is open on a host that is offline. Its guest is down or cut off, and no other host may open it before \
         the lock is broken.",
    ),
    check(
        "reserve_uncovered",
        "what is kept for volumes is there",
        "A disk has less free than it is to keep for volumes: their guests may find it full although room was kept for them. It \
         happens where more is on a disk than was counted when the room was asked for.",
    ),
    check(
        "scrub_left_bad",
        "scrubs can mend what they find",
        "The latest scrub of a volume found bad blocks for which there was nothing to mend them from: other copies were away, \
         or bad too.",
    ),
    check(
        "scrub_overdue",
        "volumes are scrubbed in time",
        "A volume was not scrubbed as a whole for twice the time that is set, or never. Blocks that have gone bad may go \
         unnoticed until the other copies are gone too.",
    ),
    check(
        "upgrade_unfinished",
        "the cluster has what its hosts know",
        "All hosts run a later release, and the cluster does nothing yet that an earlier one would not understand. Nothing is \
         wrong: hosts can still be put back. What the later release brings begins with `vsanctl cluster upgrade`.",
    ),
    check(
        "versions_differ",
        "hosts run the same version",
        "Hosts run different versions of vsand. That is meant for the time of an upgrade only.",
    ),
    check(
        "volume_degraded",
        "volumes have all their copies",
        "A volume has fewer good copies than its policy asks for and nothing is being copied yet. The next failure may \
         be one too many.",
    ),
    check(
        "volume_incomplete",
        "imports were completed",
        "A volume holds part of an image: its import was broken off. It can't be opened.",
    ),
    check(
        "volume_misplaced",
        "volumes are where they are to be",
        "A volume is rather to be kept in some places, or spread over sites (`vsanctl volume place`), and parts of it are elsewhere: it was \
         placed before that was said, or there was no room, or hosts there were away. It is complete and safe as it is. Parts that could be \
         nearer move, one after the other, when nothing is repaired.",
    ),
    check(
        "volume_resyncing",
        "no copies are being brought up to date",
        "Copies of a volume are behind and are being filled. Until they are, it stands fewer failures.",
    ),
    check(
        "volume_unavailable",
        "volumes can be read",
        "Of a part of a volume no good copy can be reached. Its guest waits; nothing is lost as long as the hosts or disks \
         come back.",
    ),
    check(
        "volume_waits_for_data",
        "no I/O waits for data",
        "A guest's requests wait, because no good copy of what it wants answers.",
    ),
    check(
        "volume_waits_for_directory",
        "no I/O waits for the directory",
        "A guest's requests wait for a change of the cluster directory, most often to give up a copy that failed.",
    ),
    check(
        "volume_waits_for_space",
        "no I/O waits for space",
        "A guest's writes wait: a disk is full, or no disks can take a new part of the volume.",
    ),
];

/// A check with what it found.
pub(super) struct Group {
    pub check: HealthCheck,
    /// What it found something about.
    pub subjects: BTreeSet<String>,
    /// How many findings there are.
    pub count: u32,
}

/// What was found, by check: the worst first, then by code, then those that found nothing.
pub(super) fn grouped(found: Vec<Finding>) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> =
        CHECKS.iter().map(|check| (check.code.to_owned(), empty(check))).collect();
    for Finding { subject, reason } in found {
        let group = groups
            .entry(reason.code.clone())
            .or_insert_with(|| empty(&Check { code: "", title: "", explanation: "" }));
        group.check.code.clone_from(&reason.code);
        group.check.level = group.check.level.max(reason.level);
        group.count = group.count.saturating_add(1);
        group.subjects.insert(subject);
        group.check.reasons.push(reason);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.check.reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    }
    // Stable: otherwise they stay by code.
    groups.sort_by_key(|g| (std::cmp::Reverse(g.check.level), g.count == 0));
    groups
}

fn empty(check: &Check) -> Group {
    let check = HealthCheck {
        code: check.code.to_owned(),
        title: check.title.to_owned(),
        explanation: check.explanation.to_owned(),
        level: HealthLevel::Ok,
        reasons: Vec::new(),
        mute: None,
    };
    Group { check, subjects: BTreeSet::new(), count: 0 }
}

#[cfg(test)]
mod tests {
    use super::CHECKS;

    #[test]
    fn codes_are_in_order_and_none_is_there_twice() {
        assert!(CHECKS.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(CHECKS.iter().all(|c| !c.title.is_empty() && c.explanation.ends_with('.')));
    }
}
