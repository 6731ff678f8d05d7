//! The guest's RAM: one sealed memfd, mapped shared, so that vhost-user back ends can map it too.
//!
//! Sealed against shrinking and growing before anybody else gets the descriptor: a back end that truncated it could kill
//! this process with a bus error, and so could we the back end. Pages are allocated as the guest touches them.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap};

use crate::layout::Layout;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file could not be made.
    #[error("making a file of {bytes} bytes for the guest's memory: {source}")]
    File {
        /// Its size.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file could not be mapped.
    #[error("mapping the guest's memory: {0}. Is there a limit on address space (ulimit -v)?")]
    Map(String),
}

/// Makes and maps the RAM of a layout.
pub fn allocate(layout: &Layout) -> Result<GuestMemoryMmap, MemoryError> {
    let bytes: u64 = layout.regions().iter().map(|region| region.bytes).sum();
    let file = sealed_file(bytes).map_err(|source| MemoryError::File { bytes, source })?;
    let file = Arc::new(file);
    let ranges = layout.regions().iter().map(|region| {
        let place = FileOffset::from_arc(Arc::clone(&file), region.file_offset);
        (region.start, region.bytes as usize, Some(place))
    });
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges)
        .map_err(|error| MemoryError::Map(error.to_string()))?;
    memory.iter().for_each(ask_for_huge_pages);
    Ok(memory)
}

/// Asks for transparent huge pages, which the kernel gives if `/sys/kernel/mm/transparent_hugepage/shmem_enabled` is
/// `advise`: a start then takes a fault for each 2 MiB instead of each 4 KiB, and the guest fewer misses of its TLB. A kernel
/// without them refuses the advice, which costs nothing else.
#[allow(unsafe_code)]
fn ask_for_huge_pages(region: &GuestRegionMmap) {
    // SAFETY: the range is one mapping of ours, which outlives the call, and this advice changes neither what is in it nor
    // what it is.
    let advised = unsafe {
        rustix::mm::madvise(region.as_ptr().cast(), region.size(), rustix::mm::Advice::LinuxHugepage)
    };
    if let Err(error) = advised {
        tracing::debug!("no transparent huge pages for the guest's memory: {error}");
    }
}

fn sealed_file(bytes: u64) -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}
