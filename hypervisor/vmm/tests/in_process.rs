//! Devices whose rings are served in this process, driven as a guest's driver drives them, and as a hostile one does.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

mod driver;

use driver::{Driver, INDIRECT, NEXT, SIZE, WRITABLE, activate, memory, reset, until};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm::layout::PAGE_BYTES;
use vmm::threads::Threads;
use vmm::virtio::Device;
use vmm::virtio::balloon::{self, Balloon};
use vmm::virtio::rng::{BURST_BYTES, REQUEST_MAX, Rng};

#[test]
fn random_numbers_come_into_the_buffers_and_nowhere_else() {
    let memory = memory();
    let mut device = Rng::new(memory.clone(), &Threads::default()).unwrap();
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
    let mut device = Rng::new(memory.clone(), &Threads::default()).unwrap();
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
        let mut device = Rng::new(memory.clone(), &Threads::default()).unwrap();
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
    let balloon = Balloon::new(memory.clone(), &Threads::default()).unwrap();
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

/// What a balloon knows goes with it; statistics come again, from the buffer in the ring.
#[test]
fn a_balloon_that_was_saved_goes_on_elsewhere() {
    let (memory, mut device) = balloon();
    device.handle().set_target(2 << 20).unwrap();
    device.config_write(4, &77u32.to_le_bytes());
    let mut report = Driver::new(&memory, 4);
    let mut statistics = Driver::new(&memory, 2);
    let features = balloon::REPORTING | balloon::STATISTICS;
    activate(&mut device, features, &[&report, &statistics]);
    report.request(8 << 20, 1 << 20, WRITABLE);
    report.wait_used(1);
    memory.write_slice(&[4, 0, 9, 0, 0, 0, 0, 0, 0, 0], GuestAddress(0x20_0000)).unwrap();
    statistics.request(0x20_0000, 10, 0);
    until("statistics are there", || device.handle().state().statistics.is_some());
    let (state, seen) = (device.save(), device.handle().state());
    device.reset();
    drop(device);
    let mut other = Balloon::new(memory.clone(), &Threads::default()).unwrap();
    other.check(&state).unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.save(), state);
    activate(&mut other, features, &[&report, &statistics]);
    let used = statistics.used();
    if used == 1 {
        // The guest had been asked for newer ones, and has not answered yet.
        statistics.request(0x20_0000, 10, 0);
    }
    until("statistics are there again", || other.handle().state() == seen);
    report.request(9 << 20, 1 << 20, WRITABLE);
    report.wait_used(2);
    assert_eq!(other.handle().state().reported_bytes, 2 << 20);
    assert!(Rng::new(memory, &Threads::default()).unwrap().check(&state).is_err());
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
