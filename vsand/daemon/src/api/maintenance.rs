//! Requests about maintenance, and about what it would mean to take out a host or a disk.

use axum::Json;
use axum::extract::State;
use ferro_protocol::api::{ApiError, HostInfo, MaintenanceRequest, Safety};
use ferro_transport::http::{Answer, Body, Path};

use super::Api;
use super::extract::id;

/// Let a host enter maintenance: what its mode moves is copied elsewhere, and the host may be switched off when it is `ready`.
/// Refused at once if something could not be read without it, or if the other hosts can't take what is moved.
#[utoipa::path(put, path = "/v1/hosts/{id}/maintenance", tag = "hosts", request_body = MaintenanceRequest,
    params(("id" = String, Path, description = "the host's id")),
    responses((status = 200, body = HostInfo), (status = "default", body = ApiError)))]
pub(super) async fn enter(
    State(api): State<Api>,
    Path(host): Path<String>,
    Body(request): Body<MaintenanceRequest>,
) -> Answer<HostInfo> {
    Ok(Json(api.control.enter_maintenance(id(&host, "host")?, request.mode).await?))
}

/// End a host's maintenance.
#[utoipa::path(delete, path = "/v1/hosts/{id}/maintenance", tag = "hosts",
    params(("id" = String, Path, description = "the host's id")),
    responses((status = 200, body = HostInfo), (status = "default", body = ApiError)))]
pub(super) async fn exit(State(api): State<Api>, Path(host): Path<String>) -> Answer<HostInfo> {
    Ok(Json(api.control.exit_maintenance(id(&host, "host")?).await?))
}

/// What it would mean if a host went now, and what can be done to prepare for it.
#[utoipa::path(get, path = "/v1/hosts/{id}/safety", tag = "hosts",
    params(("id" = String, Path, description = "the host's id")),
    responses((status = 200, body = Safety), (status = "default", body = ApiError)))]
pub(super) async fn of_host(State(api): State<Api>, Path(host): Path<String>) -> Answer<Safety> {
    Ok(Json(api.control.host_safety(id(&host, "host")?).await?))
}

/// What it would mean if a disk went now, and what can be done to prepare for it.
#[utoipa::path(get, path = "/v1/disks/{id}/safety", tag = "disks",
    params(("id" = String, Path, description = "the disk's id")),
    responses((status = 200, body = Safety), (status = "default", body = ApiError)))]
pub(super) async fn of_disk(State(api): State<Api>, Path(disk): Path<String>) -> Answer<Safety> {
    Ok(Json(api.control.disk_safety(id(&disk, "disk")?).await?))
}
