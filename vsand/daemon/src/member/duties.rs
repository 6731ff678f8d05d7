//! What a member does without being asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{ChunkId, DiskId, HostId};
use tokio::sync::mpsc::UnboundedReceiver;
use vsand_core::directory::{Command, Outcome, Refused, State};
use vsand_core::lease::{RENEW_EVERY, Renewal};
use vsand_directory::{Candidate, Step};

use super::Member;
use super::connections::Dialer;
use super::ownership::release_leftover_locks;
use super::{keep, limits};
use crate::data::clock;
use crate::data::port::{Command as DataCommand, Event, LoopGone};

/// A proposal of an owner that is not answered by then is unknown to have happened; the owner finds out.
const OWNER_PROPOSE_MAX: Duration = Duration::from_secs(2);
/// A voter that was away for so long is replaced.
const LONG_ABSENT: Duration = Duration::from_secs(600);
/// Two hosts have several connections, which end together: that is said once in so long.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// A host that was not heard of for so long does not become a voter.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

/// Tells the data loop and the dialer what the directory says.
pub async fn watch(member: Arc<Member>, mut broken: UnboundedReceiver<HostId>) {
    let mut changes = member.directory.watch();
    let mut dialer = Dialer::default();
    let mut limits = limits::Follower::default();
    let mut kept = keep::Follower::default();
    loop {
        changes.borrow_and_update();
        let state = member.state();
        observe_leases(&member, &state);
        // Before the state: an owner that begins because of it has its limits.
        if let Some(limits) = limits.follow(&state)
            && member.data.send(DataCommand::Limits(limits)).is_err()
        {
            return;
        }
        // And what is kept for others is not given to it.
        if let Some((seen, kept)) = kept.follow(&state, member.host())
            && member.data.send(DataCommand::Keep(seen, kept)).is_err()
        {
            return;
        }
        if member.data.send(DataCommand::State(state)).is_err() {
            return;
        }
        dialer.follow(&member);
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                host = broken.recv() => match host {
                    Some(host) => dialer.broken(host),
                    None => return,
                },
            }
        }
    }
}

fn observe_leases(member: &Member, state: &State) {
    let now = clock::mono();
    let mut watcher = member.watcher();
    watcher.retain(|host| state.hosts.contains_key(&host));
    for host in state.hosts.values() {
        watcher.observe(now, host.id, host.lease);
    }
}

/// Carries out what the data loop asks for.
pub async fn events(member: Arc<Member>, mut events: UnboundedReceiver<Event>) {
    let mut said = BTreeMap::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Propose { object, epoch, id, command } => {
                let member = Arc::clone(&member);
                tokio::spawn(async move {
                    let answer = member.directory.propose_within(&command, OWNER_PROPOSE_MAX).await;
                    let result = answer
                        .inspect_err(|error| tracing::warn!(%object, %error, "the directory gave no answer"))
                        .ok();
                    let _stopping = member.data.send(DataCommand::Proposed { object, epoch, id, result });
                });
            }
            Event::Fenced { object, epoch } => member.lost(object, epoch),
            Event::Became { from, to } => member.became(from, to),
            Event::DiskDied { disk, reason } => {
                tokio::spawn(tell_dead_disk(Arc::clone(&member), disk, reason));
            }
            Event::Disconnected { host, outbound, reason, .. } => {
                let now = clock::mono();
                said.retain(|_, at: &mut _| now.since(*at) < SAID_WITHIN);
                if said.insert(host, now).is_none() {
                    tracing::info!(%host, reason, "data connections have ended");
                } else {
                    tracing::debug!(%host, outbound, reason, "a data connection has ended");
                }
                if outbound {
                    // Nobody dials any more when this member ends.
                    let _ending = member.broken.send(host);
                }
            }
        }
    }
}

