//! Requests that look at traffic: addresses, traces, captures.

use std::time::Duration;

use axum::Json;
use axum::body::Body as RawBody;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ferro_protocol::api::ApiError;
use ferro_protocol::api::switch::{
    CAPTURE_TYPE, MAC_PAGE_MAX, MacPage, MacRelease, SNAP_BYTES_MAX, TraceAnswer, TraceFrom, TraceRequest,
};
use ferro_protocol::net::{Mac, Vni};
use ferro_transport::http::{Answer, Arguments, Body, Failure, bad_request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::control::{MacQuery, Point};
use super::extract::{frame, name};
use crate::capture::{self, Limits};

/// The longest that a page's beginning is.
const CURSOR_BYTES_MAX: usize = 256;
/// The longest capture by time: a day.
const CAPTURE_SECONDS_MAX: u32 = 86_400;

/// Which addresses to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Listing {
    /// Where the page begins, as the page before said.
    after: Option<String>,
    /// The most rows, 1 to 1000; 1000 unless given.
    rows: Option<u32>,
    /// Only this virtual network.
    vni: Option<u32>,
    /// Only this address.
    mac: Option<String>,
    /// Only frozen ones.
    #[serde(default)]
    frozen: bool,
}

/// Where addresses are, a page at a time.
#[utoipa::path(get, path = "/v1/macs", tag = "traffic", params(Listing),
    responses((status = 200, body = MacPage), (status = "default", body = ApiError)))]
pub(super) async fn macs(State(api): State<Api>, Arguments(rows): Arguments<Listing>) -> Answer<MacPage> {
    let rows_max = rows.rows.unwrap_or(MAC_PAGE_MAX);
    if !(1..=MAC_PAGE_MAX).contains(&rows_max) {
        let message = format!("a page can't have {rows_max} rows");
        return Err(bad_request(message, "choose from 1 to 1000").into());
    }
    if rows.after.as_ref().is_some_and(|after| after.len() > CURSOR_BYTES_MAX) {
        return Err(bad_request("no page begins there", "give what the page before said").into());
    }
    let mac = rows.mac.map(|text| text.parse::<Mac>()).transpose();
    let mac = mac.map_err(|bad| bad_request(bad.to_string(), "check the address"))?;
    let query =
        MacQuery { after: rows.after, rows_max: rows_max as usize, vni: rows.vni, mac, frozen: rows.frozen };
    Ok(Json(api.control.macs(query).await?))
}

/// Let a frozen address move again.
#[utoipa::path(post, path = "/v1/macs/release", tag = "traffic", request_body = MacRelease,
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn release_mac(
    State(api): State<Api>,
    Body(release): Body<MacRelease>,
) -> Result<StatusCode, Failure> {
    if let Some(bad) = release.vni.and_then(|vni| Vni::new(vni).err()) {
        return Err(bad_request(bad.to_string(), "see `vswctl mac list --frozen` for where it is").into());
    }
    api.control.release_mac(release).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What would happen to a frame. Nothing is sent, counted or learned.
#[utoipa::path(post, path = "/v1/trace", tag = "traffic", request_body = TraceRequest,
    responses((status = 200, body = TraceAnswer), (status = "default", body = ApiError)))]
pub(super) async fn trace(State(api): State<Api>, Body(request): Body<TraceRequest>) -> Answer<TraceAnswer> {
    let from = match &request.from {
        TraceFrom::Port(text) => Point::Port(name(text, "port")?),
        TraceFrom::Uplink(text) => Point::Uplink(name(text, "uplink")?),
    };
    let frame = frame(&request.frame)?;
    Ok(Json(api.control.trace(from, Bytes::from(frame)).await?))
}

/// What to capture: exactly one of the three.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Capture {
    /// At this port.
    port: Option<String>,
    /// At all ports of this port group that are on this host, now or later.
    group: Option<String>,
    /// At this uplink.
    uplink: Option<String>,
    /// Only the first bytes of each frame, 1 to 262144; all unless given.
    snap: Option<u32>,
    /// End after so many frames.
    frames: Option<u64>,
    /// End after so many seconds, up to a day.
    seconds: Option<u32>,
}

/// Capture frames as they pass, as a pcapng file that grows until the client closes the connection. Statistics blocks in it say
/// how many frames were dropped because the client did not take them fast enough.
#[utoipa::path(get, path = "/v1/capture", tag = "traffic", params(Capture),
    responses((status = 200, body = [u8], content_type = "application/vnd.tcpdump.pcap"),
        (status = "default", body = ApiError)))]
pub(super) async fn capture(
    State(api): State<Api>,
    Arguments(asked): Arguments<Capture>,
) -> Result<Response, Failure> {
    let what = match (asked.port, asked.group, asked.uplink) {
        (Some(port), None, None) => Point::Port(name(&port, "port")?),
        (None, Some(group), None) => Point::Group(name(&group, "port group")?),
        (None, None, Some(uplink)) => Point::Uplink(name(&uplink, "uplink")?),
        _ => {
            let message = "a capture is at one port, one port group or one uplink";
            return Err(bad_request(message, "give exactly one of port, group and uplink").into());
        }
    };
    let snap = asked.snap.unwrap_or(SNAP_BYTES_MAX);
    if !(1..=SNAP_BYTES_MAX).contains(&snap) {
        let message = format!("{snap} bytes of each frame can't be captured");
        return Err(bad_request(message, "choose from 1 to 262144").into());
    }
    if asked.frames == Some(0) || asked.seconds.is_some_and(|s| !(1..=CAPTURE_SECONDS_MAX).contains(&s)) {
        let message = "a capture of no frames, or of no time or more than a day, can't be made";
        return Err(bad_request(message, "choose at least one frame, and 1 to 86400 seconds").into());
    }
    let limits =
        Limits { frames: asked.frames, time: asked.seconds.map(|s| Duration::from_secs(u64::from(s))) };
    let source = api.control.capture(what, snap as usize).await?;
    let body = RawBody::from_stream(capture::stream(source, snap, limits));
    Ok(([(header::CONTENT_TYPE, CAPTURE_TYPE)], body).into_response())
}
