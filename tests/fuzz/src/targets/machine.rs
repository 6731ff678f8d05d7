//! What a guest's processors and drivers do to our own virtual machine monitor: ports, configuration space, BARs and the
//! rings of devices that it serves itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm::devices::console::ConsoleOutput;
use vmm::devices::generic_event::GenericEvents;
use vmm::devices::serial::SerialPort;
use vmm::layout::{ECAM_START, PCI_WINDOW_START};
use vmm::machine::Machine;
use vmm::pci::msix::{Message, Vectors};
use vmm::pci::{HostBridge, PciBus};
use vmm::state::{DeviceState, MachineState, RestoreError};
use vmm::virtio::fuzz::{AVAILABLE, BUFFERS, Image, Owner, RING_SIZE, TABLE, USED};
use vmm::virtio::pci::VirtioPci;
use vmm::virtio::{Active, ConfigChange, Device, DeviceKind, Doorbells, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Source;

const OFFERED: u64 = VERSION_1 | 1 << 28 | 1 << 29 | 0xff;
const QUEUE_SIZE: u16 = 256;

/// A device that does nothing, and holds its transport to what it promises.
#[derive(Debug)]
struct Idle {
    change: ConfigChange,
    quiet: Arc<AtomicBool>,
}

impl Device for Idle {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }
    fn features(&self) -> u64 {
        OFFERED
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn config_change(&self) -> ConfigChange {
        self.change.clone()
    }
    fn activate(&mut self, active: Active) {
        assert_eq!(active.features & !OFFERED, 0, "features that were not offered");
        assert_ne!(active.features & VERSION_1, 0);
        for queue in &active.queues {
            assert!(queue.size.is_power_of_two() && queue.size <= QUEUE_SIZE, "{queue:?}");
        }
    }
    fn reset(&mut self) {}
    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
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
}

#[derive(Debug)]
struct Nobody;

impl Vectors for Nobody {
    fn route(&mut self, _: u16, _: Option<Message>) {}
    fn pending(&self, _: u16) -> bool {
        false
    }
    fn signal(&self, _: u16) -> Option<Arc<EventFd>> {
        None
    }
}

impl Doorbells for Nobody {
    fn place(&mut self, bells: Vec<(u64, Arc<EventFd>)>) {
        for (address, _) in bells {
            assert!(address >= u64::from(PCI_WINDOW_START) && address < ECAM_START, "{address:#x}");
        }
    }
}

/// A machine with two devices. `None`: the host is out of descriptors.
fn machine(quiet: &Arc<AtomicBool>) -> Option<Machine> {
    let eventfd = || EventFd::new(EFD_NONBLOCK).ok();
    let output = ConsoleOutput::new().ok()?;
    let serial = SerialPort::new(eventfd()?, output).ok()?;
    let mut bus = PciBus::new(Box::new(HostBridge::new()));
    for _ in 0..2 {
        let idle = Idle { change: ConfigChange::default(), quiet: Arc::clone(quiet) };
        bus.plug(Box::new(VirtioPci::new(Box::new(idle), Box::new(Nobody), Box::new(Nobody)).ok()?)).ok()?;
    }
    Some(Machine::new(serial, GenericEvents::new(eventfd()?), bus, eventfd()?))
}

/// Where something is: ports, configuration spaces, the two BARs.
fn address(source: &mut Source<'_>) -> u64 {
    let within = source.number();
    match source.below(4) {
        0 => ECAM_START + (within & 0x1f_ffff),
        1 => u64::from(PCI_WINDOW_START) + (within & 0x3f),
        2 => u64::from(PCI_WINDOW_START) + (within & 0x1_ffff),
        _ => within,
    }
}

fn port(source: &mut Source<'_>) -> u16 {
    let within = source.number() as u16;
    [0x3f8 | within & 7, 0xcf8 | within & 7, 0x600 | within & 7, 0x505, 0x64, within][source.below(6)]
}

/// A script of accesses; then the state is saved, and has to be the same in a machine that it is restored to.
pub(super) fn accesses(data: &[u8]) {
    let quiet = Arc::new(AtomicBool::new(true));
    let Some(machine) = machine(&quiet) else { return };
    let mut source = Source::new(data);
    let mut buffer = [0; 16];
    while !source.is_empty() {
        let bytes = [1, 2, 4, 8, 4, 2, 0, 16][source.below(8)];
        match source.below(6) {
            0 => machine.port_read(port(&mut source), &mut buffer[..bytes]),
            1 => machine.memory_read(address(&mut source), &mut buffer[..bytes]),
            2 => machine.port_write(port(&mut source), source.take(bytes)),
            3 | 4 => machine.memory_write(address(&mut source), source.take(bytes)),
            _ => quiet.store(!source.rarely(4), Ordering::Relaxed),
        }
    }
    let state = machine.save();
    let Some(other) = self::machine(&quiet) else { return };
    other.restore(&state).expect("what was saved can be restored");
    assert_eq!(other.save(), state);
}

pub(super) fn access_seeds() -> Vec<Vec<u8>> {
    // Writes of a driver's start, as the script has them: size, kind, address (number, window), data.
    let write = |at: u8, bytes: &[u8]| {
        let size = match bytes.len() {
            1 => 0,
            2 => 1,
            _ => 2,
        };
        [&[size, 3, at, 1][..], bytes].concat()
    };
    let command = [&[1, 3, 0xf0, 4, 0x80, 0, 0, 0, 0, 0, 0, 0][..], &[6, 0]].concat();
    let start = [
        command,
        write(20, &[3]),
        write(8, &[1, 0, 0, 0]),
        write(12, &[1, 0, 0, 0]),
        write(20, &[11]),
        write(22, &[0, 0]),
        write(24, &[64, 0]),
        write(32, &[0, 16, 0, 0]),
        write(28, &[1, 0]),
        write(20, &[15]),
        write(20, &[0]),
    ];
    let mut seeds = vec![start.concat(), start[1..6].concat()];
    seeds.extend(super::patterns(200));
    seeds
}

/// A saved state that somebody changed: refused, or taken and the same from then on.
pub(super) fn states(data: &[u8]) {
    let Ok(state) = serde_json::from_slice::<MachineState>(data) else { return };
    let Some(machine) = machine(&Arc::new(AtomicBool::new(true))) else { return };
    let before = machine.save();
    match machine.restore(&state) {
        Ok(()) => {
            let after = machine.save();
            let Some(other) = self::machine(&Arc::new(AtomicBool::new(true))) else { return };
            other.restore(&after).expect("what was saved can be restored");
            assert_eq!(other.save(), after);
        }
        Err(_) => assert_eq!(machine.save(), before, "a refusal changes nothing"),
    }
}

pub(super) fn state_seeds() -> Vec<Vec<u8>> {
    let quiet = Arc::new(AtomicBool::new(true));
    let text = |machine: &Machine| serde_json::to_vec(&machine.save()).expect("a state is JSON");
    let fresh = machine(&quiet).expect("a machine for the seeds");
    let used = machine(&quiet).expect("a machine for the seeds");
    used.memory_write(ECAM_START + (1 << 15) + 4, &[6, 0]);
    for (at, bytes) in
        [(20u64, &[3][..]), (8, &[1, 0, 0, 0]), (12, &[1, 0, 0, 0]), (20, &[11]), (28, &[1, 0]), (20, &[15])]
    {
        used.memory_write(u64::from(PCI_WINDOW_START) + at, bytes);
    }
    used.port_write(0x3f8 + 1, &[3]);
    used.press_power_button();
    vec![text(&fresh), text(&used)]
}

/// Descriptors, available ring, three buffers: how much of each an input brings.
const PARTS: [(u64, usize); 6] = [
    (TABLE, 512),
    (AVAILABLE, 136),
    (USED, 4),
    (BUFFERS, 64),
    (BUFFERS + 0x1000, 128),
    (BUFFERS + 0x2000, 32),
];

/// A ring of a device that is served in the VM's own process.
pub(super) fn rings(data: &[u8]) {
    let mut source = Source::new(data);
    let features = VERSION_1
        | u64::from(source.byte())
        | u64::from(source.byte() & 0x7f) << 16
        | (source.number() & 3) << 28;
    let owner = match source.below(8) {
        0 => Owner::Rng,
        1 => Owner::Control(1 + u16::from(source.byte() & 15)),
        ring => Owner::Balloon(ring as u16 - 2),
    };
    let Some(image) = Image::new() else { return };
    for (at, bytes) in PARTS {
        image.put(at, source.take(bytes));
    }
    let Ok(outcome) = image.serve(owner, features) else { return };
    assert!(outcome.used <= RING_SIZE, "{outcome:?}");
}

pub(super) fn ring_seeds() -> Vec<Vec<u8>> {
    let descriptor = |at: u64, bytes: u32, flags: u16, next: u16| {
        [&at.to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let padded = |mut part: Vec<u8>, bytes: usize| {
        part.resize(bytes, 0);
        part
    };
    // A request to read, one to write, one of both, one indirect.
    let table = [
        descriptor(BUFFERS, 40, 0, 0),
        descriptor(BUFFERS + 0x1000, 0x1000, 2, 0),
        descriptor(BUFFERS, 4, 1, 3),
        descriptor(BUFFERS + 0x2000, 1, 2, 0),
        descriptor(BUFFERS + 0x1000, 32, 4, 0),
    ]
    .concat();
    let available = [&[0, 0, 4, 0][..], &[0, 0, 1, 0, 2, 0, 4, 0]].concat();
    let indirect = [descriptor(BUFFERS, 4, 1, 1), descriptor(BUFFERS + 0x2000, 8, 2, 0)].concat();
    let numbers: Vec<u8> = [4u32, 0x200, 0x201, 5].iter().flat_map(|number| number.to_le_bytes()).collect();
    let parts =
        [padded(table, 512), padded(available, 136), vec![0; 4], padded(numbers, 64), padded(indirect, 128)]
            .concat();
    (0..8).map(|owner| [&[0x37, 0x63, 3, owner][..], &parts].concat()).collect()
}
