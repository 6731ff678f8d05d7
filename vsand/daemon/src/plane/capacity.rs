//! The room there is, what takes it, and what the loss of each site, host and disk would mean. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::api::{
    CapacityReport, CapacityTotals, DiskState, HostCapacity, LOSS_VOLUMES_MAX, LossForecast, LossKind,
    PolicyCapacity,
};
use ferro_protocol::fault_domain::site;
use ferro_protocol::ids::{DiskId, HostId, ObjectId, VolumeName};
use ferro_protocol::units::{CHUNK_BYTES, EXTENT_BYTES};
use vsand_core::directory::{DiskRecord, Forecast, ObjectRecord, State};

use super::errors::host_name;
use super::view::{View, api_policy};

/// Placement keeps the rest of each disk for what is placed there already.
pub(super) const USABLE_PERCENT: u64 = 95;

/// All of it.
pub(super) fn report(view: &View) -> CapacityReport {
    CapacityReport {
        totals: totals(view),
        hosts: hosts(view),
        policies: policies(view),
        losses: losses(view),
    }
}

fn totals(view: &View) -> CapacityTotals {
    let capacity = view.capacity();
    let (mut free_bytes, mut reserved_bytes, mut kept_bytes) = (0, 0, 0);
    for disk in online(view) {
        let size = disk.capacity_extents.saturating_mul(EXTENT_BYTES);
        let (used, usable) = (view.used_bytes_of_disk(disk), size / 100 * USABLE_PERCENT);
        let kept = view.kept_bytes_of_disk(disk);
        free_bytes += usable.saturating_sub(used.saturating_add(kept));
        kept_bytes += kept;
        reserved_bytes += size.saturating_sub(used.max(usable));
    }
    let promised_bytes = view.state.objects.values().map(|o| promised(o)).fold(0, u64::saturating_add);
    CapacityTotals {
        total_bytes: capacity.total_bytes,
        used_bytes: capacity.used_bytes,
        free_bytes,
        reserved_bytes,
        kept_bytes,
        provisioned_bytes: capacity.provisioned_bytes,
        promised_bytes,
        thin_savings_bytes: promised_bytes.saturating_sub(capacity.used_bytes),
    }
}

fn online(view: &View) -> impl Iterator<Item = &DiskRecord> {
    view.state.disks.values().filter(|disk| view.disk_state(disk).0 == DiskState::Online)
}

