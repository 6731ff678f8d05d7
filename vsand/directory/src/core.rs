//! One member, without the types of its state machine: how commands and reads find the leader.
//!
//! ```text
//!   propose ──► who leads? ── this host ──► append, sync, replicate, apply ──► answer
//!                  │  ▲                        │
//!                  │  ├── another leader, ◄────┤ refused: surely not applied
//!                  │  │   until the deadline   └ no answer, leader lost: perhaps applied
//!                  └──┴── another host: the same there
//! ```
//!
//! A command is sent again under the same id, and the state machine's keeper applies each id once. So a leader that dies
//! is only a delay for the proposer. If the deadline passes after an attempt that was perhaps applied, the caller is told
//! that the outcome is unknown; after attempts that were all refused, that nothing was changed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::config::{COMMAND_BYTES_MAX, Config};
use crate::error::DirectoryError;
use crate::machine::{Machine, WINDOW};
use crate::members;
use crate::network::{AskError, Asker};
use crate::storage::Store;
use crate::types::{Applied, Member, MemberId, Metrics, Proposal, ProposalId, Raft, Ticket};
use crate::wire::{Change, Changed, NotDone, Peer, Propose, service};

/// How long to wait for news before the leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A deadline that a peer names is cut to this.
pub(crate) const WITHIN_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    pub(crate) store: Arc<Store>,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) asker: Arc<Asker>,
    /// When a leader was last heard, and whether this host was removed.
    pub(crate) standing: watch::Sender<Inner>,
    /// Makes the ids of proposals: drawn at the start, and counted.
    pub(crate) run: u64,
    pub(crate) proposals: AtomicU64,
    /// One membership change at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Inner {
    pub(crate) removed: bool,
    pub(crate) leader_heard: Option<Instant>,
}

