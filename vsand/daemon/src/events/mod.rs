//! What happened in the cluster, as this host saw it: a log of bounded size in its state directory, and the log of all hosts
//! put together when somebody asks.
//!
//! ```text
//!   directory: state before, state after ──[diff]──┐
//!   leases, quorum, health, resyncs ──────[watch]──┼──▶ [store] events/current, events/previous
//!   what people do here (break a lock) ────────────┘        │
//!                                  other hosts' ──▶ [merge] ◀┘ ──▶ GET /v1/events
//! ```
//!
//! Every host writes down what it sees, so most things are seen by all and survive the loss of a host; [`merge`] makes one of
//! them. What only one host can know (its own start, how much a resync that it ran has copied, a lock that was broken there)
//! is lost with its state directory.
//!
//! Invariants: the log never grows beyond its bound; a power cut costs at most what was written last, and what can't be
//! read is skipped, never repaired; nothing waits for the log.
//!
//! What it must not know: HTTP, how a terminal shows it.

pub mod diff;
pub mod merge;
pub mod store;
pub mod watch;

use std::sync::{Arc, Mutex, PoisonError};

use ferro_protocol::api::{EventKind, EventLevel};
use serde::{Deserialize, Serialize};
use std::path::Path;

use store::Store;

/// The version of a record; a reader skips later ones.
/// - 1: the first.
const RECORD_VERSION: u8 = 1;

/// Something that happened, not yet written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// What.
    pub kind: EventKind,
    /// How much it matters.
    pub level: EventLevel,
    /// To what: a word, and an id where there is one.
    pub subject: String,
    /// The health check that it is about.
    pub check: Option<String>,
    /// For people.
    pub message: String,
}

impl Draft {
    /// Something that happened to a host, a disk, a volume or the cluster.
    pub fn new(
        kind: EventKind,
        level: EventLevel,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, level, subject: subject.into(), check: None, message: message.into() }
    }
}

/// An event as a host keeps it, a line of JSON each. Fields may be added; a reader ignores those that it does not know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub v: u8,
    /// Counted from 1 on this host.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub kind: EventKind,
    /// How much it matters.
    pub level: EventLevel,
    /// To what.
    pub subject: String,
    /// The health check that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// For people.
    pub message: String,
}

/// The events of one host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// By time.
    pub records: Vec<Record>,
    /// Whether older ones that were asked for are left out.
    pub more: bool,
}

/// What another host asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Query {
    /// Only those from then on, in milliseconds since 1970.
    pub since_ms: u64,
    /// The newest of them, at most so many.
    pub limit: u32,
}

/// This host's log.
#[derive(Clone, Debug)]
pub struct EventLog {
    store: Arc<Mutex<Store>>,
}

impl EventLog {
    /// Opens the log below the state directory, or makes it.
    pub fn open(state_dir: &Path) -> std::io::Result<Self> {
        Ok(Self { store: Arc::new(Mutex::new(Store::open(&state_dir.join("events"))?)) })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Option<T> {
        let store = Arc::clone(&self.store);
        // A store that a panic left behind finds its end again by the file's length.
        let run = move || work(&mut store.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(run).await.ok()
    }

    /// Writes these down. What can't be written is logged and lost.
    pub async fn add(&self, drafts: Vec<Draft>) {
        if drafts.is_empty() {
            return;
        }
        for draft in &drafts {
            tracing::debug!(kind = ?draft.kind, subject = draft.subject, message = draft.message, "event");
        }
        let now = unix_ms();
        match self.with(move |store| store.append(now, drafts)).await {
            Some(Ok(())) | None => {}
            Some(Err(error)) => tracing::warn!(%error, "events could not be written down"),
        }
    }

    /// Those that are asked for.
    pub async fn read(&self, query: Query) -> Page {
        match self.with(move |store| store.read(query)).await {
            Some(Ok(page)) => page,
            Some(Err(error)) => {
                tracing::warn!(%error, "events could not be read");
                Page::default()
            }
            None => Page::default(),
        }
    }
}

/// The wall clock.
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
