//! What the API asks, done.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use ferro_protocol::api::switch::{
    Applied, Attachment, MacPage, MacRelease, NetworkConfig, PortInfo, SwitchStatus, TraceAnswer, Transacted,
    Transaction, TunnelInfo, UplinkInfo,
};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_protocol::document::DOCUMENT_BYTES_MAX;
use ferro_protocol::net::{NetName, Vni};
use tokio::sync::oneshot;
use vswitch_core::config::transact;
use vswitch_core::frame::Offload;

use super::documents::{self, NetworkDocument, Undo};
use super::keeper::Version;
use super::state::Port;
use super::steward::Input;
use super::{CATCH_UP, Plane, Shared, devices, view};
use crate::api::control::{ControlPlane, MacQuery, Point, Result};
use crate::api::fail;
use crate::data::capture::{Capture, CaptureOf, CaptureOptions};
use crate::data::port::{CaptureRefused, Command, TraceFrom};
use crate::metrics;
use crate::trace::describe;
use ferro_transport::directory::{Directory, PutError};

/// A change that others overtake so often is given up.
const OVERTAKEN_MAX: u32 = 20;
/// The most rows of the table of addresses that are looked through for a page.
const MACS_MAX: usize = 1 << 20;
/// Frames that may wait in a capture.
const CAPTURE_FRAMES: usize = 4096;

/// Puts a network in the directory in place of the one with this revision.
pub(super) async fn put_in_directory(
    shared: &Shared,
    directory: &Directory,
    basis: u64,
    document: &NetworkDocument,
) -> Result<u64> {
    const WHAT: &str = "changing the network";
    let text = documents::write(document).map_err(|error| fail::internal(WHAT, error))?;
    if text.len() > DOCUMENT_BYTES_MAX {
        let message = format!(
            "the network has {} bytes, a document of the directory at most {DOCUMENT_BYTES_MAX}",
            text.len()
        );
        let next = "remove ports that nobody needs; nothing was changed";
        return Err(ApiError::new(ErrorCode::LimitReached, message, next));
    }
    directory.put(&documents::network_name(), basis, text).await.map_err(|error| match error {
        PutError::Overtaken(now) => fail::basis_passed(basis, now),
        PutError::Unavailable(why) => {
            tracing::debug!(why, "the directory can't be changed");
            let lost = shared.state().lost.is_some();
            let what = if lost { format!("{WHAT} ({why})") } else { WHAT.to_owned() };
            fail::no_quorum(what)
        }
        PutError::Unknown(why) => fail::timed_out(format!("{WHAT} ({why})")),
        PutError::Refused(error) => error,
    })
}

/// Puts a network in the settings file of a host that is alone, in place of the one with this revision.
pub(super) async fn put_in_file(shared: &Shared, basis: u64, document: NetworkDocument) -> Result<u64> {
    let _one = shared.changing.lock().await;
    let (Version { revision: now, spec: old }, next) = {
        let state = shared.state();
        (state.keeper.kept().current.clone(), state.keeper.newest() + 1)
    };
    if now != basis {
        return Err(fail::basis_passed(basis, now));
    }
    let (config, spec) = (Arc::clone(&shared.config), document.spec.clone());
    let written = tokio::task::spawn_blocking(move || config.rewrite(&old, &spec)).await;
    let failed = |why: String| {
        let next = "see that vswitchd may write the file (ReadWritePaths of its unit), or edit it and restart vswitchd";
        ApiError::new(ErrorCode::Io, why, next)
    };
    written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    let (answer, answered) = oneshot::channel();
    let input = Input::Document(next, Box::new(document), answer);
    let inputs = shared.inputs.clone();
    inputs.send(input).await.map_err(|_| fail::worker_gone("changing the network"))?;
    answered.await.map_err(|_| fail::worker_gone("changing the network"))?;
    Ok(next)
}

/// Runs to its end even if whoever waits for it goes away.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(fail::internal("the request", error)),
    }
}

