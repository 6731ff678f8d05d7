//! How members reach each other: the [`Transport`] that the daemon gives, and Raft's view of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferro_protocol::ids::{ClusterId, HostId};
use futures_util::future::BoxFuture;
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::machine::DecodeError;
use crate::types::{Incarnation, Member, MemberId, Types};
use crate::wire::{self, Answer, Question, Rejection, service};

/// How long to leave a member alone that could not be reached.
const BACKOFF: Duration = Duration::from_millis(200);

/// Why a call failed. The difference decides whether a command may be tried again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// The question surely never reached the other host.
    #[error("not reachable: {0}")]
    NotSent(String),
    /// The question may have been received and acted on.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// Carries questions to other hosts over mutually authenticated connections.
///
/// The host that answered must be proven to be `target`. On the other side the daemon gives the question and the proven
/// id of the asker to [`crate::Directory::handle`] and sends back what that returns.
pub trait Transport: Send + Sync + 'static {
    /// Asks `target`, which listens at `address`. There is no time limit inside: the caller drops the future, often, and
    /// that must leave the connection usable. Questions to one host must not wait for each other: a heartbeat that stands
    /// behind a slow answer costs an election.
    fn call<'a>(
        &'a self,
        target: HostId,
        address: &'a str,
        service: u16,
        payload: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, CallError>>;
}

/// Why a question was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the messages do not decode: {0}")]
    Encoding(#[from] DecodeError),
}

impl AskError {
    /// Whether the other side surely did nothing.
    pub(crate) fn nothing_happened(&self) -> bool {
        matches!(self, Self::Call(CallError::NotSent(_)) | Self::Rejected(_))
    }
}

/// Asks questions and remembers when each host last answered.
pub(crate) struct Asker {
    cluster: ClusterId,
    transport: Arc<dyn Transport>,
    contacts: Mutex<HashMap<HostId, Instant>>,
}

impl Asker {
    pub(crate) fn new(cluster: ClusterId, transport: Arc<dyn Transport>) -> Self {
        Self { cluster, transport, contacts: Mutex::new(HashMap::new()) }
    }

    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        (to, address): (HostId, &str),
        incarnation: Option<Incarnation>,
        service: u16,
        body: Q,
        within: Duration,
    ) -> Result<A, AskError> {
        let payload = wire::to_bytes(&Question { cluster: self.cluster, to, incarnation, body })?;
        let bytes = tokio::time::timeout(within, self.transport.call(to, address, service, payload))
            .await
            .map_err(|_| AskError::Late(within))??;
        let answer: Answer<A> = wire::from_bytes(&bytes)?;
        self.heard(to);
        Ok(answer?)
    }

    /// Notes that `host` was heard just now.
    pub(crate) fn heard(&self, host: HostId) {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner).insert(host, Instant::now());
    }

    /// How long ago `host` was heard last.
    pub(crate) fn silence(&self, host: HostId) -> Option<Duration> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner).get(&host).map(Instant::elapsed)
    }
}

/// Makes Raft's connections.
pub(crate) struct Network {
    pub(crate) asker: Arc<Asker>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: MemberId, node: &Member) -> Link {
        Link { asker: Arc::clone(&self.asker), target, node: node.clone() }
    }
}

/// Raft's connection to one member.
pub(crate) struct Link {
    asker: Arc<Asker>,
    target: MemberId,
    node: Member,
}

type RaftCallError<E = openraft::error::Infallible> = RPCError<MemberId, Member, RaftError<MemberId, E>>;

impl Link {
    async fn ask<Q: Serialize, A: DeserializeOwned, E: std::error::Error>(
        &self,
        service: u16,
        question: Q,
        option: &RPCOption,
    ) -> Result<A, RaftCallError<E>> {
        let to = (self.target.0, self.node.address.as_str());
        let asked =
            self.asker.ask(to, Some(self.node.incarnation), service, question, option.hard_ttl()).await;
        asked.map_err(|error| match error {
            AskError::Rejected(Rejection::Stopped(_)) => {
                RPCError::RemoteError(RemoteError::new(self.target, RaftError::Fatal(Fatal::Stopped)))
            }
            AskError::Late(_) => RPCError::Network(NetworkError::new(&error)),
            // Raft tries again at once after a network error; a connection that breaks each time needs a pause.
            AskError::Call(_) => RPCError::Unreachable(Unreachable::new(&error)),
            AskError::Rejected(_) | AskError::Encoding(_) => {
                tracing::warn!(host = %self.target, %error, "a member of the directory refuses messages");
                RPCError::Unreachable(Unreachable::new(&error))
            }
        })
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RaftCallError> {
        self.ask(service::APPEND, rpc, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<MemberId>, RaftCallError<InstallSnapshotError>> {
        let answer: Result<_, SnapshotMismatch> = self.ask(service::SNAPSHOT, rpc, &option).await?;
        answer.map_err(|mismatch| {
            let error = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
            RPCError::RemoteError(RemoteError::new(self.target, error))
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RaftCallError> {
        self.ask(service::VOTE, rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
