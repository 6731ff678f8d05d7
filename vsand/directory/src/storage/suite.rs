//! openraft's own tests of a storage, run on ours, and what they leave out.

use std::ops::RangeInclusive;
use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;
use crate::machine::{Cell, DecodeError, StateMachine};
use crate::types::{StorageError, Types};

#[derive(Default, Clone, Serialize, Deserialize)]
struct Nothing;

impl StateMachine for Nothing {
    type Command = ();
    type Response = ();

    const SNAPSHOTS: RangeInclusive<u8> = 3..=3;

    fn write(&self) -> Result<(u8, Vec<u8>), postcard::Error> {
        Ok((3, postcard::to_allocvec(self)?))
    }

    fn read(_version: u8, bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        Ok(postcard::take_from_bytes(bytes)?)
    }

    fn apply(&mut self, _index: u64, (): ()) {}
}

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
const HOST: HostId = HostId::from_bytes([2; 16]);

struct InTempDir;

impl StoreBuilder<Types, LogStore, MachineStore, TempDir> for InTempDir {
    async fn build(&self) -> Result<(TempDir, LogStore, MachineStore), StorageError> {
        // Some forty databases are made here: in memory if there is such a place.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let store = Arc::new(Store::open(dir.path(), CLUSTER, HOST, false).unwrap());
        let machine = MachineStore::open(Arc::clone(&store), Arc::new(Cell::<Nothing>::new())).unwrap();
        Ok((dir, LogStore::new(store), machine))
    }
}

#[test]
fn openraft_accepts_this_storage() {
    Suite::test_all(InTempDir).unwrap();
}

#[test]
fn a_storage_knows_whose_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("directory");
    assert!(matches!(Store::open(&path, CLUSTER, HOST, true), Err(StoreError::Lost)));
    let first = Store::open(&path, CLUSTER, HOST, false).unwrap().identity();
    assert_eq!(
        Store::open(&path, CLUSTER, HOST, true).unwrap().identity(),
        first,
        "a restart keeps the incarnation"
    );
    let other = HostId::from_bytes([3; 16]);
    assert!(matches!(Store::open(&path, CLUSTER, other, true), Err(StoreError::Foreign { .. })));
    std::fs::remove_dir_all(&path).unwrap();
    assert!(matches!(Store::open(&path, CLUSTER, HOST, true), Err(StoreError::Lost)));
    assert_ne!(
        Store::open(&path, CLUSTER, HOST, false).unwrap().identity(),
        first,
        "new storage, new incarnation"
    );
}
