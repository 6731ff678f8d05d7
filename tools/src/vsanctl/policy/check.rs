//! `policy check`: what the hosts at hand can hold of a policy, now and without any one of them, or any one site. Reckoned from what the
//! daemon lists; nothing is asked of the directory.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::api::{DiskInfo, DiskList, DiskState, HostInfo, HostList, Policy, format_size};
use ferro_protocol::fault_domain::site;
use serde::Serialize;

use super::{PolicyChoice, resolve, space, survives};
use crate::failure::{Exit, Failure, Result};
use crate::text::{Cell, Paint, Style, Table, facts};
use crate::vsanctl::Context;

/// A disk this full takes nothing new.
const FULL_PERCENT: u64 = 95;

/// What the disks of some hosts can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Room {
    /// Fault domains with a disk that takes something new.
    fault_domains: usize,
    /// Whether those are enough for the policy.
    enough: bool,
    /// How much data of guests fits before a disk that is needed is full.
    guest_bytes: u64,
}

/// What is left without one host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Without {
    host: String,
    #[serde(flatten)]
    room: Room,
}

/// What is left without one site.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct WithoutSite {
    site: String,
    #[serde(flatten)]
    room: Room,
}

/// What the hosts at hand can hold of a policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Checked {
    policy: Policy,
    fault_domains_needed: u8,
    now: Room,
    without: Vec<Without>,
    /// None unless there are several, and one of them has a fault domain with a path.
    without_sites: Vec<WithoutSite>,
    /// Of a policy that spreads data over sites: whether all of it could be read without any one of them.
    survives_a_site: Option<bool>,
}

/// Of these disks, those that are `lost` apart. Each piece of the policy is on another fault domain, so one that has more than the
/// others counts only as far as they reach.
fn room(policy: Policy, hosts: &[HostInfo], disks: &[DiskInfo], lost: impl Fn(&HostInfo) -> bool) -> Room {
    let mut free: BTreeMap<&str, u64> = BTreeMap::new();
    for disk in disks.iter().filter(|d| d.state == DiskState::Online) {
        let host = hosts.iter().find(|host| host.id == disk.host && !lost(host));
        let Some(host) = host else { continue };
        let most = disk.capacity_bytes / 100 * FULL_PERCENT;
        if disk.used_bytes < most {
            *free.entry(&host.fault_domain).or_default() += most - disk.used_bytes;
        }
    }
    let needed = usize::from(policy.domains());
    let fits = |piece: u64| {
        let sum: u128 = free.values().map(|free| u128::from(*free.min(&piece))).sum();
        sum >= u128::from(piece) * needed as u128
    };
    // The largest piece for which all pieces find a place.
    let (mut low, mut high) = (0, free.values().sum::<u64>());
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    let enough = free.len() >= needed;
    let parts = match policy {
        Policy::Mirror { .. } => 1,
        Policy::Parity { data, .. } => u64::from(data),
    };
    Room {
        fault_domains: free.len(),
        enough,
        guest_bytes: if enough { low.saturating_mul(parts) } else { 0 },
    }
}

fn checked(policy: Policy, across_sites: bool, hosts: &[HostInfo], disks: &[DiskInfo]) -> Checked {
    let with_disks: BTreeSet<_> = disks.iter().map(|d| d.host).collect();
    let with_disks = || hosts.iter().filter(|host| with_disks.contains(&host.id));
    let without = with_disks().map(|host| Without {
        host: host.name.clone(),
        room: room(policy, hosts, disks, |lost| lost.id == host.id),
    });
    let mut domains: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for host in with_disks() {
        domains.entry(site(&host.fault_domain)).or_default().insert(&host.fault_domain);
    }
    let named = domains.len() > 1 && with_disks().any(|host| host.fault_domain.contains('/'));
    let without_sites = domains.keys().filter(|_| named).map(|gone| WithoutSite {
        site: (*gone).to_owned(),
        room: room(policy, hosts, disks, |lost| site(&lost.fault_domain) == *gone),
    });
    let most = most_in_a_site(policy, &domains.values().map(BTreeSet::len).collect::<Vec<_>>());
    Checked {
        policy,
        fault_domains_needed: policy.domains(),
        now: room(policy, hosts, disks, |_| false),
        without: without.collect(),
        without_sites: without_sites.collect(),
        survives_a_site: across_sites
            .then(|| most.is_some_and(|most| most <= usize::from(policy.failures_to_tolerate()))),
    }
}

