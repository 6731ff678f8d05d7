//! The life of a VM on the host that has it.
//!
//! ```text
//!                 start                     launched
//!   ┌───────► Off ───────► Starting ───────────────────► Running ◄──────► Paused
//!   │          ▲              ▲  │ launch failed          │ │ │   pause      │
//!   │          │        again │  ▼                        │ │ │   resume     │
//!   │          │           Crashed ◄──── died, panicked ──┘ │ └── stop ──► Stopping
//!   │          │              │ too often                   │                │ time is up, force
//!   │          │              ▼                             ▼ kill, reset    ▼
//!   │ released └───────── Releasing ◄──────────────────── Ending ◄───────────┘
//!   │                         │                              │ reset
//!   │                         ▼                              └──────► Starting
//!   └──── start ────────── Failed
//! ```
//!
//! An order ([`Verb`]) comes with a number and is answered once, when what was asked for is so or can't be
//! ([`Action::Answer`]). What the driver does takes time; it says when it is done, with the incarnation that it did it for, and
//! what is about another incarnation than the present one is not looked at.
//!
//! *Resources* (disks' locks, ports, group) belong to a VM from the launch that took them until [`Action::Release`]; a restart
//! and a reset keep them. A launch that fails has given back what it took and what it had: the driver undoes it all.
//!
//! *Who switches it off?* A guest that switches itself off stays off. A vmm that died, a guest that panicked: by the policy, at
//! most [`RESTARTS_PER_HOUR`] times within an hour, each after a longer pause; then the VM has failed and waits for somebody.
//! A start that fails for want of the directory or another daemon (after a power cut everything starts at once) is
//! tried again without being counted.
//!
//! What it must not know: processes, sockets, the directory. Time is an argument; words for people are made elsewhere.

mod messages;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::spec::{RESTARTS_PER_HOUR, RestartSpec};
use ferro_protocol::api::vm::{ExitCause, VmPower, VmState};
use ferro_protocol::time::Instant;

use crate::documents::Verb;
pub use messages::{Action, Event, Found, Incarnation, OrderId, Refusal};

