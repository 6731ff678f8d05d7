//! The end of an upgrade: the cluster's feature level is raised to what all hosts know ([`vsand_core::directory::level`]).
//!
//! Every host is asked what it knows. One that does not answer, or that knows less than others, has to come first: it would stop.

use std::collections::BTreeMap;
use std::time::Duration;

use ferro_protocol::api::{ApiError, ErrorCode, HostLevel, UpgradeReport};
use ferro_protocol::ids::HostId;
use vsand_core::directory::{Command, FeatureLevel, State};

use super::cluster::{carry_out, latest};
use super::remote::{self, HostReport};
use crate::api::control::Result;
use crate::member::Member;

/// Hosts that don't answer at once are asked again as often, so long apart.
const ASKED_MAX: usize = 5;
const AGAIN: Duration = Duration::from_secs(1);

/// Raises the level, or, for `check`, says whether that could be done.
pub(super) async fn upgrade(member: &Member, check: bool) -> Result<UpgradeReport> {
    let what = "raising the cluster's feature level";
    let state = latest(member, what).await?;
    let reports = ask(member, &state).await;
    let mut report = decide(&state, &reports)?;
    if check || report.done {
        return Ok(report);
    }
    let hosts = state.hosts.keys().copied().collect();
    let (from, to) = (FeatureLevel(report.from), FeatureLevel(report.to));
    carry_out(member, what, &state, &Command::RaiseLevel { from, to, hosts }).await?;
    tracing::info!(%from, %to, "the cluster's feature level was raised");
    report.done = true;
    Ok(report)
}

async fn ask(member: &Member, state: &State) -> BTreeMap<HostId, HostReport> {
    let mut reports = BTreeMap::new();
    for again in 0..ASKED_MAX {
        let missing: Vec<HostId> =
            state.hosts.keys().filter(|host| !reports.contains_key(*host)).copied().collect();
        if missing.is_empty() {
            break;
        }
        if again > 0 {
            tokio::time::sleep(AGAIN).await;
        }
        reports.extend(remote::gather(member, &missing).await);
    }
    reports
}

/// What can be done, by what the hosts say.
fn decide(state: &State, reports: &BTreeMap<HostId, HostReport>) -> Result<UpgradeReport> {
    let silent: Vec<&str> = state
        .hosts
        .values()
        .filter(|host| !reports.contains_key(&host.id))
        .map(|host| host.name.as_str())
        .collect();
    if !silent.is_empty() {
        return Err(ApiError::new(
            ErrorCode::HostUnreachable,
            format!("what these hosts run is not known, because they don't answer: {}", silent.join(", ")),
            "start vsand there, or take them out of the cluster (`vsanctl host remove`), then repeat",
        ));
    }
    let mut hosts: Vec<HostLevel> = reports
        .iter()
        .filter_map(|(id, report)| {
            let name = state.hosts.get(id)?.name.clone();
            let (version, feature_level_known) = (report.version.clone(), report.feature_level_known.0);
            Some(HostLevel { id: *id, name, version, feature_level_known })
        })
        .collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    let from = state.level.0;
    let known = |host: &HostLevel| host.feature_level_known;
    let least = hosts.iter().map(known).min().unwrap_or(from);
    let most = hosts.iter().map(known).max().unwrap_or(from);
    if least <= from && most > from {
        let behind: Vec<String> = hosts
            .iter()
            .filter(|host| known(host) <= from)
            .map(|host| format!("{} (vsand {})", host.name, host.version))
            .collect();
        return Err(ApiError::new(
            ErrorCode::UpgradeNeeded,
            format!(
                "the cluster stays at feature level {from}: these hosts know no later one: {}",
                behind.join(", ")
            ),
            "install the release of the other hosts there, wait for `vsanctl status`, then repeat",
        ));
    }
    let to = least.max(from);
    Ok(UpgradeReport { from, to, done: to == from, hosts })
}

#[cfg(test)]
mod tests {
    use vsand_core::directory::HostRecord;

    use super::*;

    fn host(n: u8) -> HostId {
        HostId::from_bytes([n; 16])
    }

    /// Three hosts in a cluster at level 1, of which so many answer that they know these levels.
    fn decided(known: &[u16]) -> Result<UpgradeReport> {
        let mut state = State::default();
        for n in 1..=3 {
            let record = HostRecord {
                id: host(n),
                name: format!("h{n}"),
                address: ([10, 0, 0, n], 7_400).into(),
                fault_domain: format!("h{n}"),
                joined_unix_s: 0,
                lease: 1,
            };
            state.apply(u64::from(n), Command::PutHost { host: record }).unwrap();
        }
        let reports = (1..).zip(known).map(|(n, known)| {
            let version = format!("0.{known}");
            let feature_level_known = FeatureLevel(*known);
            (host(n), HostReport { version, feature_level_known, ..HostReport::default() })
        });
        decide(&state, &reports.collect())
    }

    #[test]
    fn the_level_is_what_all_hosts_know() {
        for (known, to) in [([2, 2, 2], 2), ([3, 2, 4], 2), ([1, 1, 1], 1)] {
            let report = decided(&known).unwrap();
            assert_eq!((report.from, report.to, report.done), (1, to, to == 1), "{known:?}");
            assert_eq!(report.hosts.iter().map(|h| h.feature_level_known).collect::<Vec<_>>(), known);
        }
    }

    #[test]
    fn hosts_that_would_stop_are_named_first() {
        let behind = decided(&[2, 1, 2]).unwrap_err();
        assert_eq!(behind.code, ErrorCode::UpgradeNeeded);
        assert!(behind.message.contains("h2 (vsand 0.1)") && !behind.message.contains("h1"), "{behind}");
        let silent = decided(&[2, 2]).unwrap_err();
        assert_eq!(silent.code, ErrorCode::HostUnreachable);
        assert!(silent.message.contains("h3"), "{silent}");
    }

    #[test]
    fn a_report_of_before_levels_knows_the_first() {
        let text = r#"{"version":"0.1","certificate_expires_unix_s":1,"volumes":[],"disks":[]}"#;
        let report: HostReport = serde_json::from_str(text).unwrap();
        assert_eq!(report.feature_level_known, FeatureLevel(1));
    }
}
