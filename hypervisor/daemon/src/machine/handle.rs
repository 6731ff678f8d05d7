//! A hold on a VM's task: what can be asked of it, and what it shows of itself.

use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::{VmPower, VmSpec, VmStatus};
use ferro_protocol::ids::Epoch;
use ferro_protocol::net::NetName;
use hypervisor_core::documents::Verb;
use tokio::sync::{mpsc, oneshot, watch};

/// What is asked of a VM.
#[derive(Debug)]
pub enum Request {
    /// Do something. The specification is what a start starts.
    Do {
        /// What.
        verb: Verb,
        /// What the VM is made of now.
        spec: Box<VmSpec>,
        /// Switch ports that were made for the VM by a host that had it before.
        inherits: Vec<NetName>,
        /// Who wants to know.
        asker: Asker,
    },
    /// The VM is another host's; why.
    Lost(String),
    /// The lock of its first disk is ours under this epoch.
    Epoch(Epoch),
    /// The VM is deleted: forget it, if nothing of it is left. The answer says whether it is forgotten.
    Forget(oneshot::Sender<bool>),
}

/// Who wants to know how an order ends.
#[derive(Debug)]
pub enum Asker {
    /// Somebody who waits.
    Here(oneshot::Sender<Result<(), ApiError>>),
    /// Whoever wrote the order with this number into the directory.
    Directory(u64),
}

/// How a VM is on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// For people.
    pub status: VmStatus,
    /// What it is meant to do.
    pub wanted: VmPower,
    /// What the present run was started with.
    pub spec: VmSpec,
    /// The switch ports that were made for it.
    pub ports: Vec<NetName>,
    /// The last order out of the directory that came to its end.
    pub order: u64,
    /// Why that was not done, if it was not.
    pub refused: Option<ApiError>,
    /// What is held still has to be given back.
    pub leftovers: bool,
}

/// A hold on a VM's task.
#[derive(Clone, Debug)]
pub struct MachineHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) snapshot: watch::Receiver<Snapshot>,
}

impl MachineHandle {
    /// How it is.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Follows how it is.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }

    /// Asks something of it unless it is too busy to take it.
    pub fn try_ask(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }

    /// Asks something of it; false if its task has ended.
    pub async fn ask(&self, request: Request) -> bool {
        self.requests.send(request).await.is_ok()
    }
}
