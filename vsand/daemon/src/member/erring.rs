//! Disks of this host, looked at every few seconds: how fast they are ([`super::pace`]), what is found bad on them is told, and
//! one on which too much is bad is to leave the cluster.
//!
//! Blocks go bad one by one on good disks, and by the dozen on those that are about to die. Both are mended; from the
//! second kind data is moved away while it can still be read. That is the departure that `vsanctl disk remove` begins: it
//! needs a place for everything elsewhere and can be cancelled. A disk whose departure somebody has cancelled is not
//! sent away again before as many blocks more were bad.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferro_protocol::api::{EventKind, EventLevel};
use ferro_protocol::ids::DiskId;
use vsand_core::directory::{Command, Departure, DiskHealth, State};
use vsand_core::replica::BadCounts;

use super::Member;
use crate::data::clock;
use crate::data::port::Command as DataCommand;
use crate::events::Draft;
use crate::events::diff::disk_name;

/// How often disks are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// What became of disks that err too often.
#[derive(Debug, Default)]
pub struct Erring {
    refused: Mutex<BTreeMap<DiskId, String>>,
}

impl Erring {
    /// Why a disk that errs too often can't leave.
    pub fn refusal(&self, disk: DiskId) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get(&disk).cloned()
    }

    fn set(&self, disk: DiskId, refusal: Option<String>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refusal {
            Some(why) => drop(refused.insert(disk, why)),
            None => drop(refused.remove(&disk)),
        }
    }
}

/// What is known of one disk from one look to the next.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    counts: BadCounts,
    /// How much was bad when it was last sent away.
    sent_at: u64,
}

/// Looks at this host's disks, for as long as the daemon runs.
pub async fn watch(member: Arc<Member>) {
    let mut known: BTreeMap<DiskId, Known> = BTreeMap::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let Ok(snapshot) = member.data.ask(DataCommand::Snapshot).await else { return };
        let stats = snapshot.disks.iter().map(|(disk, stats, _)| (*disk, stats));
        member.paces.look(clock::mono(), stats);
        let state = member.state();
        known.retain(|disk, _| snapshot.bad.contains_key(disk));
        let mut drafts = Vec::new();
        for (disk, counts) in snapshot.bad {
            let before = known.entry(disk).or_default();
            if counts.found < before.counts.found {
                // It was opened anew.
                *before = Known::default();
            }
            drafts.extend(news(&state, disk, before.counts, counts));
            before.counts = counts;
            let too_many = is_too_many(counts, before.sent_at, member.config.scrub.bad_blocks_max);
            let stays = state.disks.get(&disk).is_some_and(|d| d.health == DiskHealth::Healthy)
                && !state.is_leaving(disk);
            if !too_many || !stays {
                member.erring.set(disk, None);
                continue;
            }
            if let Some(draft) = send_away(&member, &state, disk, counts).await {
                before.sent_at = counts.found;
                drafts.push(draft);
            }
        }
        if !drafts.is_empty() {
            member.events.add(drafts).await;
        }
    }
}

fn is_too_many(counts: BadCounts, sent_at: u64, bad_blocks_max: u64) -> bool {
    bad_blocks_max > 0 && counts.found.saturating_sub(sent_at) >= bad_blocks_max
}

/// What is to be said of what is bad since the last look.
fn news(state: &State, disk: DiskId, before: BadCounts, now: BadCounts) -> Vec<Draft> {
    let (subject, name) = (format!("disk {disk}"), disk_name(state, disk));
    let blocks = |n: u64| if n == 1 { "1 bad block".to_owned() } else { format!("{n} bad blocks") };
    let mut drafts = Vec::new();
    let mended = now.mended.saturating_sub(before.mended);
    if mended > 0 {
        let message = format!("{} of {name} {} mended", blocks(mended), were(mended));
        drafts.push(Draft::new(EventKind::BlocksMended, EventLevel::Info, &*subject, message));
    }
    if now.open > before.open {
        let message = format!("{} of {name} {} found and not mended yet", blocks(now.open), were(now.open));
        drafts.push(Draft::new(EventKind::BlocksBad, EventLevel::Warning, &*subject, message));
    }
    drafts
}

fn were(n: u64) -> &'static str {
    if n == 1 { "was" } else { "were" }
}

/// Asks that the disk leaves; what is to be said if it does.
async fn send_away(member: &Member, state: &State, disk: DiskId, counts: BadCounts) -> Option<Draft> {
    let command = Command::LeaveDisk { disk, departure: Some(Departure::WhenEmpty) };
    match member.propose(&command).await {
        Ok(Ok(_)) => {
            member.erring.set(disk, None);
            tracing::warn!(%disk, bad = counts.found, "a disk errs too often: it is to leave the cluster");
            let message = format!(
                "{} errs too often, {} bad blocks since it was opened: what it holds is moved elsewhere, then it leaves",
                disk_name(state, disk),
                counts.found
            );
            let (kind, level) = (EventKind::DiskEvacuated, EventLevel::Warning);
            Some(Draft::new(kind, level, format!("disk {disk}"), message))
        }
        Ok(Err(refused)) => {
            tracing::debug!(%disk, %refused, "a disk that errs too often can't leave");
            member.erring.set(disk, Some(refused.to_string()));
            None
        }
        Err(error) => {
            tracing::debug!(%disk, %error, "a disk that errs too often can't leave now");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(found: u64, mended: u64) -> BadCounts {
        BadCounts { found, mended, open: found - mended }
    }

    #[test]
    fn a_disk_is_sent_away_once_for_so_many_bad_blocks() {
        assert!(!is_too_many(counts(49, 0), 0, 50));
        assert!(is_too_many(counts(50, 50), 0, 50));
        assert!(!is_too_many(counts(99, 99), 50, 50), "somebody wants it to stay");
        assert!(is_too_many(counts(100, 100), 50, 50));
        assert!(!is_too_many(counts(1_000, 0), 0, 0), "never");
    }

    #[test]
    fn what_is_mended_and_what_is_not_is_told_once() {
        let (state, disk) = (State::default(), DiskId::from_bytes([1; 16]));
        let said = |before, now| -> Vec<String> {
            news(&state, disk, before, now).into_iter().map(|draft| draft.message).collect()
        };
        assert!(said(counts(3, 3), counts(3, 3)).is_empty());
        let one = said(counts(3, 3), counts(4, 4));
        assert!(
            one.len() == 1 && one[0].starts_with("1 bad block of disk") && one[0].ends_with("was mended"),
            "{one:?}"
        );
        assert_eq!(said(counts(4, 4), counts(6, 5)).len(), 2);
        assert!(said(counts(6, 5), counts(6, 5)).is_empty(), "it is no news");
    }
}
