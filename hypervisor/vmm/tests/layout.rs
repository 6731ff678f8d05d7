//! The memory layout: every byte of RAM once, none where something else is.

use proptest::prelude::*;
use vmm::layout::{
    ECAM_START, HIGH_RAM_START, LOW_RAM_MAX, Layout, LayoutError, MemorySize, PAGE_BYTES, RAM_MIN, RangeKind,
};

#[test]
fn sizes_that_make_no_vm_are_refused() {
    assert_eq!(MemorySize::new(RAM_MIN - PAGE_BYTES), Err(LayoutError::TooSmall(RAM_MIN - PAGE_BYTES)));
    assert_eq!(MemorySize::new(RAM_MIN + 1), Err(LayoutError::Uneven(RAM_MIN + 1)));
    let size = MemorySize::new(64 << 30).unwrap();
    assert_eq!(Layout::new(size, 36), Err(LayoutError::TooLarge { bytes: 64 << 30, address_bits: 36 }));
    Layout::new(size, 37).unwrap();
}

proptest! {
    #[test]
    fn ram_is_whole_and_nowhere_in_the_way(pages in RAM_MIN / PAGE_BYTES..1 << 30) {
        let size = MemorySize::new(pages * PAGE_BYTES).unwrap();
        let layout = Layout::new(size, 52).unwrap();
        let regions = layout.regions();
        prop_assert_eq!(regions.iter().map(|region| region.bytes).sum::<u64>(), size.bytes());
        let mut offset = 0;
        for region in regions {
            prop_assert_eq!(region.file_offset, offset);
            offset += region.bytes;
            let end = region.start.0 + region.bytes;
            prop_assert!(end <= LOW_RAM_MAX || region.start.0 >= HIGH_RAM_START);
        }
        let map = layout.memory_map();
        prop_assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start), "in order");
        let inside = |start: u64, bytes: u64| {
            regions.iter().any(|it| it.start.0 <= start && start + bytes <= it.start.0 + it.bytes)
        };
        for range in map.iter().filter(|range| range.kind == RangeKind::Ram) {
            prop_assert!(range.bytes > 0 && inside(range.start, range.bytes), "{range:?}");
        }
        prop_assert!(map.iter().any(|range| range.start == ECAM_START && range.kind == RangeKind::Reserved));
    }
}
