//! What the daemons' local HTTP APIs have in common: how a request is taken apart, and the one form in which everything is
//! refused, the HTTP framework's own rejections included.
//!
//! What it must not know: routes, and what any of them does.

use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{self, DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use ferro_protocol::api::{ApiError, ErrorCode};
use serde::de::DeserializeOwned;

/// What `/metrics` is.
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An answer as JSON, or why there is none.
pub type Answer<T> = Result<Json<T>, Failure>;

/// An [`ApiError`] on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(code = ?self.0.code, message = %self.0.message, "an API request failed");
        }
        (status, Json(self.0)).into_response()
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match Json::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(bad_body(&rejection)),
        }
    }
}

fn bad_body(rejection: &JsonRejection) -> Failure {
    let next = match rejection {
        JsonRejection::MissingJsonContentType(_) => "send `Content-Type: application/json`",
        JsonRejection::BytesRejection(BytesRejection::FailedToBufferBody(_)) => "send a smaller body",
        _ => "see GET /openapi.json for what this request takes",
    };
    Failure(bad_request(rejection.body_text(), next))
}

/// The parts of a path that are names.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match extract::Path::from_request_parts(parts, state).await {
            Ok(extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                let next = "write names as they are, and what a path can't have as the %xx of its UTF-8";
                Err(bad_request(rejection.body_text(), next).into())
            }
        }
    }
}

/// A query string.
#[derive(Debug)]
pub struct Arguments<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Arguments<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                Err(bad_request(rejection.body_text(), "see GET /openapi.json for what this request takes")
                    .into())
            }
        }
    }
}

/// The request can't be understood.
pub fn bad_request(message: impl Into<String>, next: &str) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message, next)
}

/// The fallback of a router.
async fn no_such_route(uri: Uri) -> Failure {
    Failure(ApiError::new(
        ErrorCode::NoSuchRoute,
        format!("there is nothing at {}", uri.path()),
        "see GET /openapi.json for what there is; the client may be newer than the daemon",
    ))
}

/// The fallback for a route's other methods.
async fn no_such_method(method: Method, uri: Uri) -> (StatusCode, Failure) {
    let error = ApiError::new(
        ErrorCode::NoSuchRoute,
        format!("{method} can't be used on {}", uri.path()),
        "see GET /openapi.json for what can",
    );
    (StatusCode::METHOD_NOT_ALLOWED, Failure(error))
}

/// A daemon's routes, `method "path" => handler,` each: makes `ROUTES`, which a test holds against the API's description, and
/// `routes()`, a router over the `Api` in scope.
#[macro_export]
macro_rules! routes {
    ($($method:ident $path:literal => $handler:path,)*) => {
        /// Every route: the method in lower case and the path, as the description writes them.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn routes() -> axum::Router<Api> {
            axum::Router::new()$(.route($path, axum::routing::$method($handler)))*
        }
    };
}

/// Routes with what belongs around all of them: how unknown ones are refused, and the largest body.
pub fn with_refusals<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    body_bytes_max: usize,
) -> Router<S> {
    routes
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(body_bytes_max))
}
