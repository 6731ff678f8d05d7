//! What the tests share: a clock that is set by hand, clusters made on the spot, and the log.
#![allow(dead_code, unreachable_pub, missing_docs)] // Each test file uses a part of it.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::UnixTime;
use ferro_transport::identity::{
    ClusterCa, HOST_CERT_LIFETIME, HostKey, Identity, IdentityDir, IdentityHandle,
};
use ferro_transport::tls::{Endpoint, Incoming};
use rustls::time_provider::TimeProvider;

/// When the tests begin.
pub const START: u64 = 1_800_000_000;
/// Anything that should happen does so long before.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

pub fn cluster(n: u8) -> ClusterId {
    ClusterId::from_bytes([n; 16])
}

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[derive(Debug)]
pub struct TestClock(AtomicU64);

impl TestClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(START)))
    }

    pub fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

impl TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0.load(Ordering::SeqCst)))
    }
}

/// A cluster whose hosts' directories are in one temporary directory.
pub struct Cluster {
    pub ca: Arc<ClusterCa>,
    pub clock: Arc<TestClock>,
    root: tempfile::TempDir,
}

impl Cluster {
    pub fn new(id: ClusterId) -> Self {
        let ca = ClusterCa::create(id, at(START), ferro_transport::identity::CA_LIFETIME).unwrap();
        Self { ca: Arc::new(ca), clock: TestClock::new(), root: tempfile::tempdir().unwrap() }
    }

    pub fn dir(&self, host: HostId) -> IdentityDir {
        IdentityDir::new(self.root.path().join(host.to_string()))
    }

    pub fn identity(&self, host: HostId) -> Identity {
        let key = HostKey::generate(host).unwrap();
        let request = key.signing_request().unwrap();
        let cert = self.ca.issue(&request, host, at(START), HOST_CERT_LIFETIME).unwrap();
        self.dir(host).store_member(&self.ca, &cert, &key, at(START)).unwrap()
    }

    pub fn handle(&self, host: HostId) -> IdentityHandle {
        self.handle_by(host, self.clock.clone())
    }

    pub fn handle_by(&self, host: HostId, clock: Arc<TestClock>) -> IdentityHandle {
        IdentityHandle::with_clock(self.identity(host), clock).unwrap()
    }

    pub async fn endpoint(&self, host: HostId) -> Endpoint {
        Endpoint::bind(loopback(), self.handle(host)).await.unwrap()
    }
}

pub async fn accept(endpoint: &mut Endpoint) -> Incoming {
    tokio::time::timeout(PATIENCE, endpoint.accept()).await.expect("nobody came").unwrap()
}

thread_local! {
    static HERE: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// What was logged on this thread (where all tasks of a test run) since it was made.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn capture() -> Self {
        // One subscriber for all threads: one for each would race for the process-wide cache of what is enabled.
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let writer = || HERE.with_borrow(|log| log.clone().unwrap_or_default());
            tracing_subscriber::fmt().with_ansi(false).with_writer(writer).init();
        });
        let log = Self::default();
        HERE.set(Some(log.clone()));
        log
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until the log holds this text.
    pub async fn wait_for(&self, text: &str) {
        let seen = async {
            while !self.text().contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        assert!(seen.is_ok(), "{text:?} was not logged, but: {}", self.text());
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
