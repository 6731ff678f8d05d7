//! Requests that move a volume's data, for import and export.

use axum::Json;
use axum::body::{self, Body as RawBody, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ferro_protocol::api::{
    ApiError, BeginTransferRequest, DiscardRequest, TRANSFER_BYTES_MAX, Transfer, TransferEnded,
    TransferOutcome,
};
use ferro_protocol::ids::{TransferId, VolumeName};
use ferro_protocol::units::BLOCK_BYTES;
use ferro_transport::http::{Answer, Arguments, Body, Failure, Path, bad_request};
use serde::Deserialize;
use tokio::sync::SemaphorePermit;
use utoipa::IntoParams;

use super::Api;
use super::control::ByteSpan;
use super::extract::{id, volume_name};
use super::fail;

/// Begin an import or export: the daemon takes the volume's lock.
#[utoipa::path(post, path = "/v1/volumes/{name}/transfers", tag = "transfers", request_body = BeginTransferRequest,
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 201, body = Transfer), (status = "default", body = ApiError)))]
pub(super) async fn begin(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(request): Body<BeginTransferRequest>,
) -> Result<(StatusCode, Json<Transfer>), Failure> {
    let begun =
        api.control.begin_transfer(&volume_name(&name)?, request.direction, request.image_bytes).await?;
    Ok((StatusCode::CREATED, Json(begun)))
}

/// How a transfer ends.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Ending {
    /// `complete` or `abort`.
    #[param(inline)]
    outcome: TransferOutcome,
}

/// End an import or export: the daemon gives the lock back.
#[utoipa::path(delete, path = "/v1/volumes/{name}/transfers/{id}", tag = "transfers",
    params(("name" = String, Path, description = "the volume's name"),
        ("id" = String, Path, description = "the transfer's id"), Ending),
    responses((status = 200, body = TransferEnded), (status = "default", body = ApiError)))]
pub(super) async fn end(
    State(api): State<Api>,
    Path((name, transfer)): Path<(String, String)>,
    Arguments(ending): Arguments<Ending>,
) -> Answer<TransferEnded> {
    let (name, transfer) = target(&name, &transfer)?;
    Ok(Json(api.control.end_transfer(&name, transfer, ending.outcome).await?))
}

/// Which bytes to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadSpan {
    /// The first byte: whole blocks of 4 KiB.
    offset: u64,
    /// How many: whole blocks, at most 4 MiB.
    length: u64,
}

/// Read a part of the volume. The answer has no body (204) if all of it is zeros.
#[utoipa::path(get, path = "/v1/volumes/{name}/transfers/{id}/data", tag = "transfers",
    params(("name" = String, Path, description = "the volume's name"),
        ("id" = String, Path, description = "the transfer's id"), ReadSpan),
    responses((status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 204, description = "all zeros"), (status = "default", body = ApiError)))]
pub(super) async fn read(
    State(api): State<Api>,
    Path((name, transfer)): Path<(String, String)>,
    Arguments(asked): Arguments<ReadSpan>,
) -> Result<Response, Failure> {
    let (name, transfer) = target(&name, &transfer)?;
    let span = data_span(&name, asked.offset, asked.length)?;
    let slot = data_slot(&api).await?;
    let data = api.control.read_transfer(&name, transfer, span).await?;
    drop(slot);
    if data.len() as u64 != span.length {
        let cause = format!("{} bytes instead of {}", data.len(), span.length);
        return Err(fail::internal(format!("reading volume {name} at {}", span.offset), cause).into());
    }
    if is_zero(&data) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], data).into_response())
}

/// Where to write.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WriteAt {
    /// The first byte: whole blocks of 4 KiB.
    offset: u64,
}

/// Write a part of the volume: the body, whole blocks of 4 KiB, at most 4 MiB. Answered when it is on stable storage.
#[utoipa::path(put, path = "/v1/volumes/{name}/transfers/{id}/data", tag = "transfers",
    params(("name" = String, Path, description = "the volume's name"),
        ("id" = String, Path, description = "the transfer's id"), WriteAt),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn write(
    State(api): State<Api>,
    Path((name, transfer)): Path<(String, String)>,
    Arguments(at): Arguments<WriteAt>,
    body: RawBody,
) -> Result<StatusCode, Failure> {
    let (name, transfer) = target(&name, &transfer)?;
    let slot = data_slot(&api).await?;
    let data: Bytes = body::to_bytes(body, TRANSFER_BYTES_MAX as usize).await.map_err(|error| {
        let message = format!("the data for volume {name} at {} can't be taken: {error}", at.offset);
        bad_request(message, "send at most 4 MiB in one request")
    })?;
    let span = data_span(&name, at.offset, data.len() as u64)?;
    api.control.write_transfer(&name, transfer, span.offset, data).await?;
    drop(slot);
    Ok(StatusCode::NO_CONTENT)
}

/// Make a part of the volume read as zeros and free its space.
#[utoipa::path(post, path = "/v1/volumes/{name}/transfers/{id}/discard", tag = "transfers",
    request_body = DiscardRequest,
    params(("name" = String, Path, description = "the volume's name"),
        ("id" = String, Path, description = "the transfer's id")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(super) async fn discard(
    State(api): State<Api>,
    Path((name, transfer)): Path<(String, String)>,
    Body(request): Body<DiscardRequest>,
) -> Result<StatusCode, Failure> {
    let (name, transfer) = target(&name, &transfer)?;
    let span = span(&name, request.offset, request.length)?;
    api.control.discard_transfer(&name, transfer, span).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn target(name: &str, transfer: &str) -> Result<(VolumeName, TransferId), ApiError> {
    Ok((volume_name(name)?, id(transfer, "transfer")?))
}

async fn data_slot(api: &Api) -> Result<SemaphorePermit<'_>, ApiError> {
    api.data_slots.acquire().await.map_err(|closed| fail::internal("waiting for a buffer", closed))
}

fn span(name: &VolumeName, offset: u64, length: u64) -> Result<ByteSpan, ApiError> {
    let block = BLOCK_BYTES as u64;
    let whole = offset.is_multiple_of(block) && length.is_multiple_of(block) && length > 0;
    if !whole || offset.checked_add(length).is_none() {
        let message = format!("{length} bytes at {offset} of volume {name} are not whole blocks of {block}");
        return Err(bad_request(message, "use multiples of 4096, at least one block"));
    }
    Ok(ByteSpan { offset, length })
}

fn data_span(name: &VolumeName, offset: u64, length: u64) -> Result<ByteSpan, ApiError> {
    if length > TRANSFER_BYTES_MAX {
        let message = format!("{length} bytes at {offset} of volume {name} are too many for one request");
        return Err(bad_request(message, "ask for at most 4 MiB at a time"));
    }
    span(name, offset, length)
}

/// Whether all bytes are zero: by the overlap of the slice with itself, which is a `memcmp`.
fn is_zero(data: &[u8]) -> bool {
    match data {
        [] => true,
        [first, ..] => *first == 0 && data[1..] == data[..data.len() - 1],
    }
}
