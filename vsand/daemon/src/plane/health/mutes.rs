//! Muted checks: a document of the cluster directory, so that every host agrees on them and a restart forgets none.
//!
//! ```text
//!   found, shown ──mute──▶ found, muted ──its time is up, unmute──▶ shown
//!                             │    ▲
//!                     gets worse  as it was when it was muted
//!                             ▼    │
//!                            shown
//! ```
//!
//! Worse is: a level above the one that was muted, more findings, or one about something that was fine then. So a host that
//! is muted for its reboot does not hide the next one that dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use ferro_protocol::api::{ApiError, ErrorCode, HealthCheck, HealthLevel, HealthMute, MuteRequest};
use serde::{Deserialize, Serialize};
use vsand_core::directory::State;

use super::super::cluster::{settle, view};
use super::super::errors::{self, host_name};
use super::checks::{self, CHECKS, Group};
use crate::api::control::Result;
use crate::member::Member;
use crate::member::kept::{Kept, change};

/// So many things that a check was about are remembered; of more only their number.
const SUBJECTS_MAX: usize = 1_000;

/// The document's content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::plane) struct Mutes {
    format: u8,
    mutes: BTreeMap<String, Mute>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Mute {
    since_unix_s: u64,
    until_unix_s: u64,
    by: String,
    reason: Option<String>,
    level: HealthLevel,
    count: u32,
    /// Empty if there were too many.
    subjects: BTreeSet<String>,
}

impl Mute {
    fn in_force(&self, group: &Group, unix_s: u64) -> bool {
        let known = self.subjects.is_empty() || group.subjects.is_subset(&self.subjects);
        unix_s < self.until_unix_s && group.check.level <= self.level && group.count <= self.count && known
    }
}

impl Default for Mutes {
    fn default() -> Self {
        Self { format: Self::FORMAT, mutes: BTreeMap::new() }
    }
}

impl Kept for Mutes {
    const WHAT: &'static str = "the list of muted checks";
    const DOCUMENT: &'static str = "storage/health-mutes";
    const FORMAT: u8 = 1;

    fn format(&self) -> u8 {
        self.format
    }
}

impl Mutes {
    /// What is muted; nothing, if a later version wrote it.
    pub(in crate::plane) fn in_force(state: &State) -> Self {
        Self::of(state).unwrap_or_default()
    }

    /// Whether what this check found is not to be shown.
    pub(super) fn hides(&self, group: &Group, unix_s: u64) -> bool {
        self.mutes.get(&group.check.code).is_some_and(|mute| mute.in_force(group, unix_s))
    }

    /// The mute of this check, if its time is not up.
    pub(super) fn show(&self, group: &Group, unix_s: u64) -> Option<HealthMute> {
        let mute = self.mutes.get(&group.check.code).filter(|mute| unix_s < mute.until_unix_s)?;
        Some(HealthMute {
            until_unix_s: mute.until_unix_s,
            seconds_left: mute.until_unix_s - unix_s,
            since_unix_s: mute.since_unix_s,
            by: mute.by.clone(),
            reason: mute.reason.clone(),
            in_force: mute.in_force(group, unix_s),
        })
    }
}

fn not_found(code: &str) -> ApiError {
    let message = format!("there is no health check {code:?}");
    ApiError::new(ErrorCode::CheckNotFound, message, "see `vsanctl health -o wide` for those there are")
}

/// From now on this check is not shown for a while.
pub(in crate::plane) async fn mute(
    member: &Member,
    code: &str,
    request: &MuteRequest,
) -> Result<HealthCheck> {
    if !CHECKS.iter().any(|check| check.code == code) {
        return Err(not_found(code));
    }
    let view = view(member).await;
    let group = checks::grouped(super::findings(&view)).into_iter().find(|g| g.check.code == code);
    let mut group = group.filter(|g| g.count > 0).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Conflict,
            format!("health check {code} finds nothing now: there is nothing to mute"),
            "mute it when it does",
        )
    })?;
    let many = group.subjects.len() > SUBJECTS_MAX;
    let mute = Mute {
        since_unix_s: view.unix_s,
        until_unix_s: view.unix_s.saturating_add(request.seconds),
        by: host_name(&view.state, view.me),
        reason: request.reason.clone(),
        level: group.check.level,
        count: group.count,
        subjects: if many { BTreeSet::new() } else { group.subjects.clone() },
    };
    change_mutes(member, &format!("muting health check {code}"), |mutes| {
        mutes.mutes.retain(|_, m| view.unix_s < m.until_unix_s);
        mutes.mutes.insert(code.to_owned(), mute.clone());
        true
    })
    .await?;
    tracing::info!(code, seconds = request.seconds, "a health check was muted");
    group.check.mute = Mutes { mutes: BTreeMap::from([(code.to_owned(), mute)]), ..Mutes::default() }
        .show(&group, view.unix_s);
    Ok(group.check)
}

