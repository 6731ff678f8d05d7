//! The metadata of a disk in `RocksDB`: what is known as of the last checkpoint.
//!
//! ```text
//! column family   key                                          value (little-endian)
//! default         "j"                                          checkpoint: offset u64 │ batch u64 │ incarnation u64
//!                 "i"                                          incarnation u64
//!                 "c" object 16 │ chunk u32                    watermark u64
//!                 "e" object 16                                epoch u32
//! map             object 16 │ chunk u32 │ extent u16           phys u32 (or all ones) │ seq_max u64
//! blocks          object 16 │ chunk u32 │ extent u16 │ group u8   see the module `blocks`
//! ```
//!
//! Integers in keys are big-endian, so that rows of one component are adjacent. The small rows of `map` are read in one
//! scan when the disk is opened; `blocks` is read when needed. One synced batch a checkpoint is the only way that rows change.

use std::path::Path;

use ferro_protocol::ids::{ChunkId, ChunkIndex, Epoch, ObjectId, Seq};
use ferro_protocol::units::CHUNK_EXTENTS;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, Env, IteratorMode, Options, WriteBatch,
    WriteOptions,
};

use crate::blocks::{Blocks, GROUPS};

const MAP: &str = "map";
const BLOCKS: &str = "blocks";
const NO_PHYS: u32 = u32::MAX;

/// Metadata could not be read or written, or makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// `RocksDB` says so.
    #[error("metadata: {0}")]
    Db(String),
    /// A row breaks the format.
    #[error("metadata: a row of {0:?} is malformed")]
    Row(&'static str),
}

impl From<rocksdb::Error> for MetaError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Db(error.into_string())
    }
}

/// A column family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// Everything small.
    State,
    /// Extent to physical extent.
    Map,
    /// Block metadata.
    Blocks,
}

/// One step of a metadata batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaOp {
    /// Sets a row.
    Put(Family, Vec<u8>, Vec<u8>),
    /// Deletes a row.
    Delete(Family, Vec<u8>),
    /// Deletes all rows from the first key to before the second.
    DeleteRange(Family, Vec<u8>, Vec<u8>),
}

/// Up to where the journal is in the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Checkpoint {
    /// Where the batch after the last one covered is looked for.
    pub(crate) offset: u64,
    /// The last batch covered.
    pub(crate) batch: u64,
    /// Its incarnation.
    pub(crate) incarnation: u64,
}

/// A row of `map`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MapRow {
    pub(crate) chunk: ChunkId,
    pub(crate) extent: u16,
    pub(crate) phys: Option<u32>,
    pub(crate) seq_max: Seq,
}

/// All that is read when a disk is opened.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) incarnation: u64,
    pub(crate) components: Vec<(ChunkId, Seq)>,
    pub(crate) epochs: Vec<(ObjectId, Epoch)>,
    pub(crate) map: Vec<MapRow>,
}

/// The open database.
pub(crate) struct Meta {
    db: DB,
}

fn chunk_key(chunk: ChunkId) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    key.extend_from_slice(chunk.object.as_bytes());
    key.extend_from_slice(&chunk.index.0.to_be_bytes());
    key
}

fn prefixed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = vec![prefix];
    key.extend_from_slice(rest);
    key
}

fn extent_key(chunk: ChunkId, extent: u16) -> Vec<u8> {
    let mut key = chunk_key(chunk);
    key.extend_from_slice(&extent.to_be_bytes());
    key
}

/// The first key that doesn't begin with this prefix any more.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; prefix.len() + 8]
}

pub(crate) fn put_checkpoint(c: Checkpoint) -> MetaOp {
    let value = [c.offset, c.batch, c.incarnation].iter().flat_map(|n| n.to_le_bytes()).collect();
    MetaOp::Put(Family::State, b"j".to_vec(), value)
}

pub(crate) fn put_incarnation(incarnation: u64) -> MetaOp {
    MetaOp::Put(Family::State, b"i".to_vec(), incarnation.to_le_bytes().to_vec())
}

pub(crate) fn put_component(chunk: ChunkId, watermark: Seq) -> MetaOp {
    MetaOp::Put(Family::State, prefixed(b'c', &chunk_key(chunk)), watermark.0.to_le_bytes().to_vec())
}

pub(crate) fn put_epoch(object: ObjectId, epoch: Epoch) -> MetaOp {
    MetaOp::Put(Family::State, prefixed(b'e', object.as_bytes()), epoch.0.to_le_bytes().to_vec())
}

pub(crate) fn put_map(row: MapRow) -> MetaOp {
    let mut value = row.phys.unwrap_or(NO_PHYS).to_le_bytes().to_vec();
    value.extend_from_slice(&row.seq_max.0.to_le_bytes());
    MetaOp::Put(Family::Map, extent_key(row.chunk, row.extent), value)
}

