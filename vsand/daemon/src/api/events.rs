//! Requests about what happened.

use axum::Json;
use axum::extract::State;
use ferro_protocol::api::{ApiError, EVENTS_MAX, EventList};
use ferro_transport::http::{Answer, Arguments, bad_request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::control::EventQuery;

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those from then on, in milliseconds since 1970 (UTC).
    #[serde(default)]
    since_unix_ms: u64,
    /// The newest of them, 1 to 10,000; 1,000 unless given.
    #[serde(default = "limit_default")]
    limit: u32,
    /// Only what this host saw.
    #[serde(default)]
    local: bool,
}

fn limit_default() -> u32 {
    1_000
}

/// What happened in the cluster, by time, from the logs of all hosts that answer soon.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Which),
    responses((status = 200, body = EventList), (status = "default", body = ApiError)))]
pub(super) async fn list(State(api): State<Api>, Arguments(which): Arguments<Which>) -> Answer<EventList> {
    if !(1..=EVENTS_MAX).contains(&which.limit) {
        return Err(bad_request(format!("{} events in one answer", which.limit), "ask for 1 to 10000").into());
    }
    let query = EventQuery { since_ms: which.since_unix_ms, limit: which.limit, local: which.local };
    Ok(Json(api.control.events(query).await?))
}
