//! Who connects to whom: one listener for all that comes in, and a data connection to each other host, made again whenever
//! it breaks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_transport::UnixTime;
use ferro_transport::control::{ControlHandler, serve_control};
use ferro_transport::join::Registrar;
use ferro_transport::tls::{Channel, Endpoint, Incoming, Peer, RawTls, connect};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Member;
use super::network::Answers;
use crate::data::port::Command;

/// Between two attempts to connect.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Serves what comes in until the endpoint ends.
pub async fn accept(member: Arc<Member>, mut endpoint: Endpoint, registrar: Option<Arc<Registrar>>) {
    let answers: Arc<dyn ControlHandler> = Arc::new(Answers::new(&member));
    while let Some(incoming) = endpoint.accept().await {
        match (incoming.peer, incoming.channel) {
            (Peer::Joiner, Channel::Join) => join(&member, registrar.as_ref(), incoming),
            (Peer::Host(host), Channel::Control) => {
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    if let Err(error) = serve_control(incoming.stream, host, answers).await {
                        tracing::debug!(%host, %error, "a control connection has ended");
                    }
                });
            }
            (Peer::Host(host), Channel::Data) => data(&member, host, incoming),
            (peer, channel) => tracing::warn!(?peer, ?channel, "a connection of the wrong kind is refused"),
        }
    }
    tracing::error!("the listener has ended: no other host can reach this one");
}

fn join(member: &Arc<Member>, registrar: Option<&Arc<Registrar>>, incoming: Incoming) {
    let Some(registrar) = registrar.cloned() else {
        tracing::warn!(addr = %incoming.addr, "this host has no CA key and can't let others join");
        return;
    };
    let member = Arc::clone(member);
    tokio::spawn(async move {
        let now = member.identity.now().unwrap_or_else(UnixTime::now);
        if let Err(error) = registrar.serve(incoming, now).await {
            tracing::warn!(%error, "a host did not join");
        }
    });
}

/// Another host wants to ask our disks.
fn data(member: &Arc<Member>, host: HostId, incoming: Incoming) {
    let state = member.state();
    if !state.hosts.contains_key(&host) {
        if state.hosts.is_empty() {
            // This host has just joined and has not heard yet who the others are; they dial again.
            tracing::debug!(%host, addr = %incoming.addr, "a host is refused: the members are not known here yet");
        } else {
            tracing::warn!(%host, addr = %incoming.addr, "a host that is no member of the cluster is refused");
        }
        return;
    }
    match RawTls::take_apart(incoming.stream) {
        Ok(raw) => {
            let id = member.fresh_connection();
            let _stopping =
                member.data.send(Command::Connected { id, host, outbound: false, raw: Box::new(raw) });
        }
        Err(error) => tracing::warn!(%host, %error, "a data connection could not be taken over"),
    }
}

/// Keeps one data connection to each other host.
#[derive(Default)]
pub struct Dialer {
    hosts: HashMap<HostId, Dialing>,
}

struct Dialing {
    address: SocketAddr,
    /// Told when the connection breaks.
    broken: mpsc::UnboundedSender<()>,
    task: JoinHandle<()>,
}

impl Dialer {
    /// Dials the hosts that are there now, and no others.
    pub fn follow(&mut self, member: &Arc<Member>) {
        let state = member.state();
        self.hosts.retain(|host, dialing| {
            let keep = state.hosts.get(host).is_some_and(|h| h.address == dialing.address);
            if !keep {
                dialing.task.abort();
            }
            keep
        });
        for host in state.hosts.values().filter(|h| h.id != member.host()) {
            self.hosts.entry(host.id).or_insert_with(|| {
                let (broken, breaks) = mpsc::unbounded_channel();
                let task = tokio::spawn(dial(Arc::clone(member), host.id, host.address, breaks));
                Dialing { address: host.address, broken, task }
            });
        }
    }

    /// The outbound connection to this host broke.
    pub fn broken(&self, host: HostId) {
        if let Some(dialing) = self.hosts.get(&host) {
            // A task that has ended belongs to a host that is gone.
            let _gone = dialing.broken.send(());
        }
    }
}

async fn dial(
    member: Arc<Member>,
    host: HostId,
    address: SocketAddr,
    mut breaks: mpsc::UnboundedReceiver<()>,
) {
    let mut pause = RETRY_MIN;
    loop {
        let connected = connect(address, Some(host), Channel::Data, &member.identity).await;
        match connected.map(|c| RawTls::take_apart(c.stream)) {
            Ok(Ok(raw)) => {
                pause = RETRY_MIN;
                let id = member.fresh_connection();
                while breaks.try_recv().is_ok() {}
                if member
                    .data
                    .send(Command::Connected { id, host, outbound: true, raw: Box::new(raw) })
                    .is_err()
                {
                    return;
                }
                if breaks.recv().await.is_none() {
                    return;
                }
            }
            Ok(Err(error)) => tracing::debug!(%host, %error, "a data connection could not be taken over"),
            Err(error) => tracing::debug!(%host, %address, %error, "no data connection"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}
