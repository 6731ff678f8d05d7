//! The balloon's configuration (virtio 1.2, 5.5.4): four words, of which the driver writes the second and the fourth.
//!
//! ```text
//!   0  num_pages   how many the guest should give back        8   free_page_hint_cmd_id, not offered
//!   4  actual      how many it has given back                 12  poison_val
//! ```

use crate::layout::PAGE_BYTES;
use crate::state::BalloonState;

const ACTUAL: usize = 4;
const POISON: usize = 12;

/// The four words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Config {
    target_pages: u32,
    actual_pages: u32,
    poison: u32,
}

impl Config {
    /// Whole pages, rounded down; a VM has fewer than the word can say.
    pub(super) fn set_target(&mut self, bytes: u64) {
        self.target_pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
    }

    pub(super) fn target_bytes(&self) -> u64 {
        u64::from(self.target_pages) * PAGE_BYTES
    }

    /// As the guest says.
    pub(super) fn actual_bytes(&self) -> u64 {
        u64::from(self.actual_pages) * PAGE_BYTES
    }

    pub(super) fn poison(&self) -> u32 {
        self.poison
    }

    pub(super) fn save(&self) -> BalloonState {
        let Self { target_pages, actual_pages, poison } = *self;
        BalloonState { target_pages, actual_pages, poison, reported_bytes: 0 }
    }

    pub(super) fn restored(state: &BalloonState) -> Self {
        let BalloonState { target_pages, actual_pages, poison, .. } = *state;
        Self { target_pages, actual_pages, poison }
    }

    /// After a reset.
    pub(super) fn forget_driver(&mut self) {
        (self.actual_pages, self.poison) = (0, 0);
    }

    /// A read; what lies outside reads as zeros.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let words = [self.target_pages, self.actual_pages, 0, self.poison].map(u32::to_le_bytes);
        for (byte, from) in data.iter_mut().zip(words.as_flattened().iter().skip(offset)) {
            *byte = *from;
        }
    }

    /// A driver's write: its own words, whole.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match offset {
            ACTUAL => self.actual_pages = word,
            POISON => self.poison = word,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_writes_its_own_words_only() {
        let mut config = Config::default();
        config.set_target(5 * PAGE_BYTES + 17);
        for offset in 0..20 {
            config.write(offset, &[offset as u8, 1, 0, 0]);
            config.write(offset, &[9]);
            config.write(offset, &[9; 8]);
        }
        let mut all = [0xee; 20];
        config.read(0, &mut all);
        assert_eq!(all[..16], [5, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 12, 1, 0, 0]);
        assert_eq!(all[16..], [0xee; 4], "there is nothing");
        assert_eq!((config.target_bytes(), config.actual_bytes()), (5 * PAGE_BYTES, 0x104 * PAGE_BYTES));
        let mut two = [0; 2];
        config.read(13, &mut two);
        assert_eq!(two, [1, 0]);
        config.forget_driver();
        assert_eq!((config.target_bytes(), config.actual_bytes()), (5 * PAGE_BYTES, 0));
    }
}
