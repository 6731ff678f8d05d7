//! Guest memory as the front end shares it: files mapped into our address space.
//!
//! Two address spaces meet here: *guest physical* (in descriptors) and the *front end's virtual* (in `SET_VRING_ADDR`).
//! A [`GuestMap`] is immutable; a change of the table makes a new one, so that the data loop swaps an `Arc`.
//!
//! **Truncation.** Touching a mapping beyond the end of its file raises SIGBUS, and SIGBUS handling is out of scope
//! here. A file's size is checked when it is mapped. A memfd sealed with `F_SEAL_SHRINK` (QEMU's
//! `memory-backend-memfd` default) can't shrink later; for others (`memory-backend-file`) we depend on the VMM, which
//! is trusted with its own guest, not to truncate a file that it has shared. [`SealPolicy::Require`] refuses those.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::error::MemoryError;

/// Most regions a front end may share (QEMU uses a handful, one more for each hot-plugged DIMM).
pub const MEM_SLOTS_MAX: usize = 64;

/// What to do with guest memory whose file could be shrunk by the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SealPolicy {
    /// Take it, with a line in the log.
    #[default]
    Warn,
    /// Refuse the front end.
    Require,
}

/// Where one region lies, in the three address spaces that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest physical address.
    pub guest_addr: u64,
    /// First address in the front end's address space.
    pub user_addr: u64,
    /// Offset of the region in its file, in bytes.
    pub file_offset: u64,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Clone)]
struct Region {
    spec: RegionSpec,
    mapping: Arc<GuestRegionMmap>,
}

/// A mapped memory table.
#[derive(Debug, Clone, Default)]
pub struct GuestMap {
    regions: Vec<Region>,
    mem: GuestMemoryMmap,
}

impl GuestMap {
    /// Maps a whole table.
    pub fn new(
        regions: impl IntoIterator<Item = (RegionSpec, File)>,
        policy: SealPolicy,
    ) -> Result<Self, MemoryError> {
        let mut mapped = Vec::new();
        for (spec, file) in regions {
            if mapped.len() == MEM_SLOTS_MAX {
                return Err(MemoryError::TooManyRegions(MEM_SLOTS_MAX));
            }
            mapped.push(map_region(spec, file, policy)?);
        }
        Self::assemble(mapped)
    }

    /// The table with one region more.
    pub fn with_region(&self, spec: RegionSpec, file: File, policy: SealPolicy) -> Result<Self, MemoryError> {
        if self.regions.len() == MEM_SLOTS_MAX {
            return Err(MemoryError::TooManyRegions(MEM_SLOTS_MAX));
        }
        let mut regions = self.regions.clone();
        regions.push(map_region(spec, file, policy)?);
        Self::assemble(regions)
    }

    /// The table without the region at these addresses (the file offset is not part of its identity).
    pub fn without_region(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.retain(|region| {
            (region.spec.guest_addr, region.spec.user_addr, region.spec.size)
                != (spec.guest_addr, spec.user_addr, spec.size)
        });
        if regions.len() == self.regions.len() {
            return Err(MemoryError::NoSuchRegion);
        }
        Self::assemble(regions)
    }

    fn assemble(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.spec.guest_addr);
        let mem = if regions.is_empty() {
            GuestMemoryMmap::new()
        } else {
            let mappings = regions.iter().map(|region| Arc::clone(&region.mapping)).collect();
            GuestMemoryMmap::from_arc_regions(mappings).map_err(|_| MemoryError::Overlap)?
        };
        Ok(Self { regions, mem })
    }

    /// The memory, addressed by guest physical address.
    pub fn mem(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// The guest physical address of an address in the front end's address space.
    pub fn guest_addr_of(&self, user_addr: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.spec.user_addr)?;
            (offset < region.spec.size).then(|| GuestAddress(region.spec.guest_addr + offset))
        })
    }

    /// Wraps anonymous memory, for fuzzing and unit tests: both address spaces are the same.
    pub fn anonymous(mem: GuestMemoryMmap) -> Self {
        use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
        let regions = mem
            .iter()
            .filter_map(|region| {
                let start = region.start_addr().0;
                let spec =
                    RegionSpec { guest_addr: start, user_addr: start, file_offset: 0, size: region.len() };
                let mapping = Arc::new(GuestRegionMmap::with_arc(region.get_mmap(), GuestAddress(start))?);
                Some(Region { spec, mapping })
            })
            .collect();
        Self { regions, mem }
    }
}

fn map_region(spec: RegionSpec, file: File, policy: SealPolicy) -> Result<Region, MemoryError> {
    let stat = rustix::fs::fstat(&file).map_err(std::io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MemoryError::NotAFile);
    }
    let have = u64::try_from(stat.st_size).unwrap_or(0);
    let need = spec.file_offset.checked_add(spec.size).ok_or(MemoryError::Overlap)?;
    if spec.size == 0 || spec.guest_addr.checked_add(spec.size).is_none() {
        return Err(MemoryError::Overlap);
    }
    if need > have {
        return Err(MemoryError::ShortFile { need, have });
    }
    if !sealed_against_shrinking(&file) {
        if policy == SealPolicy::Require {
            return Err(MemoryError::NotSealed);
        }
        tracing::warn!(
            guest_addr = spec.guest_addr,
            "guest memory is not sealed against shrinking; prefer memory-backend-memfd"
        );
    }
    let size = usize::try_from(spec.size).map_err(|_| MemoryError::Overlap)?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, spec.file_offset), size)
        .map_err(|error| MemoryError::Map(error.to_string()))?;
    let mapping = GuestRegionMmap::new(mapping, GuestAddress(spec.guest_addr)).ok_or(MemoryError::Overlap)?;
    Ok(Region { spec, mapping: Arc::new(mapping) })
}

/// Whether a file can never become shorter. Files that know no seals can.
pub(crate) fn sealed_against_shrinking(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}