/// What an object would take if it were full: each chunk all that its records may come to take, and the last one its part.
fn promised(object: &ObjectRecord) -> u64 {
    let of_chunk: u64 = object
        .policy
        .records(ferro_protocol::ids::ChunkIndex(0))
        .map(|index| u64::from(object.policy.extents_max(index)) * object.policy.components(index) as u64)
        .sum();
    let bytes = u128::from(object.size_bytes) * u128::from(of_chunk * EXTENT_BYTES) / u128::from(CHUNK_BYTES);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn hosts(view: &View) -> Vec<HostCapacity> {
    let promised = view.state.promised_by_disk();
    let promised_by = |host| {
        let disks = view.state.disks.values().filter(|d| d.host == host);
        disks.map(|d| promised.get(&d.id).copied().unwrap_or(0) * EXTENT_BYTES).sum()
    };
    let one = |host: ferro_protocol::api::HostInfo| HostCapacity {
        host: host.id,
        promised_bytes: promised_by(host.id),
        name: host.name,
        state: host.state,
        fault_domain: host.fault_domain,
        disks: host.disks,
        total_bytes: host.capacity_bytes,
        used_bytes: host.used_bytes,
    };
    view.hosts().into_iter().map(one).collect()
}

fn policies(view: &View) -> Vec<PolicyCapacity> {
    let mut stored: BTreeMap<ObjectId, u64> = BTreeMap::new();
    for (object, extents) in view.reports.values().flat_map(|r| &r.disks).flat_map(|d| &d.objects) {
        *stored.entry(*object).or_insert(0) += extents * EXTENT_BYTES;
    }
    let mut policies: BTreeMap<String, PolicyCapacity> = BTreeMap::new();
    for object in view.state.objects.values() {
        let policy = api_policy(object.policy).to_string();
        let entry = policies.entry(policy.clone()).or_insert_with(|| PolicyCapacity {
            policy,
            volumes: 0,
            provisioned_bytes: 0,
            stored_bytes: 0,
            promised_bytes: 0,
        });
        entry.volumes += 1;
        entry.provisioned_bytes = entry.provisioned_bytes.saturating_add(object.size_bytes);
        entry.stored_bytes += stored.get(&object.id).copied().unwrap_or(0);
        entry.promised_bytes = entry.promised_bytes.saturating_add(promised(object));
    }
    policies.into_values().collect()
}

/// The disks that can't be used now.
pub(super) fn away(view: &View) -> BTreeSet<DiskId> {
    view.state.disks.keys().copied().filter(|disk| !view.is_disk_online(*disk)).collect()
}

/// What it would mean if these went too, less what is so already.
pub(super) fn loss(state: &State, away: &BTreeSet<DiskId>, now: &Forecast, disks: &[DiskId]) -> Forecast {
    let mut gone = away.clone();
    gone.extend(disks);
    let mut then = state.without(&gone);
    then.unavailable.retain(|object| !now.unavailable.contains(object));
    then.homeless.retain(|object| !now.homeless.contains(object));
    let here = |object: &ObjectRecord| {
        object.chunks.values().flat_map(|c| &c.components).any(|c| disks.contains(&c.disk))
    };
    then.touched.retain(|object| state.objects.get(object).is_some_and(|o| here(o)));
    then.extents = then.extents.saturating_sub(now.extents);
    then
}

fn losses(view: &View) -> Vec<LossForecast> {
    let away = away(view);
    let now = view.state.without(&away);
    let mut losses = Vec::new();
    for (site, hosts) in sites(view) {
        let disks: Vec<DiskId> = hosts.iter().flat_map(|host| view.state.disks_in(*host)).collect();
        let Some(host) = hosts.first().filter(|_| !disks.iter().all(|disk| away.contains(disk))) else {
            continue;
        };
        let forecast = loss(&view.state, &away, &now, &disks);
        let of = LossForecast { kind: LossKind::Site, name: format!("site {site}"), ..blank(*host) };
        losses.push(filled(view, of, &forecast, &away, &disks));
    }
    for host in view.hosts() {
        let disks = view.state.disks_in(host.id);
        // What is away already is no further loss.
        if disks.is_empty() || disks.iter().all(|disk| away.contains(disk)) {
            continue;
        }
        let forecast = loss(&view.state, &away, &now, &disks);
        let of = LossForecast {
            kind: LossKind::Host,
            host: host.id,
            disk: None,
            name: host.name,
            ..blank(host.id)
        };
        losses.push(filled(view, of, &forecast, &away, &disks));
    }
    for disk in view.disks().into_iter().filter(|disk| !away.contains(&disk.id)) {
        let forecast = loss(&view.state, &away, &now, &[disk.id]);
        let name = format!("{} of host {}", disk.path, host_name(&view.state, disk.host));
        let of = LossForecast { kind: LossKind::Disk, disk: Some(disk.id), name, ..blank(disk.host) };
        losses.push(filled(view, of, &forecast, &away, &[disk.id]));
    }
    losses
}

/// The sites that have several hosts, where there are several sites.
fn sites(view: &View) -> BTreeMap<&str, Vec<HostId>> {
    let mut sites: BTreeMap<&str, Vec<HostId>> = BTreeMap::new();
    for host in view.state.hosts.values().filter(|host| host.fault_domain.contains('/')) {
        sites.entry(site(&host.fault_domain)).or_default().push(host.id);
    }
    sites.retain(|_, hosts| (2..view.state.hosts.len()).contains(&hosts.len()));
    sites
}

fn blank(host: HostId) -> LossForecast {
    LossForecast {
        kind: LossKind::Host,
        host,
        disk: None,
        name: String::new(),
        volumes: 0,
        rebuild_bytes: 0,
        rebuilt: false,
        unavailable: 0,
        unavailable_volumes: Vec::new(),
        unplaced: 0,
        unplaced_volumes: Vec::new(),
        used_percent_after: 0,
    }
}

fn filled(
    view: &View,
    of: LossForecast,
    forecast: &Forecast,
    away: &BTreeSet<DiskId>,
    disks: &[DiskId],
) -> LossForecast {
    let rebuild_bytes = forecast.extents.saturating_mul(EXTENT_BYTES);
    let stay = || online(view).filter(|d| !away.contains(&d.id) && !disks.contains(&d.id));
    let used: u64 = stay().map(|d| view.used_bytes_of_disk(d)).sum();
    let size: u64 = stay().map(|d| d.capacity_extents * EXTENT_BYTES).sum();
    let percent = u128::from(used.saturating_add(rebuild_bytes)) * 100 / u128::from(size.max(1));
    LossForecast {
        volumes: number(&forecast.touched),
        rebuild_bytes,
        rebuilt: forecast.is_safe(),
        unavailable: number(&forecast.unavailable),
        unavailable_volumes: names(&view.state, &forecast.unavailable),
        unplaced: number(&forecast.homeless),
        unplaced_volumes: names(&view.state, &forecast.homeless),
        used_percent_after: u32::try_from(percent.min(100)).unwrap_or(100),
        ..of
    }
}

fn number(objects: &BTreeSet<ObjectId>) -> u32 {
    u32::try_from(objects.len()).unwrap_or(u32::MAX)
}

/// The first volumes of these, by name.
pub(super) fn names(state: &State, objects: &BTreeSet<ObjectId>) -> Vec<VolumeName> {
    let mut names: Vec<VolumeName> =
        objects.iter().filter_map(|id| state.objects.get(id)).map(|o| o.name.clone()).collect();
    names.sort();
    names.truncate(LOSS_VOLUMES_MAX);
    names
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{healthy, host_id, kill};
    use super::*;

    #[test]
    fn what_there_is_and_what_thinness_saves() {
        let report = report(&healthy());
        let totals = report.totals;
        assert_eq!((totals.total_bytes, totals.used_bytes), (3_000 << 20, 36 << 20));
        assert_eq!(totals.promised_bytes, 3 << 30, "1 GiB in three copies");
        assert_eq!(totals.thin_savings_bytes, (3 << 30) - (36 << 20));
        assert_eq!((totals.free_bytes >> 20, totals.reserved_bytes >> 20), (3 * (950 - 12), 150));
        assert_eq!(totals.kept_bytes, 0);
        assert_eq!(report.policies.len(), 1);
        let policy = &report.policies[0];
        assert_eq!((policy.policy.as_str(), policy.stored_bytes, policy.volumes), ("mirror:3", 36 << 20, 1));
        assert_eq!(report.hosts[0].promised_bytes, 1 << 30);
    }

    #[test]
    fn what_is_kept_for_volumes_is_neither_used_nor_free() {
        let mut view = healthy();
        let report_of = |view: &View| totals(view);
        let before = report_of(&view);
        for host in view.reports.values_mut() {
            host.disks[0].extents_kept = 100;
        }
        let after = report_of(&view);
        assert_eq!((after.kept_bytes, after.used_bytes), (300 << 20, before.used_bytes));
        assert_eq!(before.free_bytes - after.free_bytes, 300 << 20);
    }

    #[test]
    fn a_third_copy_has_nowhere_to_go_and_the_last_one_is_the_last() {
        let mut view = healthy();
        let host = |view: &View, name: &str| {
            report(view).losses.into_iter().find(|l| l.kind == LossKind::Host && l.name == name)
        };
        let one = host(&view, "host2").unwrap();
        assert!(!one.rebuilt && one.unavailable == 0 && one.unplaced == 1, "{one:?}");
        assert_eq!((one.volumes, one.unplaced_volumes.len()), (1, 1));
        assert_eq!(report(&view).losses.len(), 6, "three hosts and three disks");
        kill(&mut view, 3);
        assert!(host(&view, "host3").is_none(), "it is away already");
        let two = host(&view, "host2").unwrap();
        assert!(
            two.unavailable == 0 && two.unplaced == 0 && two.rebuilt,
            "no more than is so already: {two:?}"
        );
        kill(&mut view, 2);
        let last = host(&view, "host1").unwrap();
        assert!(last.unavailable == 1 && !last.rebuilt, "{last:?}");
    }

    #[test]
    fn a_site_is_lost_with_all_its_hosts() {
        let mut view = healthy();
        let sites = |view: &View| -> Vec<LossForecast> {
            report(view).losses.into_iter().filter(|l| l.kind == LossKind::Site).collect()
        };
        assert!(sites(&view).is_empty(), "each host is by itself");
        for (n, domain) in [(1, "lyon/a"), (2, "lyon/b"), (3, "brest/a")] {
            let state = std::sync::Arc::make_mut(&mut view.state);
            state.hosts.get_mut(&host_id(n)).unwrap().fault_domain = domain.to_owned();
        }
        let lost = sites(&view);
        assert_eq!((lost.len(), lost[0].name.as_str()), (1, "site lyon"), "brest is one host");
        assert!(lost[0].unavailable == 0 && lost[0].unplaced == 1, "one copy is left: {lost:?}");
        kill(&mut view, 3);
        assert_eq!(sites(&view)[0].unavailable, 1);
    }
}
