//! The journal of a file system that was not unmounted, replayed in memory: jbd2, as documented in the kernel's
//! `Documentation/filesystems/ext4/journal.rst`, and what `fs/jbd2/recovery.c` does with it.
//!
//! ```text
//!   journal block 0: superblock (where the log starts, with which sequence number)
//!   first ... last, a ring:
//!     ┌ descriptor ─ block ─ block ─ ... ┬ revocations ┬ commit ┐┌ descriptor ...            ┐ (no commit: did not happen)
//!     └──────────────── transaction n ─────────────────────────┘└──── transaction n+1 ────────
//! ```
//!
//! A transaction counts if its commit block is there. A later one's copy of a block replaces an earlier one's. A
//! revocation in transaction n says that copies up to n must not be written back, for the block now belongs to a file's
//! contents, which are not journaled. The first block that does not continue the log ends it; so does, with checksums, one
//! whose checksum is wrong. A *committed* block with a wrong checksum is damage: the file system would be a mixture.

use std::collections::BTreeMap;
use std::ops::Range;

use super::checksum::crc32c;
use super::inode::Inode;
use super::map::{Run, runs};
use super::{Ext4, Ext4Error, FileType, JournalTrouble};
use crate::bytes::{be16, be32, join};
use crate::source::{ReadFailed, Window};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;

const HAS_REVOKE: u32 = 0x1;
const WIDE: u32 = 0x2;
const ASYNC_COMMIT: u32 = 0x4;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// How a fast commit begins: the tag and its length, in the file system's byte order.
const FAST_COMMIT_HEAD: [u8; 2] = [0x09, 0x00];
const FAST_COMMIT_BLOCKS_DEFAULT: u32 = 256;

/// More changed blocks than this are refused: some 30 MiB of memory. A journal of 1 GiB has 262,144 blocks of 4 KiB.
const BLOCKS_MAX: usize = 1 << 19;
/// The largest journal; `mke2fs` has a bound of ten million blocks.
const JOURNAL_BYTES_MAX: u64 = 16 << 30;

/// Where the newest version of a block is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    /// A block of the file system, within the journal.
    block: u64,
    /// The block began with the journal's own signature, and zeros were written instead.
    escaped: bool,
}

impl Copy {
    /// Fills `buf` from byte `offset` of the block on.
    pub(super) fn read(
        self,
        window: &Window<'_>,
        block_size: u64,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadFailed> {
        window.read(self.block * block_size + offset, buf)?;
        if self.escaped {
            for (at, byte) in (offset..).zip(buf.iter_mut()) {
                let Some(original) = MAGIC.to_be_bytes().get(at as usize).copied() else { break };
                *byte = original;
            }
        }
        Ok(())
    }
}

/// What the journal changes.
#[derive(Debug, Default)]
pub(super) struct Replay {
    newest: BTreeMap<u64, Copy>,
}

impl Replay {
    pub(super) fn len(&self) -> usize {
        self.newest.len()
    }

    pub(super) fn newest(&self, block: u64) -> Option<Copy> {
        self.newest.get(&block).copied()
    }

