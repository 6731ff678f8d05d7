//! Looks once a second at what this host knows, and writes down what has changed since.
//!
//! ```text
//!   every second:   directory (diff), leases, quorum, resyncs of this host's owners
//!   every 10 s:     health checks, with the reports of all hosts
//! ```
//!
//! What was going on when the daemon stopped is read out of the log at the start, so that what has ended meanwhile ends there
//! too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::{EventKind, EventLevel, HealthLevel, format_size};
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId};
use ferro_protocol::units::BLOCK_BYTES;
use vsand_core::directory::State;
use vsand_core::lease::BREAK_AFTER;
use vsand_core::time::Instant;

use super::diff::{self, disk_name, host_name};
use super::{Draft, Query, Record};
use crate::data::clock;
use crate::data::port::Command;
use crate::member::Member;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);
/// How often health checks are made.
const HEALTH_EVERY: Duration = Duration::from_secs(10);
/// So long after the start, and after a quorum was regained, leases have not all moved again.
const SETTLES: Duration = Duration::from_secs(9);
/// Without a leader for so long there is no quorum; a change of leader takes up to 1.5 s.
const QUORUM_SILENCE_MAX: Duration = Duration::from_secs(4);
/// Of one check, so much is said one by one at a time; of more only how much it is.
const ONE_BY_ONE_MAX: usize = 20;

/// What a check found: its code, and about what.
pub type Found = (String, String);

/// What a check finds now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The check and what it is about.
    pub found: Found,
    /// How bad it is.
    pub level: HealthLevel,
    /// For people.
    pub message: String,
}

/// A resync that runs, as far as it was seen.
#[derive(Debug)]
struct Running {
    since: Instant,
    blocks: BTreeMap<ChunkIndex, u32>,
}

/// What goes on.
#[derive(Debug, Default)]
pub struct Ongoing {
    down: BTreeSet<HostId>,
    raised: BTreeSet<Found>,
    no_quorum_since: Option<Instant>,
    resyncs: HashMap<(ObjectId, DiskId), Running>,
}

impl Ongoing {
    /// What this host knew to go on when it last wrote something down.
    pub fn replay(records: &[Record]) -> Self {
        let mut ongoing = Self::default();
        for record in records {
            let host = || record.subject.strip_prefix("host ").and_then(|id| id.parse().ok());
            let found = || Some((record.check.clone()?, record.subject.clone()));
            match record.kind {
                EventKind::HostDown => ongoing.down.extend(host()),
                EventKind::HostUp | EventKind::HostRemoved => {
                    if let Some(host) = host() {
                        ongoing.down.remove(&host);
                    }
                }
                EventKind::HealthRaised => ongoing.raised.extend(found()),
                EventKind::HealthCleared => {
                    if let Some(found) = found() {
                        ongoing.raised.remove(&found);
                    }
                }
                _ => {}
            }
        }
        ongoing
    }

    /// Which hosts are there: `silence` says since when each host's lease stands still.
    fn hosts(
        &mut self,
        state: &State,
        me: HostId,
        silence: impl Fn(HostId) -> Option<Duration>,
    ) -> Vec<Draft> {
        let mut drafts = Vec::new();
        self.down.retain(|host| state.hosts.contains_key(host));
        for host in state.hosts.values().filter(|h| h.lease > 0 && h.id != me) {
            let Some(silent) = silence(host.id) else { continue };
            let (subject, name) = (format!("host {}", host.id), &host.name);
            if silent >= BREAK_AFTER && self.down.insert(host.id) {
                let message = format!("host {name} is offline: its lease has ended");
                drafts.push(Draft::new(EventKind::HostDown, EventLevel::Warning, subject, message));
            } else if silent < BREAK_AFTER && self.down.remove(&host.id) {
                drafts.push(Draft::new(
                    EventKind::HostUp,
                    EventLevel::Info,
                    subject,
                    format!("host {name} is online"),
                ));
            }
        }
        drafts
    }

    fn quorum(&mut self, now: Instant, has: bool) -> Option<Draft> {
        match (has, self.no_quorum_since) {
            (false, None) => {
                self.no_quorum_since = Some(now);
                let message = "the cluster directory has no quorum: nothing can be changed";
                Some(Draft::new(EventKind::QuorumLost, EventLevel::Critical, "cluster", message))
            }
            (true, Some(since)) => {
                self.no_quorum_since = None;
                let s = now.since(since).as_secs();
                let message = format!("the cluster directory has a quorum again, after {s} s without");
                Some(Draft::new(EventKind::QuorumRegained, EventLevel::Info, "cluster", message))
            }
            _ => None,
        }
    }