impl Core {
    pub(crate) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.standing.borrow().removed
    }

    /// The leader, if one is known.
    pub(crate) fn leader(&self) -> Option<Peer> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some(Peer { host: id.0, address: node.address.clone() })
    }

    /// How long a leader has been without a majority, if that is too long to take commands.
    pub(crate) fn quorum_lost(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.membership_config.voter_ids().count() < 2 {
            return None;
        }
        let silent = Duration::from_millis(metrics.millis_since_quorum_ack?);
        (silent > self.config.quorum_patience()).then_some(silent)
    }

    fn fatal(&self) -> Option<DirectoryError> {
        let metrics = self.raft.metrics();
        let state = &metrics.borrow().running_state;
        state.as_ref().err().map(|error| DirectoryError::Fatal(error.to_string()))
    }

    pub(crate) async fn propose(
        &self,
        command: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, DirectoryError> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(DirectoryError::TooLarge { bytes: command.len() });
        }
        let id = ProposalId { run: self.run, count: self.proposals.fetch_add(1, Ordering::Relaxed) };
        let mut base = self.raft.metrics().borrow().last_log_index.unwrap_or(0);
        let mut search = Search::new(self, within);
        let mut perhaps_applied = false;
        loop {
            let (leader, left) = match search.next().await {
                Ok(next) => next,
                Err(_) if perhaps_applied => return Err(DirectoryError::Timeout),
                Err(error) => return Err(error),
            };
            let within_ms = left.as_millis() as u64;
            let propose = Propose { id, base, command: command.clone(), within_ms };
            let attempt = async {
                match &leader {
                    None => self.propose_here(propose).await,
                    Some(peer) => match self.ask(peer, service::PROPOSE, propose, left).await {
                        Ok(answer) => answer,
                        Err(error) if error.nothing_happened() => Err(NotDone::NotLeader(None)),
                        Err(error) => {
                            tracing::debug!(host = %peer.host, %error, "a proposal got no answer");
                            Err(NotDone::Unknown)
                        }
                    },
                }
            };
            match search.attempt(leader.as_ref(), attempt).await {
                Ok(Applied::Answer(answer)) => return Ok(answer),
                Err(NotDone::Behind { index }) if !perhaps_applied => base = index,
                // A copy that came too late to be told from the first: nobody knows what became of that one.
                Ok(Applied::Nothing | Applied::Expired) | Err(NotDone::Behind { .. }) => {
                    return Err(DirectoryError::Timeout);
                }
                Err(NotDone::Unknown) => perhaps_applied = true,
                Err(not_done) => search.failed(not_done)?,
            }
        }
    }

    /// Proposes on this host, which must lead.
    pub(crate) async fn propose_here(&self, propose: Propose) -> Result<Applied, NotDone> {
        if let Some(silent) = self.quorum_lost() {
            return Err(NotDone::NoQuorum { silent_ms: silent.as_millis() as u64 });
        }
        let last = self.raft.metrics().borrow().last_log_index.unwrap_or(0);
        // Half of the window is left for what others propose meanwhile.
        if last > propose.base.saturating_add(WINDOW / 2) {
            return Err(NotDone::Behind { index: last });
        }
        let within = Duration::from_millis(propose.within_ms).min(WITHIN_MAX);
        let ticket = Ticket::default();
        let Propose { id, base, command, .. } = propose;
        let proposal = Proposal { id, base, command, ticket: ticket.clone() };
        match tokio::time::timeout(within, self.raft.client_write(proposal)).await {
            Ok(Ok(response)) => Ok(response.data),
            // Raft may still take it from its queue later, appended or not.
            Err(_) => Err(NotDone::Unknown),
            Ok(Err(error)) if ticket.is_stamped() => {
                tracing::warn!(%error, "a command was under way when this host stopped leading");
                Err(NotDone::Unknown)
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Err(not_leader(to)),
            Ok(Err(error)) => Err(NotDone::Stopped(error.to_string())),
        }
    }

    /// Waits until this host has applied everything that was committed when the call began.
    pub(crate) async fn catch_up(&self, within: Duration) -> Result<(), DirectoryError> {
        let start = Instant::now();
        let mut search = Search::new(self, within);
        let index = loop {
            let (leader, left) = search.next().await?;
            let attempt = async {
                match &leader {
                    None => self.read_here(left).await,
                    // Reading changes nothing, so any failure may be tried again.
                    Some(peer) => {
                        let asked = self.ask(peer, service::READ, left.as_millis() as u64, left).await;
                        asked.unwrap_or(Err(NotDone::NotLeader(None)))
                    }
                }
            };
            match search.attempt(leader.as_ref(), attempt).await {
                Ok(index) => break index,
                Err(not_done) => search.failed(not_done)?,
            }
        };
        let mut applied = self.machine.applied();
        let left = within.saturating_sub(start.elapsed());
        let wait = async {
            // Raft applies what the machine does not see too (a first entry that is a membership), so ask both.
            loop {
                let by_raft = self.raft.metrics().borrow().last_applied.map_or(0, |id| id.index);
                if *applied.borrow_and_update() >= index || by_raft >= index {
                    return;
                }
                if applied.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(left, wait).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.fatal().unwrap_or(DirectoryError::NoLeader { since: start.elapsed() })),
        }
    }

    /// On the leader: the index that a linearizable reader must have applied.
    pub(crate) async fn read_here(&self, within: Duration) -> Result<u64, NotDone> {
        match tokio::time::timeout(within, self.raft.get_read_log_id()).await {
            Ok(Ok((index, _applied))) => Ok(index.map_or(0, |id| id.index)),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => Err(not_leader(to)),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => {
                let silent_ms = self.raft.metrics().borrow().millis_since_quorum_ack.unwrap_or(0);
                Err(NotDone::NoQuorum { silent_ms })
            }
            Ok(Err(RaftError::Fatal(error))) => Err(NotDone::Stopped(error.to_string())),
            Err(_) => Err(NotDone::NoQuorum { silent_ms: within.as_millis() as u64 }),
        }
    }

    /// Has the leader make a membership change. Its steps may always be tried again.
    pub(crate) async fn change(
        self: &Arc<Self>,
        change: &Change,
        within: Duration,
    ) -> Result<Changed, DirectoryError> {
        let mut search = Search::new(self, within);
        loop {
            let (leader, left) = search.next().await?;
            let attempt = async {
                match &leader {
                    None => members::change_here(self, change).await,
                    Some(peer) => {
                        let asked = self.ask(peer, service::CHANGE, change, left).await;
                        asked.unwrap_or(Err(NotDone::NotLeader(None)))
                    }
                }
            };
            match search.attempt(leader.as_ref(), attempt).await {
                Ok(changed) => return Ok(changed),
                Err(not_done) => search.failed(not_done)?,
            }
        }
    }

    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        peer: &Peer,
        service: u16,
        question: Q,
        within: Duration,
    ) -> Result<A, AskError> {
        self.asker.ask((peer.host, &peer.address), None, service, question, within).await
    }
}

