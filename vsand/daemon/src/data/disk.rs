//! One disk of this host: the store and, above it, the replica that keeps its promises.

use std::collections::HashSet;

use ferro_protocol::ids::ObjectId;
use tokio::sync::oneshot;
use vsand_core::replica::Replica;
use vsand_store::Store;

use super::load::Meter;

/// A disk that is served.
pub(super) struct LocalDisk {
    /// Its number in the tokens of its requests.
    pub number: u16,
    pub store: Store,
    pub replica: Replica,
    /// What it has to serve.
    pub meter: Meter,
    /// The control plane has been told that it is dead.
    pub death_told: bool,
    /// It is being closed.
    pub closing: Option<oneshot::Sender<()>>,
}

impl LocalDisk {
    /// The objects that are promised here and of which nothing is here.
    pub(super) fn bare_promises(&self) -> Vec<ObjectId> {
        let held: HashSet<ObjectId> = self.store.inventory().into_iter().map(|e| e.chunk.object).collect();
        self.replica.promises().filter(|object| !held.contains(object)).collect()
    }

    pub(super) fn has_work(&self) -> bool {
        self.store.has_work()
    }
}
