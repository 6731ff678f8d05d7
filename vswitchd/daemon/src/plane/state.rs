//! What the control plane knows. Changed by the steward alone ([`super::steward`]), looked at by the API.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::api::switch::{Applied, Attachment, ConfigSource, HostApplied, HostProgress, Spec};
use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Lanes, Mac, NetName, Sequence, Vni};
use ferro_protocol::time::Instant;
use vswitch_core::config::Config as Network;

use super::documents::{self, HostDocument};
use super::keeper::{Keeper, Version};
use crate::config::Config;
use crate::data::snapshot::PortLink;
use crate::endpoint::Book;
use ferro_transport::directory::View;

/// Another host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Peer {
    /// What people call it.
    pub(super) name: String,
    /// Where it listens for control connections.
    pub(super) control: Vec<SocketAddr>,
    /// Where its tunnels are: as it said itself, or else as is written.
    pub(super) data: Vec<SocketAddr>,
    /// It said so itself.
    pub(super) data_said: bool,
    /// Whether it answers.
    pub(super) alive: bool,
    /// Since when.
    pub(super) since: Option<Instant>,
    /// What it has in force.
    pub(super) applied: u64,
    /// What it went back on.
    pub(super) rolled_back: Option<u64>,
    /// What it can't take over.
    pub(super) failed: Option<(u64, String)>,
    /// The networks that it is in.
    pub(super) networks: Vec<Vni>,
}

/// An uplink that the network names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Uplink {
    /// The worker has a card for it.
    pub(super) open: bool,
    /// Whether its link is up.
    pub(super) up: bool,
    /// Why it can't be opened.
    pub(super) trouble: Option<String>,
}

/// A port that is attached here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Port {
    /// To what.
    pub(super) to: Attachment,
    /// That is an interface that was made here.
    pub(super) made: bool,
    /// The worker has its device.
    pub(super) plugged: bool,
    /// How that is.
    pub(super) link: Option<PortLink>,
    /// Why it has none.
    pub(super) trouble: Option<String>,
}

/// The name of something that a host announced.
pub(super) type Claim = (Vni, Lanes, Mac);

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) host: HostId,
    pub(super) name: String,
    pub(super) alone: bool,
    pub(super) keeper: Keeper,
    /// What is in force.
    pub(super) network: Arc<Network>,
    /// The worker has it.
    pub(super) configured: bool,
    /// What the directory last said.
    pub(super) view: Option<Arc<View>>,
    /// Why it can't be asked now.
    pub(super) lost: Option<String>,
    pub(super) peers: BTreeMap<HostId, Peer>,
    /// The mesh knows them.
    pub(super) peers_told: bool,
    pub(super) uplinks: BTreeMap<NetName, Uplink>,
    pub(super) ports: BTreeMap<NetName, Port>,
    /// Where other hosts' ports are.
    pub(super) claims: BTreeMap<(HostId, Claim), NetName>,
    /// What this host has announced.
    pub(super) announced: BTreeMap<Claim, Sequence>,
    pub(super) frozen: BTreeSet<(Option<Vni>, Mac)>,
    /// Books of leases that were written from here, or are kept here by a host that is alone; and their revisions.
    pub(super) books: BTreeMap<NetName, (u64, Book)>,
    /// What is wrong with this host's own files.
    pub(super) problems: Vec<String>,
    /// Why the copy on disk is older than what holds.
    pub(super) copy_problem: Option<String>,
    /// What the directory said has changed since it was written down.
    pub(super) view_dirty: bool,
    /// What is kept has changed since it was written down.
    pub(super) dirty: bool,
}

impl State {
    /// Where the network in force is from.
    pub(super) fn source(&self) -> ConfigSource {
        match (&self.lost, self.alone) {
            (_, true) => ConfigSource::File,
            (None, false) if self.view.is_some() => ConfigSource::Directory,
            _ => ConfigSource::LocalCopy,
        }
    }

    /// What a host is called.
    pub(super) fn host_name(&self, host: HostId) -> String {
        if host == self.host {
            return self.name.clone();
        }
        let of_cluster = self.view.as_ref().and_then(|view| view.hosts.get(&host)).cloned();
        let said = || self.peers.get(&host).map(|peer| peer.name.clone()).filter(|name| !name.is_empty());
        of_cluster.or_else(said).unwrap_or_else(|| host.to_string())
    }

