//! The cluster directory, as the local `vsand` shows it: followed for as long as this daemon runs, and changed by
//! compare-and-set.
//!
//! ```text
//!   ask for all ──► wait for what is newer ──► View ──► wait …
//!        ▲                 │ no answer
//!        └── pause ◄───────┴──► Lost
//! ```
//!
//! What `vsand` shows may be behind what was seen before (it has started anew and is catching up): such a view is not passed
//! on. What it must not know: what the documents say, and whose they are: a daemon names what its documents begin with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use ferro_protocol::api::{
    ApiError, ClusterInfo, Document, DocumentList, ErrorClass, ErrorCode, HostInfo, HostList, HostState,
    PutDocument,
};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{ClusterId, HostId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::client::{CallError, ClientError, LocalClient};

/// How long `vsand` is asked to wait for news. Hosts that came or went are seen at its end, too.
const WAIT_S: u64 = 10;
/// How long any other answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// The pause after a failure, and what it grows to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// A document and its revision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Text {
    /// The revision.
    pub revision: u64,
    /// What it says.
    pub content: Arc<str>,
}

/// What the directory says to this daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct View {
    /// The cluster.
    pub cluster: ClusterId,
    /// This host.
    pub host: HostId,
    /// The revision of the last change to any document.
    pub revision: u64,
    /// The documents of this daemon.
    pub documents: BTreeMap<DocumentName, Text>,
    /// The hosts of the cluster and what they are called.
    pub hosts: BTreeMap<HostId, String>,
    /// Those of them that are there.
    #[serde(default)]
    pub online: BTreeSet<HostId>,
    /// Whether anything can be changed.
    pub quorum: bool,
}

/// What is new.
#[derive(Clone, Debug)]
pub enum Event {
    /// The directory says this.
    View(Arc<View>),
    /// It can't be asked, and why.
    Lost(String),
}

/// Why a document was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Somebody else has changed it.
    #[error("somebody else has changed it: it is at revision {0}")]
    Overtaken(u64),
    /// It can't be reached, or has no quorum.
    #[error("{0}")]
    Unavailable(String),
    /// It may or may not have been done.
    #[error("{0}")]
    Unknown(String),
    /// It is refused.
    #[error("{0}")]
    Refused(ApiError),
}

/// The local `vsand`.
#[derive(Debug)]
pub struct Directory {
    client: LocalClient,
    prefix: &'static str,
}

impl Directory {
    /// The one at this socket, and in it the documents whose names begin like this.
    pub fn new(socket: &Path, prefix: &'static str) -> Self {
        Self { client: LocalClient::new(socket), prefix }
    }

    /// Follows the directory from what is known of it. Ends when nobody listens.
    pub async fn follow(&self, known: Option<Arc<View>>, events: mpsc::Sender<Event>) {
        let mut known = known;
        let mut asked = false;
        let mut pause = PAUSE.0;
        loop {
            // The first question after a silence does not wait: what it finds out is that there is somebody.
            match self.look(known.as_deref(), asked).await {
                Ok(view) => {
                    let news = !asked || known.as_deref() != Some(&view);
                    (asked, pause) = (true, PAUSE.0);
                    let behind = known
                        .as_ref()
                        .is_some_and(|old| old.cluster == view.cluster && old.revision > view.revision);
                    if !news || behind {
                        // One that is behind answers at once: it must not be asked as fast as it can.
                        tokio::time::sleep(PAUSE.0).await;
                        continue;
                    }
                    let view = Arc::new(view);
                    known = Some(Arc::clone(&view));
                    if events.send(Event::View(view)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if asked || pause == PAUSE.0 {
                        tracing::warn!(%error, "the cluster directory can't be asked; the last that is known holds");
                    }
                    asked = false;
                    if events.send(Event::Lost(error.to_string())).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn look(&self, known: Option<&View>, wait: bool) -> Result<View, CallError> {
        let prefix = self.prefix;
        let path = match known.filter(|_| wait) {
            Some(view) => {
                format!("/v1/documents?prefix={prefix}&after={}&wait_s={WAIT_S}", view.revision)
            }
            None => format!("/v1/documents?prefix={prefix}"),
        };
        let list: DocumentList = self.client.get(&path, ANSWER_MAX + Duration::from_secs(WAIT_S)).await?;
        let cluster: ClusterInfo = self.client.get("/v1/cluster", ANSWER_MAX).await?;
        let hosts: HostList = self.client.get("/v1/hosts", ANSWER_MAX).await?;
        let known = known.filter(|known| known.cluster == cluster.id);
        let mut documents = BTreeMap::new();
        for info in list.documents {
            let had = known.and_then(|known| known.documents.get(&info.name));
            let text = match had.filter(|text| text.revision == info.revision) {
                Some(text) => text.clone(),
                None => match self
                    .client
                    .get::<Document>(&format!("/v1/documents/{}", info.name), ANSWER_MAX)
                    .await
                {
                    Ok(new) => Text { revision: new.revision, content: new.content.into() },
                    // Deleted since the list was made; the next list says so.
                    Err(CallError::Api(error)) if error.code == ErrorCode::DocumentNotFound => continue,
                    Err(error) => return Err(error),
                },
            };
            documents.insert(info.name, text);
        }
        let online = hosts.hosts.iter().filter(|host| host.state == HostState::Online);
        let online = online.map(|host| host.id).collect();
        let hosts = hosts.hosts.into_iter().map(|HostInfo { id, name, .. }| (id, name)).collect();
        let (quorum, host) = (cluster.quorum, cluster.this_host);
        Ok(View { cluster: cluster.id, host, revision: list.revision, documents, hosts, online, quorum })
    }

    /// Puts a document in place of that with revision `basis`. The new revision.
    pub async fn put(&self, name: &DocumentName, basis: u64, content: String) -> Result<u64, PutError> {
        let path = format!("/v1/documents/{name}?basis={basis}");
        let body = Some((Bytes::from(content), "text/plain; charset=utf-8"));
        let answer = self.client.ask_within(Method::PUT, &path, body, ANSWER_MAX).await.map_err(put_error)?;
        match serde_json::from_slice(&answer) {
            Ok(PutDocument { revision }) => Ok(revision),
            Err(error) => {
                Err(PutError::Unknown(format!("the directory's answer can't be understood: {error}")))
            }
        }
    }

    /// Deletes the document with revision `basis`.
    pub async fn delete(&self, name: &DocumentName, basis: u64) -> Result<(), PutError> {
        let path = format!("/v1/documents/{name}?basis={basis}");
        let answer = self.client.ask_within(Method::DELETE, &path, None, ANSWER_MAX).await;
        answer.map(drop).map_err(put_error)
    }
}

fn put_error(error: CallError) -> PutError {
    match error {
        CallError::Api(error) if error.code == ErrorCode::Conflict => {
            PutError::Overtaken(error.details.get("revision").and_then(|text| text.parse().ok()).unwrap_or(0))
        }
        CallError::Api(error) => match error.code.class() {
            ErrorClass::Unavailable => PutError::Unavailable(error.to_string()),
            ErrorClass::TimedOut => PutError::Unknown(error.to_string()),
            _ => PutError::Refused(error),
        },
        CallError::Client(error @ (ClientError::Unreachable { .. } | ClientError::BadRequest { .. })) => {
            PutError::Unavailable(error.to_string())
        }
        other => PutError::Unknown(other.to_string()),
    }
}