/// Restarts within this time are counted.
pub const RESTARTS_SPAN: Duration = Duration::from_secs(3600);
/// The pause before the first restart; each further one within an hour is twice as long.
pub const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// The pause before another attempt when another daemon was not there.
pub const UNAVAILABLE_PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum After {
    Off,
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    Ordered,
    Reset,
    Restart,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Release(After),
    Relaunch,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Off,
    Failed,
    /// A launch is under way. `abort`: what is to become of the VM instead.
    Starting {
        attempt: Attempt,
        abort: Option<After>,
    },
    /// `changing`: a pause is under way.
    Running {
        changing: bool,
    },
    /// `changing`: a resumption is under way.
    Paused {
        changing: bool,
    },
    Stopping {
        until: Instant,
        force: bool,
    },
    /// The vmm was killed and has not ended yet.
    Ending {
        then: Then,
    },
    Releasing {
        then: After,
    },
    /// Nothing runs; it is launched again then. The resources are held, or the last launch gave them back.
    Crashed {
        again: Instant,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    Running(Incarnation),
    Paused,
    Off,
}

/// The life of a VM on this host.
#[derive(Clone, PartialEq, Debug)]
pub struct Life {
    phase: Phase,
    wanted: VmPower,
    policy: RestartSpec,
    incarnation: Incarnation,
    restarts: VecDeque<Instant>,
    pending: Vec<(OrderId, Goal)>,
    failure: Option<ApiError>,
}

impl Life {
    /// A VM as it was found, begun so many times, with the restarts of the last hour.
    pub fn new(
        found: Found,
        policy: RestartSpec,
        incarnation: Incarnation,
        restarts: impl IntoIterator<Item = Instant>,
    ) -> Self {
        let (phase, wanted, failure) = match found {
            Found::Off => (Phase::Off, VmPower::Off, None),
            Found::Failed(error) => (Phase::Failed, VmPower::On, Some(error)),
            Found::Running | Found::Gone => (Phase::Running { changing: false }, VmPower::On, None),
            Found::Paused => (Phase::Paused { changing: false }, VmPower::Paused, None),
        };
        let restarts = restarts.into_iter().collect();
        Self { phase, wanted, policy, incarnation, restarts, pending: Vec::new(), failure }
    }

    /// What it does, for people.
    pub fn state(&self) -> VmState {
        match self.phase {
            Phase::Off => VmState::Off,
            Phase::Failed => VmState::Failed,
            Phase::Starting { .. } | Phase::Ending { then: Then::Relaunch } => VmState::Starting,
            Phase::Running { .. } => VmState::Running,
            Phase::Paused { .. } => VmState::Paused,
            Phase::Stopping { .. } | Phase::Releasing { .. } | Phase::Ending { then: Then::Release(_) } => {
                VmState::Stopping
            }
            Phase::Crashed { .. } => VmState::Crashed,
        }
    }

    /// What it is meant to do.
    pub fn wanted(&self) -> VmPower {
        self.wanted
    }

    /// Which run it is.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<&ApiError> {
        self.failure.as_ref().filter(|_| matches!(self.phase, Phase::Failed | Phase::Crashed { .. }))
    }

    /// When it was started again by itself, within the last hour.
    pub fn restarts(&self, now: Instant) -> impl Iterator<Item = Instant> {
        self.restarts.iter().copied().filter(move |at| now.since(*at) < RESTARTS_SPAN)
    }

    /// When it wants to hear [`Event::Tick`].
    pub fn wakes_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Stopping { until, .. } => Some(until),
            Phase::Crashed { again } => Some(again),
            _ => None,
        }
    }

    /// The policy of the specification that holds now.
    pub fn set_policy(&mut self, policy: RestartSpec) {
        self.policy = policy;
    }

    /// Takes what happened and says what is to be done, in this order.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Ordered(id, verb) => self.ordered(now, id, verb, &mut actions),
            Event::Launched(of) if of == self.incarnation => self.launched(&mut actions),
            Event::LaunchFailed { incarnation, error, transient } if incarnation == self.incarnation => {
                self.launch_failed(now, error, transient, &mut actions);
            }
            Event::Exited(of, cause, error) if of == self.incarnation => {
                self.exited(now, cause, error, &mut actions);
            }
            Event::Paused(of, result) if of == self.incarnation => self.paused(result, &mut actions),
            Event::Resumed(of, result) if of == self.incarnation => self.resumed(result, &mut actions),
            Event::Pressed(of, Err(error)) if of == self.incarnation => {
                if matches!(self.phase, Phase::Stopping { .. }) {
                    self.stop_failed(Refusal::Failed(error), &mut actions);
                }
            }
            Event::Released => {
                if let Phase::Releasing { then } = self.phase {
                    self.phase = then.phase();
                }
            }
            Event::LockLost(error) => self.lock_lost(error, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Launched(_)
            | Event::LaunchFailed { .. }
            | Event::Exited(..)
            | Event::Paused(..)
            | Event::Resumed(..)
            | Event::Pressed(..) => {}
        }
        self.settle(&mut actions);
        actions
    }

    fn ordered(&mut self, now: Instant, id: OrderId, verb: Verb, actions: &mut Vec<Action>) {
        let accepted = match verb {
            Verb::Start => self.order_start(actions),
            Verb::Stop { timeout_s, force } => self.order_stop(now, timeout_s, force, actions),
            Verb::Kill => Ok(self.order_kill(actions)),
            Verb::Reset => self.order_reset(actions),
            Verb::Pause => self.order_pause(actions),
            Verb::Resume => self.order_resume(actions),
        };
        match accepted {
            Ok(goal) => self.pending.push((id, goal)),
            Err(refusal) => actions.push(Action::Answer(id, Err(refusal))),
        }
    }

    fn order_start(&mut self, actions: &mut Vec<Action>) -> Result<Goal, Refusal> {
        match self.phase {
            Phase::Off | Phase::Failed | Phase::Crashed { .. } => {
                // Who starts it has looked at it: what was counted before is forgotten.
                self.restarts.clear();
                self.wanted = VmPower::On;
                self.launch(Attempt::Ordered, actions);
            }
            Phase::Running { .. }
            | Phase::Starting { abort: None, .. }
            | Phase::Ending { then: Then::Relaunch } => {}
            _ => return Err(Refusal::NotOff(self.state())),
        }
        Ok(Goal::Running(self.incarnation))
    }

    fn order_stop(
        &mut self,
        now: Instant,
        timeout_s: u32,
        force: bool,
        actions: &mut Vec<Action>,
    ) -> Result<Goal, Refusal> {
        let until = now + Duration::from_secs(u64::from(timeout_s));
        match self.phase {
            Phase::Running { changing: false } | Phase::Stopping { .. } => {
                self.wanted = VmPower::Off;
                self.phase = Phase::Stopping { until, force };
                actions.push(Action::PressButton(self.incarnation));
            }
            // There is nobody who could hear the button.
            Phase::Off | Phase::Failed | Phase::Crashed { .. } | Phase::Releasing { .. } => {
                return Ok(self.order_kill(actions));
            }
            Phase::Ending { then: Then::Release(_) } => {}
            Phase::Starting { .. }
            | Phase::Running { changing: true }
            | Phase::Paused { .. }
            | Phase::Ending { then: Then::Relaunch } => {
                return Err(Refusal::NotRunning(self.state()));
            }
        }
        Ok(Goal::Off)
    }

    fn order_kill(&mut self, actions: &mut Vec<Action>) -> Goal {
        self.wanted = VmPower::Off;
        match &mut self.phase {
            Phase::Off => {}
            Phase::Failed => self.phase = Phase::Off,
            Phase::Starting { abort, .. } => *abort = Some(After::Off),
            Phase::Running { .. } | Phase::Paused { .. } | Phase::Stopping { .. } => {
                self.kill(Then::Release(After::Off), actions);
            }
            Phase::Ending { then } => *then = Then::Release(After::Off),
            Phase::Releasing { then } => *then = After::Off,
            Phase::Crashed { .. } => self.release(After::Off, actions),
        }
        Goal::Off
    }

    fn order_reset(&mut self, actions: &mut Vec<Action>) -> Result<Goal, Refusal> {
        match self.phase {
            Phase::Running { .. } | Phase::Paused { .. } => {
                self.wanted = VmPower::On;
                self.kill(Then::Relaunch, actions);
            }
            Phase::Ending { then: Then::Relaunch } => {}
            _ => return Err(Refusal::NotRunning(self.state())),
        }
        Ok(Goal::Running(Incarnation(self.incarnation.0 + 1)))
    }

    fn order_pause(&mut self, actions: &mut Vec<Action>) -> Result<Goal, Refusal> {
        match &mut self.phase {
            Phase::Running { changing } => {
                if !std::mem::replace(changing, true) {
                    actions.push(Action::Pause(self.incarnation));
                }
            }
            Phase::Paused { changing: false } => {}
            _ => return Err(Refusal::NotRunning(self.state())),
        }
        self.wanted = VmPower::Paused;
        Ok(Goal::Paused)
    }

    fn order_resume(&mut self, actions: &mut Vec<Action>) -> Result<Goal, Refusal> {
        match &mut self.phase {
            Phase::Paused { changing } => {
                if !std::mem::replace(changing, true) {
                    actions.push(Action::Resume(self.incarnation));
                }
            }
            Phase::Running { changing: false } => {}
            _ => return Err(Refusal::NotRunning(self.state())),
        }
        self.wanted = VmPower::On;
        Ok(Goal::Running(self.incarnation))
    }

    fn launched(&mut self, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Starting { abort: Some(after), .. } => self.kill(Then::Release(after), actions),
            Phase::Starting { abort: None, .. } => {
                self.failure = None;
                self.phase = Phase::Running { changing: false };
            }
            _ => {}
        }
    }

    fn launch_failed(&mut self, now: Instant, error: ApiError, transient: bool, actions: &mut Vec<Action>) {
        let Phase::Starting { attempt, abort } = self.phase else { return };
        if let Some(after) = abort {
            self.phase = after.phase();
            return;
        }
        self.failure = Some(error);
        match attempt {
            // Whoever asked is told, and nothing happens behind his back.
            Attempt::Ordered => {
                self.wanted = VmPower::Off;
                self.phase = Phase::Failed;
            }
            Attempt::Reset | Attempt::Restart if transient => {
                self.phase = Phase::Crashed { again: now + UNAVAILABLE_PAUSE };
            }
            Attempt::Reset | Attempt::Restart => self.again_or_fail(now, actions),
        }
    }

    fn exited(&mut self, now: Instant, cause: ExitCause, error: ApiError, actions: &mut Vec<Action>) {
        if is_failure(cause) && !matches!(self.phase, Phase::Ending { .. }) {
            self.failure = Some(error);
            actions.push(Action::KeepLogs);
        }
        match self.phase {
            Phase::Ending { then: Then::Relaunch } => self.launch(Attempt::Reset, actions),
            Phase::Ending { then: Then::Release(after) } => self.release(after, actions),
            Phase::Stopping { .. } => self.release(After::Off, actions),
            Phase::Running { .. } | Phase::Paused { .. } => match cause {
                ExitCause::Reset => {
                    self.wanted = VmPower::On;
                    self.launch(Attempt::Reset, actions);
                }
                _ if is_failure(cause) => self.again_or_fail(now, actions),
                _ => {
                    self.wanted = VmPower::Off;
                    self.release(After::Off, actions);
                }
            },
            _ => {}
        }
    }

    fn again_or_fail(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.restarts.retain(|at| now.since(*at) < RESTARTS_SPAN);
        let count = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        if self.policy == RestartSpec::Never || count >= RESTARTS_PER_HOUR {
            self.release(After::Failed, actions);
            return;
        }
        self.restarts.push_back(now);
        self.wanted = VmPower::On;
        self.phase = Phase::Crashed { again: now + RESTART_PAUSE * (1 << count) };
    }

    fn paused(&mut self, result: Result<(), ApiError>, actions: &mut Vec<Action>) {
        if self.phase != (Phase::Running { changing: true }) {
            return;
        }
        match result {
            Ok(()) => self.phase = Phase::Paused { changing: false },
            Err(error) => {
                self.phase = Phase::Running { changing: false };
                self.wanted = VmPower::On;
                self.refuse(|goal| goal == Goal::Paused, &Refusal::Failed(error), actions);
            }
        }
    }

    fn resumed(&mut self, result: Result<(), ApiError>, actions: &mut Vec<Action>) {
        if self.phase != (Phase::Paused { changing: true }) {
            return;
        }
        match result {
            Ok(()) => self.phase = Phase::Running { changing: false },
            Err(error) => {
                self.phase = Phase::Paused { changing: false };
                self.wanted = VmPower::Paused;
                self.refuse(|goal| goal != Goal::Off, &Refusal::Failed(error), actions);
            }
        }
    }

    fn lock_lost(&mut self, error: ApiError, actions: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Off | Phase::Failed) {
            self.failure = Some(error);
        }
        match &mut self.phase {
            Phase::Off | Phase::Failed => {}
            Phase::Starting { abort, .. } => *abort = Some(After::Failed),
            Phase::Running { .. } | Phase::Paused { .. } | Phase::Stopping { .. } => {
                self.kill(Then::Release(After::Failed), actions);
            }
            Phase::Ending { then } => *then = Then::Release(After::Failed),
            Phase::Releasing { then } => *then = After::Failed,
            Phase::Crashed { .. } => self.release(After::Failed, actions),
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Stopping { until, force } if now >= until => {
                if force {
                    self.kill(Then::Release(After::Off), actions);
                } else {
                    self.stop_failed(Refusal::TimedOut, actions);
                }
            }
            Phase::Crashed { again } if now >= again => self.launch(Attempt::Restart, actions),
            _ => {}
        }
    }

    /// The guest does not switch off: it goes on as if nobody had asked.
    fn stop_failed(&mut self, why: Refusal, actions: &mut Vec<Action>) {
        self.wanted = VmPower::On;
        self.phase = Phase::Running { changing: false };
        self.refuse(|goal| goal == Goal::Off, &why, actions);
    }

    fn launch(&mut self, attempt: Attempt, actions: &mut Vec<Action>) {
        self.incarnation.0 += 1;
        self.phase = Phase::Starting { attempt, abort: None };
        actions.push(Action::Launch(self.incarnation));
    }

    fn kill(&mut self, then: Then, actions: &mut Vec<Action>) {
        self.phase = Phase::Ending { then };
        actions.push(Action::Kill(self.incarnation));
    }

    fn release(&mut self, then: After, actions: &mut Vec<Action>) {
        self.phase = Phase::Releasing { then };
        actions.push(Action::Release);
    }

    fn refuse(&mut self, which: impl Fn(Goal) -> bool, why: &Refusal, actions: &mut Vec<Action>) {
        self.pending.retain(|(id, goal)| {
            let refused = which(*goal);
            if refused {
                actions.push(Action::Answer(*id, Err(why.clone())));
            }
            !refused
        });
    }

    /// Answers the orders whose goal is reached, or can't be any more.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        let (phase, incarnation) = (self.phase, self.incarnation);
        let failure = self.failure.clone();
        let verdict =
            |goal: Goal| match (phase, goal) {
                (Phase::Off | Phase::Failed, Goal::Off)
                | (Phase::Paused { changing: false }, Goal::Paused) => Some(Ok(())),
                (Phase::Off, _) => Some(Err(Refusal::WentOff)),
                (Phase::Failed, _) => Some(Err(failure.clone().map_or(Refusal::WentOff, Refusal::Failed))),
                // It did start; that somebody may have paused it then is another story.
                (
                    Phase::Running { changing: false } | Phase::Paused { changing: false },
                    Goal::Running(at),
                ) if incarnation >= at => Some(Ok(())),
                (Phase::Stopping { .. } | Phase::Ending { .. } | Phase::Starting { .. }, Goal::Paused) => {
                    Some(Err(Refusal::WentOff))
                }
                _ => None,
            };
        self.pending.retain(|(id, goal)| match verdict(*goal) {
            Some(answer) => {
                actions.push(Action::Answer(*id, answer));
                false
            }
            None => true,
        });
    }
}

impl After {
    fn phase(self) -> Phase {
        match self {
            Self::Off => Phase::Off,
            Self::Failed => Phase::Failed,
        }
    }
}

/// Whether a vmm that ended like this is one to be restarted.
pub const fn is_failure(cause: ExitCause) -> bool {
    matches!(
        cause,
        ExitCause::Panicked
            | ExitCause::CpuCrashed
            | ExitCause::KvmFailed
            | ExitCause::NotStarted
            | ExitCause::Died
    )
}
