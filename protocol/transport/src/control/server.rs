//! The answering side of one connection.

use std::sync::Arc;

use ferro_protocol::ids::HostId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

use super::frame::{self, Frame, Kind, PAYLOAD_BYTES_MAX, QUEUE_FRAMES_MAX, ReadError};
use super::task::Task;
use super::{Fault, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, ServeError, ServiceId};
use crate::BoxFuture;

/// Answers requests. One for all connections.
pub trait ControlHandler: Send + Sync + 'static {
    /// Answers one request of the authenticated `peer`. Several run at once; each is run to its end even if the
    /// connection breaks meanwhile. A reply longer than 16 MiB becomes [`Fault::Unavailable`].
    fn handle(
        &self,
        peer: HostId,
        service: ServiceId,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Fault>>;
}

/// Serves a control connection that `peer` opened, until it closes it or it breaks.
pub async fn serve_control<S>(
    stream: S,
    peer: HostId,
    handler: Arc<dyn ControlHandler>,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut input, output) = tokio::io::split(stream);
    let (queue, queued) = mpsc::channel(QUEUE_FRAMES_MAX);
    let mut writer = Task(tokio::spawn(frame::write_all(output, queued)));
    // The writer goes with this future, however that ends. Handlers that still run find the queue closed; nobody waits
    // for their replies.
    tokio::select! {
        result = answer_all(&mut input, peer, &handler, &queue) => result,
        written = &mut writer.0 => match written {
            Ok(Err(source)) => Err(ServeError::Io { peer, source }),
            Ok(Ok(())) | Err(_) => Ok(()),
        },
    }
}

async fn answer_all<R: AsyncRead + Unpin>(
    input: &mut R,
    peer: HostId,
    handler: &Arc<dyn ControlHandler>,
    queue: &mpsc::Sender<Vec<u8>>,
) -> Result<(), ServeError> {
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX));
    loop {
        let Frame { kind, service, request, payload } = match frame::read(input).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(ReadError::Io(source)) => return Err(ServeError::Io { peer, source }),
            Err(ReadError::Malformed(what)) => return Err(ServeError::Malformed { peer, what }),
        };
        if kind != Kind::Request {
            return Err(ServeError::Malformed { peer, what: "an answer where a request should be" });
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            // The queue closes only with the connection, which the next read notices.
            let _closed = queue.send(encode(service, request, Err(Fault::Busy))).await;
            continue;
        };
        // Neither semaphore is ever closed, and a payload is shorter than all the room.
        let room = Arc::clone(&room).acquire_many_owned(payload.len() as u32).await.ok();
        let (handler, queue) = (Arc::clone(handler), queue.clone());
        tokio::spawn(async move {
            let outcome = handler.handle(peer, service, payload).await;
            let _closed = queue.send(encode(service, request, outcome)).await;
            drop((place, room));
        });
    }
}

fn encode(service: ServiceId, request: u64, outcome: Result<Vec<u8>, Fault>) -> Vec<u8> {
    let fault = match outcome {
        Ok(reply) if reply.len() <= PAYLOAD_BYTES_MAX => {
            return frame::encode(Kind::Reply, service, request, &reply);
        }
        Ok(reply) => {
            tracing::error!(service = service.0, bytes = reply.len(), "a reply is too long for a frame");
            Fault::Unavailable
        }
        Err(fault) => fault,
    };
    frame::encode(Kind::Fault, service, request, &[fault.wire()])
}
