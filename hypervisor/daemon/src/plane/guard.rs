//! Looks after whose the VMs of this host are. One that is another host's by now is ended here: its disk is fenced by the lock's
//! epoch anyhow, and a guest that can no longer write is of no use to anybody.

use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::ErrorCode;
use ferro_protocol::api::vm::VmName;
use ferro_protocol::ids::HostId;
use hypervisor_core::documents::{FORMAT, RunDocument, run_name};
use hypervisor_core::ownership::{Claimed, Lock, Verdict, verdict};
use tokio::sync::mpsc;

use super::Plane;
use super::cluster::Cluster;
use crate::machine::{Request, Snapshot, Whose};

/// How often. What another host writes meanwhile is not at stake: that is the lock's to keep.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is tried to be sure of a document, and how long news of it may take.
const SURE_TRIES: u32 = 5;
const SURE_WAIT: Duration = Duration::from_secs(1);

/// Never ends.
pub(super) async fn run(plane: Arc<Plane>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(cluster) = plane.seen() else { continue };
        for (name, snapshot) in plane.snapshots() {
            if !snapshot.status.state.is_active() {
                continue;
            }
            let Some(machine) = plane.machine(&name) else { continue };
            let lost = plane.lost().is_some();
            let claimed = match cluster.runs.get(&name) {
                _ if lost => Claimed::Unknown,
                Some(run) => Claimed::By(&run.it),
                None => Claimed::Nobody,
            };
            let ours = snapshot.status.epoch;
            // Before the lock is taken there is none to be lost.
            let lock = if ours.is_some() { lock(&plane, &snapshot).await } else { Lock::Unknown };
            match verdict(cluster.me, ours, claimed, lock) {
                Verdict::Lost(why) => {
                    machine.ask(Request::Lost(with_name(&cluster, &why))).await;
                }
                Verdict::Ours(epoch) => {
                    if epoch != ours
                        && let Some(epoch) = epoch
                    {
                        machine.ask(Request::Epoch(epoch)).await;
                    }
                    if matches!(lock, Lock::Held(host, _) if host == cluster.me) {
                        put_right(&plane, &cluster, &name, &snapshot).await;
                    }
                }
            }
        }
    }
}

/// Answers whether VMs are other hosts'. Ends with the daemon.
pub(super) async fn answer(plane: Arc<Plane>, mut questions: mpsc::Receiver<Whose>) {
    while let Some(Whose { vm, answer }) = questions.recv().await {
        let plane = Arc::clone(&plane);
        tokio::spawn(async move {
            // Whoever asked may have gone.
            let _told = answer.send(is_elsewhere(&plane, &vm).await);
        });
    }
}

/// What is seen here may be of a time before another host took the VM, when vsand has just started: so it counts only if the
/// document can be written again as it was seen.
async fn is_elsewhere(plane: &Plane, name: &VmName) -> Option<bool> {
    for _ in 0..SURE_TRIES {
        let mut views = plane.cluster.subscribe();
        let cluster = views.borrow_and_update().clone()?;
        if plane.lost().is_some() {
            return None;
        }
        let Some(run) = cluster.runs.get(name) else { return Some(false) };
        if run.it.host != cluster.me {
            return Some(true);
        }
        let what = format!("making sure whose VM {name} is");
        match plane.put(&what, &run_name(name), run.revision, &run.it).await {
            Ok(_) => return Some(false),
            Err(error) if error.code == ErrorCode::Conflict => {
                // It is seen in a moment what it says now.
                let _news = tokio::time::timeout(SURE_WAIT, views.changed()).await;
            }
            Err(_) => return None,
        }
    }
    None
}

/// The document names a host that was told to start the VM and could not, since its lock is ours.
async fn put_right(plane: &Plane, cluster: &Cluster, name: &VmName, snapshot: &Snapshot) {
    let Some(run) = cluster.runs.get(name).filter(|run| run.it.host != cluster.me) else { return };
    tracing::warn!(vm = %name, host = cluster.name(run.it.host), "the directory names another host, and the lock is ours");
    let document = RunDocument {
        format: FORMAT,
        host: cluster.me,
        epoch: snapshot.status.epoch,
        wanted: snapshot.wanted,
        incarnation: snapshot.status.incarnation,
        order: run.it.order.max(snapshot.order),
        verb: None,
        ports: snapshot.ports.clone(),
    };
    let what = format!("taking VM {name} back");
    if let Err(error) = plane.put(&what, &run_name(name), run.revision, &document).await {
        tracing::warn!(vm = %name, %error, "it is tried again");
    }
}

async fn lock(plane: &Plane, snapshot: &Snapshot) -> Lock {
    let Some(first) = snapshot.spec.disks.first() else { return Lock::NoDisk };
    let Ok(volume) = first.volume.parse() else { return Lock::Unknown };
    match plane.services.vsand.volume(&volume).await {
        Ok(info) => match info.owner {
            Some(owner) => Lock::Held(owner.host, info.epoch),
            None => Lock::Nobody(info.epoch),
        },
        Err(_) => Lock::Unknown,
    }
}

/// Hosts by name, for people.
fn with_name(cluster: &Cluster, why: &str) -> String {
    let known = |id: &HostId| (id.to_string(), cluster.name(*id));
    cluster.names.keys().map(known).fold(why.to_owned(), |text, (id, name)| text.replace(&id, &name))
}
