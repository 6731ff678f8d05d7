//! The join token: all that a new host needs to find its cluster, to recognise it, and to be let in once.
//!
//! As text it is `ferro1.` and base64url (no padding) of:
//!
//! ```text
//!   0   version, 1
//!   1   number of addresses, 1 to 16
//!   2   cluster id         16 bytes
//!  18   token id           16 bytes
//!  34   secret             32 bytes
//!  66   CA fingerprint     32 bytes, SHA-256 of the CA certificate's DER
//!  98   expiry              8 bytes, Unix seconds, big-endian
//! 106   addresses          each: 4 or 6, then 4 or 16 bytes of address, then 2 of port, big-endian
//!   …   checksum            4 bytes: the first of SHA-256 over all before
//! ```
//!
//! The checksum tells a token that was cut or mistyped from one that is refused. It is no protection: the secret is,
//! and the issuer keeps only its SHA-256 ([`TokenRecord`]). Whoever holds the text until it is used or expires can
//! join; it is to be treated like a password.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ferro_protocol::ids::{ClusterId, HostId};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::BoxFuture;
use crate::identity::CaFingerprint;
use crate::join::Refusal;

/// How long a token can be used unless asked otherwise.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// The most addresses in a token.
pub const ADDRESSES_MAX: usize = 16;

const PREFIX: &str = "ferro1.";
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 106;
const CHECKSUM_BYTES: usize = 4;
const BINARY_BYTES_MAX: usize = FIXED_BYTES + ADDRESSES_MAX * 19 + CHECKSUM_BYTES;
/// The longest text of a token.
pub const TEXT_BYTES_MAX: usize = PREFIX.len() + BINARY_BYTES_MAX.div_ceil(3) * 4;

/// Which token. Not secret: it is what the issuer looks the record up by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub [u8; 16]);

impl TokenId {
    /// A new random one.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 16];
        random(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}

/// The secret part of a token. It is wiped when dropped and never printed but as part of the token's text.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenSecret([u8; 32]);

impl TokenSecret {
    /// A new random one.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 32];
        random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What may be stored of it. A plain hash is enough: 256 random bits can't be guessed.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

/// The system gave no random numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the system gives no random numbers; check that getrandom(2) works here")]
pub struct NoRandomness;

fn random(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes).map_err(|_| NoRandomness)
}

/// Why a text is no join token, or why one can't be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error(
        "this is no join token: one begins with `ferro1.`; make one with `vsanctl cluster token` on a host of the cluster"
    )]
    NotAToken,
    /// It is from a newer release.
    #[error("the join token has version {0}, this host understands version 1; upgrade this host")]
    Version(u8),
    /// It was cut, mistyped or wrapped.
    #[error("the join token is damaged: a part is missing or was mistyped; copy it again, in one piece")]
    Damaged,
    /// Its addresses can't be used.
    #[error(
        "a join token holds 1 to 16 addresses, each with a port and none of them link-local or unspecified; give the cluster addresses that other hosts can reach"
    )]
    Addresses,
}

/// A join token. Its text ([`fmt::Display`]) contains the secret; its debug output does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinToken {
    cluster: ClusterId,
    id: TokenId,
    secret: TokenSecret,
    ca: CaFingerprint,
    expires: UnixTime,
    addresses: Vec<SocketAddr>,
}

impl JoinToken {
    /// A token with these contents. Addresses are tried in the order given.
    pub fn new(
        cluster: ClusterId,
        id: TokenId,
        secret: TokenSecret,
        ca: CaFingerprint,
        expires: UnixTime,
        addresses: Vec<SocketAddr>,
    ) -> Result<Self, TokenError> {
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX || !addresses.iter().all(usable) {
            return Err(TokenError::Addresses);
        }
        Ok(Self { cluster, id, secret, ca, expires, addresses })
    }

