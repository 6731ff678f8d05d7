//! What a guest's balloon driver says of its memory (virtio 1.2, 5.5.6.3): pairs of a tag and a number.

/// Bytes of a pair.
const PAIR_BYTES: usize = 10;
/// Most bytes that are looked at: far more pairs than there are tags.
pub(super) const BYTES_MAX: usize = 100 * PAIR_BYTES;

/// The numbers; what the driver does not count is absent. All are the guest's own words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Memory swapped in since its start, in bytes.
    pub swap_in_bytes: Option<u64>,
    /// Memory swapped out since its start, in bytes.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory that nobody uses for anything, in bytes.
    pub free_bytes: Option<u64>,
    /// Memory that it knows of, in bytes.
    pub total_bytes: Option<u64>,
    /// Memory that programs could have without swapping, in bytes.
    pub available_bytes: Option<u64>,
    /// Memory that holds copies of what is on disks, in bytes.
    pub disk_caches_bytes: Option<u64>,
    /// Huge pages that were allocated.
    pub huge_allocated: Option<u64>,
    /// Huge pages that could not be.
    pub huge_failed: Option<u64>,
}

impl Statistics {
    /// Reads them. Tags that are not known here are of a newer standard, and half a pair at the end is none.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut all = Self::default();
        for pair in bytes.chunks_exact(PAIR_BYTES) {
            let (tag, value) = pair.split_at(2);
            let number = value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let place = match u16::from_le_bytes([tag[0], tag[1]]) {
                0 => &mut all.swap_in_bytes,
                1 => &mut all.swap_out_bytes,
                2 => &mut all.major_faults,
                3 => &mut all.minor_faults,
                4 => &mut all.free_bytes,
                5 => &mut all.total_bytes,
                6 => &mut all.available_bytes,
                7 => &mut all.disk_caches_bytes,
                8 => &mut all.huge_allocated,
                9 => &mut all.huge_failed,
                _ => continue,
            };
            *place = number;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tags_are_taken_and_others_left() {
        let pair = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let bytes = [pair(5, 1 << 40), pair(4, 7), pair(99, 1), pair(9, 3), vec![4, 0, 1]].concat();
        let all = Statistics::parse(&bytes);
        let wanted = Statistics {
            total_bytes: Some(1 << 40),
            free_bytes: Some(7),
            huge_failed: Some(3),
            ..Statistics::default()
        };
        assert_eq!(all, wanted);
        assert_eq!(Statistics::parse(&[]), Statistics::default());
    }
}
