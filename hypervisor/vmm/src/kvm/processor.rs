//! One virtual processor: its set-up, and what its thread does.
//!
//! ```text
//!   new ──► set up ──► running ◄──► exit, answered by the machine
//!                       │   ▲
//!                       │   └───── paused, between two instructions
//!                       └──► ended: the guest asked for it, it crashed, KVM gave up, or somebody said stop
//! ```
//!
//! A thread in the guest is brought back by a signal. The signal may come just before the thread enters the guest, where
//! it has no effect; so whoever stops or pauses the processors ([`super::Processors`]) repeats it until each thread
//! has obeyed.

use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::gate::{Gate, Wanted};
use super::{Host, KvmError, Vm};
use crate::boot::{Entry, Segments};
use crate::config::CpuCount;
use crate::cpu::{cpuid, lapic, msrs, registers};
use crate::machine::{Machine, StopReason};

/// KVM's system events (Linux, "KVM API", `KVM_EXIT_SYSTEM_EVENT`).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// A processor that does not run yet.
#[derive(Debug)]
pub struct Processor {
    fd: VcpuFd,
    index: u8,
    /// Whether KVM can be told to come back at once.
    comes_back: bool,
}

/// Why the guest was left.
enum Step {
    /// It needed an answer and has it.
    Answered,
    /// Nothing is left to do for it.
    BroughtBack,
}

/// How the first processor begins; the others wait for it.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Where.
    pub entry: Entry,
    /// With which segments.
    pub segments: Segments,
}

impl Processor {
    /// Makes and sets up a processor. `start` is for the first one.
    pub fn new(
        host: &Host,
        vm: &Vm,
        index: u8,
        cpus: CpuCount,
        start: Option<&Start>,
    ) -> Result<Self, KvmError> {
        let fd = vm.fd.create_vcpu(u64::from(index)).map_err(KvmError::doing("making a processor"))?;
        let wanted = cpuid::Wanted { cpu: index, cpus, tsc_deadline: host.has_tsc_deadline() };
        let entries = cpuid::for_processor(host.supported_cpuid(), wanted);
        let entries = CpuId::from_entries(&entries).map_err(|_| KvmError::Missing("so many CPUID leaves"))?;
        // Before the MSRs: KVM takes only those that CPUID promises.
        fd.set_cpuid2(&entries).map_err(KvmError::doing("setting a processor's CPUID"))?;
        set_msrs(&fd)?;
        if let Some(start) = start {
            set_registers(&fd, start)?;
        }
        let mut state = fd.get_lapic().map_err(KvmError::doing("reading a local APIC"))?;
        lapic::connect_pins(&mut state);
        fd.set_lapic(&state).map_err(KvmError::doing("setting a local APIC"))?;
        let comes_back = host.kvm.check_extension(Cap::ImmediateExit);
        Ok(Self { fd, index, comes_back })
    }

    /// Its number.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Runs it in this thread until it ends or is told to. `None`: it was told.
    pub(super) fn run(mut self, machine: &Machine, gate: &Gate) -> Option<StopReason> {
        loop {
            if !gate.is_open() {
                if let Err(reason) = self.complete(machine) {
                    return Some(reason);
                }
                if gate.pass() == Wanted::Stop {
                    return None;
                }
                // The guest's watchdogs are told that time was lost. Without kvm-clock nobody would hear it.
                let _ = self.fd.kvmclock_ctrl();
            }
            match self.step(machine) {
                Ok(Step::Answered | Step::BroughtBack) => {}
                Err(reason) => return Some(reason),
            }
        }
    }

    /// Runs the guest until it needs an answer, and gives it.
    fn step(&mut self, machine: &Machine) -> Result<Step, StopReason> {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => machine.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => machine.port_write(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => machine.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => machine.memory_write(address, data),
            Ok(VcpuExit::Shutdown) => return Err(StopReason::Crashed { cpu: self.index }),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => return Err(StopReason::Off),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => return Err(StopReason::Reset),
            // A signal brought it back, or a timer that is handled inside.
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => return Ok(Step::BroughtBack),
            Ok(exit) => {
                let what = format!("{exit:?}");
                return Err(self.failed(what));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Step::BroughtBack);
            }
            Err(error) => return Err(self.failed(error.to_string())),
        }
        Ok(Step::Answered)
    }

    /// An instruction that was answered is finished when the guest is entered the next time. To stand still between two
    /// instructions, it is entered with the order to come back at once (Linux, "KVM API", `immediate_exit`).
    fn complete(&mut self, machine: &Machine) -> Result<(), StopReason> {
        if !self.comes_back {
            return Ok(());
        }
        self.fd.set_kvm_immediate_exit(1);
        let done = loop {
            match self.step(machine) {
                Ok(Step::Answered) => {}
                Ok(Step::BroughtBack) => break Ok(()),
                Err(reason) => break Err(reason),
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        done
    }

    fn failed(&self, what: String) -> StopReason {
        let at = self.fd.get_regs().map(|regs| regs.rip).ok();
        StopReason::Failed { cpu: self.index, what, at }
    }
}

fn set_msrs(fd: &VcpuFd) -> Result<(), KvmError> {
    let wanted = msrs::at_boot();
    let entries = Msrs::from_entries(&wanted).map_err(|_| KvmError::Missing("so many MSRs"))?;
    let taken = fd.set_msrs(&entries).map_err(KvmError::doing("setting a processor's MSRs"))?;
    match wanted.get(taken) {
        Some(refused) => Err(KvmError::Msr(refused.index)),
        None => Ok(()),
    }
}

fn set_registers(fd: &VcpuFd, start: &Start) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().map_err(KvmError::doing("reading system registers"))?;
    registers::system(&mut sregs, &start.entry, &start.segments);
    fd.set_sregs(&sregs).map_err(KvmError::doing("setting system registers"))?;
    fd.set_fpu(&registers::floating_point()).map_err(KvmError::doing("setting the floating-point unit"))?;
    fd.set_regs(&registers::general(&start.entry)).map_err(KvmError::doing("setting registers"))
}

extern "C" fn brought_back(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the signal harmless that brings processors back; once, before any of them runs.
pub fn prepare_signal() -> Result<(), KvmError> {
    register_signal_handler(SIGRTMIN(), brought_back).map_err(KvmError::doing("installing a signal handler"))
}
