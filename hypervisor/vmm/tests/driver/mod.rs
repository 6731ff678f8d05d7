//! A guest's driver, as far as rings go.
// Each test uses another part of it.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::layout::{Layout, MemorySize};
use vmm::virtio::{Active, ActiveQueue, Device, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const SIZE: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(20);
pub const WRITABLE: u16 = 2;
pub const NEXT: u16 = 1;
pub const INDIRECT: u16 = 4;

/// A descriptor: address, bytes, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// The driver's side of a ring.
pub struct Driver {
    memory: GuestMemoryMmap,
    base: u64,
    /// As the device gets it.
    pub queue: ActiveQueue,
    available: u16,
}

impl Driver {
    /// Ring `index` has 16 KiB of the memory's second mebibyte to itself.
    pub fn new(memory: &GuestMemoryMmap, index: u16) -> Self {
        let base = 0x10_0000 + u64::from(index) * 0x4000;
        // So that what is allocated later is not the rings'.
        memory.write_slice(&[0; 0x4000], GuestAddress(base)).unwrap();
        let eventfd = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queue = ActiveQueue {
            index,
            size: SIZE,
            descriptors: GuestAddress(base),
            driver: GuestAddress(base + 0x1000),
            device: GuestAddress(base + 0x2000),
            kick: eventfd(),
            call: Some(eventfd()),
        };
        Self { memory: memory.clone(), base, queue, available: 0 }
    }

    pub fn put(&self, number: u16, (address, bytes, flags, next): Descriptor) {
        let at = self.base + u64::from(number) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(bytes, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    pub fn offer(&mut self, head: u16) {
        let place = self.base + 0x1000 + 4 + u64::from(self.available % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.say(self.available);
    }

    pub fn say(&self, available: u16) {
        self.memory.write_obj(available, GuestAddress(self.base + 0x1002)).unwrap();
        self.queue.kick.write(1).unwrap();
    }

    /// Descriptor 0 as a request of its own.
    pub fn request(&mut self, address: u64, bytes: u32, flags: u16) {
        self.put(0, (address, bytes, flags, 0));
        self.offer(0);
    }

    pub fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.base + 0x2002)).unwrap()
    }

    /// Waits for so many used entries; head and bytes of the last one.
    pub fn wait_used(&self, count: u16) -> (u32, u32) {
        until("an entry is used", || self.used() == count);
        let at = self.base + 0x2004 + u64::from((count - 1) % SIZE) * 8;
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        (word(at), word(at + 4))
    }

    pub fn interrupted(&self) {
        until("the driver is interrupted", || self.queue.call.as_ref().unwrap().read().is_ok());
    }
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn memory() -> GuestMemoryMmap {
    vmm::memory::allocate(&Layout::new(MemorySize::new(16 << 20).unwrap(), 40).unwrap()).unwrap()
}

pub fn activate(device: &mut dyn Device, features: u64, drivers: &[&Driver]) {
    let queues = drivers.iter().map(|driver| driver.queue.clone()).collect();
    device.activate(Active { features: features | VERSION_1, queues });
    until("the rings are made", || device.is_quiet());
}

pub fn reset(device: &mut dyn Device) {
    device.reset();
    until("the reset is over", || device.is_quiet());
}
