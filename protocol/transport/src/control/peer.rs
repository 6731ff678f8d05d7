//! A host to ask, whether connected just now or not.
//!
//! ```text
//!            call                       done
//!   Idle ──────────► Connecting ───────────────► Up ──┐
//!    ▲  (not before        │ failed                   │ broke
//!    │    retry_at)        ▼                          │
//!    └─────────────────────┴──────────────────────────┘
//! ```
//!
//! Connecting is a task of its own: a caller with little patience (a Raft heartbeat) gives up waiting without breaking
//! off the handshake. Between attempts there is a pause that doubles from 50 ms to 2 s; calls fail at once meanwhile. A
//! connection that breaks within 2 s counts as a failed attempt: a peer that lets nobody stay is not hammered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferro_protocol::ids::HostId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{CallError, ControlClient, ServiceId};
use crate::identity::IdentityHandle;
use crate::tls::{Channel, connect};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Asks one host, connecting and reconnecting as needed. Clones share the connection.
#[derive(Clone, Debug)]
pub struct ControlPeer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    host: HostId,
    identity: IdentityHandle,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    addrs: Vec<SocketAddr>,
    link: Link,
    pause: Duration,
}

#[derive(Debug)]
enum Link {
    Idle { retry_at: Option<Instant>, reason: Arc<str> },
    Connecting(watch::Receiver<()>),
    Up { client: ControlClient, since: Instant },
}

impl State {
    /// No attempt before the pause is over; the next pause is longer.
    fn failed(&mut self, reason: Arc<str>) {
        let retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.link = Link::Idle { retry_at, reason };
    }
}

impl ControlPeer {
    /// A host to be reached at one of these addresses, tried in order.
    pub fn new(host: HostId, addrs: Vec<SocketAddr>, identity: IdentityHandle) -> Self {
        let link = Link::Idle { retry_at: None, reason: "not tried yet".into() };
        let state = Mutex::new(State { addrs, link, pause: PAUSE_MIN });
        Self { shared: Arc::new(Shared { host, identity, state }) }
    }

    /// The host.
    pub fn host(&self) -> HostId {
        self.shared.host
    }

    /// The host has moved. A connection that stands is kept; the next attempt goes to the new addresses, at once.
    pub fn set_addrs(&self, addrs: Vec<SocketAddr>) {
        let mut state = self.shared.state();
        if state.addrs != addrs {
            state.addrs = addrs;
            state.pause = PAUSE_MIN;
            if let Link::Idle { retry_at, .. } = &mut state.link {
                *retry_at = None;
            }
        }
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        matches!(&self.shared.state().link, Link::Up { client, .. } if !client.is_closed())
    }

    /// Asks and waits for the reply, at most `within`, connecting included. Can be dropped at any time.
    pub async fn call(
        &self,
        service: ServiceId,
        request: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let deadline = Instant::now() + within;
        let timed_out = |_| CallError::TimedOut(self.shared.host, within);
        let client = tokio::time::timeout_at(deadline, self.client()).await.map_err(timed_out)??;
        let call = client.call(service, request, within);
        tokio::time::timeout_at(deadline, call).await.map_err(timed_out)?
    }

    /// The connection that stands, or a new one.
    async fn client(&self) -> Result<ControlClient, CallError> {
        let mut done = match self.shared.begin()? {
            Begun::Up(client) => return Ok(client),
            Begun::Connecting(done) => done,
        };
        // The sender sends nothing; it is dropped when the attempt is over.
        let _over = done.changed().await;
        match &self.shared.state().link {
            Link::Up { client, .. } => Ok(client.clone()),
            Link::Idle { reason, .. } => Err(self.shared.unreachable(reason)),
            Link::Connecting(_) => Err(CallError::Disconnected(self.shared.host)),
        }
    }
}

enum Begun {
    Up(ControlClient),
    Connecting(watch::Receiver<()>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of state is one assignment, so what a panic leaves behind is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, reason: &Arc<str>) -> CallError {
        CallError::Unreachable { host: self.host, reason: Arc::clone(reason) }
    }

    fn begin(self: &Arc<Self>) -> Result<Begun, CallError> {
        let mut state = self.state();
        match &state.link {
            Link::Up { client, .. } if !client.is_closed() => return Ok(Begun::Up(client.clone())),
            Link::Connecting(done) => return Ok(Begun::Connecting(done.clone())),
            Link::Idle { retry_at: Some(at), reason } if Instant::now() < *at => {
                return Err(self.unreachable(reason));
            }
            Link::Up { since, .. } if since.elapsed() < PAUSE_MAX => {
                let reason: Arc<str> = "it closed the connection soon after it was made".into();
                let error = self.unreachable(&reason);
                state.failed(reason);
                return Err(error);
            }
            Link::Up { .. } => state.pause = PAUSE_MIN,
            Link::Idle { .. } => {}
        }
        let (over, done) = watch::channel(());
        state.link = Link::Connecting(done.clone());
        let addrs = state.addrs.clone();
        drop(state);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let result = shared.dial(&addrs).await;
            shared.finish(result);
            drop(over);
        });
        Ok(Begun::Connecting(done))
    }

    async fn dial(&self, addrs: &[SocketAddr]) -> Result<ControlClient, Arc<str>> {
        let mut last: Arc<str> = "no address of it is known".into();
        for &addr in addrs {
            match connect(addr, Some(self.host), Channel::Control, &self.identity).await {
                Ok(connected) => {
                    return Ok(ControlClient::with_addr(connected.stream, self.host, Some(addr)));
                }
                Err(error) => last = error.to_string().into(),
            }
        }
        Err(last)
    }

    fn finish(&self, result: Result<ControlClient, Arc<str>>) {
        let mut state = self.state();
        match result {
            Ok(client) => state.link = Link::Up { client, since: Instant::now() },
            Err(reason) => {
                tracing::debug!(host = %self.host, %reason, "cannot connect");
                state.failed(reason);
            }
        }
    }
}
