//! Pages of the guest that go back to the host: holes in the file that its memory is.
//!
//! What a guest names is checked as a whole before anything is punched. Neighbouring pages become one hole: a call for
//! each page would be a hundred times as slow. With huge pages a hole of less than one of them gives nothing back.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tracing::warn;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout::PAGE_BYTES;
use crate::virtio::ring::Buffer;

/// Why a VM can't have a balloon.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// Memory that is no file has nothing to punch holes in.
    #[error("a balloon needs guest memory that is a file")]
    NoFile,
    /// Its thread.
    #[error("starting the balloon's thread: {0}")]
    Thread(std::io::Error),
}

#[derive(Debug)]
struct Region {
    start: u64,
    bytes: u64,
    file: Arc<File>,
    file_offset: u64,
}

/// The guest's memory as something to punch holes in.
#[derive(Debug)]
pub(super) struct Pages {
    regions: Vec<Region>,
}

/// A range of whole pages: first address, and the address behind.
type Range = (u64, u64);

impl Pages {
    pub(super) fn of(memory: &GuestMemoryMmap) -> Result<Self, PagesError> {
        let region = |region: &vm_memory::GuestRegionMmap| {
            let place = region.file_offset().ok_or(PagesError::NoFile)?;
            let start = region.start_addr().0;
            Ok(Region {
                start,
                bytes: region.len(),
                file: Arc::clone(place.arc()),
                file_offset: place.start(),
            })
        };
        Ok(Self { regions: memory.iter().map(region).collect::<Result<_, _>>()? })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Gives pages away by their numbers, four bytes each.
    pub(super) fn give_away(&self, numbers: &[u8]) -> Result<(), &'static str> {
        if !numbers.len().is_multiple_of(4) {
            return Err("half a page's number");
        }
        let page = |number: &[u8]| {
            let start =
                number.first_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes))) * PAGE_BYTES;
            (start, start + PAGE_BYTES)
        };
        self.give_away_all(numbers.chunks_exact(4).map(page).collect()).map(drop)
    }

    /// Gives away the whole pages of these ranges; how many bytes came free.
    pub(super) fn give_away_ranges(&self, ranges: &[Buffer]) -> Result<u64, &'static str> {
        let whole = |buffer: &Buffer| {
            let end = buffer.start.0.checked_add(u64::from(buffer.bytes)).ok_or("a range without an end")?;
            let start =
                buffer.start.0.checked_next_multiple_of(PAGE_BYTES).ok_or("a range without an end")?;
            Ok((start, end - end % PAGE_BYTES))
        };
        let ranges: Vec<Range> = ranges.iter().map(whole).collect::<Result<_, &'static str>>()?;
        self.give_away_all(ranges.into_iter().filter(|(start, end)| start < end).collect())
    }

    fn give_away_all(&self, ranges: Vec<Range>) -> Result<u64, &'static str> {
        let mut holes = Vec::new();
        for range in join(ranges) {
            holes.push(self.place(range).ok_or("pages that are not in the guest's memory")?);
        }
        Ok(holes.iter().map(|(file, offset, bytes)| punch(file, *offset, *bytes)).sum())
    }

    /// Where a range is in a file. One that goes over the end of a piece of memory goes outside of the memory.
    fn place(&self, (start, end): Range) -> Option<(&File, u64, u64)> {
        self.regions.iter().find_map(|region| {
            let within = start.checked_sub(region.start)?;
            let fits = end - region.start <= region.bytes;
            fits.then_some((&*region.file, region.file_offset + within, end - start))
        })
    }
}

