//! All processors of a VM that runs: pausing, going on, and the end.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::warn;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::KvmError;
use super::gate::{Gate, Wanted};
use super::processor::{Processor, prepare_signal};
use crate::config::VmConfig;
use crate::machine::{Machine, lock};
use crate::threads::{ThreadKind, Threads};

/// Between two attempts to bring a processor out of the guest.
const NUDGE_EVERY: Duration = Duration::from_millis(1);

/// The processors' threads.
#[derive(Debug)]
pub struct Processors {
    gate: Arc<Gate>,
    count: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Processors {
    /// Starts them all; if one can't be, those that run are stopped.
    pub fn start(
        made: Vec<Processor>,
        config: &VmConfig,
        machine: &Arc<Machine>,
        threads: &Threads,
    ) -> Result<Self, KvmError> {
        prepare_signal()?;
        let all = Self { gate: Arc::new(Gate::new()), count: made.len(), threads: Mutex::default() };
        for processor in made {
            let index = processor.index();
            let (gate, machine) = (Arc::clone(&all.gate), Arc::clone(machine));
            let cpus = config.affinity_of(index).map(|list| Arc::new(list.to_set()));
            let body = move || {
                // Also when it panics: who pauses must not wait for it.
                let leave = Leave(gate);
                if let Some(reason) = processor.run(&machine, &leave.0) {
                    machine.stop(reason);
                }
            };
            match threads.spawn(ThreadKind::Processor, format!("cpu{index}"), cpus, body) {
                Ok(thread) => lock(&all.threads).push(thread),
                Err(error) => {
                    all.stop();
                    return Err(KvmError::system("starting a processor's thread")(error));
                }
            }
        }
        Ok(all)
    }

    /// Stops them until [`Self::resume`]; whether all have stopped in time. Those that have not will.
    pub fn pause(&self, patience: Duration) -> bool {
        self.gate.order(Wanted::Pause);
        let until = Instant::now() + patience;
        while self.gate.stopped(NUDGE_EVERY, self.count) < self.count {
            if Instant::now() >= until {
                return false;
            }
            self.nudge();
        }
        true
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.gate.order(Wanted::Run);
    }

    /// Whether they are to pause.
    pub fn is_paused(&self) -> bool {
        self.gate.wanted() == Wanted::Pause
    }

    /// Ends them all, and waits for that.
    pub fn stop(&self) {
        self.gate.order(Wanted::Stop);
        // Each is nudged each time, also behind one that has not ended yet.
        while self.nudge() > 0 {
            std::thread::sleep(NUDGE_EVERY);
        }
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                warn!("a processor's thread panicked");
            }
        }
    }

    /// Brings those out of the guest that are there; how many threads have not ended.
    fn nudge(&self) -> usize {
        let threads = lock(&self.threads);
        let running = threads.iter().filter(|thread| !thread.is_finished());
        running
            .map(|thread| {
                // It may end at this moment: then there is nobody to tell.
                let _ = thread.kill(SIGRTMIN());
            })
            .count()
    }
}

struct Leave(Arc<Gate>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.leave();
    }
}
