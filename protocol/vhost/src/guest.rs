//! Guest memory for a data path that can't spend a look-up on each field: bounds are checked here, once an access, and
//! the rings of a queue are resolved when it starts.
//!
//! A guest writes its memory while we read it. What decides (indices, descriptors, headers) is read by one volatile or
//! atomic access into a copy of ours, and only the copy is looked at; the bytes of frames are copied once, and only the
//! copy is looked at. Nothing here hands out a reference into guest memory.
//!
//! All `unsafe` of the network device is in this file.
// Raw pointers into mappings, each with the argument why it is in bounds.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::chain::DescriptorSource;
use crate::memory::GuestMap;

/// An access that is not, or not all, within guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outside;

/// What memory is fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

const LINE_BYTES: u64 = 64;

/// A hint, on processors that take one.
#[inline]
fn prefetch_line(host: NonNull<u8>, offset: usize, access: Access) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::asm;
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = host.as_ptr().wrapping_add(offset).cast::<i8>();
        // SAFETY: a prefetch changes nothing and never faults, whatever the address. Every x86-64 takes PREFETCHW, if only to do
        // nothing (AMD64 manual, volume 3); the compiler's own hint for writing becomes one for reading on the baseline.
        unsafe {
            match access {
                Access::Read => _mm_prefetch::<_MM_HINT_T0>(at),
                Access::Write => {
                    asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (host, offset, access);
}

/// A region: where it begins for the guest, where for us, and its bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

/// Guest memory as raw spans; the map keeps them mapped.
#[derive(Debug)]
pub(crate) struct GuestView {
    /// The largest first: few regions, and nearly all buffers are in the largest.
    spans: Box<[Span]>,
    _map: Arc<GuestMap>,
}

// SAFETY: the pointers are to shared mappings that `_map` keeps alive wherever the view goes; access through them is only
// by copies, volatile and atomic operations, which other threads (and the guest) may do at the same time.
unsafe impl Send for GuestView {}
// SAFETY: as above.
unsafe impl Sync for GuestView {}

impl GuestView {
    pub(crate) fn new(map: Arc<GuestMap>) -> Self {
        let mut spans: Vec<Span> = map
            .mem()
            .iter()
            .filter_map(|region| {
                let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
                Some(Span { start: region.start_addr().0, len: region.len(), host: NonNull::new(host)? })
            })
            .collect();
        spans.sort_by_key(|span| std::cmp::Reverse(span.len));
        Self { spans: spans.into(), _map: map }
    }

    /// Where an address is for us, and how many bytes follow in its region: at least one.
    #[inline]
    fn find(&self, addr: u64) -> Result<(NonNull<u8>, u64), Outside> {
        for span in &self.spans {
            let offset = addr.wrapping_sub(span.start);
            if offset < span.len {
                // SAFETY: the offset is within the span's mapping, which `_map` keeps.
                return Ok((unsafe { span.host.add(offset as usize) }, span.len - offset));
            }
        }
        Err(Outside)
    }

    /// Copies `N` bytes, each read once: by volatile accesses of four bytes where they are aligned, which drivers do.
    #[inline]
    pub(crate) fn read_array<const N: usize>(&self, addr: u64) -> Result<[u8; N], Outside> {
        let (host, room) = self.find(addr)?;
        if room >= N as u64 {
            if N.is_multiple_of(4) && host.addr().get().is_multiple_of(4) {
                let mut out = [0; N];
                for (word, to) in out.chunks_exact_mut(4).enumerate() {
                    // SAFETY: `room` bytes from `host` on are mapped, at least `N`, and the word is aligned.
                    let word = unsafe { host.cast::<u32>().add(word).read_volatile() };
                    to.copy_from_slice(&word.to_ne_bytes());
                }
                return Ok(out);
            }
            // SAFETY: `room` bytes from `host` on are mapped, and a byte array has no alignment.
            return Ok(unsafe { host.cast::<[u8; N]>().read_volatile() });
        }
        let mut out = [0; N];
        self.read(addr, &mut out)?;
        Ok(out)
    }

    /// Copies out of guest memory. On an error a part of `out` may be written.
    #[inline]
    pub(crate) fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Outside> {
        let (mut addr, mut out) = (addr, out);
        while !out.is_empty() {
            let (host, room) = self.find(addr)?;
            let now = (out.len() as u64).min(room) as usize;
            let (head, rest) = out.split_at_mut(now);
            // SAFETY: `now` bytes from `host` on are mapped, and `head` is ours alone, so they don't overlap.
            unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), head.as_mut_ptr(), now) };
            addr = addr.wrapping_add(now as u64);
            out = rest;
        }
        Ok(())
    }

    /// Copies `N` bytes into guest memory, by accesses of four bytes where they are aligned: what was just put together from
    /// fields is not read back through memory. On an error a part may be written.
    #[inline]
    pub(crate) fn write_array<const N: usize>(&self, addr: u64, data: [u8; N]) -> Result<(), Outside> {
        let (host, room) = self.find(addr)?;
        if room < N as u64 || !N.is_multiple_of(4) || !host.addr().get().is_multiple_of(4) {
            return self.write(addr, &data);
        }
        for at in 0..N / 4 {
            let word =
                u32::from_ne_bytes([data[4 * at], data[4 * at + 1], data[4 * at + 2], data[4 * at + 3]]);
            // SAFETY: `room` bytes from `host` on are mapped, at least `N`, and the word is aligned.
            unsafe { host.cast::<u32>().add(at).write_volatile(word) };
        }
        Ok(())
    }

    /// Copies into guest memory. On an error a part may be written.
    #[inline]
    pub(crate) fn write(&self, addr: u64, data: &[u8]) -> Result<(), Outside> {
        let (mut addr, mut data) = (addr, data);
        while !data.is_empty() {
            let (host, room) = self.find(addr)?;
            let now = (data.len() as u64).min(room) as usize;
            let (head, rest) = data.split_at(now);
            // SAFETY: `now` bytes from `host` on are mapped; `head` is not guest memory: nothing here lends that out.
            unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), host.as_ptr(), now) };
            addr = addr.wrapping_add(now as u64);
            data = rest;
        }
        Ok(())
    }

    /// Asks the processor for the first two cache lines of what will be read soon, and waits for nothing. What is not guest
    /// memory is not asked for.
    #[inline]
    pub(crate) fn prefetch(&self, addr: u64, access: Access) {
        let Ok((host, room)) = self.find(addr) else { return };
        let second = if room > LINE_BYTES { LINE_BYTES as usize } else { 0 };
        prefetch_line(host, 0, access);
        prefetch_line(host, second, access);
    }

    /// A window of `len` bytes, aligned to `align` for us, that lies in one region.
    pub(crate) fn window(self: &Arc<Self>, addr: u64, len: usize, align: usize) -> Result<Window, Outside> {
        let (host, room) = self.find(addr)?;
        if room < len as u64 || !host.addr().get().is_multiple_of(align) {
            return Err(Outside);
        }
        Ok(Window { host, len, align, _view: Arc::clone(self) })
    }
}

