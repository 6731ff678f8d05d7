//! The bus: which device a configuration or memory access is for.

use std::fmt::Debug;

use super::{BarIndex, ConfigSpace};
use crate::layout::{PCI_WINDOW_BYTES, PCI_WINDOW_START};
use crate::state::{FunctionState, RestoreError, VirtioState};
use crate::virtio::DeviceKind;

/// First of the ports: address at 0xcf8, data at 0xcfc.
pub const CONFIG_PORTS: u16 = 0xcf8;
/// How many.
pub const CONFIG_PORTS_COUNT: u8 = 8;
/// Devices of the bus.
pub const DEVICES_MAX: usize = 32;

const DATA_PORT: u16 = 0xcfc;
/// In the address register: "translate accesses of the data port".
const ADDRESS_ENABLE: u32 = 1 << 31;

/// Whether the port belongs to the configuration mechanism.
pub fn has_port(port: u16) -> bool {
    (CONFIG_PORTS..CONFIG_PORTS + u16::from(CONFIG_PORTS_COUNT)).contains(&port)
}

/// A device's number on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u8);

/// A device with one function. Offsets and sizes are the guest's: they lie within the BAR, and are anything else.
pub trait PciDevice: Send + Debug {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// A configuration read; devices with registers there that are not memory have their own.
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }
    /// A configuration write.
    fn config_write(&mut self, offset: usize, data: &[u8]);
    /// Sets a BAR's address before the guest runs.
    fn place_bar(&mut self, bar: BarIndex, address: u32);
    /// A read from a BAR. `data` is filled with ones.
    fn bar_read(&mut self, bar: BarIndex, offset: u32, data: &mut [u8]);
    /// A write to a BAR.
    fn bar_write(&mut self, bar: BarIndex, offset: u32, data: &[u8]);
    /// What is behind its configuration space, if it is a virtio device.
    fn save(&self) -> Option<VirtioState> {
        None
    }
    /// Whether that can be the state of a device like this one.
    fn check(&self, state: Option<&VirtioState>) -> Result<(), RestoreError> {
        if state.is_none() {
            Ok(())
        } else {
            Err(RestoreError::Damaged("a virtio device where there is none"))
        }
    }
    /// As it was when it was saved. The state has passed [`Self::check`], and the configuration space is like this one.
    fn restore(&mut self, config: &[u8], state: Option<&VirtioState>) -> Result<(), RestoreError>;
    /// What to tell an operator of it; `None`: nothing.
    fn about(&self) -> Option<About> {
        None
    }
    /// The VM is being paused (`true`) or goes on. It may take until [`Self::is_held`] says so.
    fn hold(&mut self, _: bool) {}
    /// Whether a device that was told to hold still does.
    fn is_held(&self) -> bool {
        true
    }
}

/// What to tell an operator of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// What it is.
    pub kind: DeviceKind,
    /// What tells it from others of its kind; may be empty.
    pub id: String,
    /// Whether its back end is there.
    pub connected: bool,
}

/// Why a device can't be plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// All slots are taken.
    #[error("a VM has at most {} PCI devices", DEVICES_MAX - 1)]
    Full,
    /// The window for BARs is used up.
    #[error("the PCI devices need more address space than the VM has")]
    NoSpace,
}

/// The bus. Its address register is all the state that it has itself.
#[derive(Debug)]
pub struct PciBus {
    devices: Vec<Box<dyn PciDevice>>,
    address: u32,
    window_used: u32,
}

impl PciBus {
    /// A bus with this device in slot 0, its host bridge.
    pub fn new(bridge: Box<dyn PciDevice>) -> Self {
        Self { devices: vec![bridge], address: 0, window_used: 0 }
    }

    /// Plugs a device into the next slot and places its BARs, each at a multiple of its size.
    pub fn plug(&mut self, mut device: Box<dyn PciDevice>) -> Result<Slot, BusError> {
        if self.devices.len() >= DEVICES_MAX {
            return Err(BusError::Full);
        }
        let bars: Vec<_> = device.config().bars().collect();
        let mut used = self.window_used;
        for (bar, bytes) in bars {
            let offset = used.checked_next_multiple_of(bytes).ok_or(BusError::NoSpace)?;
            used =
                offset.checked_add(bytes).filter(|end| *end <= PCI_WINDOW_BYTES).ok_or(BusError::NoSpace)?;
            device.place_bar(bar, PCI_WINDOW_START + offset);
        }
        self.window_used = used;
        self.devices.push(device);
        Ok(Slot((self.devices.len() - 1) as u8))
    }

    /// What there is to tell of the devices.
    pub fn about(&self) -> impl Iterator<Item = (Slot, About)> {
        (0..).zip(&self.devices).filter_map(|(slot, device)| Some((Slot(slot), device.about()?)))
    }

    /// Tells all devices to hold still, or to go on.
    pub fn hold(&mut self, still: bool) {
        self.devices.iter_mut().for_each(|device| device.hold(still));
    }

    /// The first device that was told to hold still and does not yet.
    pub fn restless(&self) -> Option<Slot> {
        (0..).zip(&self.devices).find(|(_, device)| !device.is_held()).map(|(slot, _)| Slot(slot))
    }

