//! What this daemon keeps in the cluster directory, as documents:
//!
//! - `switch/network`: the network of all hosts ([`NetworkDocument`]); its revision is the network's;
//! - `switch/host/<id>`: what each host says of itself ([`HostDocument`]);
//! - `switch/leases/<group>`: the addresses that a port group has given away ([`crate::endpoint::Book`]).
//!
//! Each begins with its format, and one of a later format is refused, not guessed.

use std::net::SocketAddr;

use ferro_protocol::api::switch::Spec;
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::HostId;
use ferro_protocol::net::NetName;
use ferro_transport::documents;
pub(super) use ferro_transport::documents::{BadDocument, write};
use serde::{Deserialize, Serialize};

use crate::tunnel::ADDRESSES_MAX;

/// What all of them begin with.
pub(super) const PREFIX: &str = "switch/";
const NETWORK: &str = "switch/network";
const HOST: &str = "switch/host/";
const LEASES: &str = "switch/leases/";

/// The format of the documents here.
const FORMAT: u32 = 1;

/// The network of all hosts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct NetworkDocument {
    format: u32,
    /// What holds.
    pub(super) spec: Spec,
    /// Somebody has said that it is to stay: no host goes back on it.
    #[serde(default)]
    pub(super) confirmed: bool,
    /// What becomes of it unless somebody says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) undo: Option<Undo>,
}

/// A change that is undone unless it is confirmed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Undo {
    /// After so many seconds.
    pub(super) within_s: u32,
    /// What holds then.
    pub(super) spec: Spec,
}

impl NetworkDocument {
    /// Of this network.
    pub(super) fn new(spec: Spec, confirmed: bool, undo: Option<Undo>) -> Self {
        Self { format: FORMAT, spec, confirmed, undo }
    }
}

/// What a host says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct HostDocument {
    format: u32,
    /// What people call it.
    pub(super) name: String,
    /// Where its control connections arrive.
    pub(super) control: Vec<SocketAddr>,
    /// Where its data connections arrive.
    pub(super) data: Vec<SocketAddr>,
    /// The revision of the network that is in force there.
    pub(super) applied: u64,
    /// The revision that it went back on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rolled_back: Option<u64>,
    /// The revision that it can't take over, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<(u64, String)>,
}

impl HostDocument {
    /// Of a host that has nothing to say of revisions.
    pub(super) fn new(name: String, control: Vec<SocketAddr>, data: Vec<SocketAddr>) -> Self {
        Self { format: FORMAT, name, control, data, ..Self::default() }
    }
}

/// Where the network stands.
pub(super) fn network_name() -> DocumentName {
    name(NETWORK.to_owned())
}

/// Where a host's words stand.
pub(super) fn host_name(host: HostId) -> DocumentName {
    name(format!("{HOST}{host}"))
}

/// Where a port group's leases stand.
pub(super) fn leases_name(group: &NetName) -> DocumentName {
    name(format!("{LEASES}{group}"))
}

/// Names of switches are no longer than a part of a document's name and of the same letters.
fn name(text: String) -> DocumentName {
    text.try_into().expect("a name of names is a document's")
}

/// The host whose words a document is.
pub(super) fn host_of(name: &DocumentName) -> Option<HostId> {
    name.as_str().strip_prefix(HOST)?.parse().ok()
}

/// Reads the network.
pub(super) fn read_network(text: &str) -> Result<NetworkDocument, BadDocument> {
    documents::read(text, FORMAT)
}

/// Reads a host's words.
pub(super) fn read_host(text: &str) -> Result<HostDocument, BadDocument> {
    let host: HostDocument = documents::read(text, FORMAT)?;
    if host.control.len() > ADDRESSES_MAX || host.data.len() > ADDRESSES_MAX || host.name.len() > 255 {
        return Err(BadDocument::Content("too many addresses, or too long a name".to_owned()));
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_another_format_is_refused() {
        let good = write(&NetworkDocument::new(Spec::default(), false, None)).unwrap();
        assert_eq!(read_network(&good).unwrap().spec, Spec::default());
        let newer = good.replace("\"format\":1", "\"format\":2");
        assert_eq!(read_network(&newer), Err(BadDocument::Format { found: 2, reads: 1 }));
        for bad in ["", "{}", "[1]", "{\"format\":1,\"spec\":{\"swich\":[]}}"] {
            assert!(matches!(read_network(bad), Err(BadDocument::Content(_))), "{bad}");
        }
    }

    #[test]
    fn names_lead_there_and_back() {
        let host = HostId::from_bytes([7; 16]);
        assert_eq!(host_of(&host_name(host)), Some(host));
        let group: NetName = "web_0.x".parse().unwrap();
        assert_eq!(leases_name(&group).as_str(), "switch/leases/web_0.x");
        assert_eq!(host_of(&network_name()), None);
    }
}
