//! The handlers: words into types, and what can be refused without knowing the cluster.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ferro_protocol::api::vm::{
    AttachDisk, AttachNic, ConsoleInfo, HostCapacity, HypervisorStatus, LOG_LINES_MAX, StartVm, StopVm,
    VmInfo, VmList, VmLog, VmName, VmSpec, VmStats,
};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_protocol::ids::VolumeName;
use ferro_transport::http::{Answer, Arguments, Body, Failure, METRICS_TYPE, Path, bad_request};
use hypervisor_core::documents::Verb;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;

/// How long a guest has to switch off unless it is said.
const STOP_S_DEFAULT: u32 = 60;
/// At most.
const STOP_S_MAX: u32 = 3600;
/// Lines of a log unless it is said.
const LINES_DEFAULT: u32 = 200;

fn vm_name(text: &str) -> Result<VmName, ApiError> {
    VmName::from_str(text).map_err(|bad| {
        ApiError::new(ErrorCode::BadName, bad.to_string(), "see `vmctl list` for the VMs that there are")
    })
}

/// The hypervisor at a glance.
#[utoipa::path(get, path = "/v1/status", tag = "host",
    responses((status = 200, body = HypervisorStatus), (status = "default", body = ApiError)))]
pub(super) async fn status(State(api): State<Api>) -> Answer<HypervisorStatus> {
    Ok(Json(api.control.status().await?))
}

/// What this host has for VMs, and what of it is free.
#[utoipa::path(get, path = "/v1/host", tag = "host",
    responses((status = 200, body = HostCapacity), (status = "default", body = ApiError)))]
pub(super) async fn host(State(api): State<Api>) -> Answer<HostCapacity> {
    Ok(Json(api.control.host().await?))
}

/// This host's counters, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "host",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text"),
        (status = "default", body = ApiError)))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Failure> {
    let text = api.control.metrics().await?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}

/// All VMs of the cluster, whichever host has them.
#[utoipa::path(get, path = "/v1/vms", tag = "vms",
    responses((status = 200, body = VmList), (status = "default", body = ApiError)))]
pub(super) async fn list(State(api): State<Api>) -> Answer<VmList> {
    Ok(Json(VmList { vms: api.control.vms().await? }))
}

/// Make a VM. Ports' names and addresses that are not given are chosen. It is off.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", request_body = VmSpec,
    responses((status = 201, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn create(
    State(api): State<Api>,
    Body(spec): Body<VmSpec>,
) -> Result<(StatusCode, Json<VmInfo>), Failure> {
    Ok((StatusCode::CREATED, Json(api.control.create(spec).await?)))
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(name): Path<String>) -> Answer<VmInfo> {
    Ok(Json(api.control.vm(&vm_name(&name)?).await?))
}

/// On what a change is based.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Basis {
    /// The revision that is to be replaced; whatever is there, unless given.
    basis: Option<u64>,
}

/// Replace the specification of a VM that is off.
#[utoipa::path(put, path = "/v1/vms/{name}", tag = "vms", request_body = VmSpec,
    params(("name" = String, Path, description = "the VM's name"), Basis),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn replace(
    State(api): State<Api>,
    Path(name): Path<String>,
    Arguments(on): Arguments<Basis>,
    Body(spec): Body<VmSpec>,
) -> Answer<VmInfo> {
    let name = vm_name(&name)?;
    if spec.name != name.as_str() {
        let message = format!("VM {name} can't become {:?}: a name stays", spec.name);
        return Err(bad_request(message, "send the specification with the VM's own name").into());
    }
    Ok(Json(api.control.replace(&name, spec, on.basis).await?))
}

/// Delete a VM that is off. Its volumes stay.
#[utoipa::path(delete, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    api.control.delete(&vm_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Start a VM. Answers when it runs.
#[utoipa::path(post, path = "/v1/vms/{name}/start", tag = "power", request_body = StartVm,
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn start(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<StartVm>,
) -> Answer<VmInfo> {
    Ok(Json(api.control.start(&vm_name(&name)?, request.host).await?))
}

/// Press a VM's power button. Answers when it is off, or when the time is up.
#[utoipa::path(post, path = "/v1/vms/{name}/stop", tag = "power", request_body = StopVm,
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn stop(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<StopVm>,
) -> Answer<VmInfo> {
    let timeout_s = request.timeout_s.unwrap_or(STOP_S_DEFAULT);
    if timeout_s > STOP_S_MAX {
        let message = format!("{timeout_s} seconds are too many to wait for a guest");
        return Err(bad_request(message, "choose up to an hour (3600)").into());
    }
    let verb = Verb::Stop { timeout_s, force: request.force };
    Ok(Json(api.control.order(&vm_name(&name)?, verb).await?))
}

/// End a VM at once, as if its power was cut.
#[utoipa::path(post, path = "/v1/vms/{name}/kill", tag = "power",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn kill(State(api): State<Api>, Path(name): Path<String>) -> Answer<VmInfo> {
    Ok(Json(api.control.order(&vm_name(&name)?, Verb::Kill).await?))
}

