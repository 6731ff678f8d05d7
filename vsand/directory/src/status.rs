//! What there is to see from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ferro_protocol::ids::HostId;

use crate::core::Core;
use crate::types::Incarnation;

/// What part a host plays at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It orders the commands.
    Leader,
    /// It votes and follows.
    Follower,
    /// It votes and stands for election.
    Candidate,
    /// It follows without a vote.
    Learner,
    /// It belongs to no cluster yet.
    Outside,
    /// It was removed.
    Removed,
    /// It has stopped for good; see [`Status::fault`].
    Stopped,
}

/// A member, as the group's membership names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// Where it listens.
    pub address: String,
    /// Its fault domain.
    pub fault_domain: String,
    /// Which life of its storage was admitted.
    pub incarnation: Incarnation,
    /// It votes.
    pub voter: bool,
    /// How many entries it lacks; known to the leader only.
    pub lag_entries: Option<u64>,
    /// How long ago it last answered this host; `None` if it never did (for this host itself: zero).
    pub silence: Option<Duration>,
}

/// One host's view of the directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// This host's part.
    pub role: Role,
    /// The leader, if one is known.
    pub leader: Option<HostId>,
    /// The number of the present or last leadership.
    pub term: u64,
    /// All members.
    pub members: BTreeMap<HostId, MemberStatus>,
    /// Index of the last entry in this host's log.
    pub last_log_index: u64,
    /// Index of the last entry that this host has applied.
    pub applied_index: u64,
    /// Index of the last entry that the stored snapshot holds.
    pub snapshot_index: u64,
    /// On the leader, how long ago a majority confirmed it; elsewhere, how long ago a leader was heard. `None`: never.
    pub contact: Option<Duration>,
    /// The leader lacks a majority, or this host has heard no leader for longer than an election takes.
    pub without_quorum: bool,
    /// Why this host has stopped.
    pub fault: Option<String>,
}

impl Status {
    /// The members that vote.
    pub fn voters(&self) -> BTreeSet<HostId> {
        self.members.iter().filter(|(_, member)| member.voter).map(|(host, _)| *host).collect()
    }

    /// The members that only follow.
    pub fn learners(&self) -> BTreeSet<HostId> {
        self.members.iter().filter(|(_, member)| !member.voter).map(|(host, _)| *host).collect()
    }

    pub(crate) fn of(core: &Core) -> Self {
        let metrics = core.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<_> = membership.voter_ids().collect();
        let last_log_index = metrics.last_log_index.unwrap_or(0);
        let own = core.config.host;
        let members: BTreeMap<HostId, MemberStatus> = membership
            .nodes()
            .map(|(id, node)| {
                let lag =
                    metrics.replication.as_ref().and_then(|all| all.get(id)).map(|matched| {
                        last_log_index.saturating_sub(matched.map_or(0, |matched| matched.index))
                    });
                let status = MemberStatus {
                    address: node.address.clone(),
                    fault_domain: node.fault_domain.clone(),
                    incarnation: node.incarnation,
                    voter: voters.contains(id),
                    lag_entries: lag,
                    silence: if id.0 == own { Some(Duration::ZERO) } else { core.asker.silence(id.0) },
                };
                (id.0, status)
            })
            .collect();
        let leads = metrics.state.is_leader();
        let alone = leads && voters.len() == 1;
        let contact = match (alone, leads) {
            (true, _) => Some(Duration::ZERO),
            (_, true) => metrics.millis_since_quorum_ack.map(Duration::from_millis),
            _ => core.standing.borrow().leader_heard.map(|at| at.elapsed()),
        };
        let patience = core.config.quorum_patience();
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            _ if core.is_removed() => Role::Removed,
            _ if members.is_empty() => Role::Outside,
            openraft::ServerState::Leader => Role::Leader,
            openraft::ServerState::Candidate => Role::Candidate,
            openraft::ServerState::Follower => Role::Follower,
            openraft::ServerState::Learner | openraft::ServerState::Shutdown => Role::Learner,
        };
        Self {
            role,
            leader: metrics.current_leader.map(|id| id.0),
            term: metrics.current_term,
            members,
            last_log_index,
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            contact,
            without_quorum: contact.is_none_or(|silence| silence > patience),
            fault: metrics.running_state.err().map(|error| error.to_string()),
        }
    }
}
