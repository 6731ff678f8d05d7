//! The directory's content, as `vsand-core` defines it, is a [`StateMachine`].
//!
//! Versions of its snapshots:
//! - 1: the first, not read any more;
//! - 2: documents take the place of values, with the revision of the last change to any;
//! - 3: what is kept for objects. Written as long as the cluster is at feature level 1, for hosts that read nothing later;
//! - 4: the feature level, and disks that were removed. Written at feature level 2;
//! - 5: conversions. Written at feature level 3;
//! - 6: hosts that are away. Written at feature level 4;
//! - 7: what volumes prefer, and what disks have to serve.
//!
//! What a version adds stands after all that there was before.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{DiskId, HostId, ObjectId, VolumeName};
use serde::Deserialize;
use vsand_core::directory::{
    Absences, Command, Conversions, Departure, DiskRecord, Document, FeatureLevel, HostRecord, Loads,
    ObjectRecord, Outcome, Preferences, Provisioning, Refused, RemovedDisks, State, TokenEntry,
};

use crate::machine::{DecodeError, StateMachine};

/// [`State`] as it is in version 2.
#[derive(Deserialize)]
struct Second {
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

/// What version 3 adds.
type Third = Provisioning;
/// What version 4 adds.
type Fourth = (FeatureLevel, RemovedDisks);
/// What version 5 adds.
type Fifth = Conversions;
/// What version 6 adds.
type Sixth = Absences;
/// What version 7 adds.
type Seventh = (Preferences, Loads);

fn together(
    second: Second,
    provisioning: Third,
    (level, removed_disks): Fourth,
    conversions: Fifth,
    absences: Sixth,
    (preferences, loads): Seventh,
) -> State {
    let Second { hosts, disks, objects, names, tokens, documents, revision, .. } = second;
    let Second { leaving_hosts, leaving_disks, documents_revision, .. } = second;
    State {
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
        provisioning,
        level,
        removed_disks,
        conversions,
        absences,
        preferences,
        loads,
    }
}

fn known(level: FeatureLevel) -> Result<(), DecodeError> {
    let (found, known) = (level.0, FeatureLevel::NEWEST.0);
    if level.is_known() { Ok(()) } else { Err(DecodeError::Level { found, known }) }
}

impl StateMachine for State {
    type Command = Command;
    type Response = Result<Outcome, Refused>;

    const SNAPSHOTS: RangeInclusive<u8> = 2..=7;

    fn apply(&mut self, index: u64, command: Command) -> Self::Response {
        Self::apply(self, index, command)
    }

    fn write(&self) -> Result<(u8, Vec<u8>), postcard::Error> {
        let second = (
            (&self.hosts, &self.disks, &self.objects, &self.names, &self.tokens, &self.documents),
            (&self.revision, &self.leaving_hosts, &self.leaving_disks, &self.documents_revision),
        );
        let third = &self.provisioning;
        if self.level == FeatureLevel(1) {
            return Ok((3, postcard::to_allocvec(&(second, third))?));
        }
        let fourth = (&self.level, &self.removed_disks);
        if self.level < FeatureLevel::CONVERSIONS {
            return Ok((4, postcard::to_allocvec(&(second, third, fourth))?));
        }
        let fifth = &self.conversions;
        if self.level < FeatureLevel::ABSENCES {
            return Ok((5, postcard::to_allocvec(&(second, third, fourth, fifth))?));
        }
        let sixth = &self.absences;
        if self.level < FeatureLevel::PREFERENCES {
            return Ok((6, postcard::to_allocvec(&(second, third, fourth, fifth, sixth))?));
        }
        let seventh = (&self.preferences, &self.loads);
        Ok((7, postcard::to_allocvec(&(second, third, fourth, fifth, sixth, seventh))?))
    }

    fn read(version: u8, bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let (second, rest) = postcard::take_from_bytes(bytes)?;
        let (third, rest) =
            if version < 3 { (Third::default(), rest) } else { postcard::take_from_bytes(rest)? };
        let (fourth, rest) =
            if version < 4 { (Fourth::default(), rest) } else { postcard::take_from_bytes(rest)? };
        known(fourth.0)?;
        let (fifth, rest) =
            if version < 5 { (Fifth::default(), rest) } else { postcard::take_from_bytes(rest)? };
        let (sixth, rest) =
            if version < 6 { (Sixth::default(), rest) } else { postcard::take_from_bytes(rest)? };
        let (seventh, rest) =
            if version < 7 { (Seventh::default(), rest) } else { postcard::take_from_bytes(rest)? };
        Ok((together(second, third, fourth, fifth, sixth, seventh), rest))
    }