/// Begin a VM anew: another vmm over the same disks and ports.
#[utoipa::path(post, path = "/v1/vms/{name}/reset", tag = "power",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn reset(State(api): State<Api>, Path(name): Path<String>) -> Answer<VmInfo> {
    Ok(Json(api.control.order(&vm_name(&name)?, Verb::Reset).await?))
}

/// Stop a VM's processors.
#[utoipa::path(post, path = "/v1/vms/{name}/pause", tag = "power",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn pause(State(api): State<Api>, Path(name): Path<String>) -> Answer<VmInfo> {
    Ok(Json(api.control.order(&vm_name(&name)?, Verb::Pause).await?))
}

/// Let a paused VM go on.
#[utoipa::path(post, path = "/v1/vms/{name}/resume", tag = "power",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn resume(State(api): State<Api>, Path(name): Path<String>) -> Answer<VmInfo> {
    Ok(Json(api.control.order(&vm_name(&name)?, Verb::Resume).await?))
}

/// Give a VM that is off one more disk.
#[utoipa::path(post, path = "/v1/vms/{name}/disks", tag = "devices", request_body = AttachDisk,
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn attach_disk(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<AttachDisk>,
) -> Answer<VmInfo> {
    Ok(Json(api.control.attach_disk(&vm_name(&name)?, request.disk).await?))
}

/// Take a disk from a VM that is off. The volume stays.
#[utoipa::path(delete, path = "/v1/vms/{name}/disks/{volume}", tag = "devices",
    params(("name" = String, Path, description = "the VM's name"), ("volume" = String, Path, description = "the volume")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn detach_disk(
    State(api): State<Api>,
    Path((name, volume)): Path<(String, String)>,
) -> Answer<VmInfo> {
    let volume = VolumeName::from_str(&volume).map_err(|bad| {
        ApiError::new(ErrorCode::BadName, bad.to_string(), "see `vmctl show` for the VM's disks")
    })?;
    Ok(Json(api.control.detach_disk(&vm_name(&name)?, &volume).await?))
}

/// Give a VM that is off one more network card.
#[utoipa::path(post, path = "/v1/vms/{name}/nics", tag = "devices", request_body = AttachNic,
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn attach_nic(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<AttachNic>,
) -> Answer<VmInfo> {
    Ok(Json(api.control.attach_nic(&vm_name(&name)?, request.nic).await?))
}

/// Take a network card from a VM that is off.
#[utoipa::path(delete, path = "/v1/vms/{name}/nics/{index}", tag = "devices",
    params(("name" = String, Path, description = "the VM's name"), ("index" = usize, Path, description = "its place, from 0")),
    responses((status = 200, body = VmInfo), (status = "default", body = ApiError)))]
pub(super) async fn detach_nic(
    State(api): State<Api>,
    Path((name, index)): Path<(String, String)>,
) -> Answer<VmInfo> {
    let index = index.parse().map_err(|_| {
        bad_request(format!("{index:?} is not the place of a network card"), "count from 0; see `vmctl show`")
    })?;
    Ok(Json(api.control.detach_nic(&vm_name(&name)?, index).await?))
}

/// What a VM of this host uses.
#[utoipa::path(get, path = "/v1/vms/{name}/stats", tag = "vms",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmStats), (status = "default", body = ApiError)))]
pub(super) async fn stats(State(api): State<Api>, Path(name): Path<String>) -> Answer<VmStats> {
    Ok(Json(api.control.stats(&vm_name(&name)?).await?))
}

/// Which part of which log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogPart {
    /// That of the run before the last failure.
    #[serde(default)]
    previous: bool,
    /// The last lines, 1 to 100000; 200 unless given.
    lines: Option<u32>,
}

/// What the console of a VM of this host has printed.
#[utoipa::path(get, path = "/v1/vms/{name}/log", tag = "vms",
    params(("name" = String, Path, description = "the VM's name"), LogPart),
    responses((status = 200, body = VmLog), (status = "default", body = ApiError)))]
pub(super) async fn log(
    State(api): State<Api>,
    Path(name): Path<String>,
    Arguments(part): Arguments<LogPart>,
) -> Answer<VmLog> {
    let lines = part.lines.unwrap_or(LINES_DEFAULT);
    if !(1..=LOG_LINES_MAX).contains(&lines) {
        return Err(bad_request(format!("{lines} lines can't be shown"), "choose from 1 to 100000").into());
    }
    Ok(Json(api.control.log(&vm_name(&name)?, part.previous, lines).await?))
}

/// Where the console of a VM of this host is.
#[utoipa::path(get, path = "/v1/vms/{name}/console", tag = "vms",
    params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = ConsoleInfo), (status = "default", body = ApiError)))]
pub(super) async fn console(State(api): State<Api>, Path(name): Path<String>) -> Answer<ConsoleInfo> {
    Ok(Json(api.control.console(&vm_name(&name)?).await?))
}
