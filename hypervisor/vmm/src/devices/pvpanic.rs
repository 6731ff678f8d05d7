//! The port by which a guest says that its kernel panicked: QEMU's pvpanic device, as an ISA port that ACPI names.
//!
//! ```text
//!   0x505  read: which events are understood    write: what has happened
//!          bit 0  panicked, and nothing more will come of it
//!          bit 1  panicked, and a crash kernel is being started, which writes its dump and resets the machine
//! ```

/// The port.
pub const PORT: u16 = 0x505;
/// How many.
pub const PORTS_COUNT: u8 = 1;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// The device. What it was told is all its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pvpanic {
    crash_kernel: bool,
}

impl Pvpanic {
    /// Whether a crash kernel has taken over.
    pub fn crash_kernel(self) -> bool {
        self.crash_kernel
    }

    /// As it was when it was saved.
    pub fn restored(crash_kernel: bool) -> Self {
        Self { crash_kernel }
    }

    /// The events that are understood.
    pub fn read() -> u8 {
        PANICKED | CRASH_LOADED
    }

    /// What has happened; whether that is the guest's end.
    pub fn write(&mut self, value: u8) -> bool {
        self.crash_kernel |= value & CRASH_LOADED != 0;
        value & PANICKED != 0 && value & CRASH_LOADED == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_end_unless_a_crash_kernel_takes_over() {
        for value in 0..=u8::MAX {
            let mut device = Pvpanic::default();
            assert_eq!(device.write(value), value & 3 == 1, "{value:#x}");
            assert_eq!(device.crash_kernel(), value & 2 != 0);
        }
        let mut device = Pvpanic::restored(true);
        assert!(device.write(1), "the crash kernel may panic too");
    }
}