    fn device(&mut self, device: usize, function: usize) -> Option<&mut dyn PciDevice> {
        if function != 0 {
            return None;
        }
        match self.devices.get_mut(device) {
            Some(device) => Some(device.as_mut()),
            None => None,
        }
    }

    /// The device and register that the data port leads to; `None` where nothing answers.
    fn selected(&mut self, port: u16, bytes: usize) -> Option<(&mut dyn PciDevice, usize)> {
        let within = usize::from(port - DATA_PORT);
        let bus_zero = (self.address >> 16) as u8 == 0;
        if self.address & ADDRESS_ENABLE == 0 || !bus_zero || within + bytes > 4 {
            return None;
        }
        let register = self.address as usize & 0xfc;
        let (device, function) = (self.address as usize >> 11 & 31, self.address as usize >> 8 & 7);
        self.device(device, function).map(|device| (device, register + within))
    }

    /// The address register, and the devices.
    pub fn save(&self) -> (u32, Vec<FunctionState>) {
        let mut functions = Vec::new();
        for (slot, device) in (0..).zip(&self.devices) {
            functions.push(FunctionState { slot, config: device.config().save(), virtio: device.save() });
        }
        (self.address, functions)
    }

    /// Whether these are the states of devices like those on this bus.
    pub fn check(&self, functions: &[FunctionState]) -> Result<(), RestoreError> {
        if functions.len() != self.devices.len() {
            let what =
                format!("it has {} devices on its bus and this one {}", functions.len(), self.devices.len());
            return Err(RestoreError::OtherMachine(what));
        }
        for (slot, (device, state)) in (0u8..).zip(self.devices.iter().zip(functions)) {
            if state.slot != slot || !device.config().is_like(&state.config) {
                return Err(RestoreError::OtherMachine(format!("in slot {slot} there is another device")));
            }
            device.check(state.virtio.as_ref())?;
        }
        Ok(())
    }

    /// As it was when it was saved. The states have passed [`Self::check`].
    pub fn restore(&mut self, address: u32, functions: &[FunctionState]) -> Result<(), RestoreError> {
        self.address = address & !3;
        for (device, state) in self.devices.iter_mut().zip(functions) {
            device.restore(&state.config, state.virtio.as_ref())?;
        }
        Ok(())
    }

    /// A read from the ports. `data` is filled with ones.
    pub fn port_read(&mut self, port: u16, data: &mut [u8]) {
        if port < DATA_PORT {
            if let (CONFIG_PORTS, 4) = (port, data.len()) {
                data.copy_from_slice(&self.address.to_le_bytes());
            }
        } else if let Some((device, register)) = self.selected(port, data.len()) {
            device.config_read(register, data);
        }
    }

    /// A write to the ports.
    pub fn port_write(&mut self, port: u16, data: &[u8]) {
        if port < DATA_PORT {
            // Only whole words reach the register (PCI local bus specification 3.0, 3.2.2.3.2).
            if let (CONFIG_PORTS, Ok(word)) = (port, <[u8; 4]>::try_from(data)) {
                self.address = u32::from_le_bytes(word) & !3;
            }
        } else if let Some((device, register)) = self.selected(port, data.len()) {
            device.config_write(register, data);
        }
    }

    fn ecam(&mut self, offset: u64, bytes: usize) -> Option<(&mut dyn PciDevice, usize)> {
        let register = offset as usize & 0xfff;
        if offset >> 20 != 0 || register + bytes > 0x1000 {
            return None;
        }
        let (device, function) = (offset as usize >> 15 & 31, offset as usize >> 12 & 7);
        self.device(device, function).map(|device| (device, register))
    }

    /// A read from ECAM. `data` is filled with ones.
    pub fn ecam_read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((device, register)) = self.ecam(offset, data.len()) {
            device.config_read(register, data);
        }
    }

    /// A write to ECAM.
    pub fn ecam_write(&mut self, offset: u64, data: &[u8]) {
        if let Some((device, register)) = self.ecam(offset, data.len()) {
            device.config_write(register, data);
        }
    }

    /// The device and BAR that a range lies in as a whole.
    fn at(&mut self, address: u64, bytes: usize) -> Option<(&mut dyn PciDevice, BarIndex, u32)> {
        for device in &mut self.devices {
            let found = device.config().mapped_bars().find_map(|bar| {
                let offset = address.checked_sub(u64::from(bar.address))?;
                let end = offset.checked_add(bytes as u64)?;
                (end <= u64::from(bar.bytes)).then_some((bar.index, offset as u32))
            });
            if let Some((bar, offset)) = found {
                return Some((device.as_mut(), bar, offset));
            }
        }
        None
    }

    /// A read from an address that is no RAM. `data` is filled with ones.
    pub fn memory_read(&mut self, address: u64, data: &mut [u8]) {
        if let Some((device, bar, offset)) = self.at(address, data.len()) {
            device.bar_read(bar, offset, data);
        }
    }

    /// A write to an address that is no RAM.
    pub fn memory_write(&mut self, address: u64, data: &[u8]) {
        if let Some((device, bar, offset)) = self.at(address, data.len()) {
            device.bar_write(bar, offset, data);
        }
    }
}
