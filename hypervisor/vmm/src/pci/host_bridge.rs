//! The host bridge: device 0, which says that there is a bus and does nothing.

use crate::state::{RestoreError, VirtioState};

use super::{BarIndex, ConfigSpace, Identity, PciDevice};

/// QEMU's generic PCI Express host bridge, which no driver does anything with.
const IDENTITY: Identity =
    Identity { vendor: 0x1b36, device: 0x0008, subsystem: (0x1af4, 0x1100), revision: 0, class: [6, 0, 0] };

/// The bridge.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A bridge.
    pub fn new() -> Self {
        Self { config: ConfigSpace::new(IDENTITY) }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn restore(&mut self, config: &[u8], _: Option<&VirtioState>) -> Result<(), RestoreError> {
        self.config.restore(config);
        Ok(())
    }

    fn place_bar(&mut self, _: BarIndex, _: u32) {}

    fn bar_read(&mut self, _: BarIndex, _: u32, _: &mut [u8]) {}

    fn bar_write(&mut self, _: BarIndex, _: u32, _: &[u8]) {}
}