    /// The newest network that is written down: what a change is made to.
    pub(super) fn newest(&self) -> Result<Version, documents::BadDocument> {
        if self.alone {
            return Ok(self.keeper.kept().current.clone());
        }
        let written = self.view.as_ref().and_then(|view| view.documents.get(&documents::network_name()));
        let Some(text) = written else { return Ok(Version { revision: 0, spec: Spec::default() }) };
        let spec = documents::read_network(&text.content)?.spec;
        Ok(Version { revision: text.revision, spec })
    }

    /// Whether most of all hosts answer, this one among them.
    pub(super) fn connected(&self) -> bool {
        let alive = 1 + self.peers.values().filter(|peer| peer.alive).count();
        2 * alive > 1 + self.peers.len()
    }

    /// What this host says of itself.
    pub(super) fn own_document(&self, config: &Config) -> HostDocument {
        let kept = self.keeper.kept();
        let mut said =
            HostDocument::new(self.name.clone(), config.control_addresses(), config.data_addresses());
        said.applied = kept.current.revision;
        said.rolled_back = kept.rolled_back;
        said.failed = self.keeper.failed().cloned();
        said
    }

    /// How far all hosts are with a revision.
    pub(super) fn applied(&self, revision: u64) -> Applied {
        let kept = self.keeper.kept();
        let rolled_back = "it was cut off from the others by this change and went back to what it had before";
        let progress = |applied: u64, back: Option<u64>, failed: Option<&(u64, String)>| {
            if back.is_some_and(|back| back >= revision) {
                (HostProgress::RolledBack, Some(rolled_back.to_owned()))
            } else if applied >= revision {
                (HostProgress::Applied, None)
            } else if let Some((_, why)) = failed.filter(|(failed, _)| *failed >= revision) {
                (HostProgress::Failed, Some(why.clone()))
            } else {
                (HostProgress::Pending, None)
            }
        };
        let (mut own, detail) = progress(kept.current.revision, kept.rolled_back, self.keeper.failed());
        if own == HostProgress::Applied && !self.configured {
            own = HostProgress::Pending;
        }
        let mut hosts = vec![HostApplied {
            host: self.host,
            name: self.name.clone(),
            this_host: true,
            progress: own,
            revision: Some(kept.current.revision),
            detail,
        }];
        for (host, peer) in &self.peers {
            let (mut its, mut detail) = progress(peer.applied, peer.rolled_back, peer.failed.as_ref());
            if its == HostProgress::Pending && !peer.alive {
                its = HostProgress::Unreachable;
                detail =
                    Some("no tunnel to it works; it takes the configuration over when it is back".to_owned());
            }
            hosts.push(HostApplied {
                host: *host,
                name: self.host_name(*host),
                this_host: false,
                progress: its,
                revision: (peer.applied > 0).then_some(peer.applied),
                detail,
            });
        }
        hosts.sort_by(|a, b| (&a.name, a.host).cmp(&(&b.name, b.host)));
        Applied { revision, hosts }
    }

    /// The directory's hosts, and what they say of themselves, are the peers.
    pub(super) fn take_peers(&mut self, view: &View) {
        let mut peers = BTreeMap::new();
        for (name, text) in &view.documents {
            let Some(host) = documents::host_of(name).filter(|host| *host != self.host) else { continue };
            // What one says who is no member any more does not count.
            if !view.hosts.contains_key(&host) {
                continue;
            }
            let said = match documents::read_host(&text.content) {
                Ok(said) => said,
                Err(error) => {
                    tracing::warn!(document = %name, %error, "a host's document can't be used");
                    continue;
                }
            };
            let old = self.peers.remove(&host).unwrap_or_default();
            let data = if old.data_said { old.data.clone() } else { said.data };
            peers.insert(
                host,
                Peer {
                    name: said.name,
                    control: said.control,
                    data,
                    applied: said.applied.max(old.applied),
                    rolled_back: said.rolled_back,
                    failed: said.failed,
                    ..old
                },
            );
        }
        self.claims.retain(|(host, _), _| peers.contains_key(host));
        // Who is left over is gone; the worker forgets them in the next pass.
        self.peers = peers;
        self.peers_told = false;
    }
}