impl DescriptorSource for GuestView {
    #[inline]
    fn descriptor(&self, addr: u64) -> Option<[u8; 16]> {
        self.read_array(addr).ok()
    }
}

/// A piece of guest memory that is used for as long as a queue runs.
#[derive(Debug)]
pub(crate) struct Window {
    host: NonNull<u8>,
    len: usize,
    align: usize,
    _view: Arc<GuestView>,
}

// SAFETY: as for `GuestView`, which the window keeps alive.
unsafe impl Send for Window {}

impl Window {
    /// Panics when the field is outside of the window or not aligned: where fields are is decided by us alone.
    #[inline]
    fn at(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        assert!(offset + bytes <= self.len && offset.is_multiple_of(bytes) && bytes <= self.align);
        // SAFETY: just checked.
        unsafe { self.host.add(offset) }
    }

    #[inline]
    pub(crate) fn load16(&self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: in bounds and aligned; all our accesses to it are atomic.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast().as_ptr()) }.load(order))
    }

    #[inline]
    pub(crate) fn store16(&self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: in bounds and aligned; all our accesses to it are atomic.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast().as_ptr()) }.store(value.to_le(), order);
    }

    #[inline]
    pub(crate) fn load32(&self, offset: usize) -> u32 {
        // SAFETY: in bounds and aligned; all our accesses to it are atomic.
        let field = unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast().as_ptr()) };
        u32::from_le(field.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn store32(&self, offset: usize, value: u32) {
        // SAFETY: in bounds and aligned; all our accesses to it are atomic.
        let field = unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast().as_ptr()) };
        field.store(value.to_le(), Ordering::Relaxed);
    }
}
