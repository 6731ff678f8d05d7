//! The running VM, as the control API reaches for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferro_protocol::api::vmm::{
    BalloonRequest, BalloonState, BalloonStats, VMM_STATE_FORMAT, VmmDevice, VmmDeviceKind, VmmState,
    VmmStatus,
};
use ferro_protocol::api::{ApiError, ErrorCode};
use rustix::time::{ClockId, clock_gettime};
use tracing::info;

use super::Control;
use crate::config::VmConfig;
use crate::kvm::Processors;
use crate::machine::{Machine, StopReason};
use crate::pci::{About, Slot};
use crate::virtio::{DeviceKind, balloon};

/// How long processors and devices may take to stand still.
const STILL_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether devices do.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What a VM is, and the handles of what it does.
#[derive(Debug)]
pub(crate) struct VmControl {
    name: String,
    pid: u32,
    cpus: u8,
    memory_bytes: u64,
    machine: Arc<Machine>,
    processors: Arc<Processors>,
}

impl VmControl {
    /// For a VM whose end is that of the process `pid`.
    pub(crate) fn new(
        config: &VmConfig,
        pid: u32,
        machine: Arc<Machine>,
        processors: Arc<Processors>,
    ) -> Self {
        Self {
            name: config.name.clone(),
            pid,
            cpus: config.cpus.get(),
            memory_bytes: config.memory.bytes(),
            machine,
            processors,
        }
    }

    fn not_ended(&self) -> Result<(), ApiError> {
        match self.machine.stopped() {
            None => Ok(()),
            Some(_) => Err(ApiError::new(
                ErrorCode::Unavailable,
                "the VM has ended",
                "look at the process's exit status, and start it again",
            )),
        }
    }

    /// Waits until no device has a request half-done.
    fn devices_hold(&self) -> Result<(), ApiError> {
        let until = Instant::now() + STILL_MAX;
        while let Some(slot) = self.machine.pci().restless() {
            if Instant::now() >= until {
                let message =
                    format!("the VM is paused, and its device in slot {} has requests under way", slot.0);
                let next =
                    "look whether its back end answers (GET /v1/state), and pause again to wait for it";
                return Err(ApiError::new(ErrorCode::TimedOut, message, next).with("slot", slot.0));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

fn balloon_state(state: balloon::BalloonState) -> BalloonState {
    let stats = state.statistics.map(|said| BalloonStats {
        swap_in_bytes: said.swap_in_bytes,
        swap_out_bytes: said.swap_out_bytes,
        major_faults: said.major_faults,
        minor_faults: said.minor_faults,
        free_bytes: said.free_bytes,
        total_bytes: said.total_bytes,
        available_bytes: said.available_bytes,
        disk_caches_bytes: said.disk_caches_bytes,
        huge_allocated: said.huge_allocated,
        huge_failed: said.huge_failed,
    });
    BalloonState {
        target_bytes: state.target_bytes,
        actual_bytes: state.actual_bytes,
        reported_free_bytes: state.reported_bytes,
        stats,
    }
}

/// What the VM was not given.
fn no_device(what: &str, next: &str) -> ApiError {
    ApiError::new(ErrorCode::DeviceNotFound, format!("this VM has no {what}"), next)
}

impl Control for VmControl {
    fn state(&self) -> VmmState {
        let status = match (self.machine.stopped(), self.processors.is_paused()) {
            (Some(_), _) => VmmStatus::Ended,
            (None, true) => VmmStatus::Paused,
            (None, false) => VmmStatus::Running,
        };
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let device = |(slot, about): (Slot, About)| VmmDevice {
            slot: slot.0,
            kind: match about.kind {
                DeviceKind::Net => VmmDeviceKind::Net,
                DeviceKind::Block => VmmDeviceKind::Block,
                DeviceKind::Rng => VmmDeviceKind::Rng,
                DeviceKind::Balloon => VmmDeviceKind::Balloon,
            },
            id: about.id,
            connected: about.connected,
        };
        let devices = self.machine.pci().about().map(device).collect();
        VmmState {
            format: VMM_STATE_FORMAT,
            name: self.name.clone(),
            pid: self.pid,
            status,
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            devices,
            balloon: self.machine.balloon().map(|balloon| balloon_state(balloon.state())),
            panicked: self.machine.panicked(),
            cpu_time_us: used.tv_sec as u64 * 1_000_000 + used.tv_nsec as u64 / 1000,
        }
    }

    fn pause(&self) -> Result<(), ApiError> {
        self.not_ended()?;
        let was_running = !self.processors.is_paused();
        if !self.processors.pause(STILL_MAX) {
            self.processors.resume();
            let message = format!("the VM's processors did not stop within {} s", STILL_MAX.as_secs());
            let next = "the host is overloaded: try again; the VM goes on";
            return Err(ApiError::new(ErrorCode::TimedOut, message, next));
        }
        self.not_ended()?;
        self.machine.pci().hold(true);
        self.devices_hold()?;
        if was_running {
            info!("paused");
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), ApiError> {
        self.not_ended()?;
        if self.processors.is_paused() {
            self.machine.pci().hold(false);
            self.processors.resume();
            info!("goes on");
        }
        Ok(())
    }

    fn press_power_button(&self) -> Result<(), ApiError> {
        self.not_ended()?;
        self.machine.press_power_button();
        Ok(())
    }

    fn reset(&self) -> Result<(), ApiError> {
        self.not_ended()?;
        self.machine.stop(StopReason::Reset);
        Ok(())
    }

    fn stop(&self) -> Result<(), ApiError> {
        self.not_ended()?;
        self.machine.stop(StopReason::Unplugged);
        Ok(())
    }

    fn set_balloon(&self, wanted: BalloonRequest) -> Result<(), ApiError> {
        self.not_ended()?;
        let Some(balloon) = self.machine.balloon() else {
            return Err(no_device("balloon", "start it with --balloon"));
        };
        balloon.set_target(wanted.target_bytes).map_err(|error| {
            ApiError::new(ErrorCode::BadSize, error.to_string(), "leave the guest some memory to live in")
        })
    }

    fn devices_state(&self) -> Result<Vec<u8>, ApiError> {
        self.not_ended()?;
        if !self.processors.is_paused() {
            let message = "the VM runs, and its devices' state is changing";
            return Err(ApiError::new(ErrorCode::NotPaused, message, "pause it first (PUT /v1/pause)"));
        }
        serde_json::to_vec(&self.machine.save()).map_err(|error| {
            let next = "this is a fault of the monitor: report it";
            ApiError::new(ErrorCode::Internal, format!("writing the devices' state: {error}"), next)
        })
    }
}
