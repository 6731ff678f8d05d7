//! A virtio function as a driver sees it, with a device that does nothing: negotiation, queues, interrupts, doorbells, and
//! whatever a hostile driver comes up with.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmm::pci::msix::{Message, Vectors};
use vmm::pci::{BarIndex, PciDevice};
use vmm::state::{DeviceState, RestoreError};
use vmm::virtio::pci::{VirtioPci, vectors_of};
use vmm::virtio::{Active, ConfigChange, Device, DeviceKind, Doorbells, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BAR: BarIndex = BarIndex(0);
const BAR_AT: u32 = 0xc001_0000;
const OFFERED: u64 = VERSION_1 | 1 << 9 | 1 << 28;
const QUEUES: usize = 2;

const STATUS: u32 = 20;
const ACKNOWLEDGED: u8 = 3;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

/// What the outside has seen.
#[derive(Debug, Default)]
struct Seen {
    active: Option<Active>,
    resets: u32,
    quiet: bool,
    routes: Vec<Option<Message>>,
    pending: u16,
    bells: Vec<u64>,
    config_writes: Vec<(usize, Vec<u8>)>,
    change: ConfigChange,
}

#[derive(Debug, Clone)]
struct Outside(Arc<Mutex<Seen>>, Arc<EventFd>);

impl Outside {
    fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Device for Outside {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }
    fn features(&self) -> u64 {
        OFFERED
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256; QUEUES]
    }
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..60) {
            *byte = at as u8;
        }
    }
    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.see(|seen| seen.config_writes.push((offset, data.to_vec())));
    }
    fn config_change(&self) -> ConfigChange {
        self.see(|seen| seen.change.clone())
    }
    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }
    fn check(&self, _: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
    fn restore(&mut self, _: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
    fn activate(&mut self, active: Active) {
        self.see(|seen| seen.active = Some(active));
    }
    fn reset(&mut self) {
        self.see(|seen| {
            seen.active = None;
            seen.resets += 1;
        });
    }
    fn is_quiet(&self) -> bool {
        self.see(|seen| seen.quiet)
    }
}

impl Vectors for Outside {
    fn route(&mut self, vector: u16, message: Option<Message>) {
        self.see(|seen| seen.routes[usize::from(vector)] = message);
    }
    fn pending(&self, vector: u16) -> bool {
        self.see(|seen| seen.pending & 1 << vector != 0)
    }
    fn signal(&self, vector: u16) -> Option<Arc<EventFd>> {
        (vector < vectors_of(QUEUES)).then(|| Arc::clone(&self.1))
    }
}

impl Doorbells for Outside {
    fn place(&mut self, bells: Vec<(u64, Arc<EventFd>)>) {
        self.see(|seen| seen.bells = bells.iter().map(|(address, _)| *address).collect());
    }
}

fn function() -> (VirtioPci, Outside) {
    let signal = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let seen = Seen { quiet: true, routes: vec![None; usize::from(vectors_of(QUEUES))], ..Seen::default() };
    let outside = Outside(Arc::new(Mutex::new(seen)), signal);
    let boxed = || Box::new(outside.clone());
    let mut function = VirtioPci::new(boxed(), boxed(), boxed()).unwrap();
    function.place_bar(BAR, BAR_AT);
    (function, outside)
}

fn read32(function: &mut VirtioPci, offset: u32) -> u32 {
    let mut word = [0; 4];
    function.bar_read(BAR, offset, &mut word);
    u32::from_le_bytes(word)
}

fn read16(function: &mut VirtioPci, offset: u32) -> u16 {
    let mut half = [0; 2];
    function.bar_read(BAR, offset, &mut half);
    u16::from_le_bytes(half)
}

fn status(function: &mut VirtioPci) -> u8 {
    let mut byte = [0];
    function.bar_read(BAR, STATUS, &mut byte);
    byte[0]
}

fn write32(function: &mut VirtioPci, offset: u32, value: u32) {
    function.bar_write(BAR, offset, &value.to_le_bytes());
}

fn write16(function: &mut VirtioPci, offset: u32, value: u16) {
    function.bar_write(BAR, offset, &value.to_le_bytes());
}

fn set_status(function: &mut VirtioPci, value: u8) {
    function.bar_write(BAR, STATUS, &[value]);
}

fn accept(function: &mut VirtioPci, features: u64) -> u8 {
    set_status(function, ACKNOWLEDGED);
    for half in 0..2 {
        write32(function, 8, half);
        write32(function, 12, (features >> (32 * half)) as u32);
    }
    set_status(function, ACKNOWLEDGED | FEATURES_OK);
    status(function)
}

fn start(function: &mut VirtioPci) {
    assert_eq!(accept(function, VERSION_1 | 1 << 9), ACKNOWLEDGED | FEATURES_OK);
    write16(function, 22, 1);
    write16(function, 24, 64);
    write16(function, 26, 2);
    write32(function, 32, 0x1000);
    function.bar_write(BAR, 40, &0x1_0000_2000_u64.to_le_bytes());
    write32(function, 48, 0x3000);
    write32(function, 52, 1);
    write16(function, 28, 1);
    set_status(function, ACKNOWLEDGED | FEATURES_OK | DRIVER_OK);
}

#[test]
fn a_driver_agrees_sets_up_a_queue_and_begins() {
    let (mut function, outside) = function();
    write32(&mut function, 0, 1);
    assert_eq!(read32(&mut function, 4), 1, "version 1");
    assert_eq!(read16(&mut function, 18), QUEUES as u16);
    start(&mut function);
    let active = outside.see(|seen| seen.active.clone()).expect("the device was told");
    assert_eq!(active.features, VERSION_1 | 1 << 9);
    assert_eq!(active.queues.len(), 1, "the queue that was not enabled is not used");
    let queue = &active.queues[0];
    assert_eq!((queue.index, queue.size), (1, 64));
    assert_eq!((queue.descriptors.0, queue.driver.0, queue.device.0), (0x1000, 0x1_0000_2000, 0x1_0000_3000));
    assert!(queue.call.is_some());
    // A doorbell that comes here rings like one that KVM rings.
    write16(&mut function, 0x3004, 1);
    assert_eq!(queue.kick.read().unwrap(), 1);
    // What runs stays as it is.
    write16(&mut function, 24, 8);
    write32(&mut function, 12, 0);
    assert_eq!(read16(&mut function, 24), 64);
    set_status(&mut function, ACKNOWLEDGED | FEATURES_OK | DRIVER_OK);
    assert_eq!(outside.see(|seen| seen.resets), 0);
}

#[test]
fn features_that_are_not_offered_are_not_agreed_on() {
    for features in [VERSION_1 | 1 << 10, VERSION_1 | 1 << 34, 1 << 9, 0] {
        let (mut function, outside) = function();
        assert_eq!(accept(&mut function, features), ACKNOWLEDGED, "{features:#x}");
        set_status(&mut function, ACKNOWLEDGED | DRIVER_OK);
        assert_eq!(status(&mut function), ACKNOWLEDGED);
        assert!(outside.see(|seen| seen.active.is_none()));
    }
}

#[test]
fn a_reset_is_over_when_the_device_is_quiet() {
    let (mut function, outside) = function();
    start(&mut function);
    outside.see(|seen| seen.quiet = false);
    set_status(&mut function, 0);
    assert_eq!(outside.see(|seen| seen.resets), 1);
    assert_ne!(status(&mut function), 0, "the rings may still be in use");
    set_status(&mut function, ACKNOWLEDGED);
    assert_eq!(outside.see(|seen| seen.resets), 1, "nothing is begun meanwhile");
    outside.see(|seen| seen.quiet = true);
    assert_eq!(status(&mut function), 0);
    write16(&mut function, 22, 1);
    assert_eq!((read16(&mut function, 24), read16(&mut function, 28)), (256, 0), "as new");
    start(&mut function);
    assert!(outside.see(|seen| seen.active.is_some()));
}

/// Offset of the MSI-X capability.
fn msix_at(function: &VirtioPci) -> usize {
    let mut at = usize::from(function.config().byte(0x34));
    while function.config().byte(at) != 0x11 {
        at = usize::from(function.config().byte(at + 1));
    }
    at
}

#[test]
fn messages_are_routed_when_they_may_be_sent() {
    let (mut function, outside) = function();
    let control = msix_at(&function) + 2;
    assert_eq!(function.config().byte(control), QUEUES as u8, "size less one");
    write32(&mut function, 0x4010, 0xfee0_0000);
    write32(&mut function, 0x4018, 0x31);
    write32(&mut function, 0x401c, 0);
    assert_eq!(outside.see(|seen| seen.routes[1]), None, "switched off");
    function.config_write(control, &0x8000_u16.to_le_bytes());
    let message = Message { address: 0xfee0_0000, data: 0x31 };
    assert_eq!(outside.see(|seen| seen.routes.clone()), [None, Some(message), None]);
    function.config_write(control, &0xc000_u16.to_le_bytes());
    assert_eq!(outside.see(|seen| seen.routes[1]), None, "all are masked");
    outside.see(|seen| seen.pending = 0b110);
    assert_eq!(read32(&mut function, 0x5000), 0b110);
    outside.see(|seen| seen.pending = 0xffff);
    assert_eq!(read32(&mut function, 0x5000), 0b111, "there are no others");
}

#[test]
fn doorbells_move_with_the_bar() {
    let (mut function, outside) = function();
    assert!(outside.see(|seen| seen.bells.is_empty()));
    function.config_write(4, &[2]);
    let at = u64::from(BAR_AT) + 0x3000;
    assert_eq!(outside.see(|seen| seen.bells.clone()), [at, at + 4]);
    function.config_write(4, &[0]);
    assert!(outside.see(|seen| seen.bells.is_empty()));
    function.config_write(0x10, &0xc100_0000_u32.to_le_bytes());
    function.config_write(4, &[6]);
    assert_eq!(outside.see(|seen| seen.bells[0]), 0xc100_3000);
    // Outside of the window nothing answers.
    function.config_write(0x10, &0xfee0_0000_u32.to_le_bytes());
    assert!(outside.see(|seen| seen.bells.is_empty()));
}

/// The status's bit for a device that can't go on (virtio 1.2, 2.1).
const NEEDS_RESET: u8 = 0x40;

#[test]
fn what_changes_outside_of_the_rings_is_told() {
    let (mut function, outside) = function();
    let change = outside.config_change();
    let generation = |function: &mut VirtioPci| {
        let mut byte = [0];
        function.bar_read(BAR, 21, &mut byte);
        byte[0]
    };
    change.changed();
    assert_eq!(generation(&mut function), 1);
    assert!(outside.1.read().is_err(), "nobody is there to be told");
    write16(&mut function, 16, 0);
    start(&mut function);
    change.changed();
    assert_eq!((generation(&mut function), outside.1.read().unwrap()), (2, 1));
    change.needs_reset();
    assert_eq!((status(&mut function) & NEEDS_RESET, outside.1.read().unwrap()), (NEEDS_RESET, 1));
    set_status(&mut function, 0);
    assert_eq!(status(&mut function), 0, "a reset mends it");
    change.changed();
    assert!(outside.1.read().is_err());
    function.bar_write(BAR, 0x2004, &[1, 2, 3, 4]);
    assert_eq!(outside.see(|seen| seen.config_writes.clone()), [(4, vec![1, 2, 3, 4])]);
}

/// The window in configuration space shows the same registers (virtio 1.2, 4.1.4.9).
#[test]
fn the_window_shows_the_bar() {
    let (mut function, _) = function();
    let mut at = usize::from(function.config().byte(0x34));
    while (function.config().byte(at), function.config().byte(at + 3)) != (9, 5) {
        at = usize::from(function.config().byte(at + 1));
    }
    let look = |function: &mut VirtioPci, offset: u32, bytes: u32, data: &mut [u8]| {
        function.config_write(at + 8, &offset.to_le_bytes());
        function.config_write(at + 12, &bytes.to_le_bytes());
        function.config_read(at + 16, data);
    };
    let mut half = [0; 2];
    look(&mut function, 18, 2, &mut half);
    assert_eq!(half, [QUEUES as u8, 0]);
    let mut word = [0; 4];
    look(&mut function, 0x2004, 4, &mut word);
    assert_eq!(word, [4, 5, 6, 7], "the device's configuration");
    function.config_write(at + 8, &STATUS.to_le_bytes());
    function.config_write(at + 12, &1u32.to_le_bytes());
    function.config_write(at + 16, &[ACKNOWLEDGED]);
    assert_eq!(status(&mut function), ACKNOWLEDGED);
    for (offset, bytes) in [(2, 4), (0x8000, 4), (u32::MAX, 1), (0, 3), (0, 0), (0, u32::MAX)] {
        look(&mut function, offset, bytes, &mut word);
        assert_eq!(word, [0; 4], "{offset:#x} {bytes}");
    }
}

/// What a driver can see of a function.
fn seen(function: &mut VirtioPci) -> Vec<u32> {
    let tables = (0x4000..0x6000).step_by(4);
    let words = (0..64).step_by(4).chain(tables).map(|at| read32(function, at)).collect::<Vec<_>>();
    let halves = (0..64).step_by(2).map(|at| u32::from(read16(function, at)));
    words.into_iter().chain(halves).collect()
}

#[test]
fn a_function_that_was_saved_runs_elsewhere() {
    let (mut function, outside) = function();
    function.config_write(4, &[6]);
    function.config_write(msix_at(&function) + 2, &0x8000_u16.to_le_bytes());
    write32(&mut function, 0x4010, 0xfee0_0000);
    write32(&mut function, 0x401c, 0);
    write16(&mut function, 16, 1);
    outside.config_change().changed();
    start(&mut function);
    outside.see(|seen| seen.pending = 0b100);
    let (config, state) = (function.config().save(), function.save());

    let (mut other, there) = self::function();
    other.check(state.as_ref()).unwrap();
    other.restore(&config, state.as_ref()).unwrap();
    let (here, active) = (outside.see(|seen| seen.active.clone()), there.see(|seen| seen.active.clone()));
    let rings = |active: &Active| {
        let ring = |queue: &vmm::virtio::ActiveQueue| {
            (queue.index, queue.size, queue.descriptors, queue.driver, queue.device)
        };
        (active.features, active.queues.iter().map(ring).collect::<Vec<_>>())
    };
    assert_eq!(rings(&active.unwrap()), rings(&here.unwrap()));
    assert_eq!(there.1.read().unwrap(), 1, "what was pending is signalled");
    assert_eq!(outside.see(|seen| seen.routes.clone()), there.see(|seen| seen.routes.clone()));
    assert_eq!(outside.see(|seen| seen.bells.clone()), there.see(|seen| seen.bells.clone()));
    there.see(|seen| seen.pending = 0b100);
    assert_eq!(other.save(), state);
    assert_eq!(seen(&mut other), seen(&mut function));
    there.config_change().changed();
    assert_eq!(there.1.read().unwrap(), 1, "the driver is told as before");
}

#[test]
fn registers_that_no_driver_comes_to_are_refused() {
    type Spoil = fn(&mut vmm::state::VirtioState);

    let (mut function, _) = function();
    start(&mut function);
    let good = function.save().unwrap();
    let spoilt: [Spoil; 10] = [
        |state| state.transport.accepted |= 1 << 10,
        |state| state.transport.queues.truncate(1),
        |state| state.transport.queues[0].size = 3,
        |state| state.transport.queues[0].size = 512,
        |state| state.transport.queues[0].vector = 3,
        |state| state.transport.config_vector = 7,
        |state| state.transport.status = ACKNOWLEDGED | DRIVER_OK,
        |state| state.transport.status |= NEEDS_RESET,
        |state| state.msix.table.truncate(20),
        |state| state.msix.pending = vec![3],
    ];
    for (number, spoil) in spoilt.into_iter().enumerate() {
        let mut state = good.clone();
        spoil(&mut state);
        assert!(function.check(Some(&state)).is_err(), "{number}");
    }
    assert!(function.check(Some(&good)).is_ok() && function.check(None).is_err());
}

#[derive(Debug, Clone)]
enum Access {
    Read(u32, usize),
    Write(u32, Vec<u8>),
    ConfigRead(usize, usize),
    ConfigWrite(usize, Vec<u8>),
    Quiet(bool),
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![
        0..64u32,
        0x1000..0x1004u32,
        0x2000..0x2040u32,
        0x2ff0..0x3010u32,
        0x3ff0..0x4040u32,
        0x4ff0..0x5010u32,
        0..0x7ff8u32
    ];
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..=8),
        // What drivers write: small numbers, in the sizes of the fields.
        (0..16u8).prop_map(|value| vec![value]),
        (0..16u8).prop_map(|value| vec![value, 0]),
        (0..16u8).prop_map(|value| vec![value, 0, 0, 0]),
    ];
    prop_oneof![
        1 => (offset.clone(), 1..=8usize).prop_map(|(offset, bytes)| Access::Read(offset, bytes)),
        4 => (offset, data.clone()).prop_map(|(offset, data)| Access::Write(offset, data)),
        1 => (0..0x1000usize, 1..=4usize).prop_map(|(offset, bytes)| Access::ConfigRead(offset, bytes)),
        1 => (0..0x110usize, data).prop_map(|(offset, data)| Access::ConfigWrite(offset, data)),
        1 => any::<bool>().prop_map(Access::Quiet),
    ]
}

