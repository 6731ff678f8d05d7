//! One virtual processor: its set-up, and the thread that runs it.
//!
//! ```text
//!   new ──► set up ──► running ◄──► exit, answered by the machine
//!                         │
//!                         └──► ended: the guest asked for it, it crashed, KVM gave up, or somebody said stop
//! ```
//!
//! A thread in the guest is brought back by a signal. The signal may come just before the thread enters the guest, where
//! it has no effect; so whoever stops the processors repeats it until each thread is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

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
        Ok(Self { fd, index })
    }

    /// Runs it in a thread of its own until it ends or is stopped.
    pub fn start(self, machine: Arc<Machine>) -> Result<Running, KvmError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("cpu{}", self.index))
            .spawn(move || {
                if let Some(reason) = self.run(&machine, &stopped) {
                    machine.stop(reason);
                }
            })
            .map_err(KvmError::system("starting a processor's thread"))?;
        Ok(Running { stop, thread })
    }

    /// `None`: it was told to stop.
    fn run(mut self, machine: &Machine, stop: &AtomicBool) -> Option<StopReason> {
        while !stop.load(Ordering::Acquire) {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => machine.port_read(port, data),
                Ok(VcpuExit::IoOut(port, data)) => machine.port_write(port, data),
                Ok(VcpuExit::MmioRead(address, data)) => machine.memory_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => machine.memory_write(address, data),
                Ok(VcpuExit::Shutdown) => return Some(StopReason::Crashed { cpu: self.index }),
                Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => return Some(StopReason::Off),
                Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => return Some(StopReason::Reset),
                // A signal brought it back, or a timer that is handled inside.
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
                Ok(exit) => {
                    let what = format!("{exit:?}");
                    return Some(self.failed(what));
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Some(self.failed(error.to_string())),
            }
        }
        None
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

/// A processor's thread.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Tells it to stop; returns at once.
    pub fn tell_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Brings it out of the guest, if it is there; whether it has ended.
    pub fn nudge(&self) -> bool {
        if self.thread.is_finished() {
            return true;
        }
        // It may end at this moment: then there is nobody to tell.
        let _ = self.thread.kill(SIGRTMIN());
        false
    }

    /// Waits for its end; `false` if the thread panicked.
    pub fn join(self) -> bool {
        self.thread.join().is_ok()
    }
}
