//! Identities for tests: clusters with hosts, and a clock for their certificates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::UnixTime;
use ferro_transport::identity::{CA_LIFETIME, ClusterCa, HostKey, Identity, IdentityDir, IdentityHandle};
use rustls::time_provider::TimeProvider;

pub(super) const START: u64 = 1_800_000_000;
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);

pub(super) fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[derive(Debug)]
struct TestClock(AtomicU64);

impl TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0.load(Ordering::SeqCst)))
    }
}

/// A CA with a clock that all its hosts go by.
pub(super) struct Cluster {
    ca: ClusterCa,
    clock: Arc<TestClock>,
    root: tempfile::TempDir,
}

impl Cluster {
    pub(super) fn new(n: u8) -> Self {
        let ca = ClusterCa::create(ClusterId::from_bytes([n; 16]), at(START), CA_LIFETIME).unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(START)));
        Self { ca, clock, root: tempfile::tempdir().unwrap() }
    }

    pub(super) fn handle(&self, host: HostId) -> IdentityHandle {
        IdentityHandle::with_clock(self.identity(host), Arc::<TestClock>::clone(&self.clock)).unwrap()
    }

    /// A certificate that is good from now on.
    pub(super) fn identity(&self, host: HostId) -> Identity {
        let now = self.clock.current_time().unwrap();
        let key = HostKey::generate(host).unwrap();
        let cert = self.ca.issue(&key.signing_request().unwrap(), host, now, LIFETIME).unwrap();
        let dir = tempfile::tempdir_in(self.root.path()).unwrap().keep();
        IdentityDir::new(dir.join("identity")).store_member(&self.ca, &cert, &key, now).unwrap()
    }

    pub(super) fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(time.as_secs(), Ordering::SeqCst);
    }

    /// Somebody sets the clock back.
    pub(super) fn set_back(&self, by: Duration) {
        self.clock.0.fetch_sub(by.as_secs(), Ordering::SeqCst);
    }
}
