//! Page-aligned buffers for direct I/O.
//!
//! A buffer that came out of a [`BufPool`] goes back there when it is dropped, also when it is dropped as the owner of a
//! [`Bytes`] on another thread. The pool keeps a bounded number of bytes; what is above goes to the allocator.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The alignment of every buffer: a page, which satisfies every device's direct I/O.
pub const ALIGN: usize = 4096;

/// Sizes that the pool keeps; a longer request is allocated exactly and never kept.
const CLASSES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, (1 << 20) + (128 << 10)];

/// Bytes on the heap at a 4096-aligned address. All of them are always initialised.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    capacity: usize,
    len: usize,
    pool: Option<Arc<Shelves>>,
}

// SAFETY: the buffer owns its memory exclusively, like a `Box<[u8]>`; nothing about it is bound to a thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only give `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zeroed bytes that belong to no pool.
    pub fn new(len: usize) -> Self {
        Self::allocate(len.next_multiple_of(ALIGN).max(ALIGN), len)
    }

    fn allocate(capacity: usize, len: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero: every caller rounds up to at least one page.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { ptr, capacity, len, pool: None }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("buffer sizes are bounded far below isize::MAX")
    }

    /// Makes the buffer shorter; the rest of the memory stays its own.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The bytes as shared immutable ones, without copying.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity`, the memory is ours and was initialised when it was allocated.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take()
            && pool.put(self.ptr, self.capacity)
        {
            return;
        }
        // SAFETY: allocated by `allocate` with this very layout and not given to the pool.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) };
    }
}

/// Memory that waits to be used again, by size class.
struct Shelves {
    bytes_max: usize,
    state: Mutex<ShelvesState>,
}

#[derive(Default)]
struct ShelvesState {
    bytes: usize,
    free: [Vec<NonNull<u8>>; CLASSES.len()],
    /// The fewest that were free of each class since the last [`BufPool::rest`].
    spare: [usize; CLASSES.len()],
}

// SAFETY: the pointers on the shelves own their memory exclusively; they are only handed over under the mutex.
unsafe impl Send for ShelvesState {}

impl Shelves {
    /// Keeps the memory if there is room for it. Returns whether it did.
    fn put(&self, ptr: NonNull<u8>, capacity: usize) -> bool {
        let Some(class) = CLASSES.iter().position(|&size| size == capacity) else { return false };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.bytes + capacity > self.bytes_max {
            return false;
        }
        state.bytes += capacity;
        state.free[class].push(ptr);
        true
    }
}

impl Drop for Shelves {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (class, free) in state.free.iter_mut().enumerate() {
            for ptr in free.drain(..) {
                // SAFETY: every pointer on shelf `class` was allocated with that class's size by `AlignedBuf::allocate`.
                unsafe { dealloc(ptr.as_ptr(), AlignedBuf::layout(CLASSES[class])) };
            }
        }
    }
}

/// A bounded store of buffers that are free for use. Clones share it.
#[derive(Clone)]
pub struct BufPool(Arc<Shelves>);

impl BufPool {
    /// A pool that keeps at most this many bytes of unused buffers.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shelves { bytes_max, state: Mutex::default() }))
    }

    /// A buffer of `len` bytes. Its content is whatever was in it last: the caller overwrites all that it hands on.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let Some(class) = CLASSES.iter().position(|&size| size >= len) else { return AlignedBuf::new(len) };
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buf = if let Some(ptr) = state.free[class].pop() {
            state.bytes -= CLASSES[class];
            state.spare[class] = state.spare[class].min(state.free[class].len());
            AlignedBuf { ptr, capacity: CLASSES[class], len, pool: None }
        } else {
            state.spare[class] = 0;
            drop(state);
            AlignedBuf::allocate(CLASSES[class], len)
        };
        buf.pool = Some(Arc::clone(&self.0));
        buf
    }

    /// Gives the allocator back what nobody needed since the last call. To be called now and then.
    pub fn rest(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ShelvesState { bytes, free, spare } = &mut *state;
        for ((free, spare), size) in free.iter_mut().zip(spare).zip(CLASSES) {
            for ptr in free.drain(..(*spare).min(free.len())) {
                *bytes -= size;
                // SAFETY: every pointer on this shelf was allocated with that size by `AlignedBuf::allocate`, and is taken off it here.
                unsafe { dealloc(ptr.as_ptr(), AlignedBuf::layout(size)) };
            }
            *spare = free.len();
        }
    }

    /// These bytes at an aligned address: themselves if they are, else a copy.
    pub fn aligned(&self, bytes: &Bytes) -> Bytes {
        if bytes.as_ptr().addr().is_multiple_of(ALIGN) {
            return bytes.clone();
        }
        let mut copy = self.take(bytes.len());
        copy.copy_from_slice(bytes);
        copy.freeze()
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufPool(max {} bytes)", self.0.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = BufPool::new(64 << 10);
        let buf = pool.take(4096);
        let first = buf.as_ptr().addr();
        assert_eq!(first % ALIGN, 0);
        let bytes = buf.freeze();
        assert_eq!(bytes.as_ptr().addr(), first);
        let slice = bytes.slice(0..4096);
        drop(bytes);
        assert_ne!(pool.take(4096).as_ptr().addr(), first, "a slice still holds it");
        drop(slice);
        let one = pool.take(4000);
        let two = pool.take(4096);
        assert!([one.as_ptr().addr(), two.as_ptr().addr()].contains(&first));
    }

    #[test]
    fn what_nobody_needs_for_a_while_is_given_back() {
        let pool = BufPool::new(1 << 20);
        let on_shelves = || pool.0.state.lock().unwrap().bytes;
        drop((0..10).map(|_| pool.take(4096)).collect::<Vec<_>>());
        assert_eq!(on_shelves(), 10 * 4096);
        pool.rest();
        assert_eq!(on_shelves(), 10 * 4096, "they were needed just now");
        drop((0..3).map(|_| pool.take(4096)).collect::<Vec<_>>());
        pool.rest();
        assert_eq!(on_shelves(), 3 * 4096);
        pool.rest();
        assert_eq!(on_shelves(), 0);
        drop(pool.take(100));
        assert_eq!(on_shelves(), 4096);
    }

    #[test]
    fn the_pool_is_bounded() {
        let pool = BufPool::new(8192);
        let bufs: Vec<_> = (0..10).map(|_| pool.take(4096)).collect();
        drop(bufs);
        assert_eq!(pool.0.state.lock().unwrap().bytes, 8192);
    }

    #[test]
    fn unaligned_bytes_are_copied_and_aligned_ones_are_not() {
        let pool = BufPool::new(1 << 20);
        let bytes = AlignedBuf::new(8192).freeze();
        assert_eq!(pool.aligned(&bytes.slice(4096..)).as_ptr(), bytes[4096..].as_ptr());
        let odd = bytes.slice(1..4097);
        let copy = pool.aligned(&odd);
        assert_eq!(copy.as_ptr().addr() % ALIGN, 0);
        assert_eq!(copy, odd);
    }
}
