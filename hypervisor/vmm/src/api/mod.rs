//! The control API: what `hypervisord` says to a VM over the socket of `--api`. HTTP/1.1 and JSON; the types and the routes
//! are in [`ferro_protocol::api::vmm`].
//!
//! ```text
//!   server    connections, bodies, time-outs; a thread of its own
//!     └──► handle    a request becomes a call, a failure an ApiError. No I/O, so that it can be fuzzed
//!            └──► Control    the running VM
//! ```
//!
//! Who may connect is decided by the socket's mode and group. Who may connect is still not trusted with this process:
//! connections, headers, bodies and time are bounded, whatever comes in.

mod control;
mod server;

use ferro_protocol::api::vmm::{BalloonRequest, VmmState};
use ferro_protocol::api::{ApiError, ErrorCode};
use hyper::Method;
use serde::Serialize;

pub(crate) use control::VmControl;
pub(crate) use server::Server;
pub use server::serve_connection;

/// What can be asked of a running VM. No call takes longer than some seconds.
pub trait Control: Send + Sync {
    /// What it is and does.
    fn state(&self) -> VmmState;
    /// Stops its processors.
    fn pause(&self) -> Result<(), ApiError>;
    /// Lets them go on.
    fn resume(&self) -> Result<(), ApiError>;
    /// Presses the power button.
    fn press_power_button(&self) -> Result<(), ApiError>;
    /// Resets the machine, which ends the process.
    fn reset(&self) -> Result<(), ApiError>;
    /// Ends the machine as if its plug were pulled.
    fn stop(&self) -> Result<(), ApiError>;
    /// Says how much memory the guest should give back.
    fn set_balloon(&self, wanted: BalloonRequest) -> Result<(), ApiError>;
    /// The devices' state as JSON, of a paused VM.
    fn devices_state(&self) -> Result<Vec<u8>, ApiError>;
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// JSON, or nothing.
    pub body: Vec<u8>,
}

const NO_CONTENT: u16 = 204;
const METHOD_NOT_ALLOWED: u16 = 405;

impl Answer {
    fn json(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status, body },
            // The types of the API can all be written, so nobody sees this.
            Err(_) => Self { status: 500, body: Vec::new() },
        }
    }

    pub(crate) fn failure(error: &ApiError) -> Self {
        Self::json(error.code.http_status(), error)
    }
}

/// Answers one request.
pub fn handle(control: &dyn Control, method: &Method, path: &str, body: &[u8]) -> Answer {
    match answer(control, method, path, body) {
        Ok(answer) => answer,
        Err(error) => {
            let mut answer = Answer::failure(&error);
            if error.code == ErrorCode::NoSuchRoute && wanted_method(path).is_some() {
                answer.status = METHOD_NOT_ALLOWED;
            }
            answer
        }
    }
}

/// The method of each path.
fn wanted_method(path: &str) -> Option<Method> {
    match path {
        "/v1/state" | "/v1/devices/state" => Some(Method::GET),
        "/v1/pause" | "/v1/resume" | "/v1/power-button" | "/v1/reset" | "/v1/stop" | "/v1/balloon" => {
            Some(Method::PUT)
        }
        _ => None,
    }
}

fn answer(control: &dyn Control, method: &Method, path: &str, body: &[u8]) -> Result<Answer, ApiError> {
    if wanted_method(path).as_ref() != Some(method) {
        let message = format!("{method} can't be used on {path}");
        let next = "ask for GET /v1/state, or see the documentation of the vmm's control API";
        return Err(ApiError::new(ErrorCode::NoSuchRoute, message, next));
    }
    if path == "/v1/balloon" {
        let wanted: BalloonRequest = serde_json::from_slice(body).map_err(|error| {
            let next = "send {\"target_bytes\": N}: how much the guest should give back";
            ApiError::new(ErrorCode::BadRequest, format!("PUT /v1/balloon: {error}"), next)
        })?;
        control.set_balloon(wanted)?;
        return Ok(Answer { status: NO_CONTENT, body: Vec::new() });
    }
    if !body.is_empty() {
        let message = format!("{method} {path} takes no body, and {} bytes came", body.len());
        return Err(ApiError::new(ErrorCode::BadRequest, message, "leave the body out"));
    }
    match path {
        "/v1/state" => return Ok(Answer::json(200, &control.state())),
        "/v1/devices/state" => return Ok(Answer { status: 200, body: control.devices_state()? }),
        "/v1/pause" => control.pause()?,
        "/v1/resume" => control.resume()?,
        "/v1/power-button" => control.press_power_button()?,
        "/v1/reset" => control.reset()?,
        _ => control.stop()?,
    }
    Ok(Answer { status: NO_CONTENT, body: Vec::new() })
}
