//! The directory's content, as `vsand-core` defines it, is a [`StateMachine`].

use std::collections::BTreeMap;
use std::sync::Arc;

use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{DiskId, HostId, ObjectId, VolumeName};
use serde::Deserialize;
use vsand_core::directory::{
    Command, Departure, DiskRecord, Document, HostRecord, ObjectRecord, Outcome, Provisioning, Refused,
    State, TokenEntry,
};

use crate::machine::StateMachine;

/// [`State`] before anything was kept for objects.
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct WithoutProvisioning {
    hosts: BTreeMap<HostId, HostRecord>,
    disks: BTreeMap<DiskId, DiskRecord>,
    objects: BTreeMap<ObjectId, Arc<ObjectRecord>>,
    names: BTreeMap<VolumeName, ObjectId>,
    tokens: BTreeMap<[u8; 16], TokenEntry>,
    documents: BTreeMap<DocumentName, Arc<Document>>,
    revision: u64,
    leaving_hosts: BTreeMap<HostId, Departure>,
    leaving_disks: BTreeMap<DiskId, Departure>,
    documents_revision: u64,
}

impl From<WithoutProvisioning> for State {
    fn from(former: WithoutProvisioning) -> Self {
        let WithoutProvisioning { hosts, disks, objects, names, tokens, documents, revision, .. } = former;
        let WithoutProvisioning { leaving_hosts, leaving_disks, documents_revision, .. } = former;
        Self {
            hosts,
            disks,
            objects,
            names,
            tokens,
            documents,
            revision,
            leaving_hosts,
            leaving_disks,
            documents_revision,
            provisioning: Provisioning::default(),
        }
    }
}

impl StateMachine for State {
    type Command = Command;
    type Former = WithoutProvisioning;
    type Response = Result<Outcome, Refused>;

    fn apply(&mut self, index: u64, command: Command) -> Self::Response {
        Self::apply(self, index, command)
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::ids::HostId;

    use super::*;

    #[test]
    fn a_state_without_provisioning_becomes_one_that_keeps_nothing() {
        let host = HostId::from_bytes([1; 16]);
        let record = HostRecord {
            id: host,
            name: "one".to_owned(),
            address: ([127, 0, 0, 1], 7_000).into(),
            fault_domain: "rack".to_owned(),
            joined_unix_s: 5,
            lease: 9,
        };
        let mut state = State::default();
        state.apply(7, Command::PutHost { host: record }).unwrap();
        // What is new is at the end, so what is in front of it is what there was before.
        let bytes = postcard::to_allocvec(&state).unwrap();
        let nothing = postcard::to_allocvec(&Provisioning::default()).unwrap();
        let former: WithoutProvisioning =
            postcard::from_bytes(&bytes[..bytes.len() - nothing.len()]).unwrap();
        assert_eq!(State::from(former), state);
    }

    #[test]
    fn the_content_answers_through_the_trait() {
        let mut state = State::default();
        let renew = Command::RenewLease { host: HostId::from_bytes([1; 16]) };
        let direct = State::default().apply(1, renew.clone());
        assert_eq!(StateMachine::apply(&mut state, 1, renew), direct);
        assert!(direct.is_err() && state == State::default(), "a refusal changes nothing");
    }
}