proptest! {
    /// Nothing a driver does panics, and the device only ever runs with what it offered.
    #[test]
    fn no_driver_is_too_strange(accesses in prop::collection::vec(access(), 1..400)) {
        let (mut function, outside) = function();
        for access in accesses {
            match access {
                Access::Read(offset, bytes) => function.bar_read(BAR, offset, &mut vec![0; bytes]),
                Access::Write(offset, data) => function.bar_write(BAR, offset, &data),
                Access::ConfigRead(offset, bytes) => function.config_read(offset, &mut vec![0; bytes]),
                Access::ConfigWrite(offset, data) => function.config_write(offset, &data),
                Access::Quiet(quiet) => outside.see(|seen| seen.quiet = quiet),
            }
            outside.see(|seen| {
                if let Some(active) = &seen.active {
                    assert_eq!(active.features & !OFFERED, 0);
                    assert_ne!(active.features & VERSION_1, 0);
                    assert!(active.queues.iter().all(|queue| queue.size.is_power_of_two() && queue.size <= 256));
                }
            });
        }
        // Whatever it came to can be saved, and is the same elsewhere.
        let (config, state) = (function.config().save(), function.save());
        let (mut other, there) = self::function();
        there.see(|seen| {
            seen.quiet = outside.see(|seen| seen.quiet);
            seen.pending = outside.see(|seen| seen.pending);
        });
        prop_assert!(other.config().is_like(&config));
        other.check(state.as_ref()).unwrap();
        other.restore(&config, state.as_ref()).unwrap();
        prop_assert_eq!(other.save(), state);
        prop_assert_eq!(seen(&mut other), seen(&mut function));
    }
}
