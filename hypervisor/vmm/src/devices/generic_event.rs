//! ACPI's generic event device (ACPI 6.5, 5.6.9): how the machine tells the guest something of its own accord.
//!
//! ```text
//!   press_power_button ──► bit in the register, interrupt ──► _EVT reads the register ──► Notify(PWRB)
//! ```
//!
//! The register is read by AML, which empties it. Hardware-reduced ACPI has no other power button.

use vmm_sys_util::eventfd::EventFd;

/// The register: which events there were since it was read.
pub const PORT: u16 = 0x604;
/// How many.
pub const PORTS_COUNT: u8 = 1;
/// Its interrupt, an IOAPIC pin; one edge for each event.
pub const GSI: u32 = 5;
/// Somebody has pressed the power button.
pub const POWER_BUTTON: u8 = 1 << 0;

/// The device.
#[derive(Debug)]
pub struct GenericEvents {
    pending: u8,
    line: EventFd,
}

impl GenericEvents {
    /// A device without events. `line` raises its interrupt.
    pub fn new(line: EventFd) -> Self {
        Self { pending: 0, line }
    }

    /// Something has happened. A guest that is not there yet finds it later.
    pub fn happen(&mut self, event: u8) {
        self.pending |= event;
        // Full means that it is raised already.
        let _ = self.line.write(1);
    }

    /// Reads and empties the register.
    pub fn read(&mut self) -> u8 {
        std::mem::take(&mut self.pending)
    }

    /// What has not been read.
    pub fn pending(&self) -> u8 {
        self.pending
    }

    /// As it was when it was saved; the interrupt is in the interrupt controller's state.
    pub fn restore(&mut self, pending: u8) {
        self.pending = pending;
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn an_event_interrupts_and_is_read_once() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut events = GenericEvents::new(line.try_clone().unwrap());
        assert_eq!(events.read(), 0);
        events.happen(POWER_BUTTON);
        events.happen(POWER_BUTTON);
        assert_eq!(line.read().unwrap(), 2);
        assert_eq!((events.pending(), events.read(), events.read()), (1, 1, 0));
    }
}
