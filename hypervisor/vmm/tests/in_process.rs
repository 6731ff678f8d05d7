//! Devices whose rings are served in this process, driven as a guest's driver drives them, and as a hostile one does.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm::layout::{Layout, MemorySize, PAGE_BYTES};
use vmm::virtio::balloon::{self, Balloon};
use vmm::virtio::rng::{BURST_BYTES, REQUEST_MAX, Rng};
use vmm::virtio::{Active, ActiveQueue, Device, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(20);
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A descriptor: address, bytes, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// The driver's side of a ring.
struct Driver {
    memory: GuestMemoryMmap,
    base: u64,
    queue: ActiveQueue,
    available: u16,
}

impl Driver {
    /// Ring `index` has 16 KiB of the memory's second mebibyte to itself.
    fn new(memory: &GuestMemoryMmap, index: u16) -> Self {
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

    fn put(&self, number: u16, (address, bytes, flags, next): Descriptor) {
        let at = self.base + u64::from(number) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(bytes, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let place = self.base + 0x1000 + 4 + u64::from(self.available % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.say(self.available);
    }

    fn say(&self, available: u16) {
        self.memory.write_obj(available, GuestAddress(self.base + 0x1002)).unwrap();
        self.queue.kick.write(1).unwrap();
    }

    /// Descriptor 0 as a request of its own.
    fn request(&mut self, address: u64, bytes: u32, flags: u16) {
        self.put(0, (address, bytes, flags, 0));
        self.offer(0);
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.base + 0x2002)).unwrap()
    }

    /// Waits for so many used entries; head and bytes of the last one.
    fn wait_used(&self, count: u16) -> (u32, u32) {
        until("an entry is used", || self.used() == count);
        let at = self.base + 0x2004 + u64::from((count - 1) % SIZE) * 8;
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        (word(at), word(at + 4))
    }

    fn interrupted(&self) {
        until("the driver is interrupted", || self.queue.call.as_ref().unwrap().read().is_ok());
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn memory() -> GuestMemoryMmap {
    vmm::memory::allocate(&Layout::new(MemorySize::new(16 << 20).unwrap(), 40).unwrap()).unwrap()
}

fn activate(device: &mut dyn Device, features: u64, drivers: &[&Driver]) {
    let queues = drivers.iter().map(|driver| driver.queue.clone()).collect();
    device.activate(Active { features: features | VERSION_1, queues });
    until("the rings are made", || device.is_quiet());
}

fn reset(device: &mut dyn Device) {
    device.reset();
    until("the reset is over", || device.is_quiet());
}

#[test]
fn random_numbers_come_into_the_buffers_and_nowhere_else() {
    let memory = memory();
    let mut device = Rng::new(memory.clone()).unwrap();
    let mut driver = Driver::new(&memory, 0);
    activate(&mut device, 0, &[&driver]);
    // Two buffers, of which the second is only begun: a request gets no more than its bound.
    driver.put(0, (0x20_0000, 100, WRITABLE | NEXT, 1));
    driver.put(1, (0x20_1000, 3 * REQUEST_MAX as u32, WRITABLE, 0));
    driver.offer(0);
    assert_eq!(driver.wait_used(1), (0, REQUEST_MAX as u32));
    driver.interrupted();
    let read = |at, bytes| {
        let mut all = vec![0; bytes];
        memory.read_slice(&mut all, GuestAddress(at)).unwrap();
        all
    };
    let (first, second) = (read(0x20_0000, 100), read(0x20_1000, REQUEST_MAX));
    assert!(first.iter().any(|byte| *byte != first[0]) && second[..100] != first[..]);
    assert_eq!(read(0x20_0000 + 100, 100), [0; 100]);
    assert_eq!(second[REQUEST_MAX - 100..], [0; 100], "what the first buffer took is missing here");
    // A buffer that is only read gets nothing.
    driver.request(0x20_0000, 64, 0);
    assert_eq!(driver.wait_used(2), (0, 0));
}

/// A guest that asks for more than the burst waits; what it waits for stays in the ring and comes.
#[test]
fn random_numbers_have_a_rate() {
    let memory = memory();
    let mut device = Rng::new(memory.clone()).unwrap();
    let mut driver = Driver::new(&memory, 0);
    activate(&mut device, 0, &[&driver]);
    let burst = (BURST_BYTES / REQUEST_MAX as u64) as u16;
    let start = Instant::now();
    for number in 0..SIZE {
        driver.put(number, (0x20_0000, REQUEST_MAX as u32, WRITABLE, 0));
        driver.offer(number);
    }
    driver.wait_used(burst);
    driver.wait_used(SIZE);
    // 48 requests of 4 KiB at 1 MiB a second.
    assert!(start.elapsed() >= Duration::from_millis(180), "{:?}", start.elapsed());
}

/// All the ways to break a ring: the device stops and says so, and serves again after a reset.
#[test]
fn a_broken_ring_costs_the_device_until_its_reset() {
    type Break = fn(&mut Driver);
    let ways: [(&str, Break); 9] = [
        ("more than the ring holds", |driver| driver.say(SIZE + 1)),
        ("a head outside", |driver| driver.offer(SIZE)),
        ("a circle", |driver| {
            driver.put(0, (0x20_0000, 8, WRITABLE | NEXT, 1));
            driver.put(1, (0x20_0000, 8, WRITABLE | NEXT, 0));
            driver.offer(0);
        }),
        ("a next one outside", |driver| {
            driver.put(0, (0x20_0000, 8, WRITABLE | NEXT, SIZE));
            driver.offer(0);
        }),
        ("a buffer outside", |driver| driver.request(16 << 20, 8, WRITABLE)),
        ("a buffer around the end", |driver| driver.request(u64::MAX - 3, 8, WRITABLE)),
        ("an indirect table outside", |driver| driver.request(1 << 40, 32, INDIRECT)),
        ("an indirect table of half entries", |driver| driver.request(0x20_0000, 24, INDIRECT)),
        ("rings outside", |driver| driver.queue.device = GuestAddress(16 << 20)),
    ];
    for (what, break_it) in ways {
        let memory = memory();
        let mut device = Rng::new(memory.clone()).unwrap();
        let mut driver = Driver::new(&memory, 0);
        break_it(&mut driver);
        activate(&mut device, 0, &[&driver]);
        until(what, || device.config_change().is_broken());
        assert_eq!(driver.used(), 0, "{what}");
        reset(&mut device);
        memory.write_slice(&[0; 0x4000], GuestAddress(0x10_0000)).unwrap();
        let mut driver = Driver::new(&memory, 0);
        activate(&mut device, 0, &[&driver]);
        driver.request(0x20_0000, 8, WRITABLE);
        assert_eq!(driver.wait_used(1), (0, 8), "after {what}");
    }
}

fn allocated(memory: &GuestMemoryMmap) -> u64 {
    let file = memory.iter().next().and_then(GuestMemoryRegion::file_offset).map(FileOffset::file);
    file.unwrap().metadata().unwrap().blocks() * 512
}

fn byte(memory: &GuestMemoryMmap, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE_BYTES)).unwrap()
}

/// Pages of sevens from 8 MiB on.
fn balloon() -> (GuestMemoryMmap, Balloon) {
    let memory = memory();
    memory.write_slice(&vec![7; 8 << 20], GuestAddress(8 << 20)).unwrap();
    let balloon = Balloon::new(memory.clone()).unwrap();
    (memory, balloon)
}

#[test]
fn a_balloon_takes_what_the_guest_gives() {
    let (memory, mut device) = balloon();
    let handle = device.handle();
    let mut inflate = Driver::new(&memory, 0);
    let mut deflate = Driver::new(&memory, 1);
    activate(&mut device, 0, &[&inflate, &deflate]);
    assert!(handle.set_target(16 << 20).is_err(), "that would be everything");
    handle.set_target(3 * PAGE_BYTES + 1).unwrap();
    assert_eq!(device.config_change().generation(), 1);
    let mut words = [0; 8];
    device.config_read(0, &mut words);
    assert_eq!(words, [3, 0, 0, 0, 0, 0, 0, 0]);

    let numbers: Vec<u8> = [2048u32, 2050, 2049].iter().flat_map(|page| page.to_le_bytes()).collect();
    memory.write_slice(&numbers, GuestAddress(0x20_0000)).unwrap();
    let before = allocated(&memory);
    inflate.request(0x20_0000, 12, 0);
    inflate.wait_used(1);
    assert_eq!(before - allocated(&memory), 3 * PAGE_BYTES);
    assert_eq!([2048, 2049, 2050, 2051].map(|page| byte(&memory, page)), [0, 0, 0, 7]);
    device.config_write(4, &3u32.to_le_bytes());
    deflate.request(0x20_0000, 12, 0);
    deflate.wait_used(1);
    let state = handle.state();
    assert_eq!((state.target_bytes, state.actual_bytes), (3 * PAGE_BYTES, 3 * PAGE_BYTES));
    assert_eq!((state.reported_bytes, state.statistics), (0, None));
    reset(&mut device);
    assert_eq!((handle.state().target_bytes, handle.state().actual_bytes), (3 * PAGE_BYTES, 0));
}

/// By the standard reports come on ring 4; from Linux before 6.11, which counts rings that are there, on ring 3.
#[test]
fn free_pages_are_reported_on_either_ring() {
    for ring in [3, 4] {
        let (memory, mut device) = balloon();
        let mut driver = Driver::new(&memory, ring);
        activate(&mut device, balloon::REPORTING | balloon::STATISTICS, &[&driver]);
        let before = allocated(&memory);
        driver.put(0, (8 << 20, 2 << 20, WRITABLE | NEXT, 1));
        driver.put(1, (12 << 20, 1 << 20, WRITABLE, 0));
        driver.offer(0);
        driver.wait_used(1);
        driver.interrupted();
        assert_eq!(before - allocated(&memory), 3 << 20);
        assert_eq!(device.handle().state().reported_bytes, 3 << 20);
        assert_eq!([2047 + 512, 2048 + 512, 3071, 3072].map(|page| byte(&memory, page)), [0, 7, 7, 0]);
    }
}

/// Holes are zeros. Who wants another pattern in its free pages keeps them.
#[test]
fn poisoned_pages_stay() {
    for (poison, freed) in [(0xaaaa_aaaa_u32, 0), (0, 1 << 20)] {
        let (memory, mut device) = balloon();
        device.config_write(12, &poison.to_le_bytes());
        let mut driver = Driver::new(&memory, 4);
        activate(&mut device, balloon::REPORTING | balloon::PAGE_POISON, &[&driver]);
        driver.request(8 << 20, 1 << 20, WRITABLE);
        driver.wait_used(1);
        assert_eq!(device.handle().state().reported_bytes, freed, "{poison:#x}");
    }
}

#[test]
fn statistics_are_asked_for_when_somebody_looks() {
    let (memory, mut device) = balloon();
    let handle = device.handle();
    let mut driver = Driver::new(&memory, 2);
    activate(&mut device, balloon::STATISTICS, &[&driver]);
    let say = |free: u64| {
        memory.write_obj(4u16, GuestAddress(0x20_0000)).unwrap();
        memory.write_slice(&free.to_le_bytes(), GuestAddress(0x20_0002)).unwrap();
    };
    say(1000);
    driver.request(0x20_0000, 10, 0);
    let free = || handle.state().statistics.and_then(|all| all.free_bytes);
    until("the first ones are there", || free() == Some(1000));
    // Somebody has looked: the guest is asked for newer ones, by getting its buffer back.
    assert_eq!(driver.wait_used(1), (0, 0));
    driver.interrupted();
    say(2000);
    driver.request(0x20_0000, 10, 0);
    until("newer ones are there", || free() == Some(2000));
    // Held still and begun again, it takes what it had kept once more.
    device.reset();
    activate(&mut device, balloon::STATISTICS, &[&driver]);
    until("the same are there", || free() == Some(2000));
}

#[test]
fn a_balloon_that_lies_loses_its_device() {
    type Lie = fn(&mut Driver, &GuestMemoryMmap);
    let lies: [(u16, u64, Lie); 5] = [
        (0, 0, |driver, memory| {
            memory.write_obj(4096u32, GuestAddress(0x20_0000)).unwrap();
            driver.request(0x20_0000, 4, 0);
        }),
        (0, 0, |driver, _| driver.request(0x20_0000, 6, 0)),
        (0, 0, |driver, _| driver.request(0x20_0000, 1 << 20, 0)),
        (4, balloon::REPORTING, |driver, _| driver.request(15 << 20, 2 << 20, WRITABLE)),
        (4, 0, |driver, _| driver.request(8 << 20, 1 << 20, WRITABLE)),
    ];
    for (number, (ring, features, lie)) in lies.into_iter().enumerate() {
        let (memory, mut device) = balloon();
        let before = allocated(&memory);
        let mut driver = Driver::new(&memory, ring);
        activate(&mut device, features, &[&driver]);
        lie(&mut driver, &memory);
        until("it is refused", || device.config_change().is_broken());
        assert_eq!(driver.used(), 0, "lie {number}");
        assert!(allocated(&memory) >= before, "lie {number} gave nothing away");
    }
}
