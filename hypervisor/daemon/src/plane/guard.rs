//! Looks after whose the VMs of this host are. One that is another host's by now is ended here: its disk is fenced by the lock's
//! epoch anyhow, and a guest that can no longer write is of no use to anybody.

use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use hypervisor_core::ownership::{Claimed, Lock, Verdict, verdict};

use super::Plane;
use super::cluster::Cluster;
use crate::machine::{Request, Snapshot};

/// How often. What another host writes meanwhile is not at stake: that is the lock's to keep.
const EVERY: Duration = Duration::from_secs(1);

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
                Verdict::Ours(Some(epoch)) if ours != Some(epoch) => {
                    machine.ask(Request::Epoch(epoch)).await;
                }
                Verdict::Ours(_) => {}
            }
        }
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
