//! Files of a boot entry, read as one: several initrds lie one behind the other, each from a multiple of four bytes on,
//! as the kernel expects archives of an initial RAM disk (Linux, "initramfs buffer format") and GRUB lays them out.

use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};

use boot_image::ext4::File;
use boot_image::{BootError, BootVolume, FileRef};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Between an initrd's end and the next one's beginning are zeros up to a multiple of this.
const ALIGNMENT: u64 = 4;
/// On the way to guest memory.
const BOUNCE_BYTES: usize = 256 << 10;

/// The files, with a position.
pub struct BootFiles<'a> {
    /// Where each begins.
    parts: Vec<(u64, File<'a>)>,
    bytes: u64,
    position: u64,
}

impl<'a> BootFiles<'a> {
    pub(super) fn open(
        volume: &'a BootVolume<'_>,
        files: &[FileRef],
    ) -> std::result::Result<Self, BootError> {
        let mut all = Self { parts: Vec::new(), bytes: 0, position: 0 };
        for file in files {
            let file = volume.open_file(file)?;
            let start = all.bytes.next_multiple_of(ALIGNMENT);
            all.bytes = start + file.size();
            all.parts.push((start, file));
        }
        Ok(all)
    }

    /// How many bytes they have together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// As a read of a file: how many bytes there were, at least one unless it is the end.
    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        let at = self.position;
        let left = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let bytes = buf.len().min(left);
        let Some((start, file)) = self.parts.iter().rev().find(|(start, _)| *start <= at) else {
            return Ok(0);
        };
        let mut read = file.read_at(at - start, &mut buf[..bytes]).map_err(Error::other)?;
        if read == 0 && bytes > 0 {
            // Behind a file that is not the last.
            read = bytes.min((at.next_multiple_of(ALIGNMENT) - at) as usize);
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            buf[..read].fill(0);
        }
        self.position += read as u64;
        Ok(read)
    }
}

impl Read for BootFiles<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.read_some(buf)
    }
}

impl Seek for BootFiles<'_> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(from) => self.bytes.checked_add_signed(from),
            SeekFrom::Current(from) => self.position.checked_add_signed(from),
        };
        self.position = position.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for BootFiles<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> std::result::Result<usize, VolatileMemoryError> {
        let mut bounce = vec![0; buf.len().min(BOUNCE_BYTES)];
        let mut done = 0;
        // Guest memory takes less than it asked for as the end.
        while done < buf.len() {
            let wanted = bounce.len().min(buf.len() - done);
            let read = self.read_some(&mut bounce[..wanted]).map_err(VolatileMemoryError::IOError)?;
            if read == 0 {
                break;
            }
            buf.offset(done)?.copy_from(&bounce[..read]);
            done += read;
        }
        Ok(done)
    }
}
