//! The directory's documents, read: what VMs there are, whose they are, what hosts say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferro_protocol::api::vm::{VmName, VmSpec};
use ferro_protocol::ids::HostId;
use ferro_transport::directory::View;
use ferro_transport::documents;
use hypervisor_core::documents::{FORMAT, HostDocument, RunDocument, SpecDocument, Subject, subject};
use serde::de::DeserializeOwned;

/// A host whose report is older does not answer. It says something every [`super::report::BEAT`].
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A document and its revision.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct At<T> {
    pub(super) revision: u64,
    pub(super) it: T,
}

/// What a host said.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) document: At<HostDocument>,
    /// When this revision was first seen here.
    pub(super) seen: Instant,
}

/// The cluster as this host knows it.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) me: HostId,
    pub(super) specs: BTreeMap<VmName, At<VmSpec>>,
    pub(super) runs: BTreeMap<VmName, At<RunDocument>>,
    pub(super) reports: BTreeMap<HostId, Report>,
    pub(super) names: BTreeMap<HostId, String>,
    online: BTreeSet<HostId>,
    pub(super) quorum: bool,
}

impl Cluster {
    /// Reads what the directory says. What was read before is not read again; what can't be is told once and left out.
    pub(super) fn read(view: &View, before: Option<&Arc<Self>>) -> Self {
        let mut cluster = Self {
            me: view.host,
            specs: BTreeMap::new(),
            runs: BTreeMap::new(),
            reports: BTreeMap::new(),
            names: view.hosts.clone(),
            online: view.online.clone(),
            quorum: view.quorum,
        };
        for (name, text) in &view.documents {
            let revision = text.revision;
            let Some(subject) = subject(name) else {
                tracing::debug!(document = %name, "a document that is none of ours");
                continue;
            };
            let bad = |error: documents::BadDocument| {
                tracing::warn!(document = %name, revision, %error, "a document can't be used");
            };
            match subject {
                Subject::Spec(vm) => {
                    let known =
                        before.and_then(|before| before.specs.get(&vm)).filter(|at| at.revision == revision);
                    let read = || {
                        read(&text.content).map(|document: SpecDocument| At { revision, it: document.spec })
                    };
                    if let Ok(at) = known.cloned().map_or_else(read, Ok).map_err(bad) {
                        cluster.specs.insert(vm, at);
                    }
                }
                Subject::Run(vm) => {
                    let known =
                        before.and_then(|before| before.runs.get(&vm)).filter(|at| at.revision == revision);
                    let read = || read(&text.content).map(|it: RunDocument| At { revision, it });
                    if let Ok(at) = known.cloned().map_or_else(read, Ok).map_err(bad) {
                        cluster.runs.insert(vm, at);
                    }
                }
                Subject::Host(host) => {
                    let known = before
                        .and_then(|before| before.reports.get(&host))
                        .filter(|report| report.document.revision == revision);
                    let read = || {
                        let it: HostDocument = read(&text.content)?;
                        Ok(Report { document: At { revision, it }, seen: Instant::now() })
                    };
                    if let Ok(report) = known.cloned().map_or_else(read, Ok).map_err(bad) {
                        cluster.reports.insert(host, report);
                    }
                }
            }
        }
        cluster
    }

    /// What a host is called; its id where nobody knows.
    pub(super) fn name(&self, host: HostId) -> String {
        self.names.get(&host).cloned().unwrap_or_else(|| host.to_string())
    }

    /// Whether a host's hypervisord answers, as far as is known.
    pub(super) fn answers(&self, host: HostId) -> bool {
        host == self.me
            || (self.online.contains(&host)
                && self.reports.get(&host).is_some_and(|report| report.seen.elapsed() < SILENCE_MAX))
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, documents::BadDocument> {
    documents::read(text, FORMAT)
}
