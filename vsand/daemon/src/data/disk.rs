//! One disk of this host: the store and, above it, the replica that keeps its promises.

use tokio::sync::oneshot;
use vsand_core::replica::Replica;
use vsand_store::Store;

/// A disk that is served.
pub(super) struct LocalDisk {
    /// Its number in the tokens of its requests.
    pub number: u16,
    pub store: Store,
    pub replica: Replica,
    /// The control plane has been told that it is dead.
    pub death_told: bool,
    /// It is being closed.
    pub closing: Option<oneshot::Sender<()>>,
}

impl LocalDisk {
    pub(super) fn is_busy(&self) -> bool {
        self.replica.is_busy()
    }

    pub(super) fn has_answers(&self) -> bool {
        self.store.has_answers()
    }
}
