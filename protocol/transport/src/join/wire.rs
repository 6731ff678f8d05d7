//! The two messages. Their first byte is the version and is looked at before anything else.
//!
//! Version 1: as below.

use std::net::SocketAddr;

use ferro_protocol::ids::{ClusterId, HostId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::token::{TokenId, TokenSecret};

pub(super) const VERSION: u8 = 1;
/// The longest name of a host.
pub const NAME_BYTES_MAX: usize = 63;
/// The most that the directory may hand to a new host.
pub(super) const DIRECTORY_BYTES_MAX: usize = 512 << 10;

#[derive(Serialize, Deserialize)]
pub(super) struct JoinRequest {
    pub(super) version: u8,
    pub(super) cluster: ClusterId,
    pub(super) token: TokenId,
    pub(super) secret: TokenSecret,
    pub(super) host: HostId,
    pub(super) name: String,
    pub(super) advertise: SocketAddr,
    pub(super) signing_request: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct JoinResponse {
    pub(super) version: u8,
    pub(super) outcome: Result<Welcome, Refusal>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) cluster: ClusterId,
    pub(super) ca_cert: Vec<u8>,
    pub(super) ca_key: Zeroizing<Vec<u8>>,
    pub(super) host_cert: Vec<u8>,
    pub(super) directory: Vec<u8>,
}

/// Why a host is not let in. Sent to it as it is; each says what to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No such token, or not its secret: which of the two is not told.
    #[error(
        "the cluster does not know this token; make one with `vsanctl cluster token` on a host of the cluster"
    )]
    UnknownToken,
    /// Too late.
    #[error("the token has expired; make a new one with `vsanctl cluster token`")]
    Expired,
    /// Somebody was there before.
    #[error(
        "the token was already used; make a new one with `vsanctl cluster token`, and see `vsanctl host list` for who used it if it was not you"
    )]
    Used,
    /// The token is another cluster's.
    #[error(
        "the token is another cluster's; make one with `vsanctl cluster token` on a host of the cluster that is to be joined"
    )]
    WrongCluster,
    /// The request makes no sense.
    #[error("the cluster could not understand the request; check that both hosts run the same release")]
    BadRequest,
    /// The request is from another release.
    #[error(
        "the cluster speaks another version of the join protocol; install the release that the cluster runs"
    )]
    Version,
    /// The host id is taken.
    #[error(
        "a host with this id is already a member; remove it first (`vsanctl host remove`), then join with a new token"
    )]
    HostExists,
    /// The name is taken.
    #[error(
        "a host with this name is already a member; give this host another name, then join with a new token"
    )]
    NameTaken,
    /// The name is not one.
    #[error(
        "the host's name must be 1 to 63 letters, digits, '-', '_' or '.'; give this host another name and try again"
    )]
    BadName,
    /// The directory has no quorum now.
    #[error(
        "the cluster can't admit hosts now (its directory has no quorum); see `vsanctl status` on a host of the cluster, then try again"
    )]
    NotReady,
    /// Too many at once.
    #[error("the cluster is busy admitting other hosts; try again in a minute")]
    Busy,
}

impl Refusal {
    /// Whether another member may answer otherwise.
    pub fn is_worth_another_member(self) -> bool {
        matches!(self, Self::NotReady | Self::Busy)
    }
}

/// What a message could not be read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    Version(u8),
    Malformed,
}

/// Reads a message whose first byte is its version.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    match bytes.first() {
        Some(&VERSION) => {}
        Some(&other) => return Err(Unreadable::Version(other)),
        None => return Err(Unreadable::Malformed),
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(Unreadable::Malformed),
    }
}

pub(super) fn is_host_name(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_from_garbage() {
        assert_eq!(read::<JoinRequest>(&[]).err(), Some(Unreadable::Malformed));
        assert_eq!(read::<JoinRequest>(&[2, 0, 0]).err(), Some(Unreadable::Version(2)));
        assert_eq!(read::<JoinRequest>(&[1, 0, 0]).err(), Some(Unreadable::Malformed));
        let refused = JoinResponse { version: VERSION, outcome: Err(Refusal::Used) };
        let mut bytes = postcard::to_stdvec(&refused).unwrap();
        assert_eq!(read::<JoinResponse>(&bytes).unwrap().outcome.err(), Some(Refusal::Used));
        bytes.push(0);
        assert_eq!(read::<JoinResponse>(&bytes).err(), Some(Unreadable::Malformed));
    }

    #[test]
    fn names() {
        assert!(is_host_name("esx-01.lab"));
        for bad in ["", "a b", "x\n", "é", &"x".repeat(64)] {
            assert!(!is_host_name(bad), "{bad:?}");
        }
    }
}