    fn check(command: &Command) -> Result<(), DecodeError> {
        match command {
            Command::RaiseLevel { to, .. } => known(*to),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use vsand_core::directory::Load;

    use super::*;

    /// A host, a disk that was removed, and one that is busy: what is at this level.
    fn state(level: FeatureLevel) -> State {
        let id = HostId::from_bytes([1; 16]);
        let host = HostRecord {
            id,
            name: "one".to_owned(),
            address: ([127, 0, 0, 1], 7_000).into(),
            fault_domain: "rack".to_owned(),
            joined_unix_s: 5,
            lease: 9,
        };
        let disk = DiskId::from_bytes([2; 16]);
        let mut state = State::default();
        let apply = |state: &mut State, index, command| state.apply(index, command).map(drop).unwrap();
        apply(&mut state, 7, Command::PutHost { host });
        if level > state.level {
            let raise = Command::RaiseLevel { from: state.level, to: level, hosts: vec![id] };
            apply(&mut state, 8, raise);
        }
        let (path, capacity_extents, used_extents) = ("/d".to_owned(), 9, 0);
        apply(&mut state, 9, Command::PutDisk { disk, host: id, path, capacity_extents, used_extents });
        apply(&mut state, 10, Command::RemoveDisk { disk, unix_s: 0 });
        if level >= FeatureLevel::LOADS {
            let (disk, path) = (DiskId::from_bytes([3; 16]), "/e".to_owned());
            apply(&mut state, 11, Command::PutDisk { disk, host: id, path, capacity_extents, used_extents });
            apply(&mut state, 12, Command::ReportLoad { loads: vec![(disk, Load(300))] });
        }
        state
    }

    #[test]
    fn a_snapshot_is_one_that_all_hosts_of_the_level_read() {
        // Not every level brings something that is kept.
        let versions = [3, 4, 5, 6, 7, 7];
        assert_eq!(versions.len(), usize::from(FeatureLevel::NEWEST.0));
        for (level, version) in versions.into_iter().enumerate() {
            let level = FeatureLevel(level as u16 + 1);
            let state = state(level);
            let (written, bytes) = StateMachine::write(&state).unwrap();
            assert_eq!(written, version);
            let (read, rest) = <State as StateMachine>::read(version, &bytes).unwrap();
            assert_eq!((read, rest), (state, &[][..]));
        }
    }

    #[test]
    fn versions_differ_by_what_stands_at_the_end() {
        let state = state(FeatureLevel(1));
        let bytes = StateMachine::write(&state).unwrap().1;
        // The first fields of the state, in their order, and what is kept for objects: as the former release wrote it.
        let whole = postcard::to_allocvec(&state).unwrap();
        let later = (&state.removed_disks, &state.conversions, &state.absences);
        let later = (state.level, later, &state.preferences, &state.loads);
        let later = postcard::to_allocvec(&later).unwrap();
        assert_eq!(bytes, whole[..whole.len() - later.len()]);
        // Without that, the version before.
        let kept = postcard::to_allocvec(&Provisioning::default()).unwrap();
        let (read, rest) = <State as StateMachine>::read(2, &bytes[..bytes.len() - kept.len()]).unwrap();
        assert_eq!((read, rest), (state, &[][..]));
    }

    #[test]
    fn a_level_that_is_not_known_is_refused_by_name() {
        let later = FeatureLevel(FeatureLevel::NEWEST.0 + 1);
        let mut state = state(FeatureLevel::NEWEST);
        state.level = later;
        let (version, bytes) = StateMachine::write(&state).unwrap();
        let refused = DecodeError::Level { found: later.0, known: FeatureLevel::NEWEST.0 };
        assert_eq!(<State as StateMachine>::read(version, &bytes).unwrap_err(), refused);
        let raise = Command::RaiseLevel { from: FeatureLevel::NEWEST, to: later, hosts: Vec::new() };
        assert_eq!(<State as StateMachine>::check(&raise), Err(refused));
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
