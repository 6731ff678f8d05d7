//! A VM from its start to its end, top to bottom.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::acpi;
use crate::boot::{self, Boot, BootError, Image, Protocol};
use crate::config::{BootSource, VmConfig};
use crate::cpu::cpuid;
use crate::devices::console::ConsoleOutput;
use crate::devices::generic_event::{self, GenericEvents};
use crate::devices::power::RESET_CODE;
use crate::devices::serial::{self, SerialPort};
use crate::events::{Console, Signals, serve};
use crate::kvm::interrupts::Interrupts;
use crate::kvm::processor::{Processor, Running, Start, prepare_signal};
use crate::kvm::{Host, KvmError, Vm};
use crate::layout::{ACPI_START, Layout, LayoutError, RESET_VECTOR};
use crate::machine::{Machine, StopReason};
use crate::memory::{self, MemoryError};
use crate::pci::{BusError, HostBridge, PciBus};
use crate::virtio::Device;
use crate::virtio::balloon::{Balloon, BalloonHandle, PagesError};
use crate::virtio::pci::{VirtioPci, vectors_of};
use crate::virtio::rng::Rng;
use crate::virtio::vhost_user::{VhostUser, VhostUserError};
use crate::volume::{self, VolumeError};

/// Between two attempts to bring a processor out of the guest.
const NUDGE_EVERY: Duration = Duration::from_millis(1);

