//! The thread that serves the control API: one request a connection, few connections, little time.
//!
//! A call is carried out in this thread, one after the other: whoever pauses a VM waits for its processors, and so does
//! whoever asks next.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ferro_protocol::api::vmm::VMM_BODY_BYTES_MAX;
use ferro_protocol::api::{ApiError, ErrorCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, Semaphore};
use tracing::{debug, warn};

use super::{Answer, Control, handle};
use crate::threads::{ThreadKind, Threads};

/// Connections at a time; others wait to be accepted.
const CONNECTIONS_MAX: u32 = 16;
/// Headers of a request, and bytes of them.
const HEADERS_MAX: usize = 32;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long a client may take for its head, for its body, and for all.
const HEAD_MAX: Duration = Duration::from_secs(5);
const BODY_MAX: Duration = Duration::from_secs(5);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// How long answers that are under way may take when the VM has ended.
const FAREWELL_MAX: Duration = Duration::from_millis(200);
/// After an error of the listening socket, such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The thread.
#[derive(Debug)]
pub(crate) struct Server {
    thread: JoinHandle<()>,
    over: Arc<Notify>,
}

impl Server {
    /// Serves until [`Self::finish`].
    pub(crate) fn start(
        listener: UnixListener,
        control: Arc<dyn Control>,
        threads: &Threads,
    ) -> std::io::Result<Self> {
        // All that it needs of the kernel is made before its thread is confined.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::from_std(listener)?
        };
        let over = Arc::new(Notify::new());
        let until = Arc::clone(&over);
        let thread = threads.spawn(ThreadKind::Api, "api".into(), None, move || {
            runtime.block_on(serve(listener, control, until));
        })?;
        Ok(Self { thread, over })
    }

    /// Ends it, when the answers under way have been sent or enough time has passed.
    pub(crate) fn finish(self) {
        self.over.notify_one();
        if self.thread.join().is_err() {
            warn!("the thread of the control API panicked");
        }
    }
}

async fn serve(listener: tokio::net::UnixListener, control: Arc<dyn Control>, over: Arc<Notify>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    let accept = async {
        loop {
            // It is never closed, so there is always one in the end.
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = Arc::clone(&control);
                    tokio::spawn(async move {
                        serve_connection(TokioIo::new(stream), control).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!("the control API: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = over.notified() => {}
    }
    // All permits are back when all are answered. Who is too slow is cut off.
    let _ = tokio::time::timeout(FAREWELL_MAX, free.acquire_many(CONNECTIONS_MAX)).await;
}

/// Serves one request on a connection; inside of a tokio runtime with its clock.
pub async fn serve_connection(stream: impl Read + Write + Unpin, control: Arc<dyn Control>) {
    let service = service_fn(move |request| {
        let control = Arc::clone(&control);
        async move { Ok::<_, Infallible>(respond(control.as_ref(), request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(stream, service);
    match tokio::time::timeout(CONNECTION_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client of the control API: {error}"),
        Err(_) => debug!("a client of the control API took too long"),
    }
}

async fn respond(control: &dyn Control, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, VMM_BODY_BYTES_MAX).collect();
    let answer = match tokio::time::timeout(BODY_MAX, body).await {
        Ok(Ok(body)) => handle(control, &head.method, head.uri.path(), &body.to_bytes()),
        Ok(Err(error)) => {
            let message = format!("{} {}: the body can't be read: {error}", head.method, head.uri.path());
            let next = format!("send at most {} KiB", VMM_BODY_BYTES_MAX >> 10);
            Answer::failure(&ApiError::new(ErrorCode::BadRequest, message, next))
        }
        Err(_) => {
            let message = format!("{} {}: the body did not come", head.method, head.uri.path());
            Answer::failure(&ApiError::new(ErrorCode::TimedOut, message, "send it with the request"))
        }
    };
    let empty = answer.body.is_empty();
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !empty {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}
