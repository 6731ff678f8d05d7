//! Requests about the cluster, its hosts, disks, objects, locks and resyncs.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ferro_protocol::api::{
    AddDiskRequest, AddedDisk, ApiError, BootstrapRequest, BrokenLock, CHUNKS_PAGE_MAX, ChangedHost,
    ClusterInfo, DiskInfo, DiskList, ErrorCode, HostList, JoinRequest, LockList, ObjectDetails, ObjectList,
    Removal, ResyncList, SetHostRequest, Status, TOKEN_SECONDS_MAX, TokenInfo, TokenRequest, TopSample,
    UpgradeReport, UpgradeRequest,
};
use ferro_protocol::fault_domain::PLACE_BYTES_MAX;
use ferro_protocol::ids::ChunkIndex;
use ferro_transport::http::{Answer, Arguments, Body, Failure, METRICS_TYPE, Path, bad_request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::control::NewDisk;
use super::extract::{disk_path, id};

/// The longest name of a host, or of a part of a fault domain.
const LABEL_BYTES_MAX: usize = 63;

/// The cluster at a glance.
#[utoipa::path(get, path = "/v1/status", tag = "cluster",
    responses((status = 200, body = Status), (status = "default", body = ApiError)))]
pub(super) async fn status(State(api): State<Api>) -> Answer<Status> {
    Ok(Json(api.control.status().await?))
}

/// The cluster that this host is in.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster",
    responses((status = 200, body = ClusterInfo), (status = "default", body = ApiError)))]
pub(super) async fn cluster(State(api): State<Api>) -> Answer<ClusterInfo> {
    Ok(Json(api.control.cluster().await?))
}

/// Make a cluster with this host as its first member.
#[utoipa::path(post, path = "/v1/cluster/bootstrap", tag = "cluster", request_body = BootstrapRequest,
    responses((status = 200, body = ClusterInfo), (status = "default", body = ApiError)))]
pub(super) async fn bootstrap(
    State(api): State<Api>,
    Body(request): Body<BootstrapRequest>,
) -> Answer<ClusterInfo> {
    label(request.host_name.as_deref(), "host name")?;
    fault_domain(request.fault_domain.as_deref())?;
    Ok(Json(api.control.bootstrap(request).await?))
}

/// Make a join token.
#[utoipa::path(post, path = "/v1/cluster/tokens", tag = "cluster", request_body = TokenRequest,
    responses((status = 200, body = TokenInfo), (status = "default", body = ApiError)))]
pub(super) async fn create_token(
    State(api): State<Api>,
    Body(request): Body<TokenRequest>,
) -> Answer<TokenInfo> {
    if !(1..=TOKEN_SECONDS_MAX).contains(&request.valid_seconds) {
        let message = format!("a join token can't be valid for {} seconds", request.valid_seconds);
        return Err(bad_request(message, "choose from one second to one week (604800)").into());
    }
    Ok(Json(api.control.create_token(request.valid_seconds).await?))
}

/// Join the cluster that a token is from.
#[utoipa::path(post, path = "/v1/cluster/join", tag = "cluster", request_body = JoinRequest,
    responses((status = 200, body = ClusterInfo), (status = "default", body = ApiError)))]
pub(super) async fn join(State(api): State<Api>, Body(request): Body<JoinRequest>) -> Answer<ClusterInfo> {
    label(request.host_name.as_deref(), "host name")?;
    fault_domain(request.fault_domain.as_deref())?;
    Ok(Json(api.control.join(request).await?))
}

/// Raise the cluster's feature level to what all hosts know: from then on earlier releases can't take part. Refused, before anything
/// changes, if a host does not answer or knows less than others.
#[utoipa::path(post, path = "/v1/cluster/upgrade", tag = "cluster", request_body = UpgradeRequest,
    responses((status = 200, body = UpgradeReport), (status = "default", body = ApiError)))]
pub(super) async fn upgrade(
    State(api): State<Api>,
    Body(request): Body<UpgradeRequest>,
) -> Answer<UpgradeReport> {
    Ok(Json(api.control.upgrade(request).await?))
}

/// Names that people give to hosts and fault domains end up in tables and in certificates.
fn label(text: Option<&str>, what: &str) -> Result<(), ApiError> {
    let Some(text) = text else { return Ok(()) };
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(good) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::BadName,
        format!("{text:?} is not a {what}"),
        "use 1 to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.'",
    ))
}

