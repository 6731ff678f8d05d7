//! The machine as a processor sees it, without KVM: whatever a guest does to ports and registers, there is an answer.

use proptest::prelude::*;
use vmm::devices::console::ConsoleOutput;
use vmm::devices::generic_event::GenericEvents;
use vmm::devices::serial::SerialPort;
use vmm::layout::{ECAM_START, PCI_WINDOW_START};
use vmm::machine::{Machine, StopReason};
use vmm::pci::{
    BarIndex, BusError, Capability, ConfigSpace, DEVICES_MAX, HostBridge, Identity, PciBus, PciDevice,
};
use vmm::state::{FORMAT, RestoreError, SerialState, VirtioState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const COM1: u16 = 0x3f8;

/// A device whose BAR is a memory.
#[derive(Debug)]
struct Board {
    config: ConfigSpace,
    memory: Vec<u8>,
}

const BOARD_BAR: BarIndex = BarIndex(1);
const BOARD_BYTES: u32 = 0x1000;

impl Board {
    fn new() -> Self {
        let identity = Identity {
            vendor: 0x1234,
            device: 0x5678,
            subsystem: (0x9abc, 0xdef0),
            revision: 7,
            class: [5, 8, 0],
        };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(BOARD_BAR, BOARD_BYTES);
        config.add_capability(Capability { id: 9, body: &[1, 2, 3], writable: &[0, 0xf0] });
        config.add_capability(Capability { id: 0x11, body: &[4, 5], writable: &[] });
        Self { config, memory: vec![0; BOARD_BYTES as usize] }
    }
}

impl PciDevice for Board {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn restore(&mut self, config: &[u8], _: Option<&VirtioState>) -> Result<(), RestoreError> {
        self.config.restore(config);
        Ok(())
    }

    fn place_bar(&mut self, bar: BarIndex, address: u32) {
        self.config.place_bar(bar, address);
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u32, data: &mut [u8]) {
        assert_eq!(bar, BOARD_BAR);
        data.copy_from_slice(&self.memory[offset as usize..][..data.len()]);
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u32, data: &[u8]) {
        assert_eq!(bar, BOARD_BAR);
        self.memory[offset as usize..][..data.len()].copy_from_slice(data);
    }
}

fn machine() -> (Machine, ConsoleOutput) {
    let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
    let output = ConsoleOutput::new().unwrap();
    let serial = SerialPort::new(eventfd(), output.clone()).unwrap();
    let mut bus = PciBus::new(Box::new(HostBridge::new()));
    bus.plug(Box::new(Board::new())).unwrap();
    (Machine::new(serial, GenericEvents::new(eventfd()), bus, eventfd()), output)
}

/// Reads a word of device 1 through the ports.
fn config_word(machine: &Machine, register: u32) -> u32 {
    machine.port_write(0xcf8, &(0x8000_0800 | register).to_le_bytes());
    let mut word = [0; 4];
    machine.port_read(0xcfc, &mut word);
    u32::from_le_bytes(word)
}

fn set_config_word(machine: &Machine, register: u32, value: u32) {
    machine.port_write(0xcf8, &(0x8000_0800 | register).to_le_bytes());
    machine.port_write(0xcfc, &value.to_le_bytes());
}

#[test]
fn a_device_is_found_sized_moved_and_used() {
    let (machine, _) = machine();
    assert_eq!(config_word(&machine, 0), 0x5678_1234);
    assert_eq!(config_word(&machine, 8), 0x0508_0007);
    assert_eq!(config_word(&machine, 0x2c), 0xdef0_9abc);
    assert_eq!(config_word(&machine, 0x14), PCI_WINDOW_START, "placed without a firmware");
    // Sizing: what can't be changed tells the size.
    set_config_word(&machine, 0x14, u32::MAX);
    assert_eq!(config_word(&machine, 0x14), !(BOARD_BYTES - 1));
    let there = PCI_WINDOW_START + 0x5_0000;
    set_config_word(&machine, 0x14, there);
    let mut answer = [0; 2];
    machine.memory_write(u64::from(there) + 8, &[1, 2]);
    machine.memory_read(u64::from(there) + 8, &mut answer);
    assert_eq!(answer, [0xff; 2], "memory is switched off");
    set_config_word(&machine, 4, 2);
    machine.memory_write(u64::from(there) + 8, &[1, 2]);
    machine.memory_read(u64::from(there) + 8, &mut answer);
    assert_eq!(answer, [1, 2]);
    machine.memory_read(u64::from(there + BOARD_BYTES) - 1, &mut answer);
    assert_eq!(answer, [0xff; 2], "half outside is outside");
    // Outside of the window nothing answers, whatever the guest believes.
    set_config_word(&machine, 0x14, 0x1000);
    machine.memory_read(0x1008, &mut answer);
    assert_eq!(answer, [0xff; 2]);
}

#[test]
fn ecam_and_the_ports_show_the_same() {
    let (machine, _) = machine();
    for register in (0..256).step_by(4) {
        let mut word = [0; 4];
        machine.memory_read(ECAM_START + (1 << 15) + u64::from(register), &mut word);
        assert_eq!(u32::from_le_bytes(word), config_word(&machine, register), "{register:#x}");
    }
    let mut nobody = [0; 4];
    machine.memory_read(ECAM_START + (2 << 15), &mut nobody);
    assert_eq!(nobody, [0xff; 4], "no device 2");
    machine.memory_read(ECAM_START + (1 << 15) + (1 << 12), &mut nobody);
    assert_eq!(nobody, [0xff; 4], "no function 1");
}

#[test]
fn capabilities_are_a_list_of_which_a_guest_changes_only_what_it_may() {
    let (machine, _) = machine();
    assert_eq!(config_word(&machine, 4) >> 20 & 1, 1, "there is a list");
    let first = config_word(&machine, 0x34) & 0xff;
    assert_eq!(config_word(&machine, first) & 0xff, 9);
    let second = config_word(&machine, first) >> 8 & 0xff;
    assert_eq!(config_word(&machine, second) & 0xffff, 0x11, "the last one points to none");
    set_config_word(&machine, first, u32::MAX);
    assert_eq!(config_word(&machine, first) >> 16, 0xf201, "one byte's upper half is writable");
}

#[test]
fn a_full_bus_and_a_full_window_refuse() {
    let mut bus = PciBus::new(Box::new(HostBridge::new()));
    for _ in 1..DEVICES_MAX {
        bus.plug(Box::new(Board::new())).unwrap();
    }
    assert_eq!(bus.plug(Box::new(Board::new())), Err(BusError::Full));
    let mut bus = PciBus::new(Box::new(HostBridge::new()));
    let large = |bytes| {
        let mut board = Board::new();
        board.config.add_bar(BarIndex(2), bytes);
        Box::new(board)
    };
    bus.plug(large(1 << 27)).unwrap();
    assert_eq!(bus.plug(large(1 << 28)), Err(BusError::NoSpace));
    bus.plug(Box::new(Board::new())).expect("a refusal uses nothing up");
}

#[test]
fn what_is_printed_comes_out_and_what_is_typed_comes_in() {
    let (machine, output) = machine();
    machine.port_write(COM1, b"hello");
    assert_eq!(output.peek(100), b"hello");
    let typed = [b'x'; 100];
    assert_eq!(machine.serial().receive(&typed), 64, "as much as a FIFO holds");
    let drained = machine.serial().drained();
    for _ in 0..64 {
        assert!(drained.read().is_err(), "not before it is empty");
        let mut byte = [0];
        machine.port_read(COM1, &mut byte);
        assert_eq!(&byte, b"x");
    }
    assert!(drained.read().is_ok());
}

#[test]
fn the_first_reason_to_stop_counts() {
    let (machine, _) = machine();
    machine.port_write(0x600, &[5 << 2]);
    assert_eq!(machine.stopped(), None, "no sleep without the enable bit");
    machine.port_write(0x600, &[5 << 2 | 1 << 5]);
    machine.port_write(0x64, &[0xfe]);
    assert_eq!(machine.stopped(), Some(StopReason::Off));
}

#[test]
fn the_power_button_and_a_panic_reach_the_other_side() {
    let (machine, _) = machine();
    let events = |machine: &Machine| {
        let mut byte = [0];
        machine.port_read(0x604, &mut byte);
        byte[0]
    };
    machine.press_power_button();
    assert_eq!((events(&machine), events(&machine)), (1, 0), "once");
    let mut understood = [0];
    machine.port_read(0x505, &mut understood);
    assert_eq!(understood, [3]);
    machine.port_write(0x505, &[2]);
    assert_eq!((machine.stopped(), machine.panicked()), (None, true), "its crash kernel goes on");
    machine.port_write(0x505, &[1]);
    assert_eq!(machine.stopped(), Some(StopReason::Panicked));
}

/// What a guest can see: registers, and the state as a whole.
fn seen(machine: &Machine) -> Vec<u32> {
    (0..64).map(|register| config_word(machine, register * 4)).collect()
}

#[test]
fn a_machine_that_was_saved_goes_on_elsewhere() {
    let (machine, _) = machine();
    set_config_word(&machine, 0x14, PCI_WINDOW_START + 0x5_0000);
    set_config_word(&machine, 4, 2);
    machine.port_write(COM1 + 7, &[0x5a]);
    machine.port_write(COM1 + 1, &[1]);
    assert_eq!(machine.serial().receive(b"typed"), 5);
    machine.press_power_button();
    machine.port_write(0x505, &[2]);
    let state = machine.save();
    let text = serde_json::to_string(&state).unwrap();
    assert!(text.starts_with("{\"format\":1,"), "{text}");
    let read = serde_json::from_str(&text).unwrap();
    assert_eq!(state, read);

    let (other, _) = self::machine();
    assert_ne!(other.save(), state);
    other.restore(&read).unwrap();
    assert_eq!(other.save(), state);
    assert!(other.panicked());
    let mut answer = [0; 5];
    other.port_read(COM1, &mut answer);
    assert_eq!(&answer, b"typed");
    other.port_read(COM1 + 7, &mut answer[..1]);
    other.port_read(0x604, &mut answer[1..2]);
    assert_eq!(answer[..2], [0x5a, 1]);
    other.memory_write(u64::from(PCI_WINDOW_START) + 0x5_0008, &[1, 2]);
    other.memory_read(u64::from(PCI_WINDOW_START) + 0x5_0008, &mut answer[..2]);
    assert_eq!(answer[..2], [1, 2]);
    assert_eq!(seen(&other), seen(&machine));
}

#[test]
fn a_state_of_another_machine_is_refused_and_changes_nothing() {
    type Spoil = fn(&mut vmm::state::MachineState);

    let (machine, _) = machine();
    let good = machine.save();
    let spoilt: [(&str, Spoil); 7] = [
        ("format", |state| state.format = FORMAT + 1),
        ("another machine", |state| drop(state.functions.pop())),
        ("another machine", |state| state.functions[1].slot = 2),
        ("another machine", |state| state.functions[1].config[2] ^= 1),
        ("another machine", |state| state.functions[1].config.truncate(255)),
        ("damaged", |state| state.serial.received = vec![0; 65]),
        ("damaged", |state| {
            state.functions[1].virtio = Some(vmm::state::VirtioState {
                transport: vmm::state::TransportState {
                    offered: 0,
                    status: 0,
                    broken: false,
                    resetting: false,
                    offered_select: 0,
                    accepted_select: 0,
                    accepted: 0,
                    config_vector: 0,
                    config_generation: 0,
                    queue_select: 0,
                    queues: Vec::new(),
                },
                msix: vmm::state::MsixState { control: 0, table: Vec::new(), pending: Vec::new() },
                device: vmm::state::DeviceState::Rng,
            });
        }),
    ];
    for (what, spoil) in spoilt {
        let mut state = good.clone();
        state.events_pending = 1;
        spoil(&mut state);
        let error = machine.restore(&state).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(machine.save(), good);
    }
    assert!(serde_json::from_str::<SerialState>(r#"{"received":"0"}"#).is_err());
}

#[derive(Debug, Clone)]
enum Access {
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    MemoryRead(u64, usize),
    MemoryWrite(u64, Vec<u8>),
}

fn access() -> impl Strategy<Value = Access> {
    // Half of them where something is.
    let port = prop_oneof![0x3f0..0x400u16, 0xcf8..0xd00u16, 0x600..0x606u16, 0x505..0x506u16, any::<u16>()];
    let address = prop_oneof![
        ECAM_START..ECAM_START + (4 << 15),
        u64::from(PCI_WINDOW_START)..u64::from(PCI_WINDOW_START) + 0x3000,
        ECAM_START + (1 << 20) - 8..ECAM_START + (1 << 20) + 8,
        any::<u64>(),
        u64::MAX - 16..=u64::MAX,
    ];
    let data = prop::collection::vec(any::<u8>(), 0..=9);
    prop_oneof![
        (port.clone(), 0..=9usize).prop_map(|(port, bytes)| Access::PortRead(port, bytes)),
        (port, data.clone()).prop_map(|(port, data)| Access::PortWrite(port, data)),
        (address.clone(), 0..=9usize).prop_map(|(address, bytes)| Access::MemoryRead(address, bytes)),
        (address, data).prop_map(|(address, data)| Access::MemoryWrite(address, data)),
    ]
}

proptest! {
    #[test]
    fn no_access_is_too_strange(accesses in prop::collection::vec(access(), 1..200)) {
        let (machine, _) = machine();
        for access in accesses {
            match access {
                Access::PortRead(port, bytes) => machine.port_read(port, &mut vec![0; bytes]),
                Access::PortWrite(port, data) => machine.port_write(port, &data),
                Access::MemoryRead(address, bytes) => machine.memory_read(address, &mut vec![0; bytes]),
                Access::MemoryWrite(address, data) => machine.memory_write(address, &data),
            }
        }
        let state = machine.save();
        let (other, _) = self::machine();
        other.restore(&state).unwrap();
        prop_assert_eq!(&other.save(), &state);
        prop_assert_eq!(seen(&other), seen(&machine));
        // What says who the device is stays as it is.
        prop_assert_eq!(config_word(&machine, 0), 0x5678_1234);
        prop_assert_eq!(config_word(&machine, 0x14) & (BOARD_BYTES - 1), 0);
    }
}
