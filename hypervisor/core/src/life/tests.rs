//! The life of a VM, told in orders and accidents; and a driver that does anything at any time, under which it keeps its rules.

use ferro_protocol::api::ErrorCode;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const STOP: Verb = Verb::Stop { timeout_s: 60, force: false };
const STOP_FORCE: Verb = Verb::Stop { timeout_s: 60, force: true };

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

fn error(code: ErrorCode) -> ApiError {
    ApiError::new(code, "it", "so")
}

fn died() -> ApiError {
    error(ErrorCode::VmmFailed)
}

fn off() -> Life {
    Life::new(Found::Off, RestartSpec::OnFailure, Incarnation(0), [])
}

fn order(life: &mut Life, now: u64, id: u64, verb: Verb) -> Vec<Action> {
    life.handle(at(now), Event::Ordered(OrderId(id), verb))
}

fn exit(life: &mut Life, now: u64, cause: ExitCause) -> Vec<Action> {
    let of = life.incarnation();
    life.handle(at(now), Event::Exited(of, cause, died()))
}

fn running() -> Life {
    let mut life = off();
    assert_eq!(order(&mut life, 0, 1, Verb::Start), [Action::Launch(Incarnation(1))]);
    let answered = life.handle(at(1), Event::Launched(Incarnation(1)));
    assert_eq!(answered, [Action::Answer(OrderId(1), Ok(()))]);
    life
}

