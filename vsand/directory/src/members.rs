//! Who belongs to the group: adding, removing, and who votes. Each function makes small steps that are safe to repeat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferro_protocol::ids::HostId;
use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, InitializeError, RaftError};

use crate::core::{Core, not_leader};
use crate::error::{DirectoryError, MembershipError};
use crate::types::{Member, MemberId, Metrics};
use crate::voters::{Candidate, choose_voters};
use crate::wire::{Change, Changed, Hello, NotDone, service};

/// A learner with more entries to fetch than this does not become a voter yet: a majority that needs it would wait.
const PROMOTE_LAG_MAX: u64 = 200;

/// What [`crate::Directory::reconcile_membership`] did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// This host does not lead.
    NotLeader,
    /// Everything is as it should be.
    Nothing,
    /// A host was admitted as a learner.
    Added(HostId),
    /// A member's address or fault domain was brought up to date.
    Updated(HostId),
    /// These hosts vote now.
    Voters(BTreeSet<HostId>),
}

pub(crate) async fn bootstrap(core: &Core) -> Result<(), DirectoryError> {
    let member = Member {
        address: core.config.address.clone(),
        fault_domain: core.config.fault_domain.clone(),
        incarnation: core.store.identity().incarnation,
    };
    let nodes = BTreeMap::from([(MemberId(core.config.host), member)]);
    match core.raft.initialize(nodes).await {
        Ok(()) => Ok(()),
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(DirectoryError::AlreadyBootstrapped),
        Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
            Err(DirectoryError::Config(error.to_string()))
        }
        Err(RaftError::Fatal(error)) => Err(DirectoryError::Fatal(error.to_string())),
    }
}

pub(crate) async fn add(
    core: &Arc<Core>,
    host: HostId,
    address: &str,
    fault_domain: &str,
) -> Result<(), DirectoryError> {
    run(core, Change::Add { host, address: address.to_owned(), fault_domain: fault_domain.to_owned() }).await
}

pub(crate) async fn remove(core: &Arc<Core>, host: HostId) -> Result<(), DirectoryError> {
    run(core, Change::Remove { host }).await
}

/// Has the leader make steps until the change is complete. The leader may change on the way, even by the change itself.
async fn run(core: &Arc<Core>, change: Change) -> Result<(), DirectoryError> {
    let start = Instant::now();
    loop {
        let left = core.config.timing.propose_max.saturating_sub(start.elapsed());
        match core.change(&change, left).await {
            Ok(Changed::Done) => return Ok(()),
            // A step, or a change that another caller is making.
            Ok(Changed::Step) | Err(DirectoryError::Membership(MembershipError::Busy)) if !left.is_zero() => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(Changed::Step) => return Err(DirectoryError::Timeout),
            Err(error) => return Err(error),
        }
    }
}

/// Makes one step of a change on this host, which must lead.
pub(crate) async fn change_here(core: &Arc<Core>, change: &Change) -> Result<Changed, NotDone> {
    let Ok(_one_at_a_time) = core.changing.try_lock() else { return Err(MembershipError::Busy.into()) };
    let metrics = core.metrics();
    if !metrics.state.is_leader() {
        return Err(NotDone::NotLeader(core.leader()));
    }
    match change {
        Change::Add { host, address, fault_domain } => {
            add_here(core, &metrics, *host, address, fault_domain).await
        }
        Change::Remove { host } => remove_here(core, &metrics, *host).await,
    }
}

async fn add_here(
    core: &Core,
    metrics: &Metrics,
    host: HostId,
    address: &str,
    fault_domain: &str,
) -> Result<Changed, NotDone> {
    let incarnation = if host == core.config.host {
        core.store.identity().incarnation
    } else {
        let asked: Result<Hello, _> =
            core.asker.ask((host, address), None, service::HELLO, (), core.config.timing.call_max).await;
        asked.map_err(|error| MembershipError::Unreachable { host, reason: error.to_string() })?.incarnation
    };
    let member = Member { address: address.to_owned(), fault_domain: fault_domain.to_owned(), incarnation };
    let change = match metrics.membership_config.membership().get_node(&MemberId(host)) {
        Some(known) if known.incarnation != incarnation => {
            return Err(MembershipError::LostStorage(host).into());
        }
        Some(known) if *known == member => return Ok(Changed::Done),
        // The host has just proven at the new address that it is the member that was admitted.
        Some(_) => ChangeMembers::SetNodes(BTreeMap::from([(MemberId(host), member)])),
        None => ChangeMembers::AddNodes(BTreeMap::from([(MemberId(host), member)])),
    };
    submit(core, change).await?;
    Ok(Changed::Done)
}

