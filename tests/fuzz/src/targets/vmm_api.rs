//! What somebody who may connect to a VM's control API sends: bytes that are HTTP or not, and bodies that are JSON or not.

use std::sync::{Arc, Mutex};

use ferro_protocol::api::vmm::{BalloonRequest, VMM_STATE_FORMAT, VmmState, VmmStatus};
use ferro_protocol::api::{ApiError, ErrorCode};
use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmm::api::{Control, handle, serve_connection};

use crate::Source;

/// A VM that only remembers what was wanted of its balloon.
#[derive(Default)]
struct StandIn {
    target: Mutex<Option<u64>>,
}

impl Control for StandIn {
    fn state(&self) -> VmmState {
        VmmState {
            format: VMM_STATE_FORMAT,
            name: "fuzz".into(),
            pid: 1,
            status: VmmStatus::Running,
            cpus: 1,
            memory_bytes: 1 << 20,
            devices: Vec::new(),
            balloon: None,
            panicked: false,
            cpu_time_us: 0,
        }
    }
    fn pause(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn press_power_button(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), ApiError> {
        Err(ApiError::new(ErrorCode::Unavailable, "it has ended", "start it again"))
    }
    fn stop(&self) -> Result<(), ApiError> {
        Ok(())
    }
    fn set_balloon(&self, wanted: BalloonRequest) -> Result<(), ApiError> {
        *self.target.lock().expect("no panic holds it") = Some(wanted.target_bytes);
        Ok(())
    }
    fn devices_state(&self) -> Result<Vec<u8>, ApiError> {
        Ok(b"{}".to_vec())
    }
}

const PATHS: [&str; 9] = [
    "/v1/balloon",
    "/v1/state",
    "/v1/pause",
    "/v1/resume",
    "/v1/power-button",
    "/v1/reset",
    "/v1/stop",
    "/v1/devices/state",
    "/v1/nothing",
];

/// A method, a path and a body: whatever they are, an answer that makes sense.
pub(super) fn requests(data: &[u8]) {
    let mut source = Source::new(data);
    let method = [Method::PUT, Method::GET, Method::POST][source.below(3)].clone();
    let path = PATHS[source.below(PATHS.len())];
    let control = StandIn::default();
    let answer = handle(&control, &method, path, source.rest());
    let target = *control.target.lock().expect("no panic holds it");
    match answer.status {
        200 => drop(serde_json::from_slice::<serde_json::Value>(&answer.body).expect("JSON")),
        204 => assert!(answer.body.is_empty(), "a body where there is none"),
        status => {
            let error: ApiError = serde_json::from_slice(&answer.body).expect("an error is an ApiError");
            assert!(status >= 400 && !error.next_step.is_empty(), "{status}: {error}");
            assert_eq!(target, None, "refused and done all the same");
        }
    }
    assert_eq!(target.is_some(), path == "/v1/balloon" && answer.status == 204);
}

/// Bytes on a connection: it ends, and what was answered begins as HTTP does.
pub(super) fn connection(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let answered = runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 17);
        let serve = serve_connection(TokioIo::new(server), Arc::new(StandIn::default()));
        let talk = async {
            let mut answered = Vec::new();
            // The server may have hung up in the middle: then there is nobody to say the rest to.
            let _ = client.write_all(data).await;
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut answered).await;
            answered
        };
        tokio::join!(serve, talk).1
    });
    assert!(answered.is_empty() || answered.starts_with(b"HTTP/1."), "no HTTP: {answered:?}");
}

pub(super) fn request_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..9).map(|path| vec![u8::from(path == 1 || path == 7), path]).collect();
    seeds.push([&[0, 0][..], b"{\"target_bytes\": 4096}"].concat());
    seeds.push([&[0, 0][..], b"{\"target_bytes\": 4096, \"more\": [{}]}"].concat());
    seeds
}

pub(super) fn connection_seeds() -> Vec<Vec<u8>> {
    [
        "GET /v1/state HTTP/1.1\r\nhost: x\r\n\r\n",
        "PUT /v1/pause HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        "PUT /v1/balloon HTTP/1.1\r\nhost: x\r\ncontent-length: 18\r\n\r\n{\"target_bytes\":1}",
        "PUT /v1/balloon HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n12\r\n{\"target_bytes\":1}\r\n0\r\n\r\n",
        "PUT /v1/stop HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 70000\r\n\r\n",
    ]
    .map(|seed| seed.as_bytes().to_vec())
    .to_vec()
}