/// A path of such names: `lyon/rack3` is in the site `lyon`.
fn fault_domain(text: Option<&str>) -> Result<(), ApiError> {
    let Some(path) = text else { return Ok(()) };
    if path.len() <= PLACE_BYTES_MAX && path.split('/').all(|part| label(Some(part), "").is_ok()) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::BadName,
        format!("{path:?} is not a fault domain"),
        "use 1 to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.', or several such names with slashes between them, as in site/rack",
    ))
}

/// All hosts.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = HostList), (status = "default", body = ApiError)))]
pub(super) async fn hosts(State(api): State<Api>) -> Answer<HostList> {
    Ok(Json(HostList { hosts: api.control.hosts().await? }))
}

/// Change what a host is called or what fails together with it. Copies stay where they are: a new fault domain counts for what
/// is placed from now on, and the answer names the volumes whose copies share one now.
#[utoipa::path(patch, path = "/v1/hosts/{id}", tag = "hosts", request_body = SetHostRequest,
    params(("id" = String, Path, description = "the host's id")),
    responses((status = 200, body = ChangedHost), (status = "default", body = ApiError)))]
pub(super) async fn set_host(
    State(api): State<Api>,
    Path(host): Path<String>,
    Body(request): Body<SetHostRequest>,
) -> Answer<ChangedHost> {
    let host = id(&host, "host")?;
    if request == SetHostRequest::default() {
        let message = format!("nothing of host {host} is to be changed");
        return Err(bad_request(message, "give a name, a fault domain or both").into());
    }
    label(request.name.as_deref(), "host name")?;
    fault_domain(request.fault_domain.as_deref())?;
    Ok(Json(api.control.set_host(host, request).await?))
}

/// How something leaves.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Leave {
    /// Go at once, without moving the data first: volumes may have fewer copies than their policy asks for until they are
    /// repaired. Still refused if a last good copy would go with it.
    #[serde(default)]
    force: bool,
}

/// Take a host out of the cluster. Its data is copied elsewhere first and it goes by itself afterwards; refused at once if
/// the other hosts can't keep all volumes as their policies ask.
#[utoipa::path(delete, path = "/v1/hosts/{id}", tag = "hosts",
    params(("id" = String, Path, description = "the host's id"), Leave),
    responses((status = 200, body = Removal), (status = "default", body = ApiError)))]
pub(super) async fn remove_host(
    State(api): State<Api>,
    Path(host): Path<String>,
    Arguments(leave): Arguments<Leave>,
) -> Answer<Removal> {
    Ok(Json(api.control.remove_host(id(&host, "host")?, leave.force).await?))
}

/// Keep a host that is leaving after all.
#[utoipa::path(delete, path = "/v1/hosts/{id}/removal", tag = "hosts",
    params(("id" = String, Path, description = "the host's id")),
    responses((status = 204, description = "it stays"), (status = "default", body = ApiError)))]
pub(super) async fn keep_host(
    State(api): State<Api>,
    Path(host): Path<String>,
) -> Result<StatusCode, Failure> {
    api.control.keep_host(id(&host, "host")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All disks.
#[utoipa::path(get, path = "/v1/disks", tag = "disks",
    responses((status = 200, body = DiskList), (status = "default", body = ApiError)))]
pub(super) async fn disks(State(api): State<Api>) -> Answer<DiskList> {
    Ok(Json(DiskList { disks: api.control.disks().await? }))
}

/// Give a disk of this host to the cluster. A device that holds something is refused with `disk_not_empty`; its name, as
/// `details.device` gives it, is repeated in `confirm` to erase it.
#[utoipa::path(post, path = "/v1/disks", tag = "disks", request_body = AddDiskRequest,
    responses((status = 201, body = AddedDisk), (status = "default", body = ApiError)))]
pub(super) async fn add_disk(
    State(api): State<Api>,
    Body(request): Body<AddDiskRequest>,
) -> Result<(StatusCode, Json<AddedDisk>), Failure> {
    let path = disk_path(&request.path)?;
    if request.size_bytes == Some(0) {
        let message = format!("the disk at {} can't have size 0", request.path);
        let next = "choose a size, or leave it out to use all that is free";
        return Err(ApiError::new(ErrorCode::BadSize, message, next).into());
    }
    let disk = NewDisk { path, size_bytes: request.size_bytes, confirm: request.confirm };
    Ok((StatusCode::CREATED, Json(api.control.add_disk(disk).await?)))
}

/// Take a disk out of the cluster. Its data is copied elsewhere first and it goes by itself afterwards; refused at once if
/// the other disks can't keep all volumes as their policies ask.
#[utoipa::path(delete, path = "/v1/disks/{id}", tag = "disks",
    params(("id" = String, Path, description = "the disk's id"), Leave),
    responses((status = 200, body = Removal), (status = "default", body = ApiError)))]
