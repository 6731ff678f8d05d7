//! The directory as the daemon uses it: [`Directory`] puts the state machine's types back on.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::watch;

use crate::config::Config;
use crate::core::{Core, Inner};
use crate::error::{DirectoryError, MembershipError};
use crate::lonely;
use crate::machine::{self, Cell, Machine, StateMachine};
use crate::members::{self, Step};
use crate::network::{Asker, Network, Transport};
use crate::serve;
use crate::status::Status;
use crate::storage::{LogStore, MachineStore, Store, StoreError};
use crate::types::{Incarnation, MemberId, Raft};
use crate::voters::Candidate;

/// One host's part of the cluster directory. Clones are handles to the same member.
pub struct Directory<S: StateMachine> {
    core: Arc<Core>,
    cell: Arc<Cell<S>>,
    types: PhantomData<fn() -> S>,
}

impl<S: StateMachine> Clone for Directory<S> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), cell: Arc::clone(&self.cell), types: PhantomData }
    }
}

impl<S: StateMachine> Directory<S> {
    /// Opens this host's storage, applies what it holds, and takes part. A host that is no member yet waits to be
    /// added, or is told to [`Self::bootstrap`]. Runs on the current tokio runtime until [`Self::shutdown`].
    pub async fn open(config: Config, transport: Arc<dyn Transport>) -> Result<Self, DirectoryError> {
        let raft_config = config.raft()?;
        let opened = {
            let config = config.clone();
            let open = move || Store::open(&config.path, config.cluster, config.host, config.was_member);
            tokio::task::spawn_blocking(open).await
        };
        let store = Arc::new(opened.map_err(|error| StoreError::Internal(error.to_string()))??);
        let cell = Arc::new(Cell::<S>::new());
        let machine: Arc<dyn Machine> = Arc::clone(&cell) as Arc<dyn Machine>;
        let machine_store = MachineStore::open(Arc::clone(&store), Arc::clone(&machine))?;
        let asker = Arc::new(Asker::new(config.cluster, transport));
        let removed = store.removed()?;
        let id = MemberId(config.host);
        let network = Network { asker: Arc::clone(&asker) };
        let raft = Raft::new(id, raft_config, network, LogStore::new(Arc::clone(&store)), machine_store)
            .await
            .map_err(|error| DirectoryError::Fatal(error.to_string()))?;
        if removed {
            raft.runtime_config().elect(false);
        }
        let standing = watch::Sender::new(Inner { removed, leader_heard: None });
        let changing = tokio::sync::Mutex::new(());
        let run = OsRng.try_next_u64().map_err(|error| StoreError::Internal(error.to_string()))?;
        let proposals = AtomicU64::new(0);
        let core = Arc::new(Core { config, raft, store, machine, asker, standing, run, proposals, changing });
        lonely::watch(&core);
        Ok(Self { core, cell, types: PhantomData })
    }

    /// Makes a new cluster of this host alone.
    pub async fn bootstrap(&self) -> Result<(), DirectoryError> {
        members::bootstrap(&self.core).await
    }

    /// The state as this host knows it. It may be behind the leader's; see [`Self::linearizable_state`].
    pub fn state(&self) -> Arc<S> {
        self.cell.state()
    }

    /// Announces the index of the last applied entry, after [`Self::state`] shows its effect.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.core.machine.applied()
    }

    /// Proposes a command and waits for its response, for at most [`crate::Timing::propose_max`].
    pub async fn propose(&self, command: &S::Command) -> Result<S::Response, DirectoryError> {
        self.propose_within(command, self.core.config.timing.propose_max).await
    }

    /// Proposes a command. It is applied at most once, however often it had to be sent; every error except
    /// [`DirectoryError::Timeout`] means that it was not applied and will not be.
    pub async fn propose_within(
        &self,
        command: &S::Command,
        within: Duration,
    ) -> Result<S::Response, DirectoryError> {
        let bytes = machine::encode(command).map_err(|error| DirectoryError::Encoding(error.into()))?;
        let answer = self.core.propose(bytes, within).await?;
        // It was applied; only this host can't read the answer.
        machine::decode(&answer).map_err(DirectoryError::Encoding)
    }

    /// The state with everything that was acknowledged to anybody before this call.
    pub async fn linearizable_state(&self) -> Result<Arc<S>, DirectoryError> {
        self.linearizable_state_within(self.core.config.timing.propose_max).await
    }

    /// [`Self::linearizable_state`] with a time limit of its own.
    pub async fn linearizable_state_within(&self, within: Duration) -> Result<Arc<S>, DirectoryError> {
        self.core.catch_up(within).await?;
        Ok(self.state())
    }

    /// Answers another host's question. `from` is the host that the connection has proven.
    pub async fn handle(&self, from: HostId, service: u16, payload: &[u8]) -> Vec<u8> {
        serve::handle(&self.core, from, service, payload).await
    }

    /// Admits a host that listens at `address` and has opened its directory. It follows as a learner; whether it votes is
    /// decided by [`Self::reconcile_membership`]. Adding a member again changes nothing but its address.
    pub async fn add_learner(
        &self,
        host: HostId,
        address: &str,
        fault_domain: &str,
    ) -> Result<(), DirectoryError> {
        members::add(&self.core, host, address, fault_domain).await
    }

    /// Removes a host for good. Refused while the rest would be no majority of its voters.
    pub async fn remove_host(&self, host: HostId) -> Result<(), DirectoryError> {
        members::remove(&self.core, host).await
    }

    /// On the leader, makes one step towards the voters that [`crate::choose_voters`] wants; elsewhere nothing. To be
    /// called every few seconds with all hosts of the cluster.
    pub async fn reconcile_membership(&self, candidates: &[Candidate]) -> Result<Step, DirectoryError> {
        members::reconcile(&self.core, candidates).await
    }

    /// What `vsanctl status` shows.
    pub fn status(&self) -> Status {
        Status::of(&self.core)
    }

    /// Which life of its storage this host is in.
    pub fn incarnation(&self) -> Incarnation {
        self.core.store.identity().incarnation
    }

    /// Waits until the group has told this host that it is no member any more (at once if it has).
    pub async fn removed(&self) {
        let mut standing = self.core.standing.subscribe();
        if standing.wait_for(|inner| inner.removed).await.is_err() {
            // The sender lives in the core that this handle holds.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this member has stopped for good, because its disk failed or it can't apply an entry, and returns why.
    /// After [`Self::shutdown`] it returns, too.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.core.raft.metrics();
        match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
            Ok(metrics) => metrics.running_state.as_ref().err().map_or_else(String::new, ToString::to_string),
            Err(_) => "it was shut down".into(),
        }
    }

    /// Asks for a snapshot now, whatever the policy says. Returns before it is written.
    pub async fn snapshot(&self) -> Result<(), DirectoryError> {
        self.core.raft.trigger().snapshot().await.map_err(|error| DirectoryError::Fatal(error.to_string()))
    }

    /// Stops taking part and waits for what is being written.
    pub async fn shutdown(&self) {
        if let Err(error) = self.core.raft.shutdown().await {
            tracing::error!(%error, "the directory did not stop cleanly");
        }
    }
}

impl From<MembershipError> for crate::wire::NotDone {
    fn from(error: MembershipError) -> Self {
        Self::Membership(error)
    }
}
