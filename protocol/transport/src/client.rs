//! A client of a daemon's local API: HTTP/1.1 over a Unix socket. Used by the tools, and by daemons that need each other.
//!
//! Connections are kept and used again, as many as there are requests at once. A request is never sent twice: one that
//! fails half-way may have been carried out.
//!
//! What it must not know: what is asked, and in which words a person is told that it failed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Method, Request, Response, StatusCode};
use ferro_protocol::api::{ApiError, ErrorCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// The largest answer that is taken in: the chunks of an object page or the volumes of a large cluster.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The most idle connections that are kept.
const IDLE_MAX: usize = 16;

type Sender = SendRequest<Full<Bytes>>;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody could be reached: nothing was sent.
    #[error("can't reach {socket}: {source}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection ended before the answer came: the request may or may not have been carried out.
    #[error("{socket} closed the connection before it answered: {reason}")]
    CutOff {
        /// The socket.
        socket: PathBuf,
        /// How it ended.
        reason: String,
    },
    /// The answer began and broke off, or is too large.
    #[error("the answer of {socket} broke off: {reason}")]
    BrokenOff {
        /// The socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// That is no request: nothing was sent.
    #[error("{path:?} can't be asked for: {reason}")]
    BadRequest {
        /// What was to be asked for.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There was no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There was none in time: it may or may not have been done.
    #[error("{0} did not answer in time")]
    TimedOut(String),
    /// It says why.
    #[error("{0}")]
    Api(ApiError),
    /// The answer is none of ours.
    #[error("its answer can't be understood: {0}")]
    Answer(String),
}

impl CallError {
    /// The same as an error of an API that hands it on: what was to be done, and what may be wrong with the other daemon.
    pub fn into_api(self, what: &str) -> ApiError {
        match self {
            Self::Api(mut error) => {
                error.message = format!("{what}: {}", error.message);
                error
            }
            Self::TimedOut(_) => ApiError::new(
                ErrorCode::TimedOut,
                format!("{what}: {self}; it may still happen"),
                "see that the other daemon is well, then try again",
            ),
            Self::Client(_) | Self::Answer(_) => ApiError::new(
                ErrorCode::Unavailable,
                format!("{what}: {self}"),
                "see that the other daemon runs, and that both are of the same version",
            ),
        }
    }
}

/// An answer that comes in pieces.
#[derive(Debug)]
pub struct AnswerStream {
    socket: PathBuf,
    body: Incoming,
    _sender: Sender,
}

impl AnswerStream {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let broken = |error: hyper::Error| ClientError::BrokenOff {
                socket: self.socket.clone(),
                reason: error.to_string(),
            };
            // What is no data (trailers) says nothing here.
            if let Ok(piece) = frame.map_err(broken)?.into_data() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

/// A client of one daemon.
#[derive(Debug)]
pub struct LocalClient {
    socket: PathBuf,
    idle: Mutex<Vec<Sender>>,
}

impl LocalClient {
    /// A client of the daemon at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), idle: Mutex::new(Vec::new()) }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks, and takes in the whole answer, whatever its status. `body` is the content and its type.
    pub async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let (answer, sender) = self.ask(method, path, body).await?;
        let status = answer.status();
        let collected = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = collected
            .map_err(|error| ClientError::BrokenOff {
                socket: self.socket.clone(),
                reason: error.to_string(),
            })?
            .to_bytes();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
        Ok((status, bytes))
    }

    /// Asks, and takes an answer that says that it was done, within a time. `body` is the content and its type.
    pub async fn ask_within(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let asked = tokio::time::timeout(within, self.exchange(method, path, body)).await;
        let (status, bytes) = asked.map_err(|_| CallError::TimedOut(self.socket.display().to_string()))??;
        if status.is_success() {
            return Ok(bytes);
        }
        match serde_json::from_slice(&bytes) {
            Ok(error) => Err(CallError::Api(error)),
            Err(_) => Err(CallError::Answer(format!("{path}: status {status} and no reason"))),
        }
    }

    /// Gets something in JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, within: Duration) -> Result<T, CallError> {
        let bytes = self.ask_within(Method::GET, path, None, within).await?;
        serde_json::from_slice(&bytes).map_err(|error| CallError::Answer(format!("{path}: {error}")))
    }

    /// Sends something in JSON, and takes what comes of it.
    pub async fn send<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
        within: Duration,
    ) -> Result<T, CallError> {
        let unfit = |error: serde_json::Error| CallError::Answer(format!("{path}: {error}"));
        let body = Bytes::from(serde_json::to_vec(body).map_err(unfit)?);
        let bytes = self.ask_within(method, path, Some((body, "application/json")), within).await?;
        serde_json::from_slice(&bytes).map_err(unfit)
    }

    /// Asks for something whose answer may go on and on.
    pub async fn begin(&self, method: Method, path: &str) -> Result<(StatusCode, AnswerStream), ClientError> {
        // The connection ends with the answer: nobody knows whether anything follows it.
        let (answer, sender) = self.ask(method, path, None).await?;
        let status = answer.status();
        Ok((status, AnswerStream { socket: self.socket.clone(), body: answer.into_body(), _sender: sender }))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let mut content = Bytes::new();
        if let Some((bytes, kind)) = body {
            request = request.header(CONTENT_TYPE, kind);
            content = bytes;
        }
        let request = request
            .body(Full::new(content))
            .map_err(|error| ClientError::BadRequest { path: path.to_owned(), reason: error.to_string() })?;
        let mut sender = self.connection().await?;
        let answer = sender.send_request(request).await.map_err(|error| self.cut_off(&error))?;
        Ok((answer, sender))
    }

    async fn connection(&self) -> Result<Sender, ClientError> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { break };
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let unreachable = |source| ClientError::Unreachable { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.cut_off(&error))?;
        // It ends with the sender; an error of its own shows at the request that it breaks.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn cut_off(&self, error: &hyper::Error) -> ClientError {
        ClientError::CutOff { socket: self.socket.clone(), reason: error.to_string() }
    }
}
