//! From the last checkpoint to the last stable batch: loads the tables and replays the journal into them.
//!
//! Both the store and the offline checker begin here.

use std::fs::File;
use std::path::Path;

use ferro_protocol::units::BLOCK_BYTES;

use crate::format::{OpenError, OpenFiles, at, read_aligned};
use crate::journal::{self, BatchError, Place, Record};
use crate::meta::Meta;
use crate::superblock::Superblock;
use crate::tables::{ApplyError, Tables};

/// A disk that counts one batch or one start a nanosecond gets here after a century: a higher number is not one of ours, and
/// counting on from it would overflow.
const COUNT_MAX: u64 = 1 << 62;

/// Where the journal goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JournalEnd {
    /// The checkpoint's offset.
    pub(crate) tail: u64,
    /// Where the next batch goes, counted on past the end of the file.
    pub(crate) head: u64,
    /// The last batch.
    pub(crate) batch: u64,
    /// Its incarnation.
    pub(crate) batch_incarnation: u64,
    /// The highest incarnation that was ever begun.
    pub(crate) incarnation: u64,
    /// How many batches were replayed.
    pub(crate) replayed: u64,
}

/// Loads and replays.
pub(crate) fn recover(
    dir: &Path,
    files: &OpenFiles,
    meta: &Meta,
    cached_max: usize,
) -> Result<(Tables, JournalEnd), OpenError> {
    let in_meta = |error| OpenError::Meta { path: dir.join("meta"), error };
    let damaged = |reason: String| OpenError::Damaged { path: dir.to_owned(), reason };
    let misfit = |error: ApplyError| damaged(error.to_string());
    let loaded = meta.load().map_err(in_meta)?;
    let checkpoint = loaded.checkpoint;
    if checkpoint.offset > files.content.journal_bytes
        || !checkpoint.offset.is_multiple_of(BLOCK_BYTES as u64)
    {
        return Err(damaged("the checkpoint lies outside the journal".to_owned()));
    }
    if checkpoint.batch > COUNT_MAX || loaded.incarnation > COUNT_MAX {
        return Err(damaged(format!(
            "it says that it was started {} times and has written {} batches, which can't be",
            loaded.incarnation, checkpoint.batch
        )));
    }
    let mut end = JournalEnd {
        tail: checkpoint.offset,
        head: checkpoint.offset,
        batch: checkpoint.batch,
        batch_incarnation: checkpoint.incarnation,
        incarnation: loaded.incarnation,
        replayed: 0,
    };
    let mut tables = Tables::new(loaded, files.content.extents(), cached_max).map_err(misfit)?;
    while let Some(batch) = next_batch(dir, &files.journal, &files.content, &end)? {
        for (record, from) in &batch.parsed.records {
            let data = matches!(record, Record::Write { place: Place::Journal, .. })
                .then(|| batch.data.slice(*from..*from + record.data_bytes()));
            tables.apply(meta, record, data.as_ref(), batch.parsed.head.number).map_err(misfit)?;
        }
        end.head += batch.skipped + (batch.parsed.head.header_bytes + batch.parsed.head.data_bytes) as u64;
        end.batch = batch.parsed.head.number;
        end.batch_incarnation = batch.parsed.head.incarnation;
        end.replayed += 1;
        if end.head - end.tail > files.content.journal_bytes {
            return Err(damaged("the journal overtakes itself".to_owned()));
        }
    }
    if end.batch_incarnation > end.incarnation {
        return Err(damaged("the journal is ahead of the metadata".to_owned()));
    }
    tables.replaying = false;
    check_end(dir, &files.journal, &files.content, &end)?;
    Ok((tables, end))
}

struct Found {
    parsed: journal::Batch,
    data: bytes::Bytes,
    /// Bytes left unused at the file's end.
    skipped: u64,
}

