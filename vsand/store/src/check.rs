//! The offline checker: opens a disk's files without changing them, replays the journal in memory and looks for contradictions.
//!
//! What must hold, and is checked:
//! - superblock, metadata and journal read back, and the journal's records fit the metadata;
//! - every mapped extent has a place, every unmapped one has none, no two share one;
//! - what is in use and what is free makes up the whole disk;
//! - the highest sequence number noted for an extent is that of its blocks;
//! - every block that should be in its place passes its checksum there.

use std::path::Path;

use bytes::Bytes;
use ferro_protocol::ids::ChunkId;
use ferro_protocol::units::{BLOCK_BYTES, EXTENT_BLOCKS, EXTENT_BYTES};

use crate::format::{OpenError, at, open_files, read_aligned};
use crate::meta::Meta;
use crate::recovery::recover;

/// One contradiction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A block fails its checksum.
    BadBlock {
        /// The component.
        chunk: ChunkId,
        /// The block.
        block: u32,
    },
    /// The metadata is at odds with itself.
    Inconsistent {
        /// The component.
        chunk: ChunkId,
        /// The extent.
        extent: u16,
        /// In which way.
        what: &'static str,
    },
    /// Extents are neither used nor free.
    Leaked {
        /// How many.
        extents: u32,
    },
    /// One copy of the superblock is damaged.
    SuperblockCopy,
}

/// What the checker saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Batches that the next opening will replay.
    pub batches: u64,
    /// Components on the disk.
    pub components: u32,
    /// Extents in use.
    pub extents: u32,
    /// Blocks whose checksums were compared.
    pub blocks: u64,
    /// Contradictions.
    pub findings: Vec<Finding>,
}

/// Checks the disk in this directory, which must not be open elsewhere. Fails if it can't be opened at all.
pub fn verify(dir: &Path) -> Result<CheckReport, OpenError> {
    let files = open_files(dir)?;
    let meta_dir = dir.join("meta");
    let in_meta = |error| OpenError::Meta { path: meta_dir.clone(), error };
    let meta = Meta::open(&meta_dir, false, true).map_err(in_meta)?;
    let (mut tables, end) = recover(dir, &files, &meta, 1024)?;
    let mut report = CheckReport { batches: end.replayed, ..CheckReport::default() };
    if files.superblock_damaged {
        report.findings.push(Finding::SuperblockCopy);
    }
    let chunks: Vec<ChunkId> = tables.components(None).map(|(chunk, _)| chunk).collect();
    for chunk in chunks {
        report.components += 1;
        let keys: Vec<_> = tables.extents(chunk).map(|extent| extent.key).collect();
        for key in keys {
            let Some(slot) = tables.load(&meta, key).map_err(in_meta)? else { continue };
            let Some(blocks) = &slot.blocks else { continue };
            let extent = key.extent();
            if slot.seq_max != blocks.seq_max() {
                report.findings.push(Finding::Inconsistent {
                    chunk,
                    extent,
                    what: "wrong highest sequence number",
                });
            }
            let Some(phys) = slot.phys else {
                if !blocks.mapped.is_empty() {
                    report.findings.push(Finding::Inconsistent {
                        chunk,
                        extent,
                        what: "mapped blocks without a place",
                    });
                }
                continue;
            };
            report.extents += 1;
            if blocks.mapped.is_empty() {
                report.findings.push(Finding::Inconsistent {
                    chunk,
                    extent,
                    what: "a place without mapped blocks",
                });
            }
            let offset = u64::from(phys) * EXTENT_BYTES;
            let data =
                read_aligned(&files.data, offset, EXTENT_BYTES as usize).map_err(at(&dir.join("data")))?;
            for block in (0..EXTENT_BLOCKS as usize).filter(|&b| blocks.mapped.has(b)) {
                let place = &data[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
                let bytes: &[u8] =
                    slot.overlay.as_ref().and_then(|o| o.get(block)).map_or(place, Bytes::as_ref);
                report.blocks += 1;
                if crc32fast::hash(bytes) != blocks.crc(block) {
                    let block = u32::from(extent) * EXTENT_BLOCKS + block as u32;
                    report.findings.push(Finding::BadBlock { chunk, block });
                }
            }
        }
    }
    let used = tables.alloc.used();
    if used != report.extents {
        report.findings.push(Finding::Leaked { extents: used.abs_diff(report.extents) });
    }
    Ok(report)
}