/// Sorted, and neighbours and what overlaps made one.
fn join(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// How many bytes are free now.
fn punch(file: &File, offset: u64, bytes: u64) -> u64 {
    loop {
        match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Ok(()) => return bytes,
            Err(Errno::INTR) => {}
            // The guest does without them all the same; only the host has nothing of it.
            Err(error) => {
                warn!("giving {bytes} bytes of the guest's memory back to the host: {error}");
                return 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::layout::{HIGH_RAM_START, LOW_RAM_MAX, Layout, MemorySize};

    const MEMORY: u64 = 8 << 20;

    fn memory(bytes: u64) -> (Pages, GuestMemoryMmap) {
        let size = MemorySize::new(bytes).unwrap();
        let layout = Layout::new(size, 40).unwrap();
        let file = crate::memory::make(size, None).unwrap();
        let memory = crate::memory::map(&layout, file).unwrap();
        (Pages::of(&memory).unwrap(), memory)
    }

    fn numbers(pages: &[u32]) -> Vec<u8> {
        pages.iter().flat_map(|page| page.to_le_bytes()).collect()
    }

    fn allocated(pages: &Pages) -> u64 {
        pages.regions[0].file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn what_is_given_away_is_the_hosts_again() {
        let (pages, memory) = memory(MEMORY);
        memory.write_slice(&vec![7; MEMORY as usize], GuestAddress(0)).unwrap();
        assert_eq!(allocated(&pages), MEMORY);
        pages.give_away(&numbers(&[3, 1, 2, 1, 100])).unwrap();
        assert_eq!(allocated(&pages), MEMORY - 4 * PAGE_BYTES);
        let byte = |page: u64| memory.read_obj::<u8>(GuestAddress(page * PAGE_BYTES)).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 99, 100, 101].map(byte), [7, 0, 0, 0, 7, 7, 0, 7]);
        let range = |start, bytes| Buffer { start: GuestAddress(start), bytes };
        // Only what is whole.
        let freed = pages.give_away_ranges(&[range(0x20_0fff, 0x2002), range(0x30_0001, 4096)]).unwrap();
        assert_eq!(freed, 2 * PAGE_BYTES);
        assert_eq!([0x200, 0x201, 0x202, 0x203, 0x300, 0x301].map(byte), [7, 0, 0, 7, 7, 7]);
    }

    #[test]
    fn pages_that_are_not_there_are_refused_and_nothing_is_punched() {
        let (pages, memory) = memory(MEMORY);
        memory.write_slice(&[7; 8192], GuestAddress(0)).unwrap();
        let before = allocated(&pages);
        let last = (MEMORY / PAGE_BYTES) as u32;
        for wrong in [&[0, last][..], &[1, u32::MAX], &[last + 7]] {
            assert!(pages.give_away(&numbers(wrong)).is_err(), "{wrong:?}");
        }
        assert!(pages.give_away(&[0; 5]).is_err());
        for (start, bytes) in
            [(MEMORY - 4096, 8192), (u64::MAX - 4096, 8192), (u64::MAX - 5, 3), (1 << 40, 4096)]
        {
            let wrong = [
                Buffer { start: GuestAddress(0), bytes: 4096 },
                Buffer { start: GuestAddress(start), bytes },
            ];
            assert!(pages.give_away_ranges(&wrong).is_err() || bytes < 4096, "{start:#x}");
        }
        assert_eq!(allocated(&pages), before);
    }

    /// Memory below and above the PCI hole is one file, and a range across the hole is none.
    #[test]
    fn the_hole_of_pci_is_no_memory() {
        let (pages, memory) = memory(LOW_RAM_MAX + MEMORY);
        memory.write_slice(&[7; 4096], GuestAddress(HIGH_RAM_START + 4096)).unwrap();
        let number = ((HIGH_RAM_START + 4096) / PAGE_BYTES) as u32;
        pages.give_away(&numbers(&[number])).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(HIGH_RAM_START + 4096)).unwrap(), 0);
        assert!(pages.give_away(&numbers(&[(LOW_RAM_MAX / PAGE_BYTES) as u32])).is_err());
        let across = Buffer { start: GuestAddress(LOW_RAM_MAX - 4096), bytes: 1 << 30 | 1 << 20 };
        assert!(pages.give_away_ranges(&[across]).is_err());
    }

    proptest! {
        /// Joined ranges cover the same addresses, in order, and do not touch.
        #[test]
        fn joined_ranges_are_the_same_pages(pages in prop::collection::vec((0..60u64, 1..9u64), 0..30)) {
            let ranges: Vec<Range> = pages.iter().map(|(start, count)| (*start, start + count)).collect();
            let joined = join(ranges.clone());
            prop_assert!(joined.windows(2).all(|pair| pair[0].1 < pair[1].0));
            for page in 0..80 {
                let covers = |ranges: &[Range]| ranges.iter().any(|(start, end)| (*start..*end).contains(&page));
                prop_assert_eq!(covers(&ranges), covers(&joined));
            }
        }
    }
}
