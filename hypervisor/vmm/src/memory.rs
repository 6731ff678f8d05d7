//! The guest's RAM: one sealed memfd, mapped shared, so that vhost-user back ends can map it too.
//!
//! Sealed against shrinking and growing before anybody else gets the descriptor: a back end that truncated it could kill
//! this process with a bus error, and so could we the back end. Pages are allocated as the guest touches them; huge pages
//! all at once, because who touches one that the host does not have is killed.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use vm_memory::{FileOffset, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap};

use crate::config::HugePages;
use crate::layout::{Layout, MemorySize};

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
    /// The host has too few huge pages.
    #[error(
        "--huge-pages {size}: the VM needs {needed} pages and this host has {free} free. Reserve more of them \
         (echo N > {FOLDER}/hugepages-{}kB/nr_hugepages, or hugepagesz={size} hugepages=N on its kernel's command line), \
         or leave the option out", size.bytes() >> 10
    )]
    HugePages {
        /// Of which size.
        size: HugePages,
        /// How many the VM needs.
        needed: u64,
        /// How many nobody has yet.
        free: u64,
    },
    /// The kernel has no pages of this size.
    #[error(
        "--huge-pages {size}: this host's kernel or processor has no pages of this size. Leave the option out"
    )]
    NoHugePages {
        /// The size.
        size: HugePages,
    },
    /// The file could not be mapped.
    #[error("mapping the guest's memory: {0}. Is there a limit on address space (ulimit -v)?")]
    Map(String),
}

const FOLDER: &str = "/sys/kernel/mm/hugepages";

/// The file of a VM's memory.
pub fn make(size: MemorySize, huge_pages: Option<HugePages>) -> Result<File, MemoryError> {
    let bytes = size.bytes();
    let failed = |source: std::io::Error| MemoryError::File { bytes, source };
    let Some(size) = huge_pages else { return sealed(bytes) };
    let needed = bytes / size.bytes();
    let free = free(size).ok_or(MemoryError::NoHugePages { size })?;
    if free < needed {
        return Err(MemoryError::HugePages { size, needed, free });
    }
    let flags = MemfdFlags::HUGETLB
        | match size {
            HugePages::Mib2 => MemfdFlags::HUGE_2MB,
            HugePages::Gib1 => MemfdFlags::HUGE_1GB,
        };
    let file = file_of(bytes, flags).map_err(failed)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => {}
        // Somebody else was faster.
        Err(Errno::NOSPC | Errno::NOMEM) => return Err(MemoryError::HugePages { size, needed, free }),
        Err(other) => return Err(failed(other.into())),
    }
    seal(&file).map_err(failed)?;
    Ok(file)
}

/// Huge pages that are neither used nor promised; `None` where there are none of this size at all.
fn free(size: HugePages) -> Option<u64> {
    let folder = format!("{FOLDER}/hugepages-{}kB", size.bytes() >> 10);
    let read =
        |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(read("free_hugepages")?.saturating_sub(read("resv_hugepages")?))
}

/// Makes and maps the RAM of a layout, of ordinary pages.
pub fn allocate(layout: &Layout) -> Result<GuestMemoryMmap, MemoryError> {
    let bytes = layout.regions().iter().map(|region| region.bytes).sum();
    map(layout, sealed(bytes)?)
}

/// A file of ordinary pages.
fn sealed(bytes: u64) -> Result<File, MemoryError> {
    let file = file_of(bytes, MemfdFlags::empty()).and_then(|file| seal(&file).map(|()| file));
    file.map_err(|source| MemoryError::File { bytes, source })
}

/// Maps the RAM of a layout; the file has its size.
pub fn map(layout: &Layout, file: File) -> Result<GuestMemoryMmap, MemoryError> {
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

fn file_of(bytes: u64, more: MemfdFlags) -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more;
    let file = File::from(rustix::fs::memfd_create("guest-ram", flags)?);
    file.set_len(bytes)?;
    Ok(file)
}

fn seal(file: &File) -> std::io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}
