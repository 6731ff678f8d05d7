//! The control plane: which VMs there are, whose they are, and what is asked of them.
//!
//! ```text
//!   vsand: documents ──follow──► Cluster ──► orders for VMs of this host ──► machines
//!                                   │                                          │ snapshots
//!   API ──► Plane ──────────────────┤◄─────────────────────────────────────────┘
//!             │ orders for others   └──► guard: a VM that is not ours any more is ended
//!             ▼
//!           vm/run ◄── report: what became of it; vm/host: what this host says
//! ```
//!
//! **Autonomy.** VMs that run need none of this. Stopping, killing, pausing and resuming one on its own host works without the
//! directory; creating, changing and starting need it, for the lock of the VM's disk is there.
//!
//! **An order for another host** is written into `vm/run` with the next number. The host that has the VM follows it and says in its
//! report which number it has come to and why not, if not; whoever was asked waits for that. A start goes that way also to the
//! host that was asked, so that there is one order of starts for all hosts.
//!
//! What it must not know: HTTP, processes, control groups.

mod cluster;
pub mod fail;
mod guard;
mod report;
mod view;
mod vms;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::{HostCapacity, VmName};
use ferro_protocol::ids::HostId;
use ferro_transport::directory::{Directory, Event};
use hypervisor_core::documents::PREFIX;
use tokio::sync::{mpsc, oneshot, watch};

use self::cluster::Cluster;
use crate::host::capacity;
use crate::machine::record::{Record, load_all};
use crate::machine::{self, Asker, MachineHandle, Request, Services, Snapshot, Whose};

/// How long the first look at the directory may take before the API answers without it.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(3);

/// The control plane.
#[derive(Debug)]
pub struct Plane {
    services: Arc<Services>,
    directory: Directory,
    cluster: watch::Sender<Option<Arc<Cluster>>>,
    lost: Mutex<Option<String>>,
    machines: Mutex<BTreeMap<VmName, MachineHandle>>,
    changed: mpsc::Sender<()>,
    /// Machines are made one at a time, or a VM could get two.
    making: tokio::sync::Mutex<()>,
}

impl Plane {
    /// Takes up the VMs of this host and begins to follow the directory.
    pub async fn start(
        services: Arc<Services>,
        questions: mpsc::Receiver<Whose>,
    ) -> std::io::Result<Arc<Self>> {
        let (changed, changes) = mpsc::channel(1);
        let directory = Directory::new(&services.config.vsand_socket, PREFIX);
        let (cluster, _) = watch::channel(None);
        let plane = Arc::new(Self {
            services,
            directory,
            cluster,
            lost: Mutex::new(Some("it was not asked yet".to_owned())),
            machines: Mutex::new(BTreeMap::new()),
            changed,
            making: tokio::sync::Mutex::new(()),
        });
        tokio::spawn(guard::answer(Arc::clone(&plane), questions));
        for (name, record) in load_all(&plane.services.config.state_dir)? {
            plane.take_up(name, record).await;
        }
        let (events_in, events) = mpsc::channel(16);
        let follower = Arc::clone(&plane);
        tokio::spawn(async move { follower.directory.follow(None, events_in).await });
        tokio::spawn(Arc::clone(&plane).follow(events));
        tokio::spawn(report::run(Arc::clone(&plane), changes));
        tokio::spawn(guard::run(Arc::clone(&plane)));
        Ok(plane)
    }

    /// Returns when the directory was seen, or does not answer.
    pub async fn ready(&self) {
        let mut cluster = self.cluster.subscribe();
        let seen = cluster.wait_for(Option::is_some);
        // Either way the API serves.
        let _in_time = tokio::time::timeout(FIRST_LOOK_MAX, seen).await;
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<VmName, MachineHandle>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self, name: &VmName) -> Option<MachineHandle> {
        self.machines().get(name).cloned()
    }

    fn snapshots(&self) -> BTreeMap<VmName, Snapshot> {
        self.machines().iter().map(|(name, machine)| (name.clone(), machine.snapshot())).collect()
    }

    fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_lost(&self, why: Option<String>) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The cluster as it was last seen.
    fn seen(&self) -> Option<Arc<Cluster>> {
        self.cluster.borrow().clone()
    }

    /// The same where nothing can be said without it.
    fn known(&self) -> Result<Arc<Cluster>, ApiError> {
        self.seen().ok_or_else(|| fail::no_cluster(&self.lost().unwrap_or_default()))
    }

    async fn take_up(&self, name: VmName, record: Record) -> MachineHandle {
        let machine =
            machine::start(Arc::clone(&self.services), name.clone(), record, self.changed.clone()).await;
        self.machines().insert(name, machine.clone());
        machine
    }

    /// The task of a VM that this host has or is to have.
    async fn machine_for(&self, name: &VmName, spec: &ferro_protocol::api::vm::VmSpec) -> MachineHandle {
        let _one_at_a_time = self.making.lock().await;
        match self.machine(name) {
            Some(machine) => machine,
            None => self.take_up(name.clone(), Record::new(spec.clone())).await,
        }
    }

    async fn follow(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::View(view) => {
                    let before = self.seen();
                    let cluster = Arc::new(Cluster::read(&view, before.as_ref()));
                    let name = cluster.name(cluster.me);
                    *self.services.name.lock().unwrap_or_else(PoisonError::into_inner) = name;
                    self.set_lost(None);
                    self.cluster.send_replace(Some(Arc::clone(&cluster)));
                    self.carry_out(&cluster).await;
                    self.forget_deleted(&cluster).await;
                }
                Event::Lost(why) => {
                    self.set_lost(Some(why));
                    // Whoever waits for the directory looks again.
                    self.cluster.send_modify(|_| {});
                }
            }
        }
    }

    /// Hands the orders for VMs of this host on. Each machine knows the last number that it has come to.
    async fn carry_out(&self, cluster: &Cluster) {
        for (name, run) in cluster.runs.iter().filter(|(_, run)| run.it.host == cluster.me) {
            let (Some(verb), Some(spec)) = (run.it.verb, cluster.specs.get(name)) else { continue };
            let done = self.machine(name).is_some_and(|machine| machine.snapshot().order >= run.it.order);
            if done {
                continue;
            }
            let machine = self.machine_for(name, &spec.it).await;
            let asker = Asker::Directory(run.it.order);
            // One that is too busy is asked again with the next view.
            let (spec, inherits) = (Box::new(spec.it.clone()), run.it.ports.clone());
            machine.try_ask(Request::Do { verb, spec, inherits, asker });
        }
    }

    /// VMs that were deleted, here or elsewhere: nothing of them is kept.
    async fn forget_deleted(&self, cluster: &Cluster) {
        let gone: Vec<(VmName, MachineHandle)> = {
            let machines = self.machines();
            let gone = machines.iter().filter(|(name, _)| !cluster.specs.contains_key(*name));
            gone.map(|(name, machine)| (name.clone(), machine.clone())).collect()
        };
        for (name, machine) in gone {
            let snapshot = machine.snapshot();
            if snapshot.status.state.is_active() || snapshot.leftovers {
                continue;
            }
            let (answer, answered) = oneshot::channel();
            if machine.ask(Request::Forget(answer)).await && answered.await == Ok(true) {
                self.machines().remove(&name);
            }
        }
    }

    /// What this host has for VMs.
    fn capacity(&self) -> HostCapacity {
        let room = capacity::room(&self.services.config);
        let (cpu, memory) = self.services.claims.capacity(&room);
        let (control_groups, limits_enforced) = self.services.groups.describe();
        let backends = &self.services.backends;
        HostCapacity {
            host: self.seen().map_or(HostId::from_bytes([0; 16]), |cluster| cluster.me),
            host_name: self.services.host_name(),
            cpu,
            memory,
            kvm: backends.kvm().clone(),
            qemu: backends.has_qemu().then(|| self.services.config.qemu.display().to_string()),
            control_groups,
            limits_enforced,
        }
    }
}
