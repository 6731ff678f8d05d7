//! A virtio device as a PCI function.
//!
//! ```text
//!   BAR 0   0x0000  common configuration      0x3000  doorbells, 4 bytes a queue
//!           0x1000  interrupt status          0x4000  MSI-X table
//!           0x2000  device's configuration    0x5000  MSI-X pending bits
//! ```
//!
//! Doorbells are eventfds that KVM rings; they move with the BAR, and a write that comes here all the same rings too.

use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::transport::{COMMON_BYTES, Effect, Transport};
use super::{Active, ActiveQueue, ConfigChange, Device, Doorbells};
use crate::pci::msix::{ENTRY_BYTES, MsixTable, Vectors};
use crate::pci::{About, BarIndex, Capability, ConfigSpace, Identity, PciDevice};
use crate::state::{RestoreError, VirtioState};

const VENDOR: u16 = 0x1af4;
/// Modern devices' ids are above this one.
const DEVICE_BASE: u16 = 0x1040;
const BAR: BarIndex = BarIndex(0);
const BAR_BYTES: u32 = 0x8000;
const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const NOTIFY_EACH: u32 = 4;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
/// Vendor-specific capability.
const CAPABILITY_VENDOR: u8 = 9;
/// Bytes of `pci_cfg_data` behind the fields of a virtio capability.
const WINDOW_DATA: usize = 16;

/// The function.
#[derive(Debug)]
pub struct VirtioPci {
    config: ConfigSpace,
    /// Where the capabilities stand that have registers: MSI-X, and the window into the BAR.
    msix_at: usize,
    window_at: usize,
    transport: Transport,
    msix: MsixTable,
    device: Box<dyn Device>,
    change: ConfigChange,
    kicks: Vec<Arc<EventFd>>,
    vectors: Box<dyn Vectors>,
    doorbells: Box<dyn Doorbells>,
    doorbells_at: Option<u32>,
}

/// How many vectors a device with so many queues has: one each, and one for its configuration.
pub fn vectors_of(queues: usize) -> u16 {
    queues as u16 + 1
}

impl VirtioPci {
    /// A function for the device. There are as many vectors as [`vectors_of`] says.
    pub fn new(
        device: Box<dyn Device>,
        vectors: Box<dyn Vectors>,
        doorbells: Box<dyn Doorbells>,
    ) -> std::io::Result<Self> {
        let sizes = device.queue_sizes();
        let count = vectors_of(sizes.len());
        let id = device.kind() as u16;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + id,
            subsystem: (VENDOR, DEVICE_BASE + id),
            revision: 1,
            class: device.kind().class(),
        });
        config.add_bar(BAR, BAR_BYTES);
        let msix = MsixTable::new(count);
        let body = msix.capability(BAR.0, TABLE, PENDING);
        let msix_at = usize::from(config.add_capability(MsixTable::as_capability(&body)));
        let window_at = add_structures(&mut config, sizes.len() as u32);
        let kicks =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Self {
            transport: Transport::new(device.features(), count, &sizes),
            config,
            msix_at,
            window_at,
            msix,
            change: device.config_change(),
            device,
            kicks,
            vectors,
            doorbells,
            doorbells_at: None,
        })
    }

    fn route_all(&mut self) {
        for vector in 0..self.msix.vectors() {
            self.vectors.route(vector, self.msix.message(vector));
        }
    }

    fn move_doorbells(&mut self) {
        let at = self.config.mapped_bars().next().map(|bar| bar.address);
        if at == self.doorbells_at {
            return;
        }
        let place = |(index, kick): (u32, &Arc<EventFd>)| {
            at.map(|at| (u64::from(at + NOTIFY + index * NOTIFY_EACH), Arc::clone(kick)))
        };
        self.doorbells.place((0..).zip(&self.kicks).filter_map(place).collect());
        self.doorbells_at = at;
    }

    fn common_write(&mut self, offset: u32, data: &[u8]) {
        match self.transport.write(offset, data) {
            Effect::None => {}
            Effect::Activate => {
                self.start();
            }
            Effect::Reset => {
                self.device.reset();
                self.change.reset();
                self.settle();
            }
        }
    }

    /// The driver is ready.
    fn start(&mut self) {
        let active = self.active();
        self.change.connect(self.vectors.signal(self.transport.config_vector()));
        self.device.activate(active);
    }

    /// A reset has ended when the device is quiet; the driver asks for that by reading the status.
    fn settle(&mut self) {
        if self.transport.is_resetting() && self.device.is_quiet() {
            self.transport.reset_done();
        }
    }

    fn active(&self) -> Active {
        let queues = self.transport.queues().iter().zip(&self.kicks).zip(0..);
        let queues = queues.filter(|((queue, _), _)| queue.enabled).map(|((queue, kick), index)| {
            let [descriptors, driver, device] = queue.addresses.map(GuestAddress);
            let call = self.vectors.signal(queue.vector);
            ActiveQueue { index, size: queue.size, descriptors, driver, device, kick: Arc::clone(kick), call }
        });
        Active { features: self.transport.features(), queues: queues.collect() }
    }

    fn read(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => {
                self.settle();
                self.transport.read(offset, &self.change, data);
            }
            // Interrupts are messages, so there is never a reason to tell.
            ISR..DEVICE => {}
            DEVICE..NOTIFY => self.device.config_read((offset - DEVICE) as usize, data),
            TABLE..PENDING => self.msix.read(offset - TABLE, data),
            PENDING.. => {
                for (byte, at) in data.iter_mut().zip((offset - PENDING)..) {
                    let bits = (0..8).filter(|bit| {
                        let vector = u16::try_from(at * 8 + bit).unwrap_or(u16::MAX);
                        vector < self.msix.vectors() && self.vectors.pending(vector)
                    });
                    *byte = bits.fold(0, |byte, bit| byte | 1 << bit);
                }
            }
            NOTIFY..TABLE => {}
        }
    }

    fn write(&mut self, offset: u32, data: &[u8]) {
        match offset {
            COMMON..ISR => self.common_write(offset, data),
            DEVICE..NOTIFY => self.device.config_write((offset - DEVICE) as usize, data),
            NOTIFY..TABLE => {
                let queue = ((offset - NOTIFY) / NOTIFY_EACH) as usize;
                if let Some(kick) = self.kicks.get(queue) {
                    // Full means that it rings already.
                    let _ = kick.write(1);
                }
            }
            TABLE..PENDING => {
                if let Some(vector) = self.msix.write(offset - TABLE, data) {
                    self.vectors.route(vector, self.msix.message(vector));
                }
            }
            _ => {}
        }
    }

    /// The window in configuration space (virtio 1.2, 4.1.4.9): which part of the BAR it shows, if that is a fair one.
    fn window(&self) -> Option<(u32, usize)> {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            self.config.read(self.window_at + at, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let (bar, offset, bytes) = (self.config.byte(self.window_at + 4), word(8), word(12));
        let fair = matches!(bytes, 1 | 2 | 4) && offset.is_multiple_of(bytes) && offset < BAR_BYTES;
        (bar == BAR.0 && fair).then_some((offset, bytes as usize))
    }

    fn is_window(&self, offset: usize) -> bool {
        offset == self.window_at + WINDOW_DATA
    }
}

