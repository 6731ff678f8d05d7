//! From a file's bytes to the file system's blocks: extents, or the block map of ext2 and ext3.
//!
//! The map of a file is read once, as runs of neighbouring blocks. Within it, file positions only rise: what goes back or
//! overlaps is damage. That, and the bound for metadata ([`Ext4::charge`]), ends every walk.

use super::checksum::crc32c;
use super::inode::Inode;
use super::{Damage, Ext4, Ext4Error};
use crate::bytes::{join, le16, le32};

/// A file in more pieces than this is refused: 6 MiB of memory.
const RUNS_MAX: usize = 1 << 18;
/// Levels of extent blocks below the inode; the kernel has the same bound.
const DEPTH_MAX: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// An extent with a length above this is allocated and reads as zeros.
const INITIALISED_MAX: u16 = 32_768;

/// Blocks that follow each other in the file and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first one's place in the file.
    pub(super) logical: u64,
    /// The first one's place in the file system.
    pub(super) physical: u64,
    /// How many.
    pub(super) len: u64,
}

/// Collects runs and joins neighbours.
struct Runs<'f> {
    inode: &'f Inode,
    found: Vec<Run>,
    /// The first position that may come next.
    next: u64,
    /// Blocks of the file: what is mapped beyond does not count.
    limit: u64,
}

impl Runs<'_> {
    fn damaged<T>(&self, what: &'static str) -> Result<T, Ext4Error> {
        Err(Damage::BlockMap(self.inode.number, what).into())
    }

    fn add(&mut self, fs: &Ext4<'_>, run: Run) -> Result<(), Ext4Error> {
        if run.logical < self.next {
            return self.damaged("positions go back");
        }
        if run.physical.checked_add(run.len).is_none_or(|end| end > fs.sb.blocks) {
            return self.damaged("leads outside of the file system");
        }
        self.next = run.logical + run.len;
        if run.logical >= self.limit {
            return Ok(());
        }
        let run = Run { len: run.len.min(self.limit - run.logical), ..run };
        let full = self.found.len() >= RUNS_MAX;
        let follows = |last: &&mut Run| {
            last.logical + last.len == run.logical && last.physical + last.len == run.physical
        };
        match self.found.last_mut().filter(follows) {
            Some(last) => last.len += run.len,
            None if full => return self.damaged("too many pieces"),
            None => self.found.push(run),
        }
        Ok(())
    }

    fn extents(&mut self, fs: &Ext4<'_>, node: &[u8], depth: Option<u16>) -> Result<(), Ext4Error> {
        let (entries, found) = (usize::from(le16(node, 2)), le16(node, 6));
        if le16(node, 0) != EXTENT_MAGIC || found > DEPTH_MAX || depth.is_some_and(|depth| depth != found) {
            return self.damaged("no extents where they should be");
        }
        let Some(entries) = node[12..].get(..12 * entries) else {
            return self.damaged("more extents than fit");
        };
        for entry in entries.chunks_exact(12) {
            let logical = u64::from(le32(entry, 0));
            if found > 0 {
                if logical >= self.limit {
                    break;
                }
                let child = join(u32::from(le16(entry, 8)), le32(entry, 4));
                fs.charge(fs.sb.block_size)?;
                let mut block = vec![0; fs.sb.block_size as usize];
                fs.read_blocks(child, 0, &mut block)?;
                self.check(&block)?;
                self.extents(fs, &block, Some(found - 1))?;
                continue;
            }
            let physical = join(u32::from(le16(entry, 6)), le32(entry, 8));
            match le16(entry, 4) {
                0 => return self.damaged("an extent of no blocks"),
                len @ ..=INITIALISED_MAX => self.add(fs, Run { logical, physical, len: u64::from(len) })?,
                // Reads as zeros, like a hole.
                len => self.next = self.next.max(logical + u64::from(len - INITIALISED_MAX)),
            }
        }
        Ok(())
    }

    /// An extent block's checksum stands behind the last entry that would fit.
    fn check(&self, block: &[u8]) -> Result<(), Ext4Error> {
        let Some(seed) = self.inode.seed else { return Ok(()) };
        let at = 12 + 12 * usize::from(le16(block, 4));
        if at + 4 > block.len() || crc32c(seed, &block[..at]) != le32(block, at) {
            return self.damaged("wrong checksum");
        }
        Ok(())
    }

    /// A pointer of the block map that stands for `fs_pointers^level` blocks from `self.next` on.
    fn indirect(&mut self, fs: &Ext4<'_>, pointer: u32, level: u32) -> Result<(), Ext4Error> {
        let in_block = fs.sb.block_size / 4;
        if self.next >= self.limit {
            return Ok(());
        }
        if pointer == 0 {
            self.next = self.next.saturating_add(in_block.pow(level));
            return Ok(());
        }
        if level == 0 {
            return self.add(fs, Run { logical: self.next, physical: u64::from(pointer), len: 1 });
        }
        fs.charge(fs.sb.block_size)?;
        let mut block = vec![0; fs.sb.block_size as usize];
        fs.read_blocks(u64::from(pointer), 0, &mut block)?;
        block.chunks_exact(4).try_for_each(|entry| self.indirect(fs, le32(entry, 0), level - 1))
    }
}