/// How many parts of a chunk one site has at most, when they are spread over sites with so many fault domains as evenly as can be; nothing
/// if there is no place for all of them.
fn most_in_a_site(policy: Policy, domains: &[usize]) -> Option<usize> {
    let mut parts = vec![0; domains.len()];
    for _ in 0..policy.domains() {
        let free = (0..parts.len()).filter(|n| parts[*n] < domains[*n]);
        let next = free.min_by_key(|n| parts[*n])?;
        parts[next] += 1;
    }
    parts.into_iter().max()
}

pub(in crate::vsanctl) async fn check(context: &Context, choice: &PolicyChoice) -> Result<()> {
    let meant = resolve(context, choice).await?;
    let (policy, across) = (meant.policy, meant.placement.is_some_and(|placement| placement.across_sites));
    let hosts: HostList = context.client.get("/v1/hosts").await?;
    let disks: DiskList = context.client.get("/v1/disks").await?;
    let checked = checked(policy, across, &hosts.hosts, &disks.disks);
    context.terminal.answer(&checked, report)?;
    if checked.now.enough {
        return Ok(());
    }
    let message = format!(
        "the hosts at hand can't hold {policy}: it needs usable disks in {} fault domains and there are {}",
        checked.fault_domains_needed, checked.now.fault_domains
    );
    let next = "add hosts or disks, or choose a policy that needs fewer";
    Err(Failure::new(Exit::Refused, "policy_unsatisfiable", message, next))
}

