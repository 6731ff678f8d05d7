//! A stand-in for `vsand`: the documents of its local API, over a Unix socket, with a runtime of its own so that it can die
//! with all its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use ferro_protocol::api::switch::Spec;
use ferro_protocol::api::{
    ApiError, ClusterInfo, Document, DocumentInfo, DocumentList, ErrorCode, HostInfo, HostList, HostRole,
    HostState, PutDocument,
};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::http::Failure;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub(crate) const HERE: HostId = HostId::from_bytes([1; 16]);
pub(crate) const THERE: HostId = HostId::from_bytes([2; 16]);

struct Inner {
    documents: Mutex<BTreeMap<DocumentName, Document>>,
    hosts: Mutex<BTreeSet<HostId>>,
    quorum: watch::Sender<bool>,
    revision: watch::Sender<u64>,
}

/// See the module. Dropped, it is gone.
pub(crate) struct StandIn {
    inner: Arc<Inner>,
    runtime: Option<Runtime>,
}

impl StandIn {
    pub(crate) fn start(socket: &FilePath) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Far above what an earlier one may have given: a directory's revisions don't begin anew.
        let begin = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let inner = Arc::new(Inner {
            documents: Mutex::default(),
            hosts: Mutex::new([HERE, THERE].into()),
            quorum: watch::Sender::new(true),
            revision: watch::Sender::new(begin as u64),
        });
        let routes = Router::new()
            .route("/v1/documents", get(list))
            .route("/v1/documents/{*name}", get(show).put(put))
            .route("/v1/cluster", get(cluster))
            .route("/v1/hosts", get(hosts))
            .with_state(Arc::clone(&inner));
        let _gone = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
        Self { inner, runtime: Some(runtime) }
    }

    pub(crate) fn quorum(&self, there: bool) {
        self.inner.quorum.send_replace(there);
        // What waits for documents looks again.
        self.inner.revision.send_modify(|revision| *revision += 1);
    }

    pub(crate) fn remove_host(&self, host: HostId) {
        self.inner.hosts.lock().unwrap().remove(&host);
        self.inner.revision.send_modify(|revision| *revision += 1);
    }

    pub(crate) fn revision_of(&self, name: &str) -> Option<u64> {
        self.inner.documents.lock().unwrap().get(&name.parse().unwrap()).map(|it| it.revision)
    }

    pub(crate) fn text_of(&self, name: &str) -> Option<String> {
        self.inner.documents.lock().unwrap().get(&name.parse().unwrap()).map(|it| it.content.clone())
    }

    /// Puts a document whatever was there.
    pub(crate) fn put(&self, name: &str, content: &str) {
        self.inner.put(name.parse().unwrap(), content.to_owned());
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    fn put(&self, name: DocumentName, content: String) -> u64 {
        let revision = *self.revision.borrow() + 1;
        self.documents.lock().unwrap().insert(name.clone(), Document { name, revision, content });
        self.revision.send_replace(revision);
        revision
    }
}

/// A network's document.
pub(crate) fn network_text(spec: &Spec) -> String {
    format!("{{\"format\":1,\"spec\":{}}}", serde_json::to_string(spec).unwrap())
}

/// A host's document.
pub(crate) fn host_text(name: &str, applied: u64) -> String {
    format!(
        "{{\"format\":1,\"name\":\"{name}\",\"control\":[\"127.0.0.2:7401\"],\"data\":[\"127.0.0.2:7402\"],\"applied\":{applied}}}"
    )
}

#[derive(Deserialize)]
struct Watch {
    #[serde(default)]
    prefix: String,
    after: Option<u64>,
    #[serde(default)]
    wait_s: u64,
}

async fn list(State(inner): State<Arc<Inner>>, Query(asked): Query<Watch>) -> Json<DocumentList> {
    let mut revision = inner.revision.subscribe();
    let newer = |revision: &u64| asked.after.is_none_or(|after| *revision > after);
    let _in_time = tokio::time::timeout(Duration::from_secs(asked.wait_s), revision.wait_for(newer)).await;
    let revision = *inner.revision.borrow();
    let all = inner.documents.lock().unwrap();
    let under = all.values().filter(|it| it.name.as_str().starts_with(&asked.prefix));
    let info = |it: &Document| DocumentInfo {
        name: it.name.clone(),
        revision: it.revision,
        bytes: it.content.len() as u64,
    };
    Json(DocumentList { revision, documents: under.map(info).collect() })
}

async fn show(
    State(inner): State<Arc<Inner>>,
    Path(name): Path<DocumentName>,
) -> Result<Json<Document>, Failure> {
    let all = inner.documents.lock().unwrap();
    let missing = || ApiError::new(ErrorCode::DocumentNotFound, "none", "none");
    Ok(Json(all.get(&name).cloned().ok_or_else(missing)?))
}

#[derive(Deserialize)]
struct Basis {
    basis: u64,
}

async fn put(
    State(inner): State<Arc<Inner>>,
    Path(name): Path<DocumentName>,
    Query(on): Query<Basis>,
    content: String,
) -> Result<(StatusCode, Json<PutDocument>), Failure> {
    if !*inner.quorum.borrow() {
        return Err(ApiError::new(ErrorCode::NoQuorum, "no quorum", "wait").into());
    }
    let now = inner.documents.lock().unwrap().get(&name).map_or(0, |it| it.revision);
    if now != on.basis {
        return Err(ApiError::new(ErrorCode::Conflict, "overtaken", "again").with("revision", now).into());
    }
    Ok((StatusCode::OK, Json(PutDocument { revision: inner.put(name, content) })))
}

async fn cluster(State(inner): State<Arc<Inner>>) -> Json<ClusterInfo> {
    Json(ClusterInfo {
        id: ClusterId::from_bytes([9; 16]),
        ca_fingerprint: String::new(),
        this_host: HERE,
        leader: Some(HERE),
        quorum: *inner.quorum.borrow(),
        voters: 1,
        hosts: 2,
        feature_level: 1,
        feature_level_known: 2,
    })
}

async fn hosts(State(inner): State<Arc<Inner>>) -> Json<HostList> {
    let info = |id: &HostId| HostInfo {
        id: *id,
        name: if *id == HERE { "alpha".to_owned() } else { "beta".to_owned() },
        this_host: *id == HERE,
        addresses: Vec::new(),
        fault_domain: String::new(),
        state: HostState::Online,
        role: HostRole::Voter,
        disks: 0,
        capacity_bytes: 0,
        used_bytes: 0,
        leaving_bytes: None,
        maintenance: None,
        last_seen_seconds: None,
        certificate_expires_unix_s: None,
        version: None,
    };
    Json(HostList { hosts: inner.hosts.lock().unwrap().iter().map(info).collect() })
}
