//! The identity in use. Connections made after a renewal show the new certificate; those that stand are not touched.

use std::sync::{Arc, PoisonError, RwLock};

use ferro_protocol::ids::{ClusterId, HostId};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{RootCertStore, SignatureScheme};
use rustls_pki_types::UnixTime;

use super::Identity;

/// A shared, replaceable [`Identity`], with the clock that certificates are measured by. Clones share one state.
#[derive(Clone)]
pub struct IdentityHandle {
    shared: Arc<Shared>,
}

struct Shared {
    current: RwLock<Arc<Identity>>,
    roots: Arc<RootCertStore>,
    clock: Arc<dyn TimeProvider>,
}

/// Why an identity can't take the place of another. All connections rest on host and CA staying the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the renewed identity is another host's or another cluster's; restart the daemon if that is wanted")]
pub struct SwapError;

impl IdentityHandle {
    /// The identity, measured by the system's clock.
    pub fn new(identity: Identity) -> Result<Self, rustls::Error> {
        Self::with_clock(identity, Arc::new(DefaultTimeProvider))
    }

    /// The identity, measured by a given clock.
    pub fn with_clock(identity: Identity, clock: Arc<dyn TimeProvider>) -> Result<Self, rustls::Error> {
        let roots = Arc::new(identity.roots()?);
        Ok(Self { shared: Arc::new(Shared { current: RwLock::new(Arc::new(identity)), roots, clock }) })
    }

    /// The identity as it is now.
    pub fn current(&self) -> Arc<Identity> {
        // Only a whole Arc is ever stored, so a lock that a panic left behind still guards a whole value.
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// This host.
    pub fn host(&self) -> HostId {
        self.current().host()
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.current().cluster()
    }

    /// The time by the identity's clock; `None` if it has none to tell.
    pub fn now(&self) -> Option<UnixTime> {
        self.shared.clock.current_time()
    }

    /// From now on, new connections use this identity.
    pub fn replace(&self, identity: Identity) -> Result<(), SwapError> {
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        if identity.host() != current.host() || identity.ca() != current.ca() {
            return Err(SwapError);
        }
        *current = Arc::new(identity);
        Ok(())
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.shared.roots
    }

    pub(crate) fn clock(&self) -> &Arc<dyn TimeProvider> {
        &self.shared.clock
    }
}

impl std::fmt::Debug for IdentityHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IdentityHandle").field(&self.current()).finish()
    }
}

impl ResolvesServerCert for IdentityHandle {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current().certified()))
    }
}

impl ResolvesClientCert for IdentityHandle {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current().certified()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