fn report(checked: &Checked, paint: Paint) -> String {
    let policy = checked.policy;
    let mut lines = vec![
        ("policy", policy.to_string()),
        ("survives", survives(policy)),
        ("fault domains", checked.fault_domains_needed.to_string()),
        ("1 GiB takes", space(policy)),
    ];
    match checked.survives_a_site {
        Some(true) => lines.push(("loss of a site", paint.text(Style::Good, "survived, of any one"))),
        Some(false) => {
            let why = "not survived: too few sites for as many parts, or too many parts in one";
            lines.push(("loss of a site", paint.text(Style::Warn, why)));
        }
        None => {}
    }
    let mut out = facts(&lines);
    out.push('\n');
    let mut table = Table::new(&["HOSTS", ">FAULT DOMAINS", "NEW VOLUMES", ">DATA THAT FITS"]);
    let mut row = |hosts: String, room: &Room, bad: Style| {
        let (style, word) = if room.enough { (Style::Good, "can be made") } else { (bad, "can't be made") };
        table.row(vec![
            hosts.into(),
            room.fault_domains.to_string().into(),
            Cell::styled(style, word),
            format_size(room.guest_bytes).into(),
        ]);
    };
    row("all".to_owned(), &checked.now, Style::Bad);
    for without in &checked.without {
        row(format!("without {}", without.host), &without.room, Style::Warn);
    }
    for without in &checked.without_sites {
        row(format!("without site {}", without.site), &without.room, Style::Warn);
    }
    out += &table.render(paint, 0);
    let stuck = checked.without.iter().filter(|without| !without.room.enough).count();
    if checked.now.enough && stuck > 0 {
        out += "\nWhat a lost host held is not rebuilt elsewhere until it is back, as there are too few other fault domains.\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferro_protocol::api::{HostRole, HostState};
    use ferro_protocol::ids::{DiskId, HostId};

    const GIB: u64 = 1 << 30;

    /// Hosts, each with a disk of so many times 100 GiB, half of it used.
    fn cluster(sizes: &[u64]) -> (Vec<HostInfo>, Vec<DiskInfo>) {
        let host = |n: usize| HostInfo {
            id: HostId::from_bytes([n as u8; 16]),
            name: format!("h{n}"),
            this_host: n == 0,
            addresses: Vec::new(),
            fault_domain: format!("d{n}"),
            state: HostState::Online,
            role: HostRole::Voter,
            disks: 1,
            capacity_bytes: 0,
            used_bytes: 0,
            leaving_bytes: None,
            maintenance: None,
            last_seen_seconds: None,
            certificate_expires_unix_s: None,
            version: None,
        };
        let disk = |n: usize, size: u64| DiskInfo {
            id: DiskId::from_bytes([n as u8; 16]),
            host: HostId::from_bytes([n as u8; 16]),
            host_name: format!("h{n}"),
            path: "/d".to_owned(),
            state: DiskState::Online,
            reason: None,
            capacity_bytes: size * 100 * GIB,
            used_bytes: size * 50 * GIB,
            components: 1,
            leaving_bytes: None,
            checksum_errors: 0,
        };
        let disks = sizes.iter().enumerate().map(|(n, size)| disk(n, *size)).collect();
        ((0..sizes.len()).map(host).collect(), disks)
    }

    fn policy(text: &str) -> Policy {
        text.parse().unwrap()
    }

    #[test]
    fn pieces_are_counted_where_they_find_a_place() {
        // 45 GiB are left of each 100.
        let (hosts, disks) = cluster(&[1, 1, 1]);
        let all = checked(policy("mirror:3"), false, &hosts, &disks);
        let near = |bytes: u64, gib: u64| assert!(bytes.abs_diff(gib * GIB) < 1024, "{bytes} for {gib} GiB");
        assert!(all.now.enough && all.now.fault_domains == 3);
        near(all.now.guest_bytes, 45);
        assert_eq!(all.without.len(), 3);
        assert!(
            all.without
                .iter()
                .all(|w| !w.room.enough && w.room.guest_bytes == 0 && w.room.fault_domains == 2)
        );
        near(room(policy("raid5:2+1"), &hosts, &disks, |_| false).guest_bytes, 90);
        // The large one can't have both copies of anything.
        let (hosts, disks) = cluster(&[1, 1, 10]);
        near(room(policy("mirror:2"), &hosts, &disks, |_| false).guest_bytes, 90);
        near(room(policy("mirror:2"), &hosts, &disks, |lost| lost.name == "h2").guest_bytes, 45);
        // Two hosts in one rack are one.
        let (mut hosts, mut disks) = cluster(&[1, 1, 1]);
        hosts[1].fault_domain = "d0".to_owned();
        near(room(policy("mirror:2"), &hosts, &disks, |_| false).guest_bytes, 45);
        assert!(!room(policy("raid5"), &hosts, &disks, |_| false).enough);
        disks[2].state = DiskState::Failed;
        assert_eq!(room(policy("mirror:2"), &hosts, &disks, |_| false).fault_domains, 1);
        assert_eq!(room(policy("mirror:1"), &hosts, &[], |_| false).guest_bytes, 0);
    }

    #[test]
    fn sites_are_looked_at_where_there_are_several() {
        let (mut hosts, disks) = cluster(&[1; 6]);
        let check = |hosts: &[HostInfo], text: &str| checked(policy(text), true, hosts, &disks);
        assert!(check(&hosts, "mirror:2").without_sites.is_empty(), "racks without a site");
        for (n, host) in hosts.iter_mut().enumerate() {
            host.fault_domain = format!("{}/r{n}", ["lyon", "brest", "nice"][n % 3]);
        }
        let raid6 = check(&hosts, "raid6");
        assert_eq!(raid6.survives_a_site, Some(true), "two shards of six in each of three sites");
        assert_eq!(raid6.without_sites.len(), 3);
        assert!(raid6.without_sites.iter().all(|w| !w.room.enough && w.room.fault_domains == 4));
        assert_eq!(check(&hosts, "raid5:4+1").survives_a_site, Some(false));
        assert_eq!(check(&hosts, "mirror:4").survives_a_site, Some(true));
        assert_eq!(most_in_a_site(policy("mirror:4"), &[1, 5]), Some(3));
        assert_eq!(most_in_a_site(policy("mirror:4"), &[1, 2]), None);
        let report = report(&raid6, Paint { on: false });
        assert!(report.contains("without site brest") && report.contains("survived, of any one"), "{report}");
    }
}
