//! How another host gets in: its join token is looked up and used up in the directory, and its record is put there.

use std::sync::{Arc, Weak};

use ferro_protocol::ids::HostId;
use ferro_transport::BoxFuture;
use ferro_transport::identity::HOST_CERT_LIFETIME;
use ferro_transport::join::{Admission, JoiningHost, Refusal, Registrar};
use ferro_transport::token::{TokenId, TokenLedger, TokenRecord};
use vsand_core::directory::{Command, HostRecord, Outcome, Refused, TokenRefused};

use super::{Member, StartError};
use crate::data::clock;

/// The registrar of a host that has the CA's key.
pub(super) fn registrar(member: &Arc<Member>) -> Result<Option<Arc<Registrar>>, StartError> {
    let Some(ca) = member.identity_dir.load_ca()? else { return Ok(None) };
    let desk = Arc::new(Desk { member: Arc::downgrade(member) });
    let ledger: Arc<dyn TokenLedger> = Arc::<Desk>::clone(&desk);
    Ok(Some(Arc::new(Registrar::new(Arc::new(ca), ledger, desk, HOST_CERT_LIFETIME))))
}

struct Desk {
    member: Weak<Member>,
}

impl Desk {
    fn member(&self) -> Result<Arc<Member>, Refusal> {
        self.member.upgrade().ok_or(Refusal::NotReady)
    }
}

impl TokenLedger for Desk {
    fn find(&self, id: TokenId) -> BoxFuture<'_, Result<Option<TokenRecord>, Refusal>> {
        Box::pin(async move {
            let state = self.member()?.directory.linearizable_state().await.map_err(|_| Refusal::NotReady)?;
            Ok(state.tokens.get(&id.0).map(|entry| TokenRecord {
                id,
                secret_hash: entry.secret_hash,
                expires_unix: entry.expires_unix_s,
            }))
        })
    }

    fn consume(&self, id: TokenId, host: HostId) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let member = self.member()?;
            let secret_hash = member.state().tokens.get(&id.0).ok_or(Refusal::Used)?.secret_hash;
            let command = Command::UseToken { id: id.0, secret_hash, unix_s: clock::unix_s() };
            match member.propose(&command).await {
                Ok(Ok(_)) => {
                    tracing::info!(%host, token = %id, "a join token was used");
                    Ok(())
                }
                Ok(Err(Refused::Token(TokenRefused::Expired))) => Err(Refusal::Expired),
                Ok(Err(_)) => Err(Refusal::Used),
                Err(_) => Err(Refusal::NotReady),
            }
        })
    }
}

impl Admission for Desk {
    fn level(&self) -> BoxFuture<'_, Result<u16, Refusal>> {
        Box::pin(async move {
            let state = self.member()?.directory.linearizable_state().await.map_err(|_| Refusal::NotReady)?;
            Ok(state.level.0)
        })
    }

    fn admit(&self, host: JoiningHost) -> BoxFuture<'_, Result<Vec<u8>, Refusal>> {
        Box::pin(async move {
            let member = self.member()?;
            let state = member.state();
            if state.hosts.contains_key(&host.host) {
                return Err(Refusal::HostExists);
            }
            if state.hosts.values().any(|h| h.name == host.name) {
                return Err(Refusal::NameTaken);
            }
            let record = HostRecord {
                id: host.host,
                name: host.name,
                address: host.advertise,
                fault_domain: host.host.to_string(),
                joined_unix_s: clock::unix_s(),
                lease: 0,
            };
            match member.propose(&Command::PutHost { host: record }).await {
                // The directory's leader comes to the new host by itself: it needs to know nothing.
                Ok(Ok(Outcome::Done)) => Ok(Vec::new()),
                Ok(Err(Refused::AddressTaken { .. })) => Err(Refusal::HostExists),
                Ok(_) => Err(Refusal::BadRequest),
                Err(_) => Err(Refusal::NotReady),
            }
        })
    }
}