pub(super) async fn remove_disk(
    State(api): State<Api>,
    Path(disk): Path<String>,
    Arguments(leave): Arguments<Leave>,
) -> Answer<Removal> {
    Ok(Json(api.control.remove_disk(id(&disk, "disk")?, leave.force).await?))
}

/// Keep a disk that is leaving after all.
#[utoipa::path(delete, path = "/v1/disks/{id}/removal", tag = "disks",
    params(("id" = String, Path, description = "the disk's id")),
    responses((status = 204, description = "it stays"), (status = "default", body = ApiError)))]
pub(super) async fn keep_disk(
    State(api): State<Api>,
    Path(disk): Path<String>,
) -> Result<StatusCode, Failure> {
    api.control.keep_disk(id(&disk, "disk")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Use a disk of this host again that was taken for dead: refused unless it can be opened and its content is right now. What
/// it missed is copied to it.
#[utoipa::path(post, path = "/v1/disks/{id}/revive", tag = "disks",
    params(("id" = String, Path, description = "the disk's id")),
    responses((status = 200, body = DiskInfo), (status = "default", body = ApiError)))]
pub(super) async fn revive_disk(State(api): State<Api>, Path(disk): Path<String>) -> Answer<DiskInfo> {
    Ok(Json(api.control.revive_disk(id(&disk, "disk")?).await?))
}

/// All objects.
#[utoipa::path(get, path = "/v1/objects", tag = "objects",
    responses((status = 200, body = ObjectList), (status = "default", body = ApiError)))]
pub(super) async fn objects(State(api): State<Api>) -> Answer<ObjectList> {
    Ok(Json(ObjectList { objects: api.control.objects().await? }))
}

/// Which chunks of an object.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChunkPage {
    /// The first chunk, 0 unless given.
    #[serde(default)]
    from: u32,
    /// The most chunks to list, 1 to 1024.
    #[serde(default = "chunks_page_max")]
    limit: u32,
}

fn chunks_page_max() -> u32 {
    CHUNKS_PAGE_MAX
}

/// One object with some of its chunks.
#[utoipa::path(get, path = "/v1/objects/{id}", tag = "objects",
    params(("id" = String, Path, description = "the object's id"), ChunkPage),
    responses((status = 200, body = ObjectDetails), (status = "default", body = ApiError)))]
pub(super) async fn object(
    State(api): State<Api>,
    Path(object): Path<String>,
    Arguments(page): Arguments<ChunkPage>,
) -> Answer<ObjectDetails> {
    if !(1..=CHUNKS_PAGE_MAX).contains(&page.limit) {
        return Err(bad_request(format!("{} chunks in one answer", page.limit), "ask for 1 to 1024").into());
    }
    Ok(Json(api.control.object(id(&object, "object")?, ChunkIndex(page.from), page.limit).await?))
}

/// All locks.
#[utoipa::path(get, path = "/v1/locks", tag = "locks",
    responses((status = 200, body = LockList), (status = "default", body = ApiError)))]
pub(super) async fn locks(State(api): State<Api>) -> Answer<LockList> {
    Ok(Json(LockList { locks: api.control.locks().await? }))
}

/// Take the lock of an object from a holder whose lease has ended.
#[utoipa::path(post, path = "/v1/locks/{id}/break", tag = "locks",
    params(("id" = String, Path, description = "the object's id")),
    responses((status = 200, body = BrokenLock), (status = "default", body = ApiError)))]
pub(super) async fn break_lock(State(api): State<Api>, Path(object): Path<String>) -> Answer<BrokenLock> {
    Ok(Json(api.control.break_lock(id(&object, "object")?).await?))
}

/// All resyncs.
#[utoipa::path(get, path = "/v1/resyncs", tag = "resyncs",
    responses((status = 200, body = ResyncList), (status = "default", body = ApiError)))]
pub(super) async fn resyncs(State(api): State<Api>) -> Answer<ResyncList> {
    Ok(Json(api.control.resyncs().await?))
}

/// The counters of this host; rates are differences between two samples.
#[utoipa::path(get, path = "/v1/top", tag = "cluster",
    responses((status = 200, body = TopSample), (status = "default", body = ApiError)))]
pub(super) async fn top(State(api): State<Api>) -> Answer<TopSample> {
    Ok(Json(api.control.top().await?))
}

/// The counters of this host in `OpenMetrics` text, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "cluster",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"),
        (status = "default", body = ApiError)))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Failure> {
    let text = api.control.metrics().await?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}
