//! The two messages. Their first byte is the version and is looked at before anything else.
//!
//! Version 1: without levels; such a host speaks level 1 only.
//! Version 2, of the request alone: at its end the levels that the host speaks.
//!
//! Both are answered in version 1. Who asked in version 1 can't read the refusals that came after it, and is told others:
//! [`Refusal::told_to`].

use std::fmt;
use std::net::SocketAddr;

use ferro_protocol::ids::{ClusterId, HostId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::token::{TokenId, TokenSecret};

/// The version of requests that this release sends.
pub(super) const REQUEST_VERSION: u8 = 2;
/// The version of requests of before there were levels.
pub(super) const REQUEST_VERSION_1: u8 = 1;
/// The version of all answers.
pub(super) const RESPONSE_VERSION: u8 = 1;
/// The longest name of a host.
pub const NAME_BYTES_MAX: usize = 63;
/// The most that the directory may hand to a new host.
pub(super) const DIRECTORY_BYTES_MAX: usize = 512 << 10;

/// The feature levels that a release speaks: all from the oldest to the newest, both included. A cluster is at one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Levels {
    /// The lowest.
    pub oldest: u16,
    /// The highest.
    pub newest: u16,
}

impl Levels {
    /// Those of a host that does not say: its release is of before there was a second.
    pub(super) const UNSAID: Self = Self { oldest: 1, newest: 1 };

    /// Whether a host of this release can be in a cluster of this level.
    pub fn contains(self, level: u16) -> bool {
        (self.oldest..=self.newest).contains(&level)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if oldest == newest { write!(f, "level {oldest}") } else { write!(f, "levels {oldest} to {newest}") }
    }
}

/// Version 1 of the request, and the beginning of those after it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct JoinRequestV1 {
    pub(super) version: u8,
    pub(super) cluster: ClusterId,
    pub(super) token: TokenId,
    pub(super) secret: TokenSecret,
    pub(super) host: HostId,
    pub(super) name: String,
    pub(super) advertise: SocketAddr,
    pub(super) signing_request: Vec<u8>,
}

/// Version 2.
#[derive(Serialize, Deserialize)]
pub(super) struct JoinRequest {
    pub(super) asked: JoinRequestV1,
    pub(super) levels: Levels,
}

impl JoinRequest {
    /// Reads a request of either version.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        match version(bytes)? {
            REQUEST_VERSION => decode(bytes),
            REQUEST_VERSION_1 => Ok(Self { asked: decode(bytes)?, levels: Levels::UNSAID }),
            other => Err(Unreadable::Version(other)),
        }
    }

    /// The same in version 1, without the levels.
    pub(super) fn in_version_1(&self) -> JoinRequestV1 {
        JoinRequestV1 { version: REQUEST_VERSION_1, ..self.asked.clone() }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct JoinResponse {
    pub(super) version: u8,
    pub(super) outcome: Result<Welcome, Refusal>,
}

impl JoinResponse {
    /// Reads an answer.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        match version(bytes)? {
            RESPONSE_VERSION => decode(bytes),
            other => Err(Unreadable::Version(other)),
        }
    }
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
        "the cluster speaks another version of the join protocol; install the release that the cluster runs, or upgrade the cluster first if that is the older one"
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
    /// The host does not speak the cluster's level. Not for version 1, which ends before it.
    #[error(
        "the cluster is at feature level {cluster}, and the joining host's vsand speaks {}; {}",
        Levels { oldest: *oldest, newest: *newest },
        if cluster < oldest { UPGRADE_CLUSTER } else { INSTALL_ITS_RELEASE }
    )]
    FeatureLevel {
        /// The cluster's level.
        cluster: u16,
        /// The lowest that the host speaks.
        oldest: u16,
        /// The highest.
        newest: u16,
    },
}

const INSTALL_ITS_RELEASE: &str = "install on that host the release that the cluster runs, then try again";
const UPGRADE_CLUSTER: &str = "upgrade the cluster first with `vsanctl cluster upgrade`, or install an older release \
                               on that host, then try again";

impl Refusal {
    /// Whether another member may answer otherwise.
    pub fn is_worth_another_member(self) -> bool {
        matches!(self, Self::NotReady | Self::Busy)
    }

    /// The refusal as a host is told it whose request was of this version: one that it can read.
    pub(super) fn told_to(self, request_version: u8) -> Self {
        match self {
            Self::FeatureLevel { .. } if request_version == REQUEST_VERSION_1 => Self::Version,
            known => known,
        }
    }
}

/// What a message could not be read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    Version(u8),
    Malformed,
}