/// The batch that follows, if it is there and whole.
fn next_batch(
    dir: &Path,
    file: &File,
    superblock: &Superblock,
    end: &JournalEnd,
) -> Result<Option<Found>, OpenError> {
    let size = superblock.journal_bytes;
    let position = end.head % size;
    for offset in [position, 0] {
        let path = dir.join("journal");
        let block = read_aligned(file, offset, BLOCK_BYTES).map_err(at(&path))?;
        let Ok(head) = journal::peek_head(&block) else { continue };
        let len = head.header_bytes + head.data_bytes;
        if head.number != end.batch + 1
            || (head.disk, head.key) != (superblock.disk, superblock.key)
            || head.incarnation < end.batch_incarnation
            || offset + len as u64 > size
        {
            continue;
        }
        let bytes = read_aligned(file, offset, len).map_err(at(&path))?.freeze();
        match journal::parse_batch(&bytes) {
            Ok(parsed) => {
                let skipped = if offset == position { 0 } else { size - position };
                let data = bytes.slice(parsed.head.header_bytes..);
                return Ok(Some(Found { parsed, data, skipped }));
            }
            Err(BatchError::Malformed(reason)) => {
                return Err(OpenError::Damaged { path, reason: format!("batch {}: {reason}", head.number) });
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Makes sure that the journal was cut, not damaged: no later batch may know of an acknowledged one that is not there.
fn check_end(dir: &Path, file: &File, superblock: &Superblock, end: &JournalEnd) -> Result<(), OpenError> {
    const STEP: usize = 1 << 20;
    let path = dir.join("journal");
    let size = superblock.journal_bytes;
    let mut offset = 0;
    while offset < size {
        let len = (STEP as u64).min(size - offset) as usize;
        let window = read_aligned(file, offset, len).map_err(at(&path))?;
        for (n, block) in window.chunks_exact(BLOCK_BYTES).enumerate() {
            let Ok(head) = journal::peek_head(block) else { continue };
            if (head.disk, head.key) != (superblock.disk, superblock.key) || head.acknowledged <= end.batch {
                continue;
            }
            let start = offset + (n * BLOCK_BYTES) as u64;
            if start + head.header_bytes as u64 > size {
                continue;
            }
            let header = read_aligned(file, start, head.header_bytes).map_err(at(&path))?;
            if journal::scan_header(&header).is_ok() {
                let reason = format!(
                    "the journal ends at batch {}, but batch {} had been acknowledged",
                    end.batch, head.acknowledged
                );
                return Err(OpenError::Damaged { path: dir.to_owned(), reason });
            }
        }
        offset += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ferro_protocol::ids::{ClusterId, DiskId, HostId};

    use super::*;
    use crate::meta::{self, Checkpoint, MetaOp};
    use crate::{FormatOptions, Store, StoreConfig};

    fn reopened_after(op: MetaOp) -> Result<(), OpenError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let options = FormatOptions {
            disk: DiskId::from_bytes([1; 16]),
            cluster: ClusterId::from_bytes([2; 16]),
            host: HostId::from_bytes([3; 16]),
            capacity_bytes: 16 << 20,
            journal_bytes: Some(5 << 20),
            tiny: true,
        };
        Store::format(&path, &options).unwrap();
        let meta = Meta::open(&path.join("meta"), false, false).unwrap();
        meta.commit(&[op]).unwrap();
        drop(meta);
        Store::open(&path, StoreConfig::default()).map(|_| ())
    }

    #[test]
    fn counters_that_can_not_be_are_damage() {
        let damaged = |op| matches!(reopened_after(op), Err(OpenError::Damaged { .. }));
        let batch = |batch| meta::put_checkpoint(Checkpoint { offset: 0, batch, incarnation: 0 });
        for count in [u64::MAX, u64::MAX - 1, COUNT_MAX + 1] {
            assert!(damaged(meta::put_incarnation(count)) && damaged(batch(count)), "{count}");
        }
        assert!(reopened_after(meta::put_incarnation(COUNT_MAX - 1)).is_ok());
        assert!(reopened_after(batch(COUNT_MAX - 1)).is_ok());
    }
}
