//! The machine as the guest's processors see it: which device answers which address.
//!
//! All processors come here at once, so each device has a lock of its own, held only while a register is read or
//! written. Nothing here waits for anything: what takes time is handed to the event loop. Whatever address, size and data
//! a guest comes up with, the answer is a value and never a panic; what nobody owns reads as ones and ignores writes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::devices::generic_event::{self, GenericEvents, POWER_BUTTON};
use crate::devices::power::{self, PowerRequest};
use crate::devices::pvpanic::{self, Pvpanic};
use crate::devices::serial::SerialPort;
use crate::layout::{ECAM_BYTES, ECAM_START};
use crate::pci::{self, PciBus};
use crate::state::{FORMAT, MachineState, RestoreError};
use crate::virtio::balloon::BalloonHandle;

/// Why a machine has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The guest switched it off.
    Off,
    /// The guest reset it, or the control API.
    Reset,
    /// The guest's kernel panicked, and said so.
    Panicked,
    /// The control API ended it.
    Unplugged,
    /// The guest's processor shut itself down (a triple fault).
    Crashed {
        /// Which.
        cpu: u8,
    },
    /// KVM can't go on.
    Failed {
        /// Which processor.
        cpu: u8,
        /// What KVM says.
        what: String,
        /// The instruction it stood at, if that is known.
        at: Option<u64>,
    },
    /// A processor's thread or the event loop failed.
    Broken(String),
    /// Somebody told this process to end.
    Told,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    serial: Mutex<SerialPort>,
    events: Mutex<GenericEvents>,
    pvpanic: Mutex<Pvpanic>,
    pci: Mutex<PciBus>,
    balloon: Option<BalloonHandle>,
    /// The first reason counts.
    stopped: Mutex<Option<StopReason>>,
    stop_event: EventFd,
}

/// A device's lock. A thread that panicked while it held it has ended the VM; the others may still look.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A machine of these parts; `stop_event` is written when it stops.
    pub fn new(serial: SerialPort, events: GenericEvents, pci: PciBus, stop_event: EventFd) -> Self {
        Self {
            serial: Mutex::new(serial),
            events: Mutex::new(events),
            pvpanic: Mutex::default(),
            pci: Mutex::new(pci),
            balloon: None,
            stopped: Mutex::new(None),
            stop_event,
        }
    }

    /// With a balloon on its bus, which this handle is for.
    #[must_use]
    pub fn with_balloon(mut self, balloon: Option<BalloonHandle>) -> Self {
        self.balloon = balloon;
        self
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }

    /// Presses the power button: what comes of it is the guest's choice.
    pub fn press_power_button(&self) {
        lock(&self.events).happen(POWER_BUTTON);
    }

    /// Whether the guest's kernel has panicked: it has ended by that, or its crash kernel has taken over.
    pub fn panicked(&self) -> bool {
        lock(&self.pvpanic).crash_kernel() || self.stopped() == Some(StopReason::Panicked)
    }

    /// What a guest could find changed of the devices. The machine has to be paused: processors, and what serves rings.
    pub fn save(&self) -> MachineState {
        let (pci_address, functions) = self.pci().save();
        MachineState {
            format: FORMAT,
            serial: self.serial().save(),
            events_pending: lock(&self.events).pending(),
            crash_kernel: lock(&self.pvpanic).crash_kernel(),
            pci_address,
            functions,
        }
    }

    /// As it was when it was saved, for a machine with the same devices whose processors have not run.
    pub fn restore(&self, state: &MachineState) -> Result<(), RestoreError> {
        if state.format != FORMAT {
            return Err(RestoreError::Format(state.format));
        }
        let mut pci = self.pci();
        pci.check(&state.functions)?;
        // The last thing that is looked at is the first that changes.
        self.serial().restore(&state.serial)?;
        lock(&self.events).restore(state.events_pending);
        *lock(&self.pvpanic) = Pvpanic::restored(state.crash_kernel);
        pci.restore(state.pci_address, &state.functions)
    }

    /// The serial port.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        lock(&self.serial)
    }

    /// The PCI bus.
    pub fn pci(&self) -> MutexGuard<'_, PciBus> {
        lock(&self.pci)
    }

    /// Stops the machine, unless it has stopped.
    pub fn stop(&self, reason: StopReason) {
        lock(&self.stopped).get_or_insert(reason);
        // A full counter has been seen or will be.
        let _ = self.stop_event.write(1);
    }

    /// Why it has stopped, if it has.
    pub fn stopped(&self) -> Option<StopReason> {
        lock(&self.stopped).clone()
    }

    /// A read from an I/O port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if SerialPort::has(port) {
            let mut serial = self.serial();
            // A string instruction reads the same register again and again.
            data.iter_mut().for_each(|byte| *byte = serial.read(port));
        } else if power::has(port) {
            data.iter_mut().for_each(|byte| *byte = power::read(port));
        } else if port == generic_event::PORT {
            let mut events = lock(&self.events);
            data.iter_mut().for_each(|byte| *byte = events.read());
        } else if port == pvpanic::PORT {
            data.fill(Pvpanic::read());
        } else if pci::has_port(port) {
            self.pci().port_read(port, data);
        }
    }

    /// A write to an I/O port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if SerialPort::has(port) {
            let mut serial = self.serial();
            data.iter().for_each(|byte| serial.write(port, *byte));
        } else if power::has(port) {
            match data.iter().find_map(|byte| power::write(port, *byte)) {
                Some(PowerRequest::Off) => self.stop(StopReason::Off),
                Some(PowerRequest::Reset) => self.stop(StopReason::Reset),
                None => {}
            }
        } else if port == pvpanic::PORT {
            let mut pvpanic = lock(&self.pvpanic);
            if data.iter().any(|byte| pvpanic.write(*byte)) {
                drop(pvpanic);
                self.stop(StopReason::Panicked);
            }
        } else if pci::has_port(port) {
            self.pci().port_write(port, data);
        }
    }

    /// A read from an address that is no RAM.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match ecam_offset(address) {
            Some(offset) => self.pci().ecam_read(offset, data),
            None => self.pci().memory_read(address, data),
        }
    }

    /// A write to an address that is no RAM.
    pub fn memory_write(&self, address: u64, data: &[u8]) {
        match ecam_offset(address) {
            Some(offset) => self.pci().ecam_write(offset, data),
            None => self.pci().memory_write(address, data),
        }
    }
}

fn ecam_offset(address: u64) -> Option<u64> {
    address.checked_sub(ECAM_START).filter(|offset| *offset < ECAM_BYTES)
}