fn ok(id: u64) -> Action {
    Action::Answer(OrderId(id), Ok(()))
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_why() {
    let mut life = off();
    order(&mut life, 0, 1, Verb::Start);
    let why = error(ErrorCode::NoCapacity);
    let failed = Event::LaunchFailed { incarnation: Incarnation(1), error: why.clone(), transient: true };
    let actions = life.handle(at(1), failed);
    assert_eq!(actions, [Action::Answer(OrderId(1), Err(Refusal::Failed(why.clone())))]);
    assert_eq!((life.state(), life.wanted(), life.failure()), (VmState::Failed, VmPower::Off, Some(&why)));
    // It can be tried again, or be forgotten.
    assert_eq!(order(&mut life, 2, 2, Verb::Kill), [ok(2)]);
    assert_eq!(life.state(), VmState::Off);
}

#[test]
fn a_guest_that_switches_off_stays_off() {
    let mut life = running();
    assert_eq!(exit(&mut life, 5, ExitCause::PoweredOff), [Action::Release]);
    assert_eq!(life.state(), VmState::Stopping);
    assert_eq!(life.handle(at(6), Event::Released), []);
    assert_eq!((life.state(), life.wanted()), (VmState::Off, VmPower::Off));
}

#[test]
fn a_reset_is_a_new_run_over_the_same_resources() {
    let mut life = running();
    assert_eq!(exit(&mut life, 5, ExitCause::Reset), [Action::Launch(Incarnation(2))]);
    life.handle(at(6), Event::Launched(Incarnation(2)));
    // Ordered, it is killed first; what is said of the old run counts no more.
    assert_eq!(order(&mut life, 7, 9, Verb::Reset), [Action::Kill(Incarnation(2))]);
    assert_eq!(exit(&mut life, 8, ExitCause::Died), [Action::Launch(Incarnation(3))]);
    assert_eq!(life.handle(at(8), Event::Launched(Incarnation(2))), []);
    assert_eq!(life.handle(at(9), Event::Launched(Incarnation(3))), [ok(9)]);
    assert_eq!(life.restarts(at(9)).count(), 0);
}

#[test]
fn three_restarts_an_hour_and_then_it_has_failed() {
    let mut life = running();
    for (n, pause) in [(1, 1), (2, 2), (3, 4)] {
        let now = n * 100;
        assert_eq!(exit(&mut life, now, ExitCause::Panicked), [Action::KeepLogs]);
        assert_eq!(life.state(), VmState::Crashed);
        assert_eq!(life.wakes_at(), Some(at(now + pause)));
        assert_eq!(life.handle(at(now) + SECOND / 2, Event::Tick), []);
        let again = Incarnation(1 + n);
        assert_eq!(life.handle(at(now + pause), Event::Tick), [Action::Launch(again)]);
        assert_eq!(life.handle(at(now + pause), Event::Launched(again)), []);
    }
    assert_eq!(exit(&mut life, 400, ExitCause::Died), [Action::KeepLogs, Action::Release]);
    life.handle(at(401), Event::Released);
    assert_eq!((life.state(), life.wanted()), (VmState::Failed, VmPower::On));
    assert_eq!(life.failure(), Some(&died()));
    // An hour later there is room again; and who starts it by hand begins at nought.
    let mut later = running();
    for now in [100, 200, 300, 3_701] {
        assert_eq!(exit(&mut later, now, ExitCause::Died)[..1], [Action::KeepLogs]);
        assert_eq!(later.state(), VmState::Crashed, "at {now}");
        let again = later.wakes_at().unwrap();
        later.handle(again, Event::Tick);
        let launched = Event::Launched(later.incarnation());
        later.handle(again, launched);
    }
}

#[test]
fn never_means_never() {
    let mut life = running();
    life.set_policy(RestartSpec::Never);
    assert_eq!(exit(&mut life, 5, ExitCause::Died), [Action::KeepLogs, Action::Release]);
    life.handle(at(6), Event::Released);
    assert_eq!(life.state(), VmState::Failed);
}

#[test]
fn a_restart_waits_for_the_other_daemons_without_being_counted() {
    let mut life = Life::new(Found::Gone, RestartSpec::OnFailure, Incarnation(4), []);
    exit(&mut life, 0, ExitCause::Died);
    for n in 0..20 {
        let again = life.wakes_at().unwrap();
        assert_eq!(life.handle(again, Event::Tick), [Action::Launch(Incarnation(5 + n))]);
        let error = error(ErrorCode::NoQuorum);
        let failed = Event::LaunchFailed { incarnation: Incarnation(5 + n), error, transient: true };
        assert_eq!(life.handle(again, failed), []);
        assert_eq!(life.state(), VmState::Crashed);
    }
    assert_eq!(life.restarts(at(60)).count(), 1);
}

#[test]
fn a_stop_is_answered_when_it_is_off_or_when_the_time_is_up() {
    let mut life = running();
    assert_eq!(order(&mut life, 10, 2, STOP), [Action::PressButton(Incarnation(1))]);
    assert_eq!(life.wakes_at(), Some(at(70)));
    assert_eq!(life.handle(at(70), Event::Tick), [Action::Answer(OrderId(2), Err(Refusal::TimedOut))]);
    assert_eq!((life.state(), life.wanted()), (VmState::Running, VmPower::On));
    order(&mut life, 80, 3, STOP);
    assert_eq!(exit(&mut life, 90, ExitCause::PoweredOff), [Action::Release]);
    assert_eq!(life.handle(at(91), Event::Released), [ok(3)]);
    // With force it is killed, and a guest that panics over the button is not started again.
    let mut life = running();
    order(&mut life, 10, 4, STOP_FORCE);
    assert_eq!(life.handle(at(70), Event::Tick), [Action::Kill(Incarnation(1))]);
    assert_eq!(exit(&mut life, 71, ExitCause::Died), [Action::Release]);
    assert_eq!(life.handle(at(72), Event::Released), [ok(4)]);
    let mut life = running();
    order(&mut life, 10, 5, STOP);
    assert_eq!(exit(&mut life, 11, ExitCause::Panicked), [Action::KeepLogs, Action::Release]);
}

#[test]
fn what_needs_a_running_vm_is_refused_by_others() {
    for verb in [Verb::Reset, Verb::Pause, Verb::Resume] {
        let refused = Action::Answer(OrderId(1), Err(Refusal::NotRunning(VmState::Off)));
        assert_eq!(order(&mut off(), 0, 1, verb), [refused]);
    }
    let mut life = running();
    assert_eq!(order(&mut life, 0, 2, Verb::Start), [ok(2)]);
    assert_eq!(order(&mut life, 0, 3, Verb::Pause), [Action::Pause(Incarnation(1))]);
    assert_eq!(
        order(&mut life, 0, 4, STOP),
        [Action::Answer(OrderId(4), Err(Refusal::NotRunning(VmState::Running)))]
    );
    assert_eq!(life.handle(at(1), Event::Paused(Incarnation(1), Ok(()))), [ok(3)]);
    assert_eq!(life.wanted(), VmPower::Paused);
    assert_eq!(order(&mut life, 1, 5, Verb::Resume), [Action::Resume(Incarnation(1))]);
    assert_eq!(life.handle(at(1), Event::Resumed(Incarnation(1), Ok(()))), [ok(5)]);
}

#[test]
fn a_lost_lock_kills_at_once_and_a_kill_ends_a_start() {
    let mut life = running();
    let lost = error(ErrorCode::VmElsewhere);
    assert_eq!(life.handle(at(5), Event::LockLost(lost.clone())), [Action::Kill(Incarnation(1))]);
    assert_eq!(exit(&mut life, 6, ExitCause::Died), [Action::Release]);
    life.handle(at(7), Event::Released);
    assert_eq!((life.state(), life.failure()), (VmState::Failed, Some(&lost)));
    let mut life = off();
    order(&mut life, 0, 1, Verb::Start);
    assert_eq!(order(&mut life, 1, 2, Verb::Kill), []);
    assert_eq!(life.handle(at(2), Event::Launched(Incarnation(1))), [Action::Kill(Incarnation(1))]);
    exit(&mut life, 3, ExitCause::Died);
    let answers = life.handle(at(4), Event::Released);
    assert_eq!(answers, [Action::Answer(OrderId(1), Err(Refusal::WentOff)), ok(2)]);
}

/// A driver: what it was told to do is under way until it says that it is done.
#[derive(Default)]
struct Driver {
    launching: Option<Incarnation>,
    alive: Option<Incarnation>,
    doomed: bool,
    releasing: bool,
    pausing: Option<Incarnation>,
    resuming: Option<Incarnation>,
    held: bool,
    asked: std::collections::BTreeSet<u64>,
}

impl Driver {
    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Launch(of) => {
                    assert!(
                        self.launching.is_none() && self.alive.is_none() && !self.releasing,
                        "two at once"
                    );
                    self.launching = Some(of);
                }
                Action::Kill(of) => {
                    assert_eq!(self.alive, Some(of), "nothing to kill");
                    self.doomed = true;
                }
                Action::Release => {
                    assert!(self.launching.is_none() && self.alive.is_none() && !self.releasing);
                    self.releasing = true;
                }
                Action::Pause(of) => {
                    assert_eq!(self.alive, Some(of));
                    assert!(self.pausing.replace(of).is_none());
                }
                Action::Resume(of) => {
                    assert_eq!(self.alive, Some(of));
                    assert!(self.resuming.replace(of).is_none());
                }
                Action::PressButton(of) => assert_eq!(self.alive, Some(of)),
                Action::KeepLogs => assert!(self.alive.is_none()),
                Action::Answer(id, _) => assert!(self.asked.remove(&id.0), "answered twice"),
            }
        }
    }

    /// Something that can happen now, chosen by `pick`.
    fn event(&mut self, pick: u8, kind: u8) -> Option<Event> {
        let causes = [ExitCause::PoweredOff, ExitCause::Reset, ExitCause::Panicked, ExitCause::Died];
        if let Some(of) = self.launching {
            self.launching = None;
            if kind.is_multiple_of(3) {
                self.held = false;
                let (error, transient) = (error(ErrorCode::Unavailable), pick.is_multiple_of(2));
                return Some(Event::LaunchFailed { incarnation: of, error, transient });
            }
            (self.alive, self.held, self.doomed) = (Some(of), true, false);
            return Some(Event::Launched(of));
        }
        if let Some(of) = self.pausing.take() {
            return Some(Event::Paused(of, if kind.is_multiple_of(4) { Err(died()) } else { Ok(()) }));
        }
        if let Some(of) = self.resuming.take() {
            return Some(Event::Resumed(of, if kind.is_multiple_of(4) { Err(died()) } else { Ok(()) }));
        }
        if self.releasing {
            (self.releasing, self.held) = (false, false);
            return Some(Event::Released);
        }
        if let Some(of) = self.alive.filter(|_| self.doomed || kind.is_multiple_of(2)) {
            let cause =
                if self.doomed { ExitCause::Killed } else { causes[usize::from(pick) % causes.len()] };
            self.alive = None;
            return Some(Event::Exited(of, cause, died()));
        }
        None
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(
        steps in proptest::collection::vec((0u8..12, any::<u8>(), 0u64..400), 1..120),
        never in any::<bool>(),
    ) {
        let policy = if never { RestartSpec::Never } else { RestartSpec::OnFailure };
        let (mut life, mut driver) = (Life::new(Found::Off, policy, Incarnation(0), []), Driver::default());
        let (mut now, mut next_id) = (at(1), 0);
        for (what, kind, pause) in steps {
            now = now + SECOND * u32::try_from(pause).unwrap();
            let verb = match what {
                0 => Some(Verb::Start),
                1 => Some(STOP),
                2 => Some(STOP_FORCE),
                3 => Some(Verb::Kill),
                4 => Some(Verb::Reset),
                5 => Some(Verb::Pause),
                6 => Some(Verb::Resume),
                _ => None,
            };
            let event = match (verb, what) {
                (Some(verb), _) => {
                    next_id += 1;
                    driver.asked.insert(next_id);
                    Some(Event::Ordered(OrderId(next_id), verb))
                }
                (None, 7) => Some(Event::Tick),
                (None, 8) if kind < 16 => Some(Event::LockLost(died())),
                _ => driver.event(what, kind),
            };
            if let Some(event) = event {
                let lost = matches!(event, Event::LockLost(_));
                driver.take(life.handle(now, event));
                prop_assert!(!lost || driver.alive.is_none() || driver.doomed, "it lost its lock and lives");
            }
            prop_assert!(life.restarts(now).count() <= RESTARTS_PER_HOUR as usize);
            match life.state() {
                VmState::Off | VmState::Failed => {
                    prop_assert!(driver.alive.is_none() && driver.launching.is_none() && !driver.held);
                }
                VmState::Running | VmState::Paused => prop_assert_eq!(driver.alive, Some(life.incarnation())),
                _ => {}
            }
        }
        // Killed and left alone, it goes off, and everybody has been answered.
        next_id += 1;
        driver.asked.insert(next_id);
        driver.take(life.handle(now, Event::Ordered(OrderId(next_id), Verb::Kill)));
        for _ in 0..20 {
            if let Some(event) = driver.event(1, 1) {
                driver.take(life.handle(now, event));
            }
        }
        prop_assert_eq!(life.state(), VmState::Off);
        prop_assert!(driver.asked.is_empty(), "nobody answered {:?}", driver.asked);
    }
}