/// The runs of the first `size` bytes of a file. What is between them reads as zeros.
pub(super) fn runs(fs: &Ext4<'_>, inode: &Inode, size: u64) -> Result<Vec<Run>, Ext4Error> {
    let limit = size.div_ceil(fs.sb.block_size);
    let mut runs = Runs { inode, found: Vec::new(), next: 0, limit };
    if inode.has_extents() {
        runs.extents(fs, inode.block(), None)?;
    } else {
        for (n, entry) in inode.block().chunks_exact(4).enumerate() {
            let level = (n as u32).saturating_sub(11);
            runs.indirect(fs, le32(entry, 0), level)?;
        }
    }
    Ok(runs.found)
}

/// An open file.
#[derive(Debug)]
pub struct File<'f> {
    fs: &'f Ext4<'f>,
    size: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Inline(Vec<u8>),
    Runs(Vec<Run>),
}

impl<'f> File<'f> {
    pub(super) fn open(fs: &'f Ext4<'f>, inode: &Inode) -> Result<Self, Ext4Error> {
        let place = if inode.has_inline_data() {
            Place::Inline(inode.inline_data()?)
        } else {
            Place::Runs(runs(fs, inode, inode.size)?)
        };
        Ok(Self { fs, size: inode.size, place })
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads from byte `offset` on and says how much: less than asked for only at the end. Any piece size will do; some
    /// hundred KiB are quick.
    ///
    /// # Errors
    ///
    /// If the volume can't be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Ext4Error> {
        let len = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..len];
        match &self.place {
            Place::Inline(data) => {
                let at = offset.min(data.len() as u64) as usize;
                buf.copy_from_slice(&data[at..at + len]);
            }
            Place::Runs(runs) => self.read_runs(runs, offset, buf)?,
        }
        Ok(len)
    }

    fn read_runs(&self, runs: &[Run], offset: u64, buf: &mut [u8]) -> Result<(), Ext4Error> {
        let size = self.fs.sb.block_size;
        let (mut offset, mut rest) = (offset, buf);
        let mut ix = runs.partition_point(|run| (run.logical + run.len) * size <= offset);
        while !rest.is_empty() {
            let run = runs.get(ix);
            let start = run.map_or(u64::MAX, |run| run.logical * size);
            if offset < start {
                let hole = usize::try_from(start - offset).unwrap_or(usize::MAX).min(rest.len());
                let (zeros, later) = rest.split_at_mut(hole);
                zeros.fill(0);
                (offset, rest) = (offset + hole as u64, later);
                continue;
            }
            let Some(run) = run else { break };
            let within = offset - start;
            let len = usize::try_from(run.len * size - within).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            self.fs.read_blocks(run.physical + within / size, within % size, now)?;
            (offset, rest, ix) = (offset + len as u64, later, ix + 1);
        }
        Ok(())
    }
}