fn version(bytes: &[u8]) -> Result<u8, Unreadable> {
    bytes.first().copied().ok_or(Unreadable::Malformed)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
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

    /// A request as the releases of before levels sent it. Such hosts are out there: never to be changed.
    fn of_version_1() -> Vec<u8> {
        let parts: [&[u8]; 8] = [
            &[1],
            &[16],
            &[1; 16],
            &[2; 16],
            &[3; 32],
            &[16],
            &[5; 16],
            b"\x04host\x00\xc0\x00\x02\x01\xd8\x36\x05hello",
        ];
        parts.concat()
    }

    /// The same in version 2, of a host that speaks levels 1 to 300.
    fn of_version_2() -> Vec<u8> {
        let mut bytes = of_version_1();
        bytes[0] = 2;
        bytes.extend([1, 0xac, 0x02]);
        bytes
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        assert_eq!(JoinRequest::read(&[]).err(), Some(Unreadable::Malformed));
        assert_eq!(JoinRequest::read(&[3, 0, 0]).err(), Some(Unreadable::Version(3)));
        for version in [1, 2] {
            assert_eq!(JoinRequest::read(&[version, 0, 0]).err(), Some(Unreadable::Malformed));
        }
        let refused = JoinResponse { version: RESPONSE_VERSION, outcome: Err(Refusal::Used) };
        let mut bytes = postcard::to_stdvec(&refused).unwrap();
        assert_eq!(JoinResponse::read(&bytes).unwrap().outcome.err(), Some(Refusal::Used));
        bytes.push(0);
        assert_eq!(JoinResponse::read(&bytes).err(), Some(Unreadable::Malformed));
        bytes[0] = 2;
        assert_eq!(JoinResponse::read(&bytes).err(), Some(Unreadable::Version(2)));
    }

    #[test]
    fn version_1_is_read_and_speaks_level_1() {
        let bytes = of_version_1();
        let request = JoinRequest::read(&bytes).unwrap();
        assert_eq!((request.asked.version, request.levels), (1, Levels { oldest: 1, newest: 1 }));
        assert_eq!((&*request.asked.name, &*request.asked.signing_request), ("host", &b"hello"[..]));
        assert_eq!(request.asked.advertise, "192.0.2.1:7000".parse().unwrap());
        assert_eq!(postcard::to_stdvec(&request.asked).unwrap(), bytes);
    }

    #[test]
    fn version_2_is_version_1_and_the_levels() {
        let bytes = of_version_2();
        let request = JoinRequest::read(&bytes).unwrap();
        assert_eq!((request.asked.version, request.levels), (2, Levels { oldest: 1, newest: 300 }));
        assert_eq!(postcard::to_stdvec(&request).unwrap(), bytes);
        assert_eq!(postcard::to_stdvec(&request.in_version_1()).unwrap(), of_version_1());
    }

    #[test]
    fn a_request_is_read_whole_or_not_at_all() {
        for mut bytes in [of_version_1(), of_version_2()] {
            assert!(JoinRequest::read(&bytes).is_ok());
            for end in 1..bytes.len() {
                assert_eq!(JoinRequest::read(&bytes[..end]).err(), Some(Unreadable::Malformed), "{end}");
            }
            bytes.push(0);
            assert_eq!(JoinRequest::read(&bytes).err(), Some(Unreadable::Malformed));
        }
    }

    #[test]
    fn levels_include_both_ends() {
        let contained = |oldest, newest| [0, 1, 2, 3, 4].map(|n| Levels { oldest, newest }.contains(n));
        assert_eq!(contained(1, 3), [false, true, true, true, false]);
        assert_eq!(contained(2, 2), [false, false, true, false, false]);
        assert_eq!(contained(3, 1), [false; 5]);
        assert!(Levels { oldest: 0, newest: u16::MAX }.contains(u16::MAX));
    }

    #[test]
    fn refusals_keep_their_places_and_version_1_is_told_what_it_knows() {
        let told = |refusal: Refusal, version| {
            let outcome = Err(refusal.told_to(version));
            postcard::to_stdvec(&JoinResponse { version: RESPONSE_VERSION, outcome }).unwrap()
        };
        let level = Refusal::FeatureLevel { cluster: 2, oldest: 3, newest: 4 };
        assert_eq!(told(level, 2), [1, 1, 11, 2, 3, 4]);
        assert_eq!(told(level, 1), [1, 1, 5]);
        assert_eq!(JoinResponse::read(&told(level, 2)).unwrap().outcome.err(), Some(level));
        for version in [1, 2] {
            assert_eq!(told(Refusal::Version, version), [1, 1, 5]);
            assert_eq!(told(Refusal::Busy, version), [1, 1, 10]);
        }
    }

    #[test]
    fn the_way_out_depends_on_who_is_behind() {
        let refusal = |cluster, oldest, newest| Refusal::FeatureLevel { cluster, oldest, newest }.to_string();
        let behind = refusal(3, 1, 2);
        assert!(
            behind.contains("at feature level 3, and the joining host's vsand speaks levels 1 to 2; install")
        );
        assert!(!behind.contains("vsanctl"), "{behind}");
        let ahead = refusal(1, 2, 2);
        assert!(
            ahead.contains("speaks level 2; upgrade the cluster first with `vsanctl cluster upgrade`"),
            "{ahead}"
        );
    }

    #[test]
    fn names() {
        assert!(is_host_name("esx-01.lab"));
        for bad in ["", "a b", "x\n", "é", &"x".repeat(64)] {
            assert!(!is_host_name(bad), "{bad:?}");
        }
    }
}