pub(crate) fn put_group(chunk: ChunkId, extent: u16, group: usize, row: Vec<u8>) -> MetaOp {
    let mut key = extent_key(chunk, extent);
    key.push(group as u8);
    MetaOp::Put(Family::Blocks, key, row)
}

/// Forgets one extent of a component, row by row: a range that is deleted costs every later read there something.
pub(crate) fn remove_extent(chunk: ChunkId, extent: u16, into: &mut Vec<MetaOp>) {
    let key = extent_key(chunk, extent);
    for group in 0..GROUPS as u8 {
        let mut key = key.clone();
        key.push(group);
        into.push(MetaOp::Delete(Family::Blocks, key));
    }
    into.push(MetaOp::Delete(Family::Map, key));
}

/// Forgets a component, or an object with its epoch.
pub(crate) fn remove(object: ObjectId, chunk: Option<ChunkIndex>, into: &mut Vec<MetaOp>) {
    let prefix = match chunk {
        Some(index) => chunk_key(ChunkId { object, index }),
        None => object.as_bytes().to_vec(),
    };
    let end = after_prefix(&prefix);
    into.push(MetaOp::DeleteRange(
        Family::State,
        prefixed(b'c', &prefix),
        after_prefix(&prefixed(b'c', &prefix)),
    ));
    into.push(MetaOp::DeleteRange(Family::Map, prefix.clone(), end.clone()));
    into.push(MetaOp::DeleteRange(Family::Blocks, prefix, end));
    if chunk.is_none() {
        into.push(MetaOp::Delete(Family::State, prefixed(b'e', object.as_bytes())));
    }
}

impl Meta {
    /// Opens the database in this directory, or makes it.
    pub(crate) fn open(path: &Path, create: bool, read_only: bool) -> Result<Self, MetaError> {
        let cache = Cache::new_lru_cache(16 << 20);
        let family = |name: &str| {
            let mut table = BlockBasedOptions::default();
            table.set_block_cache(&cache);
            table.set_bloom_filter(10.0, false);
            table.set_block_size(4096);
            let mut options = Options::default();
            options.set_block_based_table_factory(&table);
            options.set_write_buffer_size(8 << 20);
            options.set_max_write_buffer_number(3);
            options.set_target_file_size_base(8 << 20);
            ColumnFamilyDescriptor::new(name, options)
        };
        let mut options = Options::default();
        options.create_if_missing(create);
        options.create_missing_column_families(create);
        options.set_max_background_jobs(2);
        options.set_max_total_wal_size(32 << 20);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_log_level(rocksdb::LogLevel::Warn);
        options.set_paranoid_checks(true);
        // Its threads work ahead of time; the data loops must not wait for them.
        let mut env = Env::new()?;
        env.lower_thread_pool_cpu_priority();
        env.lower_high_priority_thread_pool_cpu_priority();
        options.set_env(&env);
        let families = [family("default"), family(MAP), family(BLOCKS)];
        let db = if read_only {
            DB::open_cf_descriptors_read_only(&options, path, families, false)?
        } else {
            DB::open_cf_descriptors(&options, path, families)?
        };
        Ok(Self { db })
    }

    fn family(&self, family: Family) -> &rocksdb::ColumnFamily {
        let name = match family {
            Family::State => "default",
            Family::Map => MAP,
            Family::Blocks => BLOCKS,
        };
        self.db.cf_handle(name).expect("opened with these families")
    }

