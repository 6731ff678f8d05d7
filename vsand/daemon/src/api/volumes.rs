//! Requests about volumes.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ferro_protocol::api::{
    ApiError, CreateVolumeRequest, OpenVolumeRequest, OpenedVolume, ProvisionRequest, ResizeVolumeRequest,
    SetPolicyRequest, VolumeInfo, VolumeLimits, VolumeList, VolumePlacement,
};
use ferro_transport::http::{Answer, Body, Failure, Path};

use super::Api;
use super::control::NewVolume;
use super::extract::{limits, placement, policy, reserve_percent, volume_name, volume_size};

/// All volumes.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes",
    responses((status = 200, body = VolumeList), (status = "default", body = ApiError)))]
pub(super) async fn list(State(api): State<Api>) -> Answer<VolumeList> {
    Ok(Json(VolumeList { volumes: api.control.volumes().await? }))
}

/// Make a volume.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = CreateVolumeRequest,
    responses((status = 201, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn create(
    State(api): State<Api>,
    Body(request): Body<CreateVolumeRequest>,
) -> Result<(StatusCode, Json<VolumeInfo>), Failure> {
    let name = volume_name(&request.name)?;
    let size_bytes = volume_size(&name, request.size_bytes)?;
    let policy = policy(&name, request.policy)?;
    let limits = limits(&name, request.limits)?;
    let reserve_percent = reserve_percent(&name, request.reserve_percent)?;
    let placement = placement(&name, request.placement)?;
    let force_provisioning = request.force_provisioning;
    let volume =
        NewVolume { name, size_bytes, policy, reserve_percent, force_provisioning, limits, placement };
    let made = api.control.create_volume(volume).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(name): Path<String>) -> Answer<VolumeInfo> {
    Ok(Json(api.control.volume(&volume_name(&name)?).await?))
}

/// Delete a volume and its data.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    api.control.delete_volume(&volume_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Open a volume on this host and serve it on a vhost-user socket.
#[utoipa::path(post, path = "/v1/volumes/{name}/open", tag = "volumes", request_body = OpenVolumeRequest,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = OpenedVolume), (status = "default", body = ApiError)))]
pub(super) async fn open(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<OpenVolumeRequest>,
) -> Answer<OpenedVolume> {
    Ok(Json(api.control.open_volume(&volume_name(&name)?, request.read_only).await?))
}

/// Close a volume on this host.
#[utoipa::path(post, path = "/v1/volumes/{name}/close", tag = "volumes",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn close(State(api): State<Api>, Path(name): Path<String>) -> Answer<VolumeInfo> {
    Ok(Json(api.control.close_volume(&volume_name(&name)?).await?))
}

/// Have a volume kept in another way, open or not.
#[utoipa::path(post, path = "/v1/volumes/{name}/policy", tag = "volumes", request_body = SetPolicyRequest,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn set_policy(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<SetPolicyRequest>,
) -> Answer<VolumeInfo> {
    let name = volume_name(&name)?;
    let policy = policy(&name, request.policy)?;
    Ok(Json(api.control.set_volume_policy(&name, policy).await?))
}

/// Have a volume's guest ask for no more than this, open or not. It is all that counts from then on: what is left out is unlimited.
#[utoipa::path(put, path = "/v1/volumes/{name}/limits", tag = "volumes", request_body = VolumeLimits,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn limit(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<VolumeLimits>,
) -> Answer<VolumeInfo> {
    let name = volume_name(&name)?;
    let limits = limits(&name, request)?;
    Ok(Json(api.control.limit_volume(&name, limits).await?))
}

/// Have a volume's data rather kept in some places, or spread over sites, open or not. It is all that counts from then on; what is
/// elsewhere and could be nearer moves there, one part after the other.
#[utoipa::path(put, path = "/v1/volumes/{name}/placement", tag = "volumes", request_body = VolumePlacement,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn place(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<VolumePlacement>,
) -> Answer<VolumeInfo> {
    let name = volume_name(&name)?;
    let placement = placement(&name, request)?;
    Ok(Json(api.control.place_volume(&name, placement).await?))
}

/// Say how room is found for a volume, open or not: how much is kept for it, so that its guest can write whatever others take, and
/// what becomes of it where there is no place for all its copies.
#[utoipa::path(put, path = "/v1/volumes/{name}/provisioning", tag = "volumes", request_body = ProvisionRequest,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn provision(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<ProvisionRequest>,
) -> Answer<VolumeInfo> {
    let name = volume_name(&name)?;
    reserve_percent(&name, request.reserve_percent.unwrap_or_default())?;
    Ok(Json(api.control.provision_volume(&name, request).await?))
}

/// Grow a volume, open or not.
#[utoipa::path(post, path = "/v1/volumes/{name}/resize", tag = "volumes", request_body = ResizeVolumeRequest,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = "default", body = ApiError)))]
pub(super) async fn resize(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<ResizeVolumeRequest>,
) -> Answer<VolumeInfo> {
    let name = volume_name(&name)?;
    let size_bytes = volume_size(&name, request.size_bytes)?;
    Ok(Json(api.control.resize_volume(&name, size_bytes).await?))
}
