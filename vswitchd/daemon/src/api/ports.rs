//! Requests about ports, and what they are attached to on this host.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ferro_protocol::api::ApiError;
use ferro_protocol::api::switch::{Attachment, PortInfo, PortList};
use ferro_transport::http::{Answer, Body, Failure, Path};

use super::Api;
use super::extract::{attachment, name};

/// All ports.
#[utoipa::path(get, path = "/v1/ports", tag = "ports",
    responses((status = 200, body = PortList), (status = "default", body = ApiError)))]
pub(super) async fn list(State(api): State<Api>) -> Answer<PortList> {
    Ok(Json(PortList { ports: api.control.ports().await? }))
}

/// One port.
#[utoipa::path(get, path = "/v1/ports/{name}", tag = "ports",
    params(("name" = String, Path, description = "the port's name")),
    responses((status = 200, body = PortInfo), (status = "default", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(port): Path<String>) -> Answer<PortInfo> {
    Ok(Json(api.control.port(&name(&port, "port")?).await?))
}

/// Attach a port to a virtual machine's socket or a TAP interface of this host.
#[utoipa::path(put, path = "/v1/ports/{name}/attachment", tag = "ports", request_body = Attachment,
    params(("name" = String, Path, description = "the port's name")),
    responses((status = 200, body = PortInfo), (status = "default", body = ApiError)))]
pub(super) async fn attach(
    State(api): State<Api>,
    Path(port): Path<String>,
    Body(to): Body<Attachment>,
) -> Answer<PortInfo> {
    let port = name(&port, "port")?;
    attachment(&port, &to)?;
    Ok(Json(api.control.attach(&port, to).await?))
}

/// Take a port off this host.
#[utoipa::path(delete, path = "/v1/ports/{name}/attachment", tag = "ports",
    params(("name" = String, Path, description = "the port's name")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn detach(State(api): State<Api>, Path(port): Path<String>) -> Result<StatusCode, Failure> {
    api.control.detach(&name(&port, "port")?).await?;
    Ok(StatusCode::NO_CONTENT)
}
