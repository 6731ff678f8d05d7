//! What a member answers. Questions come from hosts that are authenticated but not believed: each is checked for size,
//! version, cluster, host and incarnation before anything acts on it.

use ferro_protocol::ids::HostId;
use openraft::error::{InstallSnapshotError, RaftError, SnapshotMismatch};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{CHUNK_BYTES, SNAPSHOT_BYTES_MAX};
use crate::core::{Core, WITHIN_MAX};
use crate::lonely;
use crate::members;
use crate::types::{Applied, Incarnation, MemberId, Types};
use crate::wire::{self, Answer, Change, Hello, NotDone, Propose, Question, Rejection, service};

/// Answers one question. Always bytes: a refusal is an answer too.
pub(crate) async fn handle(core: &Arc<Core>, from: HostId, service: u16, payload: &[u8]) -> Vec<u8> {
    match service {
        service::APPEND => reply(&append(core, from, payload).await),
        service::VOTE => reply(&vote(core, from, payload).await),
        service::SNAPSHOT => reply(&snapshot(core, from, payload).await),
        service::PROPOSE => reply(&propose(core, from, payload).await),
        service::READ => reply(&read(core, from, payload).await),
        service::CHANGE => reply(&change(core, from, payload).await),
        service::HELLO => reply(&hello(core, payload)),
        service::STANDING => reply(&standing(core, from, payload)),
        _ => reply::<()>(&Err(Rejection::Service)),
    }
}

fn reply<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    // Plain data encodes; if it ever does not, an empty answer is refused by the asker as cut short.
    wire::to_bytes(answer).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer of the directory does not encode");
        Vec::new()
    })
}

/// Decodes a question and checks that it is meant for this host.
fn question<T: DeserializeOwned>(core: &Core, payload: &[u8]) -> Result<T, Rejection> {
    let question: Question<T> =
        wire::from_bytes(payload).map_err(|error| Rejection::Malformed(error.to_string()))?;
    let identity = core.store.identity();
    if question.cluster != identity.cluster {
        return Err(Rejection::Cluster(identity.cluster));
    }
    if question.to != identity.host {
        return Err(Rejection::Host(identity.host));
    }
    if question.incarnation.is_some_and(|meant| meant != identity.incarnation) {
        return Err(Rejection::Incarnation);
    }
    Ok(question.body)
}

fn stopped(error: impl std::fmt::Display) -> Rejection {
    Rejection::Stopped(error.to_string())
}

async fn append(core: &Arc<Core>, from: HostId, payload: &[u8]) -> Answer<AppendEntriesResponse<MemberId>> {
    let request: AppendEntriesRequest<Types> = question(core, payload)?;
    speaks_for_itself(from, request.vote.leader_id().node_id)?;
    let response = core.raft.append_entries(request).await.map_err(stopped)?;
    if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
        lonely::heard_leader(core, from).await;
    }
    Ok(response)
}

async fn vote(core: &Core, from: HostId, payload: &[u8]) -> Answer<openraft::raft::VoteResponse<MemberId>> {
    let request: VoteRequest<MemberId> = question(core, payload)?;
    speaks_for_itself(from, request.vote.leader_id().node_id)?;
    core.raft.vote(request).await.map_err(stopped)
}

async fn snapshot(
    core: &Arc<Core>,
    from: HostId,
    payload: &[u8],
) -> Answer<Result<InstallSnapshotResponse<MemberId>, SnapshotMismatch>> {
    let request: InstallSnapshotRequest<Types> = question(core, payload)?;
    speaks_for_itself(from, request.vote.leader_id().node_id)?;
    let bytes = request.data.len() as u64;
    if bytes > CHUNK_BYTES || request.offset.saturating_add(bytes) > SNAPSHOT_BYTES_MAX {
        return Err(Rejection::Malformed("a piece of a snapshot is out of bounds".into()));
    }
    match core.raft.install_snapshot(request).await {
        Ok(response) => {
            lonely::heard_leader(core, from).await;
            Ok(Ok(response))
        }
        Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => Ok(Err(mismatch)),
        Err(RaftError::Fatal(error)) => Err(stopped(error)),
    }
}

/// Only members use the directory: the certificate of a host that was removed is still good.
fn belongs(core: &Core, from: HostId) -> Result<(), Rejection> {
    let metrics = core.raft.metrics();
    let known = metrics.borrow().membership_config.membership().get_node(&MemberId(from)).is_some();
    if known { Ok(()) } else { Err(Rejection::Stranger) }
}

/// A host leads or stands for election only under its own name.
fn speaks_for_itself(from: HostId, leader: MemberId) -> Result<(), Rejection> {
    if leader.0 == from {
        return Ok(());
    }
    Err(Rejection::Malformed(format!("host {from} speaks for host {leader}")))
}

async fn propose(core: &Core, from: HostId, payload: &[u8]) -> Answer<Result<Applied, NotDone>> {
    let propose: Propose = question(core, payload)?;
    belongs(core, from)?;
    if propose.command.len() > crate::COMMAND_BYTES_MAX {
        return Err(Rejection::Malformed("the command is too large".into()));
    }
    // What this host can't apply must not get into the log.
    if let Err(error) = core.machine.check(&propose.command) {
        return Ok(Err(NotDone::Undecodable(format!("the leader does not understand the command: {error}"))));
    }
    Ok(core.propose_here(propose).await)
}

async fn read(core: &Core, from: HostId, payload: &[u8]) -> Answer<Result<u64, NotDone>> {
    let within_ms: u64 = question(core, payload)?;
    belongs(core, from)?;
    Ok(core.read_here(Duration::from_millis(within_ms).min(WITHIN_MAX)).await)
}

async fn change(core: &Arc<Core>, from: HostId, payload: &[u8]) -> Answer<Result<wire::Changed, NotDone>> {
    let change: Change = question(core, payload)?;
    belongs(core, from)?;
    Ok(members::change_here(core, &change).await)
}

fn hello(core: &Core, payload: &[u8]) -> Answer<Hello> {
    let () = question(core, payload)?;
    Ok(Hello { incarnation: core.store.identity().incarnation })
}

fn standing(core: &Core, from: HostId, payload: &[u8]) -> Answer<wire::Verdict> {
    let incarnation: Incarnation = question(core, payload)?;
    Ok(lonely::judge(core, from, incarnation))
}
