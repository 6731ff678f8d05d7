//! A batch of frames on their way through the worker: one buffer, used again each turn, that stays in the cache.

use ferro_vhost::net::{TxSink, VirtioNetHdr};
use vswitch_core::frame::{FRAME_BYTES_MAX, Offload};

use super::vhost::offload_of;

/// The most frames of a batch: enough that what a turn costs by itself is small beside them, few enough that a port that
/// floods makes nobody wait for long.
pub const BATCH_FRAMES: usize = 64;
/// The most bytes of a batch: small enough for a core's second-level cache, large enough for some super-frames.
pub const BATCH_BYTES: usize = 512 * 1024;

/// One frame of a batch.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    at: usize,
    len: usize,
    offload: Offload,
}

/// The frames, one behind the other.
#[derive(Debug)]
pub struct Batch {
    bytes: Box<[u8]>,
    used: usize,
    entries: Vec<Entry>,
    frames_max: usize,
    /// Frames whose header no frame can have.
    pub(crate) bad_header: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Room for a batch.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; BATCH_BYTES].into_boxed_slice(),
            used: 0,
            entries: Vec::with_capacity(BATCH_FRAMES),
            frames_max: BATCH_FRAMES,
            bad_header: 0,
        }
    }

    /// Forgets the frames; the next batch has so many at most.
    pub fn clear(&mut self, frames_max: usize) {
        self.used = 0;
        self.entries.clear();
        self.frames_max = frames_max.min(BATCH_FRAMES);
        self.bad_header = 0;
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many more may be put.
    pub fn room_frames(&self) -> usize {
        self.frames_max - self.entries.len()
    }

    /// Room for one frame of up to `len` bytes; `None` if the batch is full.
    pub fn space(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.entries.len() >= self.frames_max || len > FRAME_BYTES_MAX {
            return None;
        }
        self.bytes.get_mut(self.used..self.used + len)
    }

    /// The frame lies in the space that was given last.
    pub fn put(&mut self, len: usize, offload: Offload) {
        self.entries.push(Entry { at: self.used, len, offload });
        // The next one begins where a cache line does.
        self.used = (self.used + len).next_multiple_of(64).min(self.bytes.len());
    }

    /// One of the frames, and what is still to be done to it.
    #[inline]
    pub fn get(&self, n: usize) -> (&[u8], Offload) {
        let entry = self.entries[n];
        (&self.bytes[entry.at..entry.at + entry.len], entry.offload)
    }
}

impl TxSink for Batch {
    #[inline]
    fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.space(bytes)
    }

    #[inline]
    fn take(&mut self, header: VirtioNetHdr, bytes: usize) {
        match offload_of(header) {
            Some(offload) => self.put(bytes, offload),
            None => self.bad_header += 1,
        }
    }
}