async fn change(shared: &Shared, transaction: Transaction) -> Result<Transacted> {
    let mut overtaken = 0;
    loop {
        let base = shared.state().newest().map_err(|bad| {
            let message = format!("the network in the directory can't be used: {bad}");
            ApiError::new(ErrorCode::Conflict, message, "bring all hosts to the same version")
        })?;
        if let Some(basis) = transaction.basis.filter(|basis| *basis != base.revision) {
            return Err(fail::basis_passed(basis, base.revision));
        }
        let (spec, _) =
            transact(&base.spec, &transaction.changes).map_err(|faults| fail::invalid_network(&faults))?;
        let changed = spec != base.spec;
        let mut done = Transacted {
            revision: base.revision,
            changed,
            dry_run: transaction.dry_run,
            spec: spec.clone(),
            confirm_within_s: transaction.confirm_within_s.filter(|_| changed),
        };
        if !changed || transaction.dry_run {
            return Ok(done);
        }
        let undo = transaction.confirm_within_s.map(|within_s| Undo { within_s, spec: base.spec });
        match shared.put_network(base.revision, NetworkDocument::new(spec, false, undo)).await {
            Ok(revision) => {
                done.revision = revision;
                return Ok(done);
            }
            // Somebody was faster. The same changes are made to what is there now, unless they were for this only.
            Err(error)
                if error.code == ErrorCode::Conflict
                    && transaction.basis.is_none()
                    && overtaken < OVERTAKEN_MAX =>
            {
                overtaken += 1;
                tokio::time::sleep(CATCH_UP).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn attach(shared: &Shared, name: &NetName, to: Attachment) -> Result<()> {
    let to = with_socket(shared, name, to);
    let _one = shared.attaching.lock().await;
    {
        let state = shared.state();
        if !state.network.ports().contains_key(name) {
            return Err(fail::port_not_found(name));
        }
        if let Some(port) = state.ports.get(name) {
            if port.to == to && port.plugged {
                return Ok(());
            }
            if port.to != to {
                return Err(fail::port_attached(name, devices::words(&port.to)));
            }
        }
        let other =
            state.ports.iter().find(|(other, port)| *other != name && devices::same_device(&port.to, &to));
        if let Some((other, _)) = other {
            return Err(fail::device_taken(devices::words(&to), other));
        }
    }
    let made = shared.plug(name, &to).await?;
    let port = Port { to, made, plugged: true, link: None, trouble: None };
    // What the worker said of its link meanwhile is asked for with the next snapshot.
    shared.state().ports.insert(name.clone(), port);
    if let Err(error) = save_attachments(shared).await {
        let made = shared.state().ports.remove(name).filter(|port| port.made).map(|port| port.to);
        unplug(shared, name, made).await?;
        return Err(error);
    }
    if made { persist(shared, name, true).await } else { Ok(()) }
}

async fn detach(shared: &Shared, name: &NetName) -> Result<()> {
    let _one = shared.attaching.lock().await;
    let Some(old) = shared.state().ports.remove(name) else {
        let known = shared.state().network.ports().contains_key(name);
        return Err(if known { fail::port_not_attached(name) } else { fail::port_not_found(name) });
    };
    // What was made here stays only as long as it is written down that it was.
    match &old {
        Port { made: true, plugged: true, .. } => persist(shared, name, false).await?,
        Port { made: true, to, .. } => remove_made(name, to.clone()).await?,
        _ => {}
    }
    if let Err(error) = save_attachments(shared).await {
        let stays = old.made && old.plugged;
        shared.state().ports.insert(name.clone(), old);
        if stays {
            persist(shared, name, true).await?;
        }
        return Err(error);
    }
    unplug(shared, name, old.made.then_some(old.to)).await
}

/// Has what was made here for a port outlive this program, or not.
async fn persist(shared: &Shared, name: &NetName, stays: bool) -> Result<()> {
    shared.persist(name, stays).await.ok_or_else(|| fail::worker_gone(format!("port {name}")))
}

/// Takes a port's device from the worker. `made`: what was made here for it goes, too.
async fn unplug(shared: &Shared, name: &NetName, made: Option<Attachment>) -> Result<()> {
    let told = name.clone();
    let had = shared.ask(move |answer| Command::Detach { name: told, answer }).await;
    let had = had.ok_or_else(|| fail::worker_gone(format!("detaching port {name}")))?;
    // The worker lets go of it for good; of what it did not have, nobody does.
    match made {
        Some(made) if !had => remove_made(name, made).await,
        _ => Ok(()),
    }
}

/// Removes what was made here for a port and has no worker.
async fn remove_made(name: &NetName, made: Attachment) -> Result<()> {
    match tokio::task::spawn_blocking(move || devices::remove(&made)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(port = %name, %error, "the interface stays: `ip link del` removes it")
        }
        Err(error) => return Err(fail::internal(format!("detaching port {name}"), error)),
    }
    Ok(())
}

async fn save_attachments(shared: &Shared) -> Result<()> {
    let (all, taps) = {
        let ports = &shared.state().ports;
        let all = ports.iter().map(|(name, port)| (name.clone(), port.to.clone())).collect();
        let taps = ports.iter().filter(|(_, port)| port.made).map(|(name, _)| name.clone()).collect();
        (all, taps)
    };
    let files = shared.files.clone();
    let saved = tokio::task::spawn_blocking(move || files.save_attachments(&all, &taps)).await;
    let failed = |why: String| {
        ApiError::new(ErrorCode::Io, why, "see that the state directory can be written; nothing was changed")
    };
    saved.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// A socket that is not named has its place.
fn with_socket(shared: &Shared, name: &NetName, to: Attachment) -> Attachment {
    match to {
        Attachment::VhostUser { socket: None, connect, queue_pairs } => {
            let path = shared.config.ports_dir().join(format!("{name}.sock"));
            Attachment::VhostUser { socket: Some(path.display().to_string()), connect, queue_pairs }
        }
        other => other,
    }
}

impl Plane {
    async fn input(&self, what: &str, input: impl FnOnce(oneshot::Sender<bool>) -> Input) -> Result<bool> {
        let (answer, answered) = oneshot::channel();
        self.inputs.send(input(answer)).await.map_err(|_| fail::worker_gone(what))?;
        answered.await.map_err(|_| fail::worker_gone(what))
    }

    async fn snapshot(&self, what: &str) -> Result<Box<crate::data::snapshot::Snapshot>> {
        self.shared.ask(Command::Snapshot).await.ok_or_else(|| fail::worker_gone(what))
    }

    async fn mesh_peers(&self) -> Vec<crate::tunnel::control::PeerView> {
        match &self.shared.mesh {
            Some(mesh) => mesh.peers().await,
            None => Vec::new(),
        }
    }
}

#[async_trait]
impl ControlPlane for Plane {
    async fn status(&self) -> Result<SwitchStatus> {
        let (snapshot, mesh) = tokio::join!(self.shared.ask(Command::Snapshot), self.mesh_peers());
        let snapshot = snapshot.ok_or_else(|| fail::worker_gone("the status"))?;
        Ok(view::status(&self.shared.state(), &snapshot, &mesh))
    }

    async fn config(&self) -> Result<NetworkConfig> {
        let state = self.shared.state();
        let current = state.keeper.kept().current.clone();
        Ok(NetworkConfig { revision: current.revision, source: state.source(), spec: current.spec })
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted> {
        let shared = Arc::clone(&self.shared);
        detached(async move { change(&shared, transaction).await }).await
    }

    async fn applied(&self, revision: u64, wait: Duration) -> Result<Applied> {
        let mut changed = self.shared.changed.subscribe();
        let settled = async {
            while !self.shared.state().applied(revision).is_settled() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        // Either way the answer is how it is then.
        let _in_time = tokio::time::timeout(wait, settled).await;
        Ok(self.shared.state().applied(revision))
    }

    async fn confirm(&self, revision: u64) -> Result<()> {
        let open = self.shared.state().keeper.open().filter(|open| open.revision == revision);
        let Some(open) = open else { return Err(fail::nothing_to_confirm(revision)) };
        let spec = self.shared.state().keeper.kept().current.spec.clone();
        let shared = Arc::clone(&self.shared);
        let put =
            detached(
                async move { shared.put_network(revision, NetworkDocument::new(spec, true, None)).await },
            );
        match put.await {
            Ok(_) => {}
            // This host alone may keep what cut it off; what asked to be confirmed is undone by whoever does not hear of it.
            Err(error) if open.asked => return Err(error),
            Err(error) => tracing::warn!(revision, %error, "confirmed on this host only"),
        }
        // The confirmed revision may be in force already, and then nothing waits any more.
        self.input("confirming", |answer| Input::Confirm(revision, answer)).await.map(drop)
    }

    async fn undo(&self, revision: u64) -> Result<()> {
        if self.shared.state().keeper.open().is_none_or(|open| open.revision != revision) {
            return Err(fail::nothing_to_confirm(revision));
        }
        let undone = self.input("undoing", |answer| Input::Undo(revision, answer)).await?;
        if undone { Ok(()) } else { Err(fail::nothing_to_confirm(revision)) }
    }

    async fn ports(&self) -> Result<Vec<PortInfo>> {
        let snapshot = self.snapshot("listing ports").await?;
        Ok(view::ports(&self.shared.state(), &snapshot))
    }

    async fn port(&self, name: &NetName) -> Result<PortInfo> {
        let snapshot = self.snapshot("showing a port").await?;
        view::port(&self.shared.state(), &snapshot, name).ok_or_else(|| fail::port_not_found(name))
    }

    async fn attach(&self, name: &NetName, to: Attachment) -> Result<PortInfo> {
        let (shared, attached) = (Arc::clone(&self.shared), name.clone());
        detached(async move { attach(&shared, &attached, to).await }).await?;
        self.port(name).await
    }

    async fn detach(&self, name: &NetName) -> Result<()> {
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        detached(async move { detach(&shared, &name).await }).await
    }

    async fn uplinks(&self) -> Result<Vec<UplinkInfo>> {
        let snapshot = self.snapshot("listing uplinks").await?;
        Ok(view::uplinks(&self.shared.state(), &snapshot))
    }

    async fn tunnels(&self) -> Result<Vec<TunnelInfo>> {
        let snapshot = self.snapshot("listing tunnels").await?;
        let mesh = self.mesh_peers().await;
        Ok(view::tunnels(&self.shared.state(), &snapshot, &mesh))
    }

    async fn macs(&self, query: MacQuery) -> Result<MacPage> {
        let macs = |answer| Command::Macs { limit: MACS_MAX, answer };
        let (all, _more) =
            self.shared.ask(macs).await.ok_or_else(|| fail::worker_gone("listing addresses"))?;
        view::macs(&self.shared.state(), all, &query)
    }

    async fn release_mac(&self, release: MacRelease) -> Result<()> {
        let bad = |error: &dyn std::fmt::Display| {
            ApiError::new(ErrorCode::BadRequest, error.to_string(), "see `vswctl mac list --frozen`")
        };
        let vni = release.vni.map(Vni::new).transpose().map_err(|error| bad(&error))?;
        let mac = release.mac;
        let macs = |answer| Command::Macs { limit: MACS_MAX, answer };
        let (all, _more) =
            self.shared.ask(macs).await.ok_or_else(|| fail::worker_gone("releasing an address"))?;
        if !all.iter().any(|it| it.frozen && it.vni == vni && it.mac == mac) {
            return Err(fail::mac_not_frozen(mac));
        }
        let released = self.shared.data.send(Command::Release { vni, mac });
        released.map_err(|_| fail::worker_gone("releasing an address"))?;
        self.shared.state().frozen.remove(&(vni, mac));
        Ok(())
    }

    async fn trace(&self, from: Point, frame: Bytes) -> Result<TraceAnswer> {
        let place = match &from {
            Point::Port(name) => TraceFrom::Port(name.clone()),
            Point::Uplink(name) => TraceFrom::Uplink(name.clone()),
            Point::Group(_) => return Err(fail::point_not_found(&from)),
        };
        let ask =
            |answer| Command::Trace { from: place, frame: frame.to_vec(), offload: Offload::NONE, answer };
        let traced = self.shared.ask(ask).await.ok_or_else(|| fail::worker_gone("tracing"))?;
        let (trace, names) = traced.map_err(|_| fail::point_not_found(&from))?;
        let state = self.shared.state();
        Ok(describe(&trace, &view::Places { names: &names, state: &state }))
    }

    async fn capture(&self, what: Point, snap_bytes: usize) -> Result<Capture> {
        let of = match &what {
            Point::Port(name) => CaptureOf::Port(name.clone()),
            Point::Group(name) => CaptureOf::Group(name.clone()),
            Point::Uplink(name) => CaptureOf::Uplink(name.clone()),
        };
        let options = CaptureOptions { bytes_max: snap_bytes, frames_max: CAPTURE_FRAMES };
        let begin = |answer| Command::CaptureStart { of, options, answer };
        let begun = self.shared.ask(begin).await.ok_or_else(|| fail::worker_gone("capturing"))?;
        begun.map_err(|refused| match refused {
            CaptureRefused::Unknown(_) => fail::point_not_found(&what),
            CaptureRefused::TooMany(max) => fail::captures_limit(max),
        })
    }

    async fn metrics(&self) -> Result<String> {
        let (snapshot, mesh) = tokio::join!(self.shared.ask(Command::Snapshot), self.mesh_peers());
        let snapshot = snapshot.ok_or_else(|| fail::worker_gone("the metrics"))?;
        let sample = {
            let state = self.shared.state();
            metrics::Sample {
                status: view::status(&state, &snapshot, &mesh),
                ports: view::ports(&state, &snapshot),
                worker: metrics::Worker {
                    turns: snapshot.turns,
                    sleeps: snapshot.sleeps,
                    addresses: snapshot.addresses as u64,
                    delayed: snapshot.delayed as u64,
                    capture_missed: snapshot.capture_missed,
                },
                gateways: snapshot
                    .gateways
                    .iter()
                    .map(|(group, seen)| (group.to_string(), seen.all().to_vec()))
                    .collect(),
            }
        };
        metrics::text(sample).map_err(|error| fail::internal("the metrics", error))
    }
}