    /// Carries the steps out, all or none, and syncs.
    pub(crate) fn commit(&self, ops: &[MetaOp]) -> Result<(), MetaError> {
        let mut batch = WriteBatch::default();
        for op in ops {
            match op {
                MetaOp::Put(family, key, value) => batch.put_cf(self.family(*family), key, value),
                MetaOp::Delete(family, key) => batch.delete_cf(self.family(*family), key),
                MetaOp::DeleteRange(family, from, to) => {
                    batch.delete_range_cf(self.family(*family), from, to);
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(batch, &options)?)
    }

    /// Reads everything but the block metadata.
    pub(crate) fn load(&self) -> Result<Loaded, MetaError> {
        let mut loaded = Loaded::default();
        for row in self.db.iterator_cf(self.family(Family::State), IteratorMode::Start) {
            let (key, value) = row?;
            let bad = MetaError::Row("default");
            match (key.split_first(), value.len()) {
                (Some((b'j', [])), 24) => {
                    loaded.checkpoint = Checkpoint {
                        offset: u64_at(&value, 0),
                        batch: u64_at(&value, 8),
                        incarnation: u64_at(&value, 16),
                    };
                }
                (Some((b'i', [])), 8) => loaded.incarnation = u64_at(&value, 0),
                (Some((b'c', rest)), 8) => {
                    loaded.components.push((parse_chunk(rest).ok_or(bad)?, Seq(u64_at(&value, 0))));
                }
                (Some((b'e', rest)), 4) => {
                    let object = ObjectId::from_bytes(rest.try_into().map_err(|_| bad)?);
                    loaded.epochs.push((object, Epoch(u32_at(&value, 0))));
                }
                _ => return Err(bad),
            }
        }
        for row in self.db.iterator_cf(self.family(Family::Map), IteratorMode::Start) {
            let (key, value) = row?;
            let bad = MetaError::Row(MAP);
            let Some((rest, extent)) = key.split_last_chunk::<2>() else { return Err(bad) };
            let extent = u16::from_be_bytes(*extent);
            let chunk = parse_chunk(rest).ok_or(bad.clone())?;
            if value.len() != 12 || u32::from(extent) >= CHUNK_EXTENTS {
                return Err(bad);
            }
            let phys = Some(u32_at(&value, 0)).filter(|&p| p != NO_PHYS);
            loaded.map.push(MapRow { chunk, extent, phys, seq_max: Seq(u64_at(&value, 4)) });
        }
        Ok(loaded)
    }

    /// Reads the block metadata of one extent; groups that are not there were never written.
    pub(crate) fn blocks(&self, chunk: ChunkId, extent: u16) -> Result<Box<Blocks>, MetaError> {
        let mut keys = [[0_u8; 23]; GROUPS];
        for (group, key) in keys.iter_mut().enumerate() {
            key[..22].copy_from_slice(&extent_key(chunk, extent));
            key[22] = group as u8;
        }
        let rows = self.db.batched_multi_get_cf(self.family(Family::Blocks), &keys, true);
        let mut blocks = Blocks::never();
        for (group, row) in rows.into_iter().enumerate() {
            if let Some(row) = row? {
                blocks.decode(group, &row).map_err(|_| MetaError::Row(BLOCKS))?;
            }
        }
        Ok(blocks)
    }
}

/// Carries out the steps of one or more batches on the database in this directory, which is made if it isn't there. For
/// tools and tests that put a disk together from a record of its writes.
pub fn write_meta(dir: &Path, ops: &[MetaOp]) -> Result<(), MetaError> {
    Meta::open(dir, true, false)?.commit(ops)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn parse_chunk(key: &[u8]) -> Option<ChunkId> {
    let (object, index) = key.split_first_chunk::<16>()?;
    let index = u32::from_be_bytes(index.try_into().ok()?);
    Some(ChunkId { object: ObjectId::from_bytes(*object), index: ChunkIndex(index) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back_and_are_removed_by_component_and_object() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Meta::open(dir.path(), true, false).unwrap();
        let object = ObjectId::from_bytes([0xff; 16]);
        let chunk = |n| ChunkId { object, index: ChunkIndex(n) };
        let mut blocks = Blocks::never();
        blocks.set(40, ferro_protocol::ids::Version { epoch: Epoch(1), seq: Seq(2) }, Some(3));
        let mut ops = vec![put_epoch(object, Epoch(4)), put_incarnation(7)];
        ops.push(put_checkpoint(Checkpoint { offset: 4096, batch: 5, incarnation: 6 }));
        for n in [1, u32::MAX] {
            ops.push(put_component(chunk(n), Seq(8)));
            ops.push(put_map(MapRow { chunk: chunk(n), extent: 9, phys: Some(n & 7), seq_max: Seq(2) }));
            ops.push(put_group(chunk(n), 9, 1, blocks.encode(1)));
        }
        meta.commit(&ops).unwrap();
        drop(meta);
        let meta = Meta::open(dir.path(), false, false).unwrap();
        let loaded = meta.load().unwrap();
        assert_eq!((loaded.checkpoint.batch, loaded.incarnation, loaded.epochs.len()), (5, 7, 1));
        assert_eq!((loaded.components.len(), loaded.map.len(), loaded.map[0].phys), (2, 2, Some(1)));
        assert_eq!(meta.blocks(chunk(1), 9).unwrap(), blocks);
        let mut ops = Vec::new();
        remove(object, Some(ChunkIndex(u32::MAX)), &mut ops);
        meta.commit(&ops).unwrap();
        assert_eq!(meta.load().unwrap().components, [(chunk(1), Seq(8))]);
        assert_eq!(meta.blocks(chunk(u32::MAX), 9).unwrap(), Blocks::never());
        let mut ops = Vec::new();
        remove(object, None, &mut ops);
        meta.commit(&ops).unwrap();
        let loaded = meta.load().unwrap();
        assert!(loaded.map.is_empty() && loaded.epochs.is_empty() && loaded.components.is_empty());
        assert_eq!(loaded.incarnation, 7);
    }
}
