//! The asking side of one connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferro_protocol::ids::HostId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::debug;

use super::frame::{self, Frame, Kind, PAYLOAD_BYTES_MAX, QUEUE_FRAMES_MAX, ReadError};
use super::task::Task;
use super::{Fault, IN_FLIGHT_MAX, ServiceId};

/// Why a call brought no reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// The reply did not come in time. The peer may or may not have done what was asked.
    #[error("host {0} did not answer within {1:?}; see `vsanctl status` for whether it is up")]
    TimedOut(HostId, Duration),
    /// The connection is gone. The peer may or may not have done what was asked.
    #[error("the connection to host {0} broke; it is made again at the next request")]
    Disconnected(HostId),
    /// There is no connection and none could be made.
    #[error("host {host} can't be reached: {reason}")]
    Unreachable {
        /// The host.
        host: HostId,
        /// The last attempt's error.
        reason: Arc<str>,
    },
    /// The request is longer than a frame.
    #[error("a request of {0} bytes does not fit in a frame of 16 MiB; send it in pieces")]
    TooLong(usize),
    /// The peer could not answer. It did not do what was asked.
    #[error("host {0}: {1}")]
    Fault(HostId, Fault),
}

type Outcome = Result<Vec<u8>, Fault>;

/// Asks over one control connection. Clones share it; it ends when the last is dropped, or breaks.
#[derive(Clone, Debug)]
pub struct ControlClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    peer: HostId,
    addr: Option<SocketAddr>,
    queue: mpsc::Sender<Vec<u8>>,
    pending: Arc<Pending>,
    next: AtomicU64,
    places: Semaphore,
    closed: watch::Receiver<bool>,
}

/// Who waits for which reply. `None` once the connection is gone.
#[derive(Debug)]
struct Pending(Mutex<Option<HashMap<u64, oneshot::Sender<Outcome>>>>);

impl Pending {
    fn with<T>(&self, f: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Outcome>>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A call under way; dropping it forgets the call.
struct Waiting<'a> {
    pending: &'a Pending,
    request: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pending.with(|pending| pending.as_mut().map(|pending| pending.remove(&self.request)));
    }
}

impl ControlClient {
    /// Takes over a control connection to `peer` that this side opened. Must be called inside a runtime.
    pub fn new<S>(stream: S, peer: HostId) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        Self::with_addr(stream, peer, None)
    }

    pub(super) fn with_addr<S>(stream: S, peer: HostId, addr: Option<SocketAddr>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut input, output) = tokio::io::split(stream);
        let (queue, queued) = mpsc::channel(QUEUE_FRAMES_MAX);
        let (close, closed) = watch::channel(false);
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
        let mut writer = Task(tokio::spawn(frame::write_all(output, queued)));
        // Ends when the peer closes, when the connection breaks, or when the last client is dropped: that closes the
        // queue, the writer says goodbye, and its end is seen here.
        tokio::spawn({
            let pending = Arc::clone(&pending);
            async move {
                let why = tokio::select! {
                    why = deliver(&mut input, &pending) => why,
                    written = &mut writer.0 => match written {
                        Ok(Err(error)) => error.to_string(),
                        Ok(Ok(())) | Err(_) => "it was closed on this side".to_owned(),
                    },
                };
                debug!(%peer, why, "a control connection ended");
                pending.with(|pending| *pending = None);
                // Nobody may be watching.
                close.send_replace(true);
            }
        });
        let (next, places) = (AtomicU64::new(1), Semaphore::new(IN_FLIGHT_MAX));
        Self { inner: Arc::new(Inner { peer, addr, queue, pending, next, places, closed }) }
    }

    /// The host at the other end.
    pub fn peer(&self) -> HostId {
        self.inner.peer
    }

    /// The address that was dialled, where known.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.inner.addr
    }

    /// Whether the connection is gone for good.
    pub fn is_closed(&self) -> bool {
        *self.inner.closed.borrow()
    }

    /// Returns when the connection is gone.
    pub async fn closed(&self) {
        let mut closed = self.inner.closed.clone();
        // An error means that the sender is gone, which is the same.
        let _gone = closed.wait_for(|closed| *closed).await;
    }

    /// Asks and waits for the reply, at most `within`, waiting for a place included. Can be dropped at any time.
    pub async fn call(
        &self,
        service: ServiceId,
        request: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        if request.len() > PAYLOAD_BYTES_MAX {
            return Err(CallError::TooLong(request.len()));
        }
        match tokio::time::timeout(within, self.ask(service, request)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::TimedOut(self.inner.peer, within)),
        }
    }

    async fn ask(&self, service: ServiceId, payload: &[u8]) -> Result<Vec<u8>, CallError> {
        let inner = &*self.inner;
        let gone = || CallError::Disconnected(inner.peer);
        let _place = inner.places.acquire().await.map_err(|_| gone())?;
        let request = inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let stands =
            inner.pending.with(|pending| pending.as_mut().map(|pending| pending.insert(request, sender)));
        if stands.is_none() {
            return Err(gone());
        }
        let _waiting = Waiting { pending: &inner.pending, request };
        let bytes = frame::encode(Kind::Request, service, request, payload);
        inner.queue.send(bytes).await.map_err(|_| gone())?;
        match reply.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(fault)) => Err(CallError::Fault(inner.peer, fault)),
            Err(_) => Err(gone()),
        }
    }
}

/// Hands replies to those who wait until the connection ends, and says why it did.
async fn deliver<R: AsyncRead + Unpin>(input: &mut R, pending: &Pending) -> String {
    loop {
        let Frame { kind, request, payload, .. } = match frame::read(input).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return "the peer closed it".to_owned(),
            Err(ReadError::Io(error)) => return error.to_string(),
            Err(ReadError::Malformed(what)) => return format!("the peer sent a malformed frame: {what}"),
        };
        let outcome = match (kind, payload.as_slice()) {
            (Kind::Reply, _) => Ok(payload),
            (Kind::Fault, &[code]) => match Fault::of_wire(code) {
                Some(fault) => Err(fault),
                None => return format!("the peer sent an unknown fault: {code}"),
            },
            (Kind::Fault, _) => return "the peer sent a malformed fault".to_owned(),
            (Kind::Request, _) => return "the peer asks where it should answer".to_owned(),
        };
        let waiting = pending.with(|pending| pending.as_mut().and_then(|pending| pending.remove(&request)));
        // Whoever asked may have given up meanwhile.
        let _late = waiting.map(|waiting| waiting.send(outcome));
    }
}