/// The search for a leader that does what it is asked, until it succeeds, fails for good, or time is up.
struct Search<'a> {
    core: &'a Core,
    start: Instant,
    within: Duration,
    metrics: watch::Receiver<Metrics>,
    first: bool,
    /// Who led, as far as was known here, when somebody was asked last.
    asked: Option<MemberId>,
    hint: Option<Peer>,
    why: Option<DirectoryError>,
}

impl<'a> Search<'a> {
    fn new(core: &'a Core, within: Duration) -> Self {
        let metrics = core.raft.metrics();
        Self { core, start: Instant::now(), within, metrics, first: true, asked: None, hint: None, why: None }
    }

    fn left(&self) -> Duration {
        self.within.saturating_sub(self.start.elapsed())
    }

    /// The next one to ask (`None`: this host) and the time that is left.
    async fn next(&mut self) -> Result<(Option<Peer>, Duration), DirectoryError> {
        loop {
            if !std::mem::take(&mut self.first) {
                // A new leader shows in the metrics; the pause is for news that does not. Other changes of the metrics are no
                // news: the last attempt may itself be one, and would be repeated without end.
                let (pause, asked) = (self.left().min(RETRY_PAUSE), self.asked);
                let other = self.metrics.wait_for(|metrics| metrics.current_leader != asked);
                let stopped = async { other.await.is_err() };
                if tokio::time::timeout(pause, stopped).await == Ok(true) {
                    tokio::time::sleep(pause).await;
                }
            }
            if self.core.is_removed() {
                return Err(DirectoryError::Removed);
            }
            if let Some(error) = self.core.fatal() {
                return Err(error);
            }
            let left = self.left();
            if left.is_zero() {
                let since = self.start.elapsed();
                return Err(match self.why.take() {
                    None | Some(DirectoryError::NoLeader { .. }) => DirectoryError::NoLeader { since },
                    Some(other) => other,
                });
            }
            self.asked = self.metrics.borrow().current_leader;
            if let Some(peer) = self.hint.take().or_else(|| self.core.leader()) {
                return Ok(((peer.host != self.core.config.host).then_some(peer), left));
            }
        }
    }

    /// Waits for an attempt, but not longer than the one that is asked is believed to lead, nor than a leader may take.
    async fn attempt<T>(
        &self,
        asked: Option<&Peer>,
        attempt: impl Future<Output = Result<T, NotDone>>,
    ) -> Result<T, NotDone> {
        let asked = MemberId(asked.map_or(self.core.config.host, |peer| peer.host));
        let mut metrics = self.metrics.clone();
        let believed = metrics.borrow_and_update().current_leader == Some(asked);
        let deposed = async {
            if !believed || metrics.wait_for(|metrics| metrics.current_leader != Some(asked)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let attempt = tokio::time::timeout(self.core.config.attempt_max(), attempt);
        tokio::select! {
            biased;
            result = attempt => result.unwrap_or(Err(NotDone::Unknown)),
            () = deposed => Err(NotDone::Unknown),
        }
    }

    /// Notes why the last one did not do it; an error if that is final.
    fn failed(&mut self, not_done: NotDone) -> Result<(), DirectoryError> {
        let since = Duration::ZERO;
        let (hint, why) = match not_done {
            // A hint that points back here is news only if Raft says so itself.
            NotDone::NotLeader(peer) => {
                (peer.filter(|peer| peer.host != self.core.config.host), DirectoryError::NoLeader { since })
            }
            NotDone::NoQuorum { silent_ms } => {
                (None, DirectoryError::NoQuorum { since: Duration::from_millis(silent_ms) })
            }
            // The leader's own trouble, or its end: the group will find another.
            NotDone::Stopped(_) | NotDone::Unknown | NotDone::Behind { .. } => {
                (None, DirectoryError::NoLeader { since })
            }
            NotDone::Membership(error) => return Err(error.into()),
            NotDone::Undecodable(reason) => return Err(DirectoryError::Fatal(reason)),
        };
        (self.hint, self.why) = (hint, Some(why));
        Ok(())
    }
}

pub(crate) fn not_leader(to: ForwardToLeader<MemberId, Member>) -> NotDone {
    let peer = to.leader_id.zip(to.leader_node);
    NotDone::NotLeader(peer.map(|(id, node)| Peer { host: id.0, address: node.address }))
}
