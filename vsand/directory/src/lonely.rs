//! A member that hears nobody: is the leader gone, or was this host removed while it was away?
//!
//! Nothing is sent to a removed host any more, so it has to ask. A leader that has a majority behind it gives the verdict;
//! a removed host then stands for no election and says so ([`crate::Directory::removed`]) until a leader sends to it again.

use std::sync::Arc;
use std::time::Instant;

use ferro_protocol::ids::HostId;

use crate::core::Core;
use crate::types::{Incarnation, MemberId};
use crate::wire::{Peer, Verdict, service};

/// Starts the task that asks. It ends with the member.
pub(crate) fn watch(core: &Arc<Core>) {
    let core = Arc::downgrade(core);
    tokio::spawn(async move {
        loop {
            let Some(pause) = core.upgrade().map(|core| core.config.timing.lonely_after) else { return };
            tokio::time::sleep(pause).await;
            let Some(core) = core.upgrade() else { return };
            if core.metrics().running_state.is_err() {
                return;
            }
            if is_lonely(&core) {
                ask_around(&core).await;
            }
        }
    });
}

fn is_lonely(core: &Core) -> bool {
    if core.is_removed() || core.metrics().state.is_leader() {
        return false;
    }
    core.standing.borrow().leader_heard.is_none_or(|at| at.elapsed() >= core.config.timing.lonely_after)
}

/// Asks every member that this host knows of, until one gives a verdict.
async fn ask_around(core: &Core) {
    let metrics = core.metrics();
    let mut peers: Vec<Peer> = metrics
        .membership_config
        .membership()
        .nodes()
        .filter(|(id, _)| id.0 != core.config.host)
        .map(|(id, node)| Peer { host: id.0, address: node.address.clone() })
        .collect();
    let mut asked = Vec::new();
    while let Some(peer) = peers.pop() {
        if asked.contains(&peer) {
            continue;
        }
        let to = (peer.host, peer.address.as_str());
        let mine = core.store.identity().incarnation;
        let answer = core.asker.ask(to, None, service::STANDING, mine, core.config.timing.call_max).await;
        match answer {
            Ok(Verdict::Member) => return,
            Ok(Verdict::Stranger { at }) => {
                // Unless this host knows better: it was added again since.
                if metrics.membership_config.log_id().is_none_or(|id| id.index <= at) {
                    mark_removed(core, at).await;
                }
                return;
            }
            Ok(Verdict::AskAnother(Some(leader))) if leader.host != core.config.host => peers.push(leader),
            Ok(Verdict::AskAnother(_)) => {}
            Err(error) => {
                tracing::debug!(host = %peer.host, %error, "asked whether this host is still a member");
            }
        }
        asked.push(peer);
    }
}

async fn mark_removed(core: &Core, at: u64) {
    tracing::warn!(at, "this host was removed from the cluster");
    core.raft.runtime_config().elect(false);
    if let Err(error) = core.store.set_removed(Some(at)).await {
        tracing::error!(%error, "can't store that this host was removed");
    }
    core.standing.send_modify(|inner| inner.removed = true);
}

/// Notes that a leader sent something that Raft accepted.
pub(crate) async fn heard_leader(core: &Core, leader: HostId) {
    core.asker.heard(leader);
    let mut back = false;
    // Wakes those who wait for a change of standing, not at each heartbeat.
    core.standing.send_if_modified(|inner| {
        back = std::mem::take(&mut inner.removed);
        inner.leader_heard = Some(Instant::now());
        back
    });
    if back {
        tracing::info!("this host is a member of the cluster again");
        core.raft.runtime_config().elect(true);
        if let Err(error) = core.store.set_removed(None).await {
            tracing::error!(%error, "can't store that this host is a member again");
        }
    }
}

/// What this host can say about another one's membership. Only a leader that a majority has just confirmed is sure.
pub(crate) fn judge(core: &Core, about: HostId, incarnation: Incarnation) -> Verdict {
    let metrics = core.metrics();
    let alone = metrics.membership_config.voter_ids().count() < 2;
    if !metrics.state.is_leader()
        || (!alone && (metrics.millis_since_quorum_ack.is_none() || core.quorum_lost().is_some()))
    {
        return Verdict::AskAnother(core.leader());
    }
    // Only an entry that was applied counts: one that is not committed may still vanish.
    let Some(membership_at) = *metrics.membership_config.log_id() else { return Verdict::AskAnother(None) };
    match metrics.membership_config.membership().get_node(&MemberId(about)) {
        Some(member) if member.incarnation == incarnation => Verdict::Member,
        _ if metrics.last_applied < Some(membership_at) => Verdict::AskAnother(None),
        _ => Verdict::Stranger { at: membership_at.index },
    }
}
