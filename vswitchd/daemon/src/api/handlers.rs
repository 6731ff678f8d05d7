//! Requests about the switch as a whole: its configuration, uplinks, tunnels, counters.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ferro_protocol::api::switch::{
    Applied, CONFIRM_SECONDS_MAX, NetworkConfig, SwitchStatus, TRANSACTION_CHANGES_MAX, Transacted,
    Transaction, TunnelList, UplinkList, WAIT_SECONDS_MAX,
};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_transport::http::{Answer, Arguments, Body, Failure, METRICS_TYPE, Path, bad_request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;

/// The switch at a glance.
#[utoipa::path(get, path = "/v1/status", tag = "switch",
    responses((status = 200, body = SwitchStatus), (status = "default", body = ApiError)))]
pub(super) async fn status(State(api): State<Api>) -> Answer<SwitchStatus> {
    Ok(Json(api.control.status().await?))
}

/// The configuration in force here.
#[utoipa::path(get, path = "/v1/config", tag = "configuration",
    responses((status = 200, body = NetworkConfig), (status = "default", body = ApiError)))]
pub(super) async fn config(State(api): State<Api>) -> Answer<NetworkConfig> {
    Ok(Json(api.control.config().await?))
}

/// Change the configuration: all of it or nothing. Answers when it is durable; how far the hosts are with it is at
/// `/v1/revisions/{revision}`.
#[utoipa::path(post, path = "/v1/transactions", tag = "configuration", request_body = Transaction,
    responses((status = 200, body = Transacted), (status = "default", body = ApiError)))]
pub(super) async fn transact(
    State(api): State<Api>,
    Body(transaction): Body<Transaction>,
) -> Answer<Transacted> {
    let changes = transaction.changes.len();
    if changes > TRANSACTION_CHANGES_MAX {
        let message = format!("a transaction has at most {TRANSACTION_CHANGES_MAX} changes, not {changes}");
        return Err(ApiError::new(ErrorCode::LimitReached, message, "make several of it").into());
    }
    if transaction.confirm_within_s.is_some_and(|s| !(1..=CONFIRM_SECONDS_MAX).contains(&s)) {
        let message = "the time to confirm a change is out of its bounds";
        return Err(bad_request(message, "choose from one second to one hour (3600)").into());
    }
    Ok(Json(api.control.transact(transaction).await?))
}

/// How long to wait.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// Answer when no host that can be reached has it to do any more, but after so many seconds at the latest: 0 to 30.
    #[serde(default)]
    wait_s: u32,
}

/// How far the hosts are with a revision.
#[utoipa::path(get, path = "/v1/revisions/{revision}", tag = "configuration",
    params(("revision" = u64, Path, description = "the revision"), Waiting),
    responses((status = 200, body = Applied), (status = "default", body = ApiError)))]
pub(super) async fn applied(
    State(api): State<Api>,
    Path(revision): Path<String>,
    Arguments(waiting): Arguments<Waiting>,
) -> Answer<Applied> {
    if waiting.wait_s > WAIT_SECONDS_MAX {
        let message = format!("{} seconds are too many to wait in one request", waiting.wait_s);
        return Err(bad_request(message, "choose up to 30 seconds, and ask again").into());
    }
    let wait = Duration::from_secs(u64::from(waiting.wait_s));
    Ok(Json(api.control.applied(number(&revision)?, wait).await?))
}

/// Keep a revision that would undo itself.
#[utoipa::path(post, path = "/v1/revisions/{revision}/confirm", tag = "configuration",
    params(("revision" = u64, Path, description = "the revision")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn confirm(
    State(api): State<Api>,
    Path(revision): Path<String>,
) -> Result<StatusCode, Failure> {
    api.control.confirm(number(&revision)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Undo a revision that would undo itself, now.
#[utoipa::path(post, path = "/v1/revisions/{revision}/undo", tag = "configuration",
    params(("revision" = u64, Path, description = "the revision")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn undo(
    State(api): State<Api>,
    Path(revision): Path<String>,
) -> Result<StatusCode, Failure> {
    api.control.undo(number(&revision)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn number(revision: &str) -> Result<u64, ApiError> {
    revision.parse().map_err(|_| {
        bad_request(format!("{revision:?} is not a revision"), "give the number that `status` shows")
    })
}

/// The uplinks of this host.
#[utoipa::path(get, path = "/v1/uplinks", tag = "switch",
    responses((status = 200, body = UplinkList), (status = "default", body = ApiError)))]
pub(super) async fn uplinks(State(api): State<Api>) -> Answer<UplinkList> {
    Ok(Json(UplinkList { uplinks: api.control.uplinks().await? }))
}

/// The tunnels to the other hosts.
#[utoipa::path(get, path = "/v1/tunnels", tag = "switch",
    responses((status = 200, body = TunnelList), (status = "default", body = ApiError)))]
pub(super) async fn tunnels(State(api): State<Api>) -> Answer<TunnelList> {
    Ok(Json(TunnelList { tunnels: api.control.tunnels().await? }))
}

/// This host's counters, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "switch",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text"),
        (status = "default", body = ApiError)))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Failure> {
    let text = api.control.metrics().await?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}