async fn remove_here(core: &Core, metrics: &Metrics, host: HostId) -> Result<Changed, NotDone> {
    let membership = metrics.membership_config.membership();
    let id = MemberId(host);
    if membership.get_node(&id).is_none() {
        return Ok(Changed::Done);
    }
    if membership.nodes().count() == 1 {
        return Err(MembershipError::LastHost(host).into());
    }
    if !membership.voter_ids().any(|voter| voter == id) {
        submit(core, ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await?;
        return Ok(Changed::Step);
    }
    let mut voters: BTreeSet<MemberId> = membership.voter_ids().filter(|voter| *voter != id).collect();
    if voters.is_empty() {
        // The only voter hands over to the learner that has most of the log.
        let matched =
            |learner: &MemberId| metrics.replication.as_ref().and_then(|r| r.get(learner).copied().flatten());
        let heir = membership.learner_ids().filter(|learner| answers(core, learner.0)).max_by_key(matched);
        let Some(heir) = heir else {
            let voters = membership.learner_ids().count();
            return Err(MembershipError::WouldLoseQuorum { host, alive: 0, voters }.into());
        };
        voters.insert(heir);
    }
    let alive = voters.iter().filter(|voter| answers(core, voter.0)).count();
    if alive * 2 <= voters.len() {
        return Err(MembershipError::WouldLoseQuorum { host, alive, voters: voters.len() }.into());
    }
    submit(core, ChangeMembers::ReplaceAllVoters(voters)).await?;
    Ok(Changed::Step)
}

/// Whether a host has answered lately. The leader speaks to each member several times a second.
fn answers(core: &Core, host: HostId) -> bool {
    host == core.config.host
        || core.asker.silence(host).is_some_and(|silence| silence <= core.config.quorum_patience())
}

/// Commits one membership change; members that stop voting stay learners.
async fn submit(core: &Core, change: ChangeMembers<MemberId, Member>) -> Result<(), NotDone> {
    if let Some(silent) = core.quorum_lost() {
        return Err(NotDone::NoQuorum { silent_ms: silent.as_millis() as u64 });
    }
    let submitted = core.raft.change_membership(change, true);
    match tokio::time::timeout(core.config.timing.propose_max, submitted).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Err(not_leader(to)),
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => Err(match error {
            ChangeMembershipError::InProgress(_) => MembershipError::Busy.into(),
            // Sets are made from the membership itself, so these are ours to repair.
            ChangeMembershipError::EmptyMembership(error) => NotDone::Undecodable(error.to_string()),
            ChangeMembershipError::LearnerNotFound(error) => NotDone::Undecodable(error.to_string()),
        }),
        Ok(Err(RaftError::Fatal(error))) => Err(NotDone::Stopped(error.to_string())),
        Err(_) => Err(NotDone::Unknown),
    }
}

pub(crate) async fn reconcile(core: &Arc<Core>, candidates: &[Candidate]) -> Result<Step, DirectoryError> {
    let Ok(_one_at_a_time) = core.changing.try_lock() else { return Ok(Step::Nothing) };
    let metrics = core.metrics();
    if !metrics.state.is_leader() {
        return Ok(Step::NotLeader);
    }
    let step = reconcile_step(core, &metrics, candidates).await;
    step.or_else(|not_done| match not_done {
        NotDone::NotLeader(_) => Ok(Step::NotLeader),
        NotDone::NoQuorum { silent_ms } => {
            Err(DirectoryError::NoQuorum { since: Duration::from_millis(silent_ms) })
        }
        // The next call sees how far it got.
        NotDone::Unknown | NotDone::Behind { .. } => Err(DirectoryError::Timeout),
        NotDone::Membership(error) => Err(error.into()),
        NotDone::Stopped(reason) | NotDone::Undecodable(reason) => Err(DirectoryError::Fatal(reason)),
    })
}

async fn reconcile_step(core: &Core, metrics: &Metrics, candidates: &[Candidate]) -> Result<Step, NotDone> {
    let membership = metrics.membership_config.membership();
    // A change that a lost leader left half made comes first.
    if let [_, .., goal] = membership.get_joint_config().as_slice() {
        submit(core, ChangeMembers::ReplaceAllVoters(goal.clone())).await?;
        return Ok(Step::Voters(goal.iter().map(|id| id.0).collect()));
    }
    for candidate in candidates.iter().filter(|candidate| candidate.alive) {
        let (host, address, domain) = (candidate.host, &candidate.address, &candidate.fault_domain);
        let known = membership.get_node(&MemberId(host));
        if known.is_some_and(|known| known.address == *address && known.fault_domain == *domain) {
            continue;
        }
        match add_here(core, metrics, host, address, domain).await {
            Ok(_) if known.is_some() => return Ok(Step::Updated(host)),
            Ok(_) => return Ok(Step::Added(host)),
            // One host that is out of order must not hold up the others.
            Err(NotDone::Membership(error)) => {
                tracing::warn!(%host, %error, "can't admit the host to the directory");
            }
            Err(other) => return Err(other),
        }
    }
    let present: BTreeSet<HostId> = membership.voter_ids().map(|id| id.0).collect();
    let caught_up = |host: HostId| {
        let replication =
            metrics.replication.as_ref().and_then(|all| all.get(&MemberId(host)).copied().flatten());
        let matched = replication.map_or(0, |id| id.index);
        metrics.last_log_index.unwrap_or(0).saturating_sub(matched) <= PROMOTE_LAG_MAX
            && replication.is_some()
    };
    let candidates: Vec<Candidate> = candidates
        .iter()
        .filter(|candidate| membership.get_node(&MemberId(candidate.host)).is_some())
        .map(|candidate| {
            let voter = present.contains(&candidate.host);
            let alive =
                candidate.alive && (voter || (caught_up(candidate.host) && answers(core, candidate.host)));
            Candidate { alive, voter, ..candidate.clone() }
        })
        .collect();
    let wanted = choose_voters(&candidates);
    if wanted == present || wanted.is_empty() {
        return Ok(Step::Nothing);
    }
    submit(core, ChangeMembers::ReplaceAllVoters(wanted.iter().copied().map(MemberId).collect())).await?;
    Ok(Step::Voters(wanted))
}