    /// Whether any of these blocks is in the journal.
    pub(super) fn touches(&self, blocks: Range<u64>) -> bool {
        !self.newest.is_empty() && !blocks.is_empty() && self.newest.range(blocks).next().is_some()
    }
}

/// Reads the journal of a file system that is not mounted anywhere.
pub(super) fn replay(fs: &Ext4<'_>) -> Result<Replay, Ext4Error> {
    let Some(number) = fs.sb.journal_inode else { return Err(JournalTrouble::Elsewhere.into()) };
    let inode = Inode::read(fs, number)?;
    if inode.kind != FileType::Regular || inode.size > JOURNAL_BYTES_MAX || inode.has_inline_data() {
        return Err(JournalTrouble::Superblock("its inode is no journal").into());
    }
    let log = Log::open(fs, runs(fs, &inode, inode.size)?)?;
    if log.start == 0 {
        return Ok(Replay::default());
    }
    Scan::new(&log).run()
}

/// The journal's superblock, and where its blocks are.
struct Log<'f, 'a> {
    fs: &'f Ext4<'a>,
    runs: Vec<Run>,
    features: u32,
    /// The ring: the first block, and the one after the last.
    ring: Range<u32>,
    /// Where the log begins; 0 if it is empty.
    start: u32,
    sequence: u32,
    /// What checksums start from, if the journal has them.
    seed: Option<u32>,
}

impl<'f, 'a> Log<'f, 'a> {
    fn open(fs: &'f Ext4<'a>, runs: Vec<Run>) -> Result<Self, Ext4Error> {
        let bad = |what| Err(JournalTrouble::Superblock(what).into());
        let mut log = Self { fs, runs, features: 0, ring: 0..0, start: 0, sequence: 0, seed: None };
        let mut head = log.read(0)?;
        head.truncate(1024);
        if be32(&head, 0) != MAGIC || !SUPERBLOCKS.contains(&be32(&head, 4)) {
            return bad("no signature");
        }
        if u64::from(be32(&head, 0xc)) != fs.sb.block_size {
            return bad("another block size");
        }
        if be32(&head, 4) == SUPERBLOCKS[1] {
            log.features = be32(&head, 0x28);
        }
        let known = HAS_REVOKE | WIDE | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
        let checked = log.features & (CSUM_V2 | CSUM_V3) != 0;
        // Without checksums nothing tells whether what an asynchronous commit speaks of was written before it.
        let blind = if checked { 0 } else { ASYNC_COMMIT };
        let unsupported = log.features & (!known | blind);
        if unsupported != 0 {
            return Err(JournalTrouble::Unsupported(unsupported).into());
        }
        if checked {
            let sum = be32(&head, 0xfc);
            head[0xfc..0x100].fill(0);
            if head[0x50] != 4 || crc32c(!0, &head) != sum {
                return bad("wrong checksum");
            }
            log.seed = Some(crc32c(!0, &head[0x30..0x40]));
        }
        (log.sequence, log.start) = (be32(&head, 0x18), be32(&head, 0x1c));
        let (len, first) = (be32(&head, 0x10), be32(&head, 0x14));
        let fast = match be32(&head, 0x54) {
            _ if log.features & FAST_COMMIT == 0 => 0,
            0 => FAST_COMMIT_BLOCKS_DEFAULT,
            blocks => blocks,
        };
        let end = len.saturating_sub(fast);
        if first == 0 || first >= end || log.start != 0 && !(first..end).contains(&log.start) {
            return bad("impossible bounds");
        }
        log.ring = first..end;
        if fast > 0 && log.start != 0 && log.read(end)?.starts_with(&FAST_COMMIT_HEAD) {
            return Err(JournalTrouble::FastCommit.into());
        }
        Ok(log)
    }

    /// A block of the journal as one of the file system.
    fn place(&self, block: u32) -> Result<u64, Ext4Error> {
        let block = u64::from(block);
        let ix = self.runs.partition_point(|run| run.logical + run.len <= block);
        let run = self.runs.get(ix).filter(|run| run.logical <= block);
        let run = run.ok_or(JournalTrouble::Superblock("longer than its file"))?;
        Ok(run.physical + (block - run.logical))
    }

    /// A block of the journal.
    fn read(&self, block: u32) -> Result<Vec<u8>, Ext4Error> {
        let size = self.fs.sb.block_size;
        Ok(self.fs.window.read_vec(self.place(block)? * size, size as usize)?)
    }

    fn tag_bytes(&self) -> usize {
        if self.features & CSUM_V3 != 0 {
            return 16;
        }
        let high = if self.features & WIDE != 0 { 4 } else { 0 };
        8 + high + if self.features & CSUM_V2 != 0 { 2 } else { 0 }
    }
}

/// A walk along the ring.
struct Scan<'l, 'f, 'a> {
    log: &'l Log<'f, 'a>,
    at: u32,
    /// Blocks that the walk may still take: the ring once around.
    left: u32,
    sequence: u32,
    newest: BTreeMap<u64, Copy>,
    /// Of the transaction that has no commit yet.
    changed: Vec<(u64, Copy)>,
    /// A block of it whose checksum is wrong. If there is no commit, that does not matter.
    damaged: Option<u64>,
    revoked: Vec<u64>,
}

impl<'l, 'f, 'a> Scan<'l, 'f, 'a> {
    fn new(log: &'l Log<'f, 'a>) -> Self {
        Self {
            log,
            at: log.start,
            left: log.ring.end - log.ring.start,
            sequence: log.sequence,
            newest: BTreeMap::new(),
            changed: Vec::new(),
            damaged: None,
            revoked: Vec::new(),
        }
    }