/// From now on this check is shown again.
pub(in crate::plane) async fn unmute(member: &Member, code: &str) -> Result<()> {
    let now = crate::data::clock::unix_s();
    let was_muted = AtomicBool::new(false);
    change_mutes(member, &format!("unmuting health check {code}"), |mutes| {
        let muted = mutes.mutes.remove(code).is_some_and(|m| now < m.until_unix_s);
        was_muted.store(muted, Ordering::Relaxed);
        mutes.mutes.retain(|_, m| now < m.until_unix_s);
        muted
    })
    .await?;
    if was_muted.into_inner() {
        tracing::info!(code, "a health check is shown again");
        return Ok(());
    }
    if !CHECKS.iter().any(|check| check.code == code) {
        return Err(not_found(code));
    }
    let message = format!("health check {code} is not muted");
    Err(ApiError::new(ErrorCode::CheckNotFound, message, "`vsanctl health` lists those that are"))
}

async fn change_mutes(
    member: &Member,
    what: &str,
    edit: impl Fn(&mut Mutes) -> bool + Send + Sync,
) -> Result<()> {
    match change(member, |mutes: &mut Mutes, _: &State| edit(mutes)).await {
        Ok(()) => {
            settle(member).await;
            Ok(())
        }
        Err(error) => Err(errors::kept(&member.state(), what, &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vsand_core::directory::Document;

    use super::super::super::view::View;
    use super::super::super::view::tests::{healthy, host_id, kill};
    use super::super::{of, report};
    use super::*;

    /// Mutes what this check finds now, for 100 s.
    fn muted(view: &mut View, code: &str) {
        let group =
            checks::grouped(super::super::findings(view)).into_iter().find(|g| g.check.code == code).unwrap();
        let mute = Mute {
            since_unix_s: view.unix_s,
            until_unix_s: view.unix_s + 100,
            by: "host1".to_owned(),
            reason: None,
            level: group.check.level,
            count: group.count,
            subjects: group.subjects,
        };
        let mutes = Mutes { mutes: BTreeMap::from([(code.to_owned(), mute)]), ..Mutes::default() };
        let content = serde_json::to_string(&mutes).unwrap();
        let documents = &mut Arc::make_mut(&mut view.state).documents;
        documents.insert(Mutes::document(), Arc::new(Document { revision: 1, content }));
    }

    fn codes(view: &View) -> Vec<String> {
        of(view).0.reasons.into_iter().map(|r| r.code).collect()
    }

    #[test]
    fn what_is_muted_is_listed_and_not_shown_until_its_time_is_up() {
        let mut view = healthy();
        kill(&mut view, 3);
        muted(&mut view, "host_offline");
        assert_eq!(
            (codes(&view), of(&view).1),
            (vec!["volume_degraded".to_owned()], vec!["host_offline".to_owned()])
        );
        let report = report(&view);
        let check = report.checks.iter().find(|c| c.code == "host_offline").unwrap();
        assert_eq!(check.reasons.len(), 1, "it is still said what it finds");
        assert!(check.mute.as_ref().unwrap().in_force);
        assert_eq!(report.level, HealthLevel::Warning, "of the volume");
        view.unix_s += 100;
        assert_eq!(codes(&view), ["host_offline", "volume_degraded"]);
    }

    #[test]
    fn more_of_it_or_another_is_shown() {
        let mut view = healthy();
        kill(&mut view, 3);
        muted(&mut view, "host_offline");
        let alone = view.silence.clone();
        kill(&mut view, 2);
        assert!(codes(&view).contains(&"host_offline".to_owned()), "a second host");
        // As many as before, but it is another one.
        view.silence.insert(host_id(3), std::time::Duration::from_secs(1));
        assert!(codes(&view).contains(&"host_offline".to_owned()), "another host");
        view.silence = alone;
        assert!(!codes(&view).contains(&"host_offline".to_owned()), "as it was when it was muted");
    }

    #[test]
    fn what_another_version_wrote_mutes_nothing() {
        let mut view = healthy();
        kill(&mut view, 3);
        muted(&mut view, "host_offline");
        let name = Mutes::document();
        let documents = &mut Arc::make_mut(&mut view.state).documents;
        let content = documents[&name].content.replace("\"format\":1", "\"format\":2");
        documents.insert(name, Arc::new(Document { revision: 2, content }));
        assert_eq!(codes(&view), ["host_offline", "volume_degraded"]);
    }
}