/// Adds the capabilities that say where the structures are (virtio 1.2, 4.1.4); where the window's stands.
fn add_structures(config: &mut ConfigSpace, queues: u32) -> usize {
    let structure = |kind: u8, offset: u32, bytes: u32, more: u32| {
        // Length of the capability, kind, BAR, id and padding, offset, length.
        let mut body = vec![if more > 0 || kind == 5 { 20 } else { 16 }, kind, BAR.0, 0, 0, 0];
        body.extend(offset.to_le_bytes());
        body.extend(bytes.to_le_bytes());
        if body[0] == 20 {
            body.extend(more.to_le_bytes());
        }
        body
    };
    let parts = [
        structure(1, COMMON, COMMON_BYTES, 0),
        structure(2, NOTIFY, queues * NOTIFY_EACH, NOTIFY_EACH),
        structure(3, ISR, 1, 0),
        structure(4, DEVICE, NOTIFY - DEVICE, 0),
    ];
    for body in &parts {
        config.add_capability(Capability { id: CAPABILITY_VENDOR, body, writable: &[] });
    }
    // The guest chooses BAR, offset and length.
    let body = structure(5, 0, 0, 0);
    let writable = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    usize::from(config.add_capability(Capability { id: CAPABILITY_VENDOR, body: &body, writable: &writable }))
}

impl PciDevice for VirtioPci {
    fn save(&self) -> Option<VirtioState> {
        let mut msix = self.msix.save();
        msix.pending = (0..self.msix.vectors()).filter(|vector| self.vectors.pending(*vector)).collect();
        let transport = self.transport.save(&self.change);
        Some(VirtioState { transport, msix, device: self.device.save() })
    }

    fn check(&self, state: Option<&VirtioState>) -> Result<(), RestoreError> {
        let state = state.ok_or(RestoreError::Damaged("a virtio device without a state"))?;
        self.transport.check(&state.transport)?;
        self.msix.check(&state.msix)?;
        self.device.check(&state.device)
    }

    fn restore(&mut self, config: &[u8], state: Option<&VirtioState>) -> Result<(), RestoreError> {
        let state = state.ok_or(RestoreError::Damaged("a virtio device without a state"))?;
        self.config.restore(config);
        self.msix.restore(&state.msix);
        self.route_all();
        self.move_doorbells();
        for vector in &state.msix.pending {
            if let Some(signal) = self.vectors.signal(*vector) {
                // Full means that it is signalled already.
                let _ = signal.write(1);
            }
        }
        let ready = self.transport.restore(&state.transport, &self.change);
        self.device.restore(&state.device)?;
        // A device that could not go on does not now.
        if ready && !self.change.is_broken() {
            self.start();
        } else if self.transport.is_resetting() {
            self.device.reset();
        }
        Ok(())
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        match self.window() {
            Some((within, bytes)) if self.is_window(offset) && data.len() == bytes => self.read(within, data),
            _ => self.config.read(offset, data),
        }
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        match self.window() {
            Some((within, bytes)) if self.is_window(offset) && data.len() == bytes => {
                self.write(within, data)
            }
            _ => self.config.write(offset, data),
        }
        let control = [self.config.byte(self.msix_at + 2), self.config.byte(self.msix_at + 3)];
        if self.msix.set_control(u16::from_le_bytes(control)) {
            self.route_all();
        }
        self.move_doorbells();
    }

    fn place_bar(&mut self, bar: BarIndex, address: u32) {
        self.config.place_bar(bar, address);
    }

    fn bar_read(&mut self, _: BarIndex, offset: u32, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn bar_write(&mut self, _: BarIndex, offset: u32, data: &[u8]) {
        self.write(offset, data);
    }

    fn about(&self) -> Option<About> {
        Some(About { kind: self.device.kind(), id: self.device.id(), connected: self.device.is_connected() })
    }

    fn hold(&mut self, still: bool) {
        self.device.hold(still);
    }

    fn is_held(&self) -> bool {
        self.device.is_held()
    }
}

const _: () = assert!(TABLE + ENTRY_BYTES * crate::pci::msix::VECTORS_MAX as u32 <= PENDING);