    /// The next block's number, until the ring is once around.
    fn step(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let at = self.at;
        self.at = if at + 1 == self.log.ring.end { self.log.ring.start } else { at + 1 };
        Some(at)
    }

    fn run(mut self) -> Result<Replay, Ext4Error> {
        while let Some(at) = self.step() {
            let block = self.log.read(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence {
                break;
            }
            let goes_on = match be32(&block, 4) {
                DESCRIPTOR => self.has_good_tail(&block) && self.descriptor(&block)?,
                REVOKE => self.has_good_tail(&block) && self.revocations(&block)?,
                COMMIT => self.is_good_commit(&block) && self.commit()?,
                _ => false,
            };
            if !goes_on {
                break;
            }
        }
        Ok(Replay { newest: self.newest })
    }

    /// Descriptors and revocations end with a checksum.
    fn has_good_tail(&self, block: &[u8]) -> bool {
        let Some(seed) = self.log.seed else { return true };
        let at = block.len() - 4;
        crc32c(crc32c(seed, &block[..at]), &[0; 4]) == be32(block, at)
    }

    fn is_good_commit(&self, block: &[u8]) -> bool {
        let Some(seed) = self.log.seed else { return true };
        let sum = crc32c(crc32c(crc32c(seed, &block[..16]), &[0; 4]), &block[20..]);
        sum == be32(block, 16)
    }

    /// What of a block is for entries: not its header, not the checksum at its end.
    fn body<'b>(&self, block: &'b [u8]) -> &'b [u8] {
        let tail = if self.log.seed.is_some() { 4 } else { 0 };
        &block[12..block.len() - tail]
    }

    fn descriptor(&mut self, block: &[u8]) -> Result<bool, Ext4Error> {
        let bytes = self.log.tag_bytes();
        let mut rest = self.body(block);
        while rest.len() >= bytes {
            let v3 = self.log.features & CSUM_V3 != 0;
            let flags = if v3 { be32(rest, 4) } else { u32::from(be16(rest, 6)) };
            let high = if self.log.features & WIDE != 0 { be32(rest, 8) } else { 0 };
            let target = join(high, be32(rest, 0));
            let sum = if v3 { be32(rest, 12) } else { u32::from(be16(rest, 4)) };
            let Some(at) = self.step() else { return Ok(false) };
            let escaped = flags & TAG_ESCAPED != 0;
            self.copy(at, target, escaped, sum)?;
            if flags & TAG_LAST != 0 {
                break;
            }
            let uuid = if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            rest = rest.get(bytes + uuid..).unwrap_or_default();
        }
        Ok(true)
    }

    fn copy(&mut self, at: u32, target: u64, escaped: bool, sum: u32) -> Result<(), Ext4Error> {
        if let Some(seed) = self.log.seed {
            let block = self.log.read(at)?;
            let found = crc32c(crc32c(seed, &self.sequence.to_be_bytes()), &block);
            let found = if self.log.features & CSUM_V3 != 0 { found } else { found & 0xffff };
            if found != sum {
                self.damaged = Some(target);
            }
        }
        let copy = Copy { block: self.log.place(at)?, escaped };
        self.changed.push((target, copy));
        self.bounded()
    }

    fn revocations(&mut self, block: &[u8]) -> Result<bool, Ext4Error> {
        let wide = self.log.features & WIDE != 0;
        // The count is in bytes and takes in the header.
        let end = (be32(block, 12) as usize).min(12 + self.body(block).len());
        let records = block.get(16..end).unwrap_or_default();
        for record in records.chunks_exact(if wide { 8 } else { 4 }) {
            let revoked =
                if wide { join(be32(record, 0), be32(record, 4)) } else { u64::from(be32(record, 0)) };
            self.revoked.push(revoked);
        }
        self.bounded()?;
        Ok(true)
    }

    fn commit(&mut self) -> Result<bool, Ext4Error> {
        if let Some(block) = self.damaged {
            return Err(JournalTrouble::BlockDamaged(block).into());
        }
        self.newest.extend(self.changed.drain(..));
        for block in self.revoked.drain(..) {
            self.newest.remove(&block);
        }
        self.sequence = self.sequence.wrapping_add(1);
        Ok(true)
    }

    fn bounded(&self) -> Result<(), Ext4Error> {
        let held = self.newest.len() + self.changed.len() + self.revoked.len();
        if held > BLOCKS_MAX { Err(JournalTrouble::TooLarge.into()) } else { Ok(()) }
    }
}