/// Why a VM can't be started, or the process can't go on serving it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the configuration.
    #[error("{what} {path}: {source}")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Memory that does not fit this host's processors.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A volume that should bring them.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The PCI bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A device at a socket.
    #[error(transparent)]
    Device(#[from] VhostUserError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] PagesError),
    /// The console's place.
    #[error("opening the console: {0}")]
    Console(std::io::Error),
    /// The operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End(pub StopReason);

impl End {
    /// The status of the process.
    pub fn exit_status(&self) -> u8 {
        match self.0 {
            StopReason::Off => 0,
            StopReason::Reset => 3,
            StopReason::Crashed { .. } => 4,
            StopReason::Failed { .. } | StopReason::Broken(_) => 5,
            StopReason::Told => 6,
            StopReason::Panicked => 7,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            StopReason::Off => f.write_str("the guest switched the machine off"),
            StopReason::Reset => f.write_str("the guest reset the machine"),
            StopReason::Panicked => f.write_str("the guest's kernel panicked"),
            StopReason::Crashed { cpu } => write!(f, "the guest crashed processor {cpu} (triple fault)"),
            StopReason::Failed { cpu, what, at } => {
                write!(f, "KVM cannot run the guest's code on processor {cpu}: {what}")?;
                if let Some(at) = at {
                    write!(f, " at {at:#x}")?;
                }
                f.write_str(
                    ". A KVM without VT-x or AMD-V emulates few instructions: use QEMU's emulation there",
                )
            }
            StopReason::Broken(what) => write!(f, "the virtual machine monitor failed: {what}"),
            StopReason::Told => f.write_str("a signal ended the machine"),
        }
    }
}

/// Runs a VM to its end.
pub fn run(config: &VmConfig) -> Result<End, RunError> {
    let host = Host::open()?;
    host.check_processors(config.cpus)?;
    let layout = Layout::new(config.memory, cpuid::address_bits(host.supported_cpuid()))?;
    let vm = Vm::new(&host, memory::allocate(&layout)?)?;

    write_firmware(config, vm.memory())?;
    let start = load(&config.boot, &vm, &layout)?;
    debug!(entry = ?start.entry, "the kernel is loaded");

    let output = ConsoleOutput::new().map_err(RunError::Console)?;
    let serial =
        SerialPort::new(vm.interrupt_line(serial::GSI)?, output.clone()).map_err(RunError::Console)?;
    let mut console = Console::open(&config.console, output, serial.drained()).map_err(RunError::Console)?;
    let system = |what| move |source| RunError::System { what, source };
    let stop_event = EventFd::new(EFD_NONBLOCK).map_err(system("making an eventfd"))?;
    let stop = stop_event.try_clone().map_err(system("making an eventfd"))?;
    let events = GenericEvents::new(vm.interrupt_line(generic_event::GSI)?);
    let (bus, balloon) = plug_devices(config, &vm)?;
    let machine = Arc::new(Machine::new(serial, events, bus, stop).with_balloon(balloon));

    let signals = Signals::take_over().map_err(system("taking over signals"))?;
    let processors = start_processors(config, &host, &vm, &start, &machine)?;
    info!(processors = config.cpus.get(), memory_mib = config.memory.bytes() >> 20, "the machine runs");
    let served = serve(&machine, &stop_event, &signals, &mut console);
    stop_processors(processors);
    served.map(End).map_err(system("serving the machine"))
}

fn open(what: &'static str, path: &Path) -> Result<File, RunError> {
    File::open(path).map_err(|source| RunError::Open { what, path: path.to_owned(), source })
}

/// All that is left of a firmware: tables, and an answer to those who jump to its reset vector.
fn write_firmware(config: &VmConfig, memory: &GuestMemoryMmap) -> Result<(), BootError> {
    memory.write_slice(&RESET_CODE, RESET_VECTOR)?;
    for table in acpi::tables(config.cpus) {
        memory.write_slice(&table.bytes, table.address)?;
    }
    Ok(())
}

/// The bus with its devices. Those at sockets come first, so that disks keep their slots whatever else there is.
fn plug_devices(config: &VmConfig, vm: &Vm) -> Result<(PciBus, Option<BalloonHandle>), RunError> {
    let interrupts = Interrupts::new(vm);
    let mut bus = PciBus::new(Box::new(HostBridge::new()));
    for device in &config.devices {
        let device = VhostUser::connect(device.socket.clone(), device.role, vm.memory().clone())?;
        plug(&mut bus, &interrupts, Box::new(device))?;
    }
    if config.rng {
        let system = |source| RunError::System { what: "starting the thread of random numbers", source };
        plug(&mut bus, &interrupts, Box::new(Rng::new(vm.memory().clone()).map_err(system)?))?;
    }
    let mut handle = None;
    if config.balloon {
        let balloon = Balloon::new(vm.memory().clone())?;
        handle = Some(balloon.handle());
        plug(&mut bus, &interrupts, Box::new(balloon))?;
    }
    Ok((bus, handle))
}

fn plug(bus: &mut PciBus, interrupts: &Interrupts, device: Box<dyn Device>) -> Result<(), RunError> {
    let vectors = interrupts.vectors(vectors_of(device.queue_sizes().len()))?;
    let function = VirtioPci::new(device, Box::new(vectors), Box::new(interrupts.doorbells()))
        .map_err(|source| RunError::System { what: "making a device", source })?;
    bus.plug(Box::new(function))?;
    Ok(())
}

/// The kernel and what belongs to it, from wherever it comes.
fn load(source: &BootSource, vm: &Vm, layout: &Layout) -> Result<Start, RunError> {
    match source {
        BootSource::Files { kernel, initrd, command_line } => {
            let mut kernel = open("kernel", kernel)?;
            let mut initrd = initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
            Ok(prepare_start(&mut kernel, initrd.as_mut(), command_line, vm, layout)?)
        }
        BootSource::Volume(volume) => volume::with_chosen(volume, |mut chosen| {
            let (kernel, initrd) = (&mut chosen.kernel, chosen.initrd.as_mut());
            Ok(prepare_start(kernel, initrd, &chosen.command_line, vm, layout)?)
        }),
    }
}

fn prepare_start<I: Image>(
    kernel: &mut I,
    initrd: Option<&mut I>,
    command_line: &str,
    vm: &Vm,
    layout: &Layout,
) -> Result<Start, BootError> {
    let boot = Boot { kernel, initrd, command_line, rsdp: ACPI_START };
    let entry = boot::load(boot, vm.memory(), layout)?;
    let segments = boot::write_descriptors(vm.memory(), entry.protocol)?;
    if entry.protocol == Protocol::Linux64 {
        boot::write_page_tables(vm.memory())?;
    }
    Ok(Start { entry, segments })
}

fn start_processors(
    config: &VmConfig,
    host: &Host,
    vm: &Vm,
    start: &Start,
    machine: &Arc<Machine>,
) -> Result<Vec<Running>, KvmError> {
    prepare_signal()?;
    let made = config
        .cpus
        .indices()
        .map(|index| Processor::new(host, vm, index, config.cpus, (index == 0).then_some(start)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut running = Vec::new();
    for processor in made {
        match processor.start(Arc::clone(machine)) {
            Ok(thread) => running.push(thread),
            Err(error) => {
                stop_processors(running);
                return Err(error);
            }
        }
    }
    Ok(running)
}

fn stop_processors(processors: Vec<Running>) {
    processors.iter().for_each(Running::tell_to_stop);
    // Each is nudged each time, also behind one that has not ended yet.
    while processors.iter().filter(|processor| !processor.nudge()).count() > 0 {
        std::thread::sleep(NUDGE_EVERY);
    }
    for processor in processors {
        if !processor.join() {
            warn!("a processor's thread panicked");
        }
    }
}
