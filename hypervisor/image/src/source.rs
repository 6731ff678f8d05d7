//! Reading from whatever the volume is, and from a part of it, within its bounds.

use std::fmt;

/// Why a read failed, in the caller's words.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// A volume, or a file that holds one. The only way in which this crate gets at anything.
pub trait ReadAt {
    /// How many bytes there are. It must not change while the volume is looked at.
    fn size(&self) -> u64;

    /// Fills `buf` from byte `offset` on. Any offset and length within [`size`](Self::size) may be asked for: whoever can
    /// read whole sectors only reads more. At most a few MiB are asked for at once.
    ///
    /// # Errors
    ///
    /// If the bytes can't be read, all of them.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError>;
}

/// More was asked for than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no byte {0}")]
pub struct OutOfRange(pub u64);

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(found.ok_or(OutOfRange(offset))?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        self.as_slice().read_at(offset, buf)
    }
}

/// Bytes of the volume could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailed {
    /// The volume itself did not give them.
    #[error("{len} bytes at byte {offset} of the volume can't be read: {source}")]
    Volume {
        /// From the volume's beginning.
        offset: u64,
        /// How many were wanted.
        len: usize,
        /// What the volume said.
        source: BoxedError,
    },
    /// Something on the volume points to where nothing is.
    #[error("byte {offset} is wanted of a partition of {size}")]
    BeyondEnd {
        /// From the partition's beginning.
        offset: u64,
        /// The partition's bytes.
        size: u64,
    },
}

/// A part of a volume, such as a partition. Nothing outside can be read through it.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    disk: &'a dyn ReadAt,
    start: u64,
    len: u64,
}

impl<'a> Window<'a> {
    /// All of it.
    pub fn whole(disk: &'a dyn ReadAt) -> Self {
        Self { disk, start: 0, len: disk.size() }
    }

    /// `len` bytes from byte `start` of this one on, or what there is of them.
    #[must_use]
    pub fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self { disk: self.disk, start: self.start + start, len: len.min(self.len - start) }
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// If not all of it is within, or the volume can't be read there.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            return Err(ReadFailed::BeyondEnd { offset, size: self.len });
        }
        let (offset, len) = (self.start + offset, buf.len());
        self.disk.read_at(offset, buf).map_err(|source| ReadFailed::Volume { offset, len, source })
    }

    /// As [`read`](Self::read), into a buffer of its own.
    pub(crate) fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, ReadFailed> {
        // Looked at before the memory is taken.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(ReadFailed::BeyondEnd { offset, size: self.len });
        }
        let mut buf = vec![0; len];
        self.read(offset, &mut buf)?;
        Ok(buf)
    }
}

impl fmt::Debug for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}