async fn tell_dead_disk(member: Arc<Member>, disk: DiskId, reason: String) {
    loop {
        match member.propose(&Command::DiskDied { disk, reason: reason.clone() }).await {
            Ok(Ok(_) | Err(_)) => return,
            Err(error) => {
                tracing::warn!(%disk, %error, "the cluster could not be told of a dead disk; trying again")
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Renews this host's lease, and with it the right to serve reads, from when the cluster knows what this host is called.
pub async fn renew_lease(member: Arc<Member>) {
    if member.announced.subscribe().wait_for(|announced| *announced).await.is_err() {
        return;
    }
    loop {
        let sent = clock::mono();
        let renewal = Command::RenewLease { host: member.host() };
        let pause = match member.directory.propose_within(&renewal, Duration::from_secs(2)).await {
            Ok(Ok(Outcome::Lease { locks, .. })) => {
                let renewal = Renewal { sent, locks };
                let leftovers = renewal.leftovers(|object| member.open_volumes().contains_key(&object));
                if member.data.send(DataCommand::Lease(renewal)).is_err() {
                    return;
                }
                if !leftovers.is_empty() {
                    tokio::spawn(release_leftover_locks(Arc::clone(&member), leftovers));
                }
                RENEW_EVERY
            }
            Ok(Err(Refused::NoHost(_))) => Duration::from_millis(500),
            Ok(other) => {
                tracing::error!(?other, "the directory answered a renewal of the lease with something else");
                RENEW_EVERY
            }
            Err(error) => {
                tracing::debug!(%error, "the lease is not renewed");
                Duration::from_millis(200)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = member.renew_now.notified() => {}
        }
    }
}

/// On the directory's leader: takes in new hosts and chooses who votes.
pub async fn choose_voters(member: Arc<Member>) {
    loop {
        let state = member.state();
        let status = member.directory.status();
        let candidates: Vec<Candidate> = state
            .hosts
            .values()
            .map(|host| {
                let known = status.members.get(&host.id);
                let silence = known.and_then(|m| m.silence);
                // A host that was let in and is no member yet has said nothing here: it is asked whether it is up.
                let alive = known.is_none() || silence.is_some_and(|s| s < ALIVE_WITHIN);
                Candidate {
                    host: host.id,
                    address: host.address.to_string(),
                    fault_domain: host.fault_domain.clone(),
                    alive,
                    long_absent: !alive && silence.is_some_and(|s| s > LONG_ABSENT),
                    voter: known.is_some_and(|m| m.voter),
                }
            })
            .collect();
        let pause = match member.directory.reconcile_membership(&candidates).await {
            Ok(Step::NotLeader | Step::Nothing) => Duration::from_secs(2),
            Ok(step) => {
                tracing::info!(?step, "the directory's membership has changed");
                Duration::from_millis(200)
            }
            Err(error) => {
                tracing::debug!(%error, "the directory's membership could not be changed");
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Says how full this host's disks are, with what they keep for volumes, when that has changed noticeably.
pub async fn report_usage(member: Arc<Member>) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let Ok(snapshot) = member.data.ask(DataCommand::Snapshot).await else { return };
        let state = member.state();
        let changed: Vec<(DiskId, u64)> = snapshot
            .disks
            .iter()
            .filter_map(|(id, stats, _)| {
                let known = state.disks.get(id)?;
                let used = u64::from(stats.extents_used) + u64::from(stats.extents_kept);
                let step = (known.capacity_extents / 200).max(1);
                (known.used_extents.abs_diff(used) >= step).then_some((*id, used))
            })
            .collect();
        if changed.is_empty() {
            continue;
        }
        // Hosts of a release that keeps nothing understand the one, and the other only once something is kept.
        let command = match snapshot.kept_seen {
            0 => Command::ReportUsage { used_extents: changed },
            seen => Command::ReportRoom { seen, used_extents: changed },
        };
        if let Err(error) = member.propose(&command).await {
            tracing::debug!(%error, "how full the disks are could not be reported");
        }
    }
}

/// Removes components that the directory no longer knows: of deleted volumes, or given up while this host was away.
pub async fn remove_leftovers(member: Arc<Member>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let Ok(inventory) = member.data.ask(DataCommand::Inventory).await else { return };
        let known = |state: &State, disk: DiskId, chunk: &ChunkId| {
            state
                .objects
                .get(&chunk.object)
                .and_then(|o| o.chunks.get(&chunk.index.record()))
                .is_some_and(|c| c.components.iter().any(|c| c.disk == disk))
        };
        let state = member.state();
        // A disk that is not in the directory is about to be closed; who has not heard yet that it is out may still read there.
        let suspects: BTreeMap<DiskId, Vec<ChunkId>> = inventory
            .into_iter()
            .filter(|(disk, _)| state.disks.contains_key(disk))
            .map(|(disk, chunks)| {
                (
                    disk,
                    chunks
                        .into_iter()
                        .map(|e| e.chunk)
                        .filter(|c| !known(&state, disk, c))
                        .collect::<Vec<_>>(),
                )
            })
            .filter(|(_, chunks)| !chunks.is_empty())
            .collect();
        for (disk, chunks) in suspects {
            // Condemned first, looked up again afterwards: nothing can come to be placed here in between and be lost.
            let condemned =
                member.data.ask(|answer| DataCommand::Condemn(disk, chunks.clone(), answer)).await;
            if condemned.is_err() {
                return;
            }
            let Ok(state) = member.directory.linearizable_state().await else {
                let _stopping = member.data.send(DataCommand::Pardon(disk, chunks));
                continue;
            };
            let there = state.disks.contains_key(&disk);
            let (keep, drop): (Vec<_>, Vec<_>) =
                chunks.into_iter().partition(|c| !there || known(&state, disk, c));
            let objects: BTreeSet<_> = drop.iter().map(|c| c.object).collect();
            tracing::info!(%disk, components = drop.len(), objects = objects.len(), "leftover components are removed");
            let _stopping = member.data.send(DataCommand::Pardon(disk, keep));
            let _stopping = member.data.send(DataCommand::RemoveCondemned(disk, drop));
        }
        if forget_promises(&member).await.is_err() {
            return;
        }
    }
}

/// Deleted volumes leave an epoch behind on each disk that they were on.
async fn forget_promises(member: &Member) -> Result<(), LoopGone> {
    let promises = member.data.ask(DataCommand::BarePromises).await?;
    let state = member.state();
    if promises.iter().flat_map(|(_, objects)| objects).all(|object| state.objects.contains_key(object)) {
        return Ok(());
    }
    // Looked up after the promises: an object that was promised then and is unknown now was deleted, or never was.
    let Ok(state) = member.directory.linearizable_state().await else { return Ok(()) };
    for (disk, mut objects) in promises {
        objects.retain(|object| !state.objects.contains_key(object));
        if !objects.is_empty() {
            tracing::info!(%disk, objects = objects.len(), "what a disk knew of deleted volumes is removed");
            member.data.send(DataCommand::ForgetObjects(disk, objects))?;
        }
    }
    Ok(())
}
