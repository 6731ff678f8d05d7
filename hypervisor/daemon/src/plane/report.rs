//! What this host says: its own report, and of each VM that it has, in `vm/run`, what became of it. Written whenever it changes, for
//! as long as it takes; and every so often all the same, as a sign of life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::vm::{VmName, VmPower};
use ferro_transport::directory::PutError;
use ferro_transport::documents;
use hypervisor_core::documents::{FORMAT, HostDocument, HostVm, RunDocument, host_name, run_name};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Plane;
use super::cluster::{At, Cluster};
use crate::machine::Snapshot;

/// A sign of life.
pub(super) const BEAT: Duration = Duration::from_secs(20);
/// Changes that come within this time are written together.
const GATHER: Duration = Duration::from_millis(50);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends with the plane. `changed` hears of VMs of this host.
pub(super) async fn run(plane: Arc<Plane>, mut changed: mpsc::Receiver<()>) {
    let mut cluster = plane.cluster.subscribe();
    let mut beat = (0_u64, Instant::now());
    loop {
        let seen = cluster.borrow_and_update().clone();
        let mut written = Ok(());
        if let Some(seen) = seen.filter(|_| plane.lost().is_none()) {
            let snapshots = plane.snapshots();
            if beat.1.elapsed() >= BEAT || beat.0 == 0 {
                beat = (beat.0 + 1, Instant::now());
            }
            written = say(&plane, &seen, &snapshots, beat.0).await;
            if written.is_ok() {
                written = say_of_vms(&plane, &seen, &snapshots).await;
            }
        }
        if let Err(error) = written {
            tracing::debug!(%error, "this host's words wait for the directory");
            tokio::time::sleep(PAUSE).await;
        }
        let next_beat = beat.1 + BEAT;
        tokio::select! {
            it = changed.recv() => if it.is_none() { return },
            it = cluster.changed() => if it.is_err() { return },
            () = tokio::time::sleep_until(next_beat) => {}
        }
        tokio::time::sleep(GATHER).await;
        while changed.try_recv().is_ok() {}
    }
}

async fn say(
    plane: &Plane,
    seen: &Cluster,
    snapshots: &BTreeMap<VmName, Snapshot>,
    beat: u64,
) -> Result<(), PutError> {
    let vms = snapshots.iter().map(|(name, snapshot)| {
        let Snapshot { status, order, refused, .. } = snapshot.clone();
        (name.clone(), HostVm { status, order, refused })
    });
    let document = HostDocument { format: FORMAT, beat, capacity: plane.capacity(), vms: vms.collect() };
    let before = seen.reports.get(&seen.me).map(|report| &report.document);
    if before.is_some_and(|before| before.it == document) {
        return Ok(());
    }
    let basis = before.map_or(0, |before| before.revision);
    put(plane, &host_name(seen.me), basis, &document).await
}

async fn say_of_vms(
    plane: &Plane,
    seen: &Cluster,
    snapshots: &BTreeMap<VmName, Snapshot>,
) -> Result<(), PutError> {
    for (name, snapshot) in snapshots {
        let Some(At { revision, it: run }) = seen.runs.get(name).filter(|run| run.it.host == seen.me) else {
            continue;
        };
        // An order that has not come to its end may want something else.
        if run.order > snapshot.order && run.verb.is_some() {
            continue;
        }
        let wanted = if snapshot.status.state.is_active() { snapshot.wanted } else { VmPower::Off };
        let now = RunDocument {
            epoch: snapshot.status.epoch,
            wanted,
            incarnation: snapshot.status.incarnation,
            ports: snapshot.ports.clone(),
            ..run.clone()
        };
        if now != *run {
            put(plane, &run_name(name), *revision, &now).await?;
        }
    }
    Ok(())
}

async fn put<T: serde::Serialize>(
    plane: &Plane,
    name: &ferro_protocol::document::DocumentName,
    basis: u64,
    document: &T,
) -> Result<(), PutError> {
    let text = match documents::write(document) {
        Ok(text) => text,
        Err(error) => {
            tracing::error!(document = %name, %error, "a document can't be written");
            return Ok(());
        }
    };
    match plane.directory.put(name, basis, text).await {
        // Of one that was overtaken, the next view says what it is based on.
        Ok(_) | Err(PutError::Overtaken(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
