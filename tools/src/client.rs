//! A client of a daemon's local API: [`LocalClient`] with the types of the API, a time limit, and the words for a terminal.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::api::{ApiError, ErrorClass};
use ferro_transport::client::{AnswerStream, ClientError, LocalClient};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Exit, Failure, Result};

/// The most bytes of an error that are read.
const ERROR_BYTES_MAX: usize = 16 << 20;

/// A client of one daemon.
pub struct Client {
    local: LocalClient,
    /// How to start the daemon: the unit's name.
    unit: &'static str,
    /// The tool that asks.
    tool: &'static str,
    timeout: Option<Duration>,
}

impl Client {
    /// The client `tool` of the daemon at `socket`, which systemd calls `unit`. Requests that take longer than `timeout` are
    /// given up.
    pub fn new(socket: &Path, unit: &'static str, tool: &'static str, timeout: Option<Duration>) -> Self {
        Self { local: LocalClient::new(socket), unit, tool, timeout }
    }

    /// `GET path`, as JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// `POST path` with a body, as JSON.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// `PUT path` with a body, as JSON.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// `PATCH path` with a body, as JSON.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::PATCH, path, Some(body)).await
    }

    /// `DELETE path`, as JSON.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::DELETE, path, None::<&()>).await
    }

    /// A request whose answer has no body.
    pub async fn empty(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<()> {
        let body = body.map(|body| self.encode(body)).transpose()?;
        self.bytes(method, path, body.map(|body| (body, "application/json"))).await.map(drop)
    }

    /// A request with any body. `None` if the answer says that there is none (204).
    pub async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
    ) -> Result<Option<Bytes>> {
        let what = format!("{method} {path}");
        let exchange = self.exchange(method, path, body);
        let (status, answer) = match self.timeout {
            None => exchange.await?,
            Some(limit) => {
                tokio::time::timeout(limit, exchange).await.map_err(|_| self.timed_out(&what, limit))??
            }
        };
        if status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if status.is_success() {
            return Ok(Some(answer));
        }
        Err(failure_of(status, &answer, &what))
    }

    /// `GET path` whose answer goes on and on: its body, once it has begun. The time limit is for its beginning.
    pub async fn stream(&self, path: &str) -> Result<AnswerStream> {
        let what = format!("GET {path}");
        let begun = self.local.begin(Method::GET, path);
        let begun = match self.timeout {
            None => begun.await,
            Some(limit) => {
                tokio::time::timeout(limit, begun).await.map_err(|_| self.timed_out(&what, limit))?
            }
        };
        let (status, mut answer) = begun.map_err(|error| self.failed(&error))?;
        if status.is_success() {
            return Ok(answer);
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.next().await.map_err(|error| self.failed(&error))? {
            if body.len() + piece.len() > ERROR_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&piece);
        }
        Err(failure_of(status, &body, &what))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let what = format!("{method} {path}");
        let body = body.map(|body| self.encode(body)).transpose()?;
        let answer = self.bytes(method, path, body.map(|body| (body, "application/json"))).await?;
        serde_json::from_slice(&answer.unwrap_or_default()).map_err(|error| {
            Failure::new(
                Exit::Failure,
                "bad_answer",
                format!("{what}: the daemon's answer can't be understood: {error}"),
                "use the versions of the tool and the daemon that belong together",
            )
        })
    }

    fn encode(&self, body: &impl Serialize) -> Result<Bytes> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|error| {
            let message = format!("a request for {} can't be written: {error}", self.socket().display());
            Failure::new(Exit::Failure, "internal", message, "this is worth a bug report")
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(Bytes, &'static str)>,
    ) -> Result<(StatusCode, Bytes)> {
        self.local.exchange(method, path, body).await.map_err(|error| self.failed(&error))
    }

    /// There was no answer, or not all of it.
    pub fn failed(&self, error: &ClientError) -> Failure {
        match error {
            ClientError::Unreachable { source, .. } => self.unreachable(source),
            ClientError::CutOff { reason, .. } => self.cut_off(reason),
            ClientError::BrokenOff { reason, .. } => {
                let message =
                    format!("the answer of the daemon at {} broke off: {reason}", self.socket().display());
                Failure::new(Exit::Failure, "bad_answer", message, self.look_at_log())
            }
            ClientError::BadRequest { .. } => {
                Failure::usage(error.to_string(), "check the names that were given")
            }
        }
    }

    fn socket(&self) -> &Path {
        self.local.socket()
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let unit = self.unit;
        let next = match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "run it as root or as a member of the socket's group (`ls -l {}`; `usermod -aG GROUP USER` and log in anew)",
                self.socket().display()
            ),
            io::ErrorKind::InvalidInput => "give the path of the daemon's socket with --socket".to_owned(),
            _ => format!(
                "start it with `systemctl start {unit}` (`systemctl status {unit}` says why it is not running), or give \
                 the path of its socket with --socket"
            ),
        };
        let message = format!("can't reach {unit} on its socket {}: {error}", self.socket().display());
        Failure::new(Exit::Unreachable, "daemon_unreachable", message, next)
    }

    fn cut_off(&self, reason: &str) -> Failure {
        let message = format!(
            "{} at {} closed the connection before it answered: {reason}; the request may or may not have been carried out",
            self.unit,
            self.socket().display()
        );
        Failure::new(Exit::Unreachable, "daemon_unreachable", message, self.look_at_log())
    }

    fn timed_out(&self, what: &str, limit: Duration) -> Failure {
        let message = format!(
            "{} at {} did not answer `{what}` within {} s; it may still carry it out",
            self.unit,
            self.socket().display(),
            limit.as_secs()
        );
        let next = format!(
            "look with `{} status` whether it did before you repeat it; --timeout sets how long to wait",
            self.tool
        );
        Failure::new(Exit::TimedOut, "timed_out", message, next)
    }

    fn look_at_log(&self) -> String {
        format!("see its log: `journalctl -u {}`", self.unit)
    }
}

/// An answer that is an error. One that has no body of ours, or a code that we don't know, counts by its status.
fn failure_of(status: StatusCode, body: &[u8], what: &str) -> Failure {
    use ferro_protocol::api::ErrorCode;
    let class = match status.as_u16() {
        400 | 405 | 413 | 415 => ErrorClass::Usage,
        404 => ErrorClass::NotFound,
        409 => ErrorClass::Conflict,
        422 => ErrorClass::Refused,
        503 => ErrorClass::Unavailable,
        504 => ErrorClass::TimedOut,
        _ => ErrorClass::Failure,
    };
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) if error.code == ErrorCode::Unknown => Failure { exit: class.into(), ..error.into() },
        Ok(error) => error.into(),
        Err(_) => Failure::new(
            class.into(),
            "bad_answer",
            format!("{what}: the daemon answered {status} and did not say why"),
            "check that the socket is the daemon's (--socket)",
        ),
    }
}
