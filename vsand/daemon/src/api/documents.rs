//! Requests about documents: what other daemons keep in the cluster directory.

use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::body::{self, Body as RawBody};
use axum::extract::State;
use axum::http::StatusCode;
use ferro_protocol::api::{ApiError, DOCUMENTS_WAIT_MAX_S, Document, DocumentList, ErrorCode, PutDocument};
use ferro_protocol::document::{DOCUMENT_BYTES_MAX, DocumentName};
use ferro_transport::http::{Answer, Arguments, Failure, Path, bad_request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;

/// Which documents, and what to wait for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Watch {
    /// Only those whose names begin like this.
    #[serde(default)]
    prefix: String,
    /// Wait until any document has changed after this revision: that of an earlier list.
    after: Option<u64>,
    /// Wait at most so many seconds, up to 60, then answer with what there is. 0 unless given.
    #[serde(default)]
    wait_s: u64,
}

/// The documents, as this host knows them: it may be behind the others. With `after` and `wait_s` the answer waits for a
/// change.
#[utoipa::path(get, path = "/v1/documents", tag = "documents", params(Watch),
    responses((status = 200, body = DocumentList), (status = "default", body = ApiError)))]
pub(super) async fn list(State(api): State<Api>, Arguments(watch): Arguments<Watch>) -> Answer<DocumentList> {
    if watch.prefix.len() > DocumentName::LEN_MAX {
        let message = format!("a prefix of {} bytes", watch.prefix.len());
        return Err(bad_request(message, "a document's name has at most 255").into());
    }
    if watch.wait_s > DOCUMENTS_WAIT_MAX_S {
        let message = format!("an answer can't wait for {} s", watch.wait_s);
        return Err(bad_request(message, "wait for at most 60 s, then ask again").into());
    }
    let wait = Duration::from_secs(watch.wait_s);
    Ok(Json(api.control.documents(&watch.prefix, watch.after, wait).await?))
}

/// One document, as this host knows it.
#[utoipa::path(get, path = "/v1/documents/{name}", tag = "documents",
    params(("name" = String, Path, description = "the document's name, slashes and all")),
    responses((status = 200, body = Document), (status = "default", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(name): Path<String>) -> Answer<Document> {
    Ok(Json(api.control.document(&document_name(&name)?).await?))
}

/// On what a change is based.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Basis {
    /// The revision of the document that is to be replaced; 0 if there must be none.
    basis: u64,
}

/// Make or replace a document: the body is its content, UTF-8 text of at most 1 MiB. Refused with `conflict` if the document
/// is not at the revision `basis`.
#[utoipa::path(put, path = "/v1/documents/{name}", tag = "documents",
    params(("name" = String, Path, description = "the document's name, slashes and all"), Basis),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = PutDocument), (status = "default", body = ApiError)))]
pub(super) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    Arguments(on): Arguments<Basis>,
    body: RawBody,
) -> Answer<PutDocument> {
    let name = document_name(&name)?;
    let bytes = body::to_bytes(body, DOCUMENT_BYTES_MAX).await.map_err(|error| {
        let message = format!("document {name} can't be taken: {error}");
        bad_request(message, "a document has at most 1 MiB")
    })?;
    let content = String::from_utf8(bytes.into()).map_err(|error| {
        bad_request(format!("document {name} is not UTF-8 text: {error}"), "send text, such as JSON")
    })?;
    Ok(Json(api.control.put_document(&name, on.basis, content).await?))
}

/// Delete a document. Refused with `conflict` if it is not at the revision `basis`.
#[utoipa::path(delete, path = "/v1/documents/{name}", tag = "documents",
    params(("name" = String, Path, description = "the document's name, slashes and all"), Basis),
    responses((status = 204, description = "it is gone"), (status = "default", body = ApiError)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    Arguments(on): Arguments<Basis>,
) -> Result<StatusCode, Failure> {
    api.control.delete_document(&document_name(&name)?, on.basis).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn document_name(text: &str) -> Result<DocumentName, ApiError> {
    DocumentName::from_str(text).map_err(|bad| {
        ApiError::new(
            ErrorCode::BadName,
            bad.to_string(),
            "choose a name of that form, such as `switch/network`",
        )
    })
}
