//! This host's record in the cluster directory.
//!
//! ```text
//!  joined ──PutHost: name, fault domain, address──▶ announced ──SetHost: address, when it has changed──▶ announced
//!             (says what it joined with)              │ the lease begins
//!                                                     └ what an operator changes there is written to member.json
//! ```
//!
//! Until it is announced, the host knows better than the directory what it is called; from then on the directory does. So
//! `vsanctl host set` works for a host that is away, and the host does not undo it when it comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use vsand_core::directory::{Command, FeatureLevel, HostRecord};

use super::{Member, Membership};
use crate::data::clock;

/// What is to be done about the record.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The cluster has taken this host out: it does not put itself back.
    Removed,
    /// The cluster is to be told.
    Propose(Command),
    /// It is as it should be, and so is what this host has written down, or becomes with this.
    Right(Option<Membership>),
}

/// `known` is the record as the directory has it; `first` says that the directory knows no host at all.
fn next_step(
    stored: &Membership,
    address: SocketAddr,
    known: Option<&HostRecord>,
    first: bool,
    feature_level: FeatureLevel,
) -> Step {
    let own = || HostRecord {
        id: stored.host,
        name: stored.name.clone(),
        address,
        fault_domain: stored.fault_domain.clone(),
        joined_unix_s: clock::unix_s(),
        lease: 0,
    };
    let Some(known) = known else {
        // The first host of all puts itself there.
        return if first { Step::Propose(Command::PutHost { host: own() }) } else { Step::Removed };
    };
    let same = known.name == stored.name && known.fault_domain == stored.fault_domain;
    let as_stored = same && known.address == address;
    if !stored.announced && !as_stored {
        return Step::Propose(Command::PutHost { host: own() });
    }
    if known.address != address {
        let (host, address) = (stored.host, Some(address));
        return Step::Propose(Command::SetHost { host, address, name: None, fault_domain: None });
    }
    let (name, fault_domain) = (known.name.clone(), known.fault_domain.clone());
    let now = Membership { name, fault_domain, announced: true, feature_level, ..stored.clone() };
    Step::Right((now != *stored).then_some(now))
}

/// Puts this host's record and its disks in the directory, and keeps them right.
pub(super) async fn announce(member: Arc<Member>) {
    let mut stored = member.membership.clone();
    loop {
        let state = member.state();
        let known = state.hosts.get(&member.host());
        let step = next_step(&stored, member.config.advertised(), known, state.hosts.is_empty(), state.level);
        let (right, served) = match step {
            Step::Removed => (false, false),
            Step::Propose(command) => (false, propose(&member, &command).await),
            Step::Right(news) => {
                let written = news.is_none_or(|now| keep(&member, now, &mut stored));
                // A state directory that can't be written to is no reason to stand aside.
                member.announced.send_replace(true);
                (written, true)
            }
        };
        if served {
            member.disks.announce(&member).await;
        }
        tokio::time::sleep(match (right, served) {
            (true, _) => Duration::from_secs(10),
            // The directory here hears of what it has just been told.
            (false, true) => Duration::from_millis(50),
            (false, false) => Duration::from_secs(1),
        })
        .await;
    }
}

async fn propose(member: &Member, command: &Command) -> bool {
    match member.propose(command).await {
        Ok(Ok(_)) => true,
        Ok(Err(refused)) => {
            tracing::error!(%refused, "the cluster does not take this host's name or address");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "the cluster directory can't be reached yet");
            false
        }
    }
}

/// Writes down what the directory says.
fn keep(member: &Member, now: Membership, stored: &mut Membership) -> bool {
    if (&now.name, &now.fault_domain) != (&stored.name, &stored.fault_domain) {
        tracing::info!(name = %now.name, fault_domain = %now.fault_domain, "this host's record was changed");
    }
    match now.store(&member.config.state_dir) {
        Ok(()) => {
            *stored = now;
            true
        }
        Err(error) => {
            tracing::error!(%error, "what this host is called now could not be written down; trying again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::ids::{ClusterId, HostId};

    use super::*;

    const LEVEL: FeatureLevel = FeatureLevel(1);

    fn membership(announced: bool) -> Membership {
        Membership {
            version: 1,
            cluster: ClusterId::from_bytes([1; 16]),
            host: HostId::from_bytes([2; 16]),
            name: "old".to_owned(),
            fault_domain: "rack1".to_owned(),
            founder: false,
            took_part: true,
            announced,
            feature_level: FeatureLevel::default(),
        }
    }

    fn address() -> SocketAddr {
        ([10, 0, 0, 1], 7_400).into()
    }

    fn record(name: &str, fault_domain: &str) -> HostRecord {
        HostRecord {
            id: HostId::from_bytes([2; 16]),
            name: name.to_owned(),
            address: address(),
            fault_domain: fault_domain.to_owned(),
            joined_unix_s: 5,
            lease: 1,
        }
    }

    #[test]
    fn a_host_says_what_it_joined_with_until_the_cluster_knows() {
        let stored = membership(false);
        let told = next_step(&stored, address(), Some(&record("old", "an id")), false, LEVEL);
        let Step::Propose(Command::PutHost { host }) = told else { panic!("{told:?}") };
        assert_eq!((host.name.as_str(), host.fault_domain.as_str()), ("old", "rack1"));
        let step = next_step(&stored, address(), Some(&record("old", "rack1")), false, LEVEL);
        assert_eq!(step, Step::Right(Some(membership(true))));
        assert_eq!(next_step(&stored, address(), None, false, LEVEL), Step::Removed);
        assert!(matches!(
            next_step(&stored, address(), None, true, LEVEL),
            Step::Propose(Command::PutHost { .. })
        ));
    }

    #[test]
    fn afterwards_it_follows_the_directory() {
        let stored = membership(true);
        assert_eq!(
            next_step(&stored, address(), Some(&record("old", "rack1")), false, LEVEL),
            Step::Right(None)
        );
        let step = next_step(&stored, address(), Some(&record("new", "rack2")), false, LEVEL);
        let Step::Right(Some(now)) = step else { panic!("{step:?}") };
        assert_eq!((now.name.as_str(), now.fault_domain.as_str()), ("new", "rack2"));
        // Only its address is its own to say.
        let moved: SocketAddr = ([10, 0, 0, 9], 7_400).into();
        let host = HostId::from_bytes([2; 16]);
        let only = Command::SetHost { host, address: Some(moved), name: None, fault_domain: None };
        assert_eq!(
            next_step(&stored, moved, Some(&record("new", "rack2")), false, LEVEL),
            Step::Propose(only)
        );
    }
}
