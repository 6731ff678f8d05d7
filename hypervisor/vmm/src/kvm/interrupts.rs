//! What KVM does for a device on the bus: messages behind eventfds, and doorbells that are eventfds.
//!
//! Each vector has an interrupt number of its own (GSI) above those of the IOAPIC. KVM's table says which message a number
//! is; it is given anew as a whole when one changes. A vector without a message is not connected: what is signalled stays
//! in its eventfd, which is the pending bit, and is sent when the vector is connected again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{KvmError, Vm};
use crate::events::borrow;
use crate::machine::lock;
use crate::pci::msix::{Message, Vectors};
use crate::virtio::Doorbells;

/// Pins of the IOAPIC; vectors' numbers begin behind them.
const IOAPIC_PINS: u32 = 24;

/// KVM's table of a VM.
#[derive(Debug)]
struct Table {
    routes: BTreeMap<u32, Message>,
    next_gsi: u32,
}

/// Who gives interrupt numbers to devices.
#[derive(Debug, Clone)]
pub struct Interrupts {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Table>>,
}

impl Interrupts {
    /// For a VM.
    pub fn new(vm: &Vm) -> Self {
        let table = Table { routes: BTreeMap::new(), next_gsi: IOAPIC_PINS };
        Self { vm: Arc::clone(&vm.fd), table: Arc::new(Mutex::new(table)) }
    }

    /// So many vectors, none of them connected.
    pub fn vectors(&self, count: u16) -> Result<MessageVectors, KvmError> {
        let mut table = lock(&self.table);
        let mut vectors = Vec::new();
        for _ in 0..count {
            let signal = EventFd::new(EFD_NONBLOCK).map_err(KvmError::system("making an eventfd"))?;
            vectors.push(Vector { gsi: table.next_gsi, signal: Arc::new(signal), connected: false });
            table.next_gsi += 1;
        }
        Ok(MessageVectors { interrupts: self.clone(), vectors })
    }

    /// Doorbells of a device.
    pub fn doorbells(&self) -> KvmDoorbells {
        KvmDoorbells { vm: Arc::clone(&self.vm), rung: Vec::new() }
    }

    fn set(&self, gsi: u32, message: Message) -> Result<(), KvmError> {
        let mut table = lock(&self.table);
        table.routes.insert(gsi, message);
        let pins = (0..IOAPIC_PINS).map(pin_route);
        let entries: Vec<_> =
            pins.chain(table.routes.iter().map(|(gsi, message)| message_route(*gsi, *message))).collect();
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::Missing("so many interrupts"))?;
        self.vm.set_gsi_routing(&routing).map_err(KvmError::doing("routing an interrupt"))
    }
}

fn pin_route(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    entry
}

fn message_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[derive(Debug)]
struct Vector {
    gsi: u32,
    signal: Arc<EventFd>,
    connected: bool,
}

/// The vectors of one device.
#[derive(Debug)]
pub struct MessageVectors {
    interrupts: Interrupts,
    vectors: Vec<Vector>,
}

impl Vectors for MessageVectors {
    fn route(&mut self, vector: u16, message: Option<Message>) {
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else { return };
        let done = match message {
            Some(message) => connect(&self.interrupts, vector, message),
            None => disconnect(&self.interrupts.vm, vector),
        };
        // The guest loses this interrupt, which is its own; the host is out of something.
        if let Err(failed) = done {
            error!("interrupt {}: {failed}", vector.gsi);
        }
    }

    fn pending(&self, vector: u16) -> bool {
        self.vectors
            .get(usize::from(vector))
            .is_some_and(|vector| !vector.connected && signalled(&vector.signal))
    }

    fn signal(&self, vector: u16) -> Option<Arc<EventFd>> {
        self.vectors.get(usize::from(vector)).map(|vector| Arc::clone(&vector.signal))
    }
}

/// The route is first: what is pending is sent as soon as the eventfd is connected.
fn connect(interrupts: &Interrupts, vector: &mut Vector, message: Message) -> Result<(), KvmError> {
    interrupts.set(vector.gsi, message)?;
    if !vector.connected {
        interrupts
            .vm
            .register_irqfd(&vector.signal, vector.gsi)
            .map_err(KvmError::doing("connecting an interrupt"))?;
        vector.connected = true;
    }
    Ok(())
}

fn disconnect(vm: &VmFd, vector: &mut Vector) -> Result<(), KvmError> {
    if vector.connected {
        vm.unregister_irqfd(&vector.signal, vector.gsi)
            .map_err(KvmError::doing("disconnecting an interrupt"))?;
        vector.connected = false;
    }
    Ok(())
}

fn signalled(eventfd: &EventFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut waited = [PollFd::from_borrowed_fd(borrow(eventfd), PollFlags::IN)];
    matches!(poll(&mut waited, Some(&at_once)), Ok(1..))
}

/// Doorbells that KVM rings without leaving the kernel.
#[derive(Debug)]
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
    rung: Vec<(u64, Arc<EventFd>)>,
}

impl Doorbells for KvmDoorbells {
    fn place(&mut self, bells: Vec<(u64, Arc<EventFd>)>) {
        for (address, bell) in self.rung.drain(..) {
            let at = IoEventAddress::Mmio(address);
            if let Err(failed) = self.vm.unregister_ioevent(&bell, &at, NoDatamatch) {
                error!("taking away the doorbell at {address:#x}: {failed}");
            }
        }
        for (address, bell) in bells {
            let at = IoEventAddress::Mmio(address);
            match self.vm.register_ioevent(&bell, &at, NoDatamatch) {
                Ok(()) => self.rung.push((address, bell)),
                // The guest's writes then come to the device itself, which rings; slower, and right.
                Err(failed) => error!("placing a doorbell at {address:#x}: {failed}"),
            }
        }
    }
}