    /// What checks find now that they did not before, and the other way round.
    pub fn health(&mut self, state: &State, now: Vec<Finding>) -> Vec<Draft> {
        let mut raised: BTreeMap<String, Vec<Draft>> = BTreeMap::new();
        let mut current = BTreeSet::new();
        for Finding { found, level, message } in now {
            if !self.raised.contains(&found) && !current.contains(&found) {
                let level = match level {
                    HealthLevel::Ok => EventLevel::Info,
                    HealthLevel::Warning => EventLevel::Warning,
                    HealthLevel::Critical => EventLevel::Critical,
                };
                let (check, subject) = found.clone();
                let mut draft = Draft::new(EventKind::HealthRaised, level, subject, message);
                draft.check = Some(check.clone());
                raised.entry(check).or_default().push(draft);
            }
            current.insert(found);
        }
        let mut cleared: BTreeMap<String, Vec<Draft>> = BTreeMap::new();
        for (check, subject) in self.raised.difference(&current) {
            let message = format!("{check} is over for {}", named(state, subject));
            let mut draft = Draft::new(EventKind::HealthCleared, EventLevel::Info, subject, message);
            draft.check = Some(check.clone());
            cleared.entry(check.clone()).or_default().push(draft);
        }
        self.raised = current;
        raised.into_iter().chain(cleared).flat_map(|(_, drafts)| bounded(drafts)).collect()
    }

    /// Resyncs that this host's owners run now: `(object, disk, chunk, blocks done)`.
    fn resyncs(
        &mut self,
        now: Instant,
        state: &State,
        running: &[(ObjectId, DiskId, ChunkIndex, u32)],
    ) -> Vec<Draft> {
        let mut drafts = Vec::new();
        for (object, disk, chunk, blocks) in running {
            let entry = self.resyncs.entry((*object, *disk)).or_insert_with(|| {
                drafts.push(resync_begun(state, *object, *disk));
                Running { since: now, blocks: BTreeMap::new() }
            });
            let done = entry.blocks.entry(*chunk).or_default();
            *done = (*done).max(*blocks);
        }
        drafts
    }

    fn resync_ended(
        &mut self,
        now: Instant,
        state: &State,
        object: ObjectId,
        disk: DiskId,
        good: bool,
    ) -> Draft {
        let volume = volume_name(state, object);
        let mut message = if good {
            format!("volume {volume}: its copies on {} are up to date", disk_name(state, disk))
        } else {
            format!("volume {volume}: its copies on {} were given up", disk_name(state, disk))
        };
        if let Some(running) = self.resyncs.remove(&(object, disk)) {
            let blocks: u64 = running.blocks.values().map(|b| u64::from(*b)).sum();
            let (size, s) = (format_size(blocks * BLOCK_BYTES as u64), now.since(running.since).as_secs());
            message =
                format!("{message}; {size} of {} were copied in {s} s", diff::chunks(running.blocks.len()));
        }
        Draft::new(EventKind::ResyncEnded, EventLevel::Info, format!("volume {object}"), message)
    }
}

fn volume_name(state: &State, object: ObjectId) -> String {
    state.objects.get(&object).map_or_else(|| object.to_string(), |o| o.name.to_string())
}

/// What an event is about, for people.
fn named(state: &State, subject: &str) -> String {
    match subject.split_once(' ') {
        Some(("host", id)) => {
            id.parse().map_or_else(|_| subject.to_owned(), |id| format!("host {}", host_name(state, id)))
        }
        Some(("disk", id)) => id.parse().map_or_else(|_| subject.to_owned(), |id| disk_name(state, id)),
        Some(("volume", id)) => {
            id.parse().map_or_else(|_| subject.to_owned(), |id| format!("volume {}", volume_name(state, id)))
        }
        _ => subject.to_owned(),
    }
}

fn resync_begun(state: &State, object: ObjectId, disk: DiskId) -> Draft {
    let stale = state.objects.get(&object).map(|o| diff::stale(o));
    let chunks = stale.and_then(|s| s.get(&disk).map(BTreeSet::len)).unwrap_or(0);
    let message = format!(
        "volume {}: its copies on {} are being brought up to date, {} to go",
        volume_name(state, object),
        disk_name(state, disk),
        diff::chunks(chunks)
    );
    Draft::new(EventKind::ResyncBegun, EventLevel::Info, format!("volume {object}"), message)
}

/// Not more than is worth reading: when a rack goes, every volume is concerned.
fn bounded(mut drafts: Vec<Draft>) -> Vec<Draft> {
    if drafts.len() <= ONE_BY_ONE_MAX {
        return drafts;
    }
    let number = drafts.len();
    drafts.truncate(1);
    for draft in &mut drafts {
        draft.message = format!("{}; and {} more like that", draft.message, number - 1);
        "cluster".clone_into(&mut draft.subject);
    }
    drafts
}