    /// Reads a token. White space around it is forgiven, nothing else is.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_ascii();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Damaged);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?);
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(TokenError::Version(other)),
            None => return Err(TokenError::Damaged),
        }
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
        if checksum(content) != *sum {
            return Err(TokenError::Damaged);
        }
        Self::read(content).ok_or(TokenError::Damaged)?
    }

    fn read(content: &[u8]) -> Option<Result<Self, TokenError>> {
        let mut rest = content.get(1..)?;
        let [count] = take(&mut rest)?;
        let cluster = ClusterId::from_bytes(take(&mut rest)?);
        let id = TokenId(take(&mut rest)?);
        let secret = TokenSecret(take(&mut rest)?);
        let ca = CaFingerprint(take(&mut rest)?);
        let expires = UnixTime::since_unix_epoch(Duration::from_secs(u64::from_be_bytes(take(&mut rest)?)));
        if count as usize > ADDRESSES_MAX {
            return None;
        }
        let mut addresses = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let ip = match take(&mut rest)? {
                [4] => IpAddr::V4(Ipv4Addr::from(take::<4>(&mut rest)?)),
                [6] => IpAddr::V6(Ipv6Addr::from(take::<16>(&mut rest)?)),
                _ => return None,
            };
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(take(&mut rest)?)));
        }
        rest.is_empty().then(|| Self::new(cluster, id, secret, ca, expires, addresses))
    }

    /// The cluster to join.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Which token it is.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Its secret.
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// The CA by which the cluster is recognised.
    pub fn ca(&self) -> CaFingerprint {
        self.ca
    }

    /// The last second at which it can be used.
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// Where members of the cluster listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What the issuer keeps of it.
    pub fn record(&self) -> TokenRecord {
        TokenRecord { id: self.id, secret_hash: self.secret.hash(), expires_unix: self.expires.as_secs() }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BINARY_BYTES_MAX));
        bytes.extend([VERSION, self.addresses.len() as u8]);
        bytes.extend(self.cluster.as_bytes());
        bytes.extend(self.id.0);
        bytes.extend(self.secret.0);
        bytes.extend(self.ca.0);
        bytes.extend(self.expires.as_secs().to_be_bytes());
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend(sum);
        f.write_str(PREFIX)?;
        f.write_str(&Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes)))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

/// What the issuer keeps of a token until it is used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Which token.
    pub id: TokenId,
    /// SHA-256 of its secret.
    pub secret_hash: [u8; 32],
    /// The last second, in Unix time, at which it can be used.
    pub expires_unix: u64,
}

impl TokenRecord {
    /// Whether this secret opens the door now. The secret is compared first and in constant time, so that only who
    /// holds the token learns that it has expired.
    pub fn check(&self, presented: &TokenSecret, now: UnixTime) -> Result<(), Refusal> {
        if !bool::from(self.secret_hash.ct_eq(&presented.hash())) {
            return Err(Refusal::UnknownToken);
        }
        if now.as_secs() > self.expires_unix {
            return Err(Refusal::Expired);
        }
        Ok(())
    }
}

/// Where token records are kept: the cluster directory. Object-safe, shared by all joins.
pub trait TokenLedger: Send + Sync {
    /// The record of a token; `None` if there was never such a token or it has been forgotten. A token that was used
    /// may be either kept (then [`Self::consume`] refuses it as used) or reported as [`Refusal::Used`] here.
    fn find(&self, id: TokenId) -> BoxFuture<'_, Result<Option<TokenRecord>, Refusal>>;

    /// Marks the token as used by `host`. Of any number of calls for one id, on any host of the cluster, exactly one may
    /// return `Ok`: a replicated compare-and-set. It is called after the secret was checked.
    fn consume(&self, id: TokenId, host: HostId) -> BoxFuture<'_, Result<(), Refusal>>;
}

fn usable(address: &SocketAddr) -> bool {
    let link_local = match address {
        // Without a scope a link-local address means nothing to another host, and a scope is this host's own.
        SocketAddr::V6(v6) => v6.ip().is_unicast_link_local() || v6.scope_id() != 0 || v6.flowinfo() != 0,
        SocketAddr::V4(v4) => v4.ip().is_link_local(),
    };
    address.port() != 0 && !address.ip().is_unspecified() && !link_local
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(content);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
