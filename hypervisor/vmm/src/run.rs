//! A VM from its start to its end, top to bottom.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use tracing::{Span, debug, info};
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::acpi;
use crate::api::{Server, VmControl};
use crate::boot::{self, Boot, BootError, Image, Protocol};
use crate::config::{BootSource, VmConfig};
use crate::cpu::cpuid;
use crate::devices::console::ConsoleOutput;
use crate::devices::generic_event::{self, GenericEvents};
use crate::devices::power::RESET_CODE;
use crate::devices::serial::{self, SerialPort};
use crate::events::{Console, Log, RawTerminal, Signals, serve};
use crate::kvm::interrupts::Interrupts;
use crate::kvm::processor::{Processor, Start};
use crate::kvm::{Host, KvmError, Processors, Vm};
use crate::layout::{ACPI_START, Layout, LayoutError, RESET_VECTOR};
use crate::machine::{Machine, StopReason};
use crate::memory::{self, MemoryError};
use crate::outside::{BackEnd, BackEndIndex, Direct, Given, OpenError, Outside};
use crate::pci::{BusError, HostBridge, PciBus};
use crate::threads::Threads;
use crate::virtio::Device;
use crate::virtio::balloon::{Balloon, BalloonHandle, PagesError};
use crate::virtio::pci::{VirtioPci, vectors_of};
use crate::virtio::rng::Rng;
use crate::virtio::vhost_user::{VhostUser, VhostUserError};
use crate::volume::{self, VolumeError};

/// Why a VM can't be started, or the process can't go on serving it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the configuration names.
    #[error(transparent)]
    Open(#[from] OpenError),
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
            StopReason::Off | StopReason::Unplugged => 0,
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
            StopReason::Reset => f.write_str("the machine was reset"),
            StopReason::Unplugged => f.write_str("the machine was stopped by its control API"),
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

/// Runs a VM to its end, in this process and without confinement.
pub fn run_here(config: &VmConfig) -> Result<End, RunError> {
    let (given, _places) = Given::open(config)?;
    let _terminal = RawTerminal::take(&config.console).map_err(RunError::Console)?;
    let threads = Threads::unconfined(Span::current());
    run(config, given, Arc::new(Direct::new(config)), &threads, std::process::id())
}

/// Runs a VM to its end. `pid` is the process that whoever started the VM knows.
pub fn run(
    config: &VmConfig,
    given: Given,
    outside: Arc<dyn Outside>,
    threads: &Threads,
    pid: u32,
) -> Result<End, RunError> {
    let system = |what| move |source| RunError::System { what, source };
    // Before there are other threads, which have them blocked from now on.
    let signals = Signals::take_over().map_err(system("taking over signals"))?;
    let Given { kvm, memory, kernel, initrd, console, console_log, api } = given;
    let host = Host::new(kvm)?;
    host.check_processors(config.cpus)?;
    let layout = Layout::new(config.memory, cpuid::address_bits(host.supported_cpuid()))?;
    let vm = Vm::new(&host, memory::map(&layout, memory)?)?;

    write_firmware(config, vm.memory())?;
    let files = kernel.map(|kernel| (kernel, initrd));
    let start = load(&config.boot, files, &outside, &vm, &layout)?;
    debug!(entry = ?start.entry, "the kernel is loaded");

    let output = ConsoleOutput::new().map_err(RunError::Console)?;
    let serial =
        SerialPort::new(vm.interrupt_line(serial::GSI)?, output.clone()).map_err(RunError::Console)?;
    let log = match (console_log, &config.console_log) {
        (Some(file), Some(log)) => {
            Some(Log::new(file, log.bytes, Arc::clone(&outside)).map_err(RunError::Console)?)
        }
        _ => None,
    };
    let mut console = Console::new(&config.console, console, log, output, serial.drained());
    let stop_event = EventFd::new(EFD_NONBLOCK).map_err(system("making an eventfd"))?;
    let stop = stop_event.try_clone().map_err(system("making an eventfd"))?;
    let events = GenericEvents::new(vm.interrupt_line(generic_event::GSI)?);
    let (bus, balloon) = plug_devices(config, &vm, &outside, threads)?;
    let machine = Arc::new(Machine::new(serial, events, bus, stop).with_balloon(balloon));

    let processors = make_processors(config, &host, &vm, &start)?;
    let processors = Arc::new(Processors::start(processors, config, &machine, threads)?);
    info!(processors = config.cpus.get(), memory_mib = config.memory.bytes() >> 20, "the machine runs");
    let control = VmControl::new(config, pid, Arc::clone(&machine), Arc::clone(&processors));
    let api = api.map(|listener| Server::start(listener, Arc::new(control), threads)).transpose();
    threads
        .confine_main()
        .map_err(|error| system("confining the first thread")(std::io::Error::other(error)))?;
    let served = match &api {
        Ok(_) => serve(&machine, &stop_event, &signals, &mut console).map_err(system("serving the machine")),
        Err(_) => Ok(StopReason::Told),
    };
    processors.stop();
    if let Some(server) = api.map_err(system("starting the control API"))? {
        server.finish();
    }
    served.map(End)
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
fn plug_devices(
    config: &VmConfig,
    vm: &Vm,
    outside: &Arc<dyn Outside>,
    threads: &Threads,
) -> Result<(PciBus, Option<BalloonHandle>), RunError> {
    let interrupts = Interrupts::new(vm);
    let mut bus = PciBus::new(Box::new(HostBridge::new()));
    for (index, device) in (0..).map(BackEndIndex).zip(&config.devices) {
        let back_end = BackEnd::new(Arc::clone(outside), index, device.socket.clone());
        let device = VhostUser::connect(back_end, device.role, vm.memory().clone(), threads)?;
        plug(&mut bus, &interrupts, Box::new(device))?;
    }
    if config.rng {
        let system = |source| RunError::System { what: "starting the thread of random numbers", source };
        plug(&mut bus, &interrupts, Box::new(Rng::new(vm.memory().clone(), threads).map_err(system)?))?;
    }
    let mut handle = None;
    if config.balloon {
        let balloon = Balloon::new(vm.memory().clone(), threads)?;
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
fn load(
    source: &BootSource,
    files: Option<(File, Option<File>)>,
    outside: &Arc<dyn Outside>,
    vm: &Vm,
    layout: &Layout,
) -> Result<Start, RunError> {
    match (source, files) {
        (BootSource::Files { command_line, .. }, Some((mut kernel, mut initrd))) => {
            Ok(prepare_start(&mut kernel, initrd.as_mut(), command_line, vm, layout)?)
        }
        (BootSource::Files { kernel, .. }, None) => Err(OpenError::missing("kernel", kernel).into()),
        (BootSource::Volume(volume), _) => {
            // The first of the devices is the first disk.
            let disk = BackEnd::new(Arc::clone(outside), BackEndIndex(0), volume.socket.clone());
            volume::with_chosen(volume, disk, |mut chosen| {
                let (kernel, initrd) = (&mut chosen.kernel, chosen.initrd.as_mut());
                Ok(prepare_start(kernel, initrd, &chosen.command_line, vm, layout)?)
            })
        }
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

fn make_processors(
    config: &VmConfig,
    host: &Host,
    vm: &Vm,
    start: &Start,
) -> Result<Vec<Processor>, KvmError> {
    let made = config
        .cpus
        .indices()
        .map(|index| Processor::new(host, vm, index, config.cpus, (index == 0).then_some(start)));
    made.collect()
}