/// Writes down what happens, for as long as the daemon runs.
pub async fn watch(member: Arc<Member>) {
    let log = member.events.clone();
    let known = log.read(Query { since_ms: 0, limit: u32::MAX }).await;
    let mut ongoing = Ongoing::replay(&known.records);
    let me = member.host();
    let version = env!("CARGO_PKG_VERSION");
    let message = format!("vsand {version} has started on host {}", member.membership.name);
    log.add(vec![Draft::new(EventKind::DaemonStarted, EventLevel::Info, format!("host {me}"), message)])
        .await;

    // A directory that knows no host yet is one that has not heard from the others: what it hears first is no news.
    let mut before = member.state();
    let mut settled_at = clock::mono() + SETTLES;
    let mut health_at = clock::mono() + HEALTH_EVERY * 2;
    loop {
        tokio::time::sleep(EVERY).await;
        let (now, state, status) = (clock::mono(), member.state(), member.directory.status());
        let mut drafts = Vec::new();
        let quorum = status.contact.is_some_and(|silence| silence < QUORUM_SILENCE_MAX);
        if quorum != ongoing.no_quorum_since.is_none() {
            settled_at = now + SETTLES;
        }
        if state.hosts.contains_key(&me) {
            drafts.extend(ongoing.quorum(now, quorum));
        }
        // Who is there comes before what that brings about.
        if quorum && now >= settled_at {
            let silence = |host| member.watcher().silent_for(now, host);
            drafts.extend(ongoing.hosts(&state, me, silence));
        }
        if !before.hosts.is_empty() && !Arc::ptr_eq(&before, &state) {
            drafts.extend(diff::diff(&before, &state));
        }
        let Ok(snapshot) = member.data.ask(Command::Snapshot).await else { return };
        let running: Vec<_> = snapshot
            .volumes
            .iter()
            .flat_map(|(view, _)| view.resyncs.iter().map(|r| (view.object, r.disk, r.chunk, r.blocks_done)))
            .collect();
        drafts.extend(ongoing.resyncs(now, &state, &running));
        // What goes, because there is one more than is needed, was no resync that was given up.
        let told =
            |(object, disk, good): &(_, _, bool)| *good || ongoing.resyncs.contains_key(&(*object, *disk));
        let ended: Vec<_> = diff::resyncs_ended(&before, &state, me).into_iter().filter(told).collect();
        for (object, disk, good) in ended {
            drafts.push(ongoing.resync_ended(now, &state, object, disk, good));
        }
        // Those of volumes that another host owns now.
        ongoing
            .resyncs
            .retain(|(object, _), _| snapshot.volumes.iter().any(|(view, _)| view.object == *object));
        if now >= health_at {
            health_at = now + HEALTH_EVERY;
            drafts.extend(ongoing.health(&state, crate::plane::findings(&member).await));
        }
        before = state;
        log.add(drafts).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &str, subject: &str) -> Finding {
        Finding {
            found: (check.to_owned(), subject.to_owned()),
            level: HealthLevel::Warning,
            message: format!("{subject} is bad"),
        }
    }

    fn kinds(drafts: &[Draft]) -> Vec<(EventKind, &str)> {
        drafts.iter().map(|d| (d.kind, d.subject.as_str())).collect()
    }

    #[test]
    fn checks_are_raised_once_and_cleared_once_also_across_a_restart() {
        let mut ongoing = Ongoing::default();
        let raised = ongoing
            .health(&State::default(), vec![finding("disk_full", "disk 1"), finding("disk_full", "disk 1")]);
        assert_eq!(kinds(&raised), [(EventKind::HealthRaised, "disk 1")]);
        assert!(
            ongoing.health(&State::default(), vec![finding("disk_full", "disk 1")]).is_empty(),
            "it is no news"
        );
        let record = |draft: &Draft| Record {
            v: 1,
            seq: 1,
            at_ms: 1,
            kind: draft.kind,
            level: draft.level,
            subject: draft.subject.clone(),
            check: draft.check.clone(),
            message: draft.message.clone(),
        };
        let mut ongoing = Ongoing::replay(&raised.iter().map(record).collect::<Vec<_>>());
        let cleared = ongoing.health(&State::default(), vec![finding("disk_full", "disk 2")]);
        assert_eq!(
            kinds(&cleared),
            [(EventKind::HealthRaised, "disk 2"), (EventKind::HealthCleared, "disk 1")]
        );
        let many = (0..50).map(|n| finding("volume_degraded", &format!("volume {n}"))).collect();
        let drafts = ongoing.health(&State::default(), many);
        let of_volumes: Vec<_> = drafts.iter().filter(|d| d.kind == EventKind::HealthRaised).collect();
        assert!(of_volumes.len() == 1 && of_volumes[0].message.contains("49 more"), "{of_volumes:?}");
    }

    #[test]
    fn a_quorum_is_lost_once() {
        let mut ongoing = Ongoing::default();
        let at = |s: u64| Instant(s * 1_000_000_000);
        assert!(ongoing.quorum(at(1), true).is_none());
        assert_eq!(ongoing.quorum(at(2), false).unwrap().kind, EventKind::QuorumLost);
        assert!(ongoing.quorum(at(3), false).is_none());
        let back = ongoing.quorum(at(32), true).unwrap();
        assert!(back.kind == EventKind::QuorumRegained && back.message.contains("30 s"), "{back:?}");
    }
}
