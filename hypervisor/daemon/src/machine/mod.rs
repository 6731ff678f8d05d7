//! One VM of this host: a task that owns its [`Life`], does what that decides, and watches its process.
//!
//! ```text
//!   API, directory ──Request──► Machine ──Action──► launch, back end, kill
//!                                 │  ▲ Event            │
//!             Snapshot ◄──────────┘  └──────────────────┴── pidfd, timer
//! ```
//!
//! One thing is done at a time: while a VM is being started, what else is asked of it waits.
//!
//! **Restarts of this daemon.** A VM's process is not ours to keep alive: it has a parent of its own ([`crate::keep`]) and a group of
//! its own. What is held is written down ([`record`]), and a daemon that starts takes up each VM as it finds it: runs, stands
//! still, or has gone. Something that could not be given back is tried again until it is.
//!
//! What it must not know: HTTP, the directory, other hosts.

pub mod claims;
mod handle;
mod launch;
mod named;
pub mod process;
pub mod record;
mod services;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferro_protocol::api::vm::{ExitCause, ExitReport, VmName, VmPower, VmState, VmStatus, VmmProcess};
use ferro_protocol::api::{ApiError, ErrorClass, ErrorCode};
use ferro_protocol::net::NetName;
use ferro_protocol::time::Instant;
use hypervisor_core::documents::Verb;
use hypervisor_core::life::{Action, Event, Found, Incarnation, Life, OrderId, Refusal};
use hypervisor_core::spec::check;
use tokio::sync::{mpsc, watch};

pub use self::handle::{Asker, MachineHandle, Request, Snapshot};
use self::launch::Launch;
pub(crate) use self::launch::tail;
use self::process::Handle;
use self::record::Record;
pub use self::services::{Services, Whose};
use crate::keep;
use crate::plane::fail;

/// Requests that wait for a VM.
const REQUESTS_MAX: usize = 64;
/// What could not be given back is tried again so often.
const LEFTOVERS_EVERY: Duration = Duration::from_secs(3);

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The monotonic clock.
fn now() -> Instant {
    static ORIGIN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    // Far from zero, so that what was an hour before the start has a time too.
    const BEGIN: Duration = Duration::from_secs(1 << 20);
    let elapsed = ORIGIN.get_or_init(std::time::Instant::now).elapsed();
    Instant(0) + BEGIN + elapsed
}

/// What a vmm is told.
enum Word {
    PressButton,
    Pause,
    Resume,
}

/// Returns when the process has ended; never without one.
async fn end_of(process: Option<&Handle>) -> std::io::Result<()> {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

struct Machine {
    services: Arc<Services>,
    name: VmName,
    record: Record,
    life: Life,
    requests: mpsc::Receiver<Request>,
    snapshot: watch::Sender<Snapshot>,
    changed: mpsc::Sender<()>,
    askers: BTreeMap<OrderId, Asker>,
    next_order: u64,
    /// The last order out of the directory that was taken; its end may be yet to come.
    taken: u64,
    /// The vmm and the process beside it, while they are watched.
    watched: Option<(Handle, Option<Handle>)>,
    child: Option<Child>,
    problems: Vec<ApiError>,
    /// Switch ports that were made for it elsewhere.
    inherits: Vec<NetName>,
    since: (VmState, u64),
    /// What is held belongs to the present run.
    holding: bool,
    /// Why the vmm is about to be killed.
    doom: Option<ExitCause>,
}

/// Begins with a VM as it was left. `changed` hears whenever its snapshot is another.
pub async fn start(
    services: Arc<Services>,
    name: VmName,
    record: Record,
    changed: mpsc::Sender<()>,
) -> MachineHandle {
    let (requests_in, requests) = mpsc::channel(REQUESTS_MAX);
    let (found, watched) = find(&services, &name, &record).await;
    let gone = found == Found::Gone;
    let holding = gone || watched.is_some();
    let restarts: Vec<Instant> = record
        .restarts_unix_s
        .iter()
        .map(|at| now() - Duration::from_secs(unix_s().saturating_sub(*at)))
        .collect();
    let life = Life::new(found, record.spec.restart, Incarnation(record.incarnation), restarts);
    let since = (life.state(), unix_s());
    let record_order = record.order;
    let first = snapshot(&life, &record, &[], since);
    let (snapshot, snapshot_out) = watch::channel(first);
    let machine = Machine {
        services,
        name,
        record,
        life,
        requests,
        snapshot,
        changed,
        askers: BTreeMap::new(),
        next_order: 1,
        taken: record_order,
        watched,
        child: None,
        problems: Vec::new(),
        inherits: Vec::new(),
        since,
        holding,
        doom: None,
    };
    tokio::spawn(machine.run(gone));
    MachineHandle { requests: requests_in, snapshot: snapshot_out }
}

/// What is there of a VM that was written down.
async fn find(
    services: &Services,
    name: &VmName,
    record: &Record,
) -> (Found, Option<(Handle, Option<Handle>)>) {
    if let Ok(vm) = check(&record.spec)
        && !record.held.is_empty()
    {
        services.claims.adopt(&vm, record.kind, record.held.group.clone());
    }
    let held = record.held.processes;
    let vmm = held.and_then(|held| held.vmm.open().ok().flatten());
    match vmm {
        Some(vmm) if record.launched => {
            let keeper = held.and_then(|held| held.keeper.open().ok().flatten());
            let paused = match (services.backends.of(record.kind), services.paths(name)) {
                (Some(backend), Ok(paths)) => backend.state(&paths).await.is_ok_and(|state| state.paused),
                _ => record.wanted == VmPower::Paused,
            };
            tracing::info!(vm = %name, paused, "a VM that runs is taken up again");
            (if paused { Found::Paused } else { Found::Running }, Some((vmm, keeper)))
        }
        // It was being started when we ended: what it holds is given back.
        Some(_) => (Found::Off, None),
        None if record.launched => (Found::Gone, None),
        None => match &record.failure {
            Some(error) if record.wanted != VmPower::Off => (Found::Failed(error.clone()), None),
            _ => (Found::Off, None),
        },
    }
}

fn snapshot(life: &Life, record: &Record, problems: &[ApiError], since: (VmState, u64)) -> Snapshot {
    let state = life.state();
    let running = matches!(state, VmState::Running | VmState::Paused | VmState::Stopping);
    let process = record.held.processes.filter(|_| running).map(|processes| VmmProcess {
        kind: record.kind,
        why: record.kind_why.clone(),
        pid: processes.vmm.pid,
    });
    let detail = match (life.failure(), problems) {
        (Some(error), _) => Some(error.to_string()),
        (None, []) => None,
        (None, problems) => {
            let all: Vec<&str> = problems.iter().map(|error| error.message.as_str()).collect();
            Some(format!("not given back yet, and tried again: {}", all.join("; ")))
        }
    };
    let status = VmStatus {
        state,
        incarnation: life.incarnation().0,
        epoch: record.epoch.filter(|_| state.is_active()),
        process,
        since_unix_s: since.1,
        detail,
        last_exit: record.last_exit.clone(),
        restarts: u32::try_from(life.restarts(now()).count()).unwrap_or(u32::MAX),
    };
    Snapshot {
        status,
        wanted: life.wanted(),
        spec: record.spec.clone(),
        ports: record.held.ports.iter().filter(|port| port.made).map(|port| port.name.clone()).collect(),
        order: record.order,
        refused: record.refused.clone(),
        leftovers: !record.held.is_empty() && !state.is_active(),
    }
}

enum Next {
    Asked(Option<Request>),
    Ended,
    Tick,
    Leftovers,
}

impl Machine {
    async fn run(mut self, gone: bool) {
        if gone {
            self.vmm_ended().await;
        }
        loop {
            let next = self.next().await;
            match next {
                Next::Asked(None) => return,
                Next::Asked(Some(Request::Forget(answer))) => {
                    let forgotten = self.forget();
                    // Whoever asked may have gone.
                    let _told = answer.send(forgotten);
                    if forgotten {
                        return;
                    }
                }
                Next::Asked(Some(request)) => self.asked(request).await,
                Next::Ended => self.vmm_ended().await,
                Next::Tick => self.handle(Event::Tick).await,
                Next::Leftovers => {
                    self.problems = self.launch().release().await;
                    self.publish();
                }
            }
        }
    }

    async fn next(&mut self) -> Next {
        // It ended before it could be watched.
        if self.record.launched && self.watched.is_none() {
            return Next::Ended;
        }
        let leftovers = !self.record.held.is_empty() && !self.life.state().is_active();
        let tick = self.life.wakes_at().map(|at| at.since(now()));
        let watched = self.watched.as_ref().map(|(vmm, _)| vmm);
        tokio::select! {
            request = self.requests.recv() => Next::Asked(request),
            result = end_of(watched) => {
                if let Err(error) = result {
                    tracing::error!(vm = %self.name, %error, "its process can't be watched");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Next::Ended
            }
            () = tokio::time::sleep(tick.unwrap_or(Duration::MAX)), if tick.is_some() => Next::Tick,
            () = tokio::time::sleep(LEFTOVERS_EVERY), if leftovers => Next::Leftovers,
        }
    }

    fn launch(&mut self) -> Launch<'_> {
        Launch {
            services: &self.services,
            name: &self.name,
            record: &mut self.record,
            holding: self.holding,
            inherits: &self.inherits,
        }
    }

    async fn asked(&mut self, request: Request) {
        match request {
            Request::Do { verb, spec, inherits, asker } => {
                if let Asker::Directory(order) = asker {
                    if order <= self.taken {
                        return;
                    }
                    self.taken = order;
                }
                self.life.set_policy(spec.restart);
                if verb == Verb::Start && !self.life.state().is_active() {
                    self.record.spec = *spec;
                    self.inherits = inherits;
                }
                let id = OrderId(self.next_order);
                self.next_order += 1;
                self.askers.insert(id, asker);
                self.handle(Event::Ordered(id, verb)).await;
            }
            Request::Lost(why) => {
                tracing::error!(vm = %self.name, why, "this VM is not ours any more and is ended");
                self.doom = Some(ExitCause::LockLost);
                let message = format!("VM {} was ended here: {why}", self.name);
                let error =
                    ApiError::new(ErrorCode::VmElsewhere, message, "see `vmctl list` for where it is");
                self.handle(Event::LockLost(error)).await;
            }
            Request::Epoch(epoch) => {
                if self.record.epoch != Some(epoch) {
                    self.record.epoch = Some(epoch);
                    self.save();
                    self.publish();
                }
            }
            Request::Forget(_) => {}
        }
    }

    /// Takes what happened, and does what follows from it until nothing more does.
    async fn handle(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let actions = self.life.handle(now(), event);
            // What is about to be done takes time: it is seen before.
            self.publish();
            for action in actions {
                events.extend(self.perform(action).await);
            }
        }
        self.save();
        self.publish();
    }

    async fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Launch(of) => Some(self.perform_launch(of).await),
            Action::PressButton(of) => Some(Event::Pressed(of, self.tell(Word::PressButton).await)),
            Action::Pause(of) => Some(Event::Paused(of, self.tell(Word::Pause).await)),
            Action::Resume(of) => Some(Event::Resumed(of, self.tell(Word::Resume).await)),
            Action::Kill(_) => {
                self.doom.get_or_insert(ExitCause::Killed);
                if let Some((vmm, _)) = &self.watched
                    && let Err(error) = vmm.kill()
                {
                    tracing::error!(vm = %self.name, %error, "its vmm can't be killed");
                }
                None
            }
            Action::KeepLogs => {
                self.keep_logs();
                None
            }
            Action::Release => {
                self.holding = false;
                self.problems = self.launch().release().await;
                for problem in &self.problems {
                    tracing::warn!(vm = %self.name, error = %problem, "not given back yet");
                }
                Some(Event::Released)
            }
            Action::Answer(id, result) => {
                self.answer(id, result);
                None
            }
        }
    }

    async fn perform_launch(&mut self, of: Incarnation) -> Event {
        self.record.incarnation = of.0;
        // What was about to be killed before is not this run.
        self.doom = None;
        let began = tokio::time::Instant::now();
        let launched = self.launch().run().await;
        self.holding = launched.is_ok();
        match launched {
            Ok(child) => {
                self.child = Some(child);
                self.problems.clear();
                self.watch_processes();
                tracing::info!(
                    vm = %self.name, incarnation = of.0, kind = ?self.record.kind,
                    milliseconds = began.elapsed().as_millis() as u64, "a VM runs"
                );
                Event::Launched(of)
            }
            Err(error) => {
                tracing::warn!(vm = %self.name, error = %error, "a VM could not be started");
                let transient = matches!(error.code.class(), ErrorClass::Unavailable | ErrorClass::TimedOut);
                Event::LaunchFailed { incarnation: of, error, transient }
            }
        }
    }

    fn watch_processes(&mut self) {
        let held = self.record.held.processes;
        let vmm = held.and_then(|held| held.vmm.open().ok().flatten());
        let keeper = held.and_then(|held| held.keeper.open().ok().flatten());
        // One that has ended already: the process beside it is what is waited for.
        self.watched = match (vmm, keeper) {
            (Some(vmm), keeper) => Some((vmm, keeper)),
            (None, Some(keeper)) => Some((keeper, None)),
            (None, None) => None,
        };
        if self.watched.is_none() {
            tracing::warn!(vm = %self.name, "its vmm ended as soon as it had begun");
        }
    }

    /// The vmm has ended: waits until it is written down how, and takes that.
    async fn vmm_ended(&mut self) {
        if let Some((_, Some(keeper))) = self.watched.take() {
            // It has nothing to do but to write that down.
            let _in_time = tokio::time::timeout(Duration::from_secs(5), keeper.ended()).await;
        }
        if let Some(mut child) = self.child.take() {
            // Ended already, or about to: nobody waits for long.
            let waited = tokio::task::spawn_blocking(move || child.wait()).await;
            if let Ok(Err(error)) = waited {
                tracing::warn!(vm = %self.name, %error, "the process beside its vmm can't be waited for");
            }
        }
        self.record.held.processes = None;
        self.record.launched = false;
        let (mut cause, mut words) = self.cause();
        if let (Some(doom), ExitCause::Died) = (self.doom.take(), cause) {
            cause = doom;
            words = match doom {
                ExitCause::LockLost => "it was ended because this host lost its disk's lock".to_owned(),
                _ => "it was ended as somebody asked".to_owned(),
            };
        }
        let detail = format!("VM {}: {words}", self.name);
        tracing::info!(vm = %self.name, ?cause, words, "a vmm has ended");
        let log_kept = hypervisor_core::life::is_failure(cause);
        self.record.last_exit = Some(ExitReport { cause, detail: words, at_unix_s: unix_s(), log_kept });
        self.save();
        let next = format!("see `vmctl logs --previous {}` for what its console said", self.name);
        let error = ApiError::new(ErrorCode::VmmFailed, detail, next);
        self.handle(Event::Exited(self.life.incarnation(), cause, error)).await;
    }

    fn cause(&self) -> (ExitCause, String) {
        let Ok(paths) = self.services.paths(&self.name) else {
            return (ExitCause::Died, "its files can't be found any more".to_owned());
        };
        let ended = keep::read_end(Path::new(&paths.exit()));
        match self.services.backends.of(self.record.kind) {
            Some(backend) => backend.cause(&paths, ended),
            None => (ExitCause::Died, "it ran under QEMU, which this hypervisord does not have".to_owned()),
        }
    }

    async fn tell(&self, what: Word) -> Result<(), ApiError> {
        let paths = self.services.paths(&self.name)?;
        let Some(backend) = self.services.backends.of(self.record.kind) else {
            return Err(fail::internal("speaking to the vmm", "there is no back end of its kind"));
        };
        match what {
            Word::PressButton => backend.power_button(&paths).await,
            Word::Pause => backend.pause(&paths).await,
            Word::Resume => backend.resume(&paths).await,
        }
    }

    fn answer(&mut self, id: OrderId, result: Result<(), Refusal>) {
        let result = result.map_err(|refusal| fail::refusal(&self.name, refusal));
        match self.askers.remove(&id) {
            Some(Asker::Here(answer)) => {
                // Whoever asked may have gone.
                let _told = answer.send(result);
            }
            Some(Asker::Directory(order)) => {
                self.record.order = self.record.order.max(order);
                self.record.refused = result.err();
            }
            None => {}
        }
    }

    /// The logs of a run that failed, for the report: those of the next begin anew.
    fn keep_logs(&self) {
        let Ok(paths) = self.services.paths(&self.name) else { return };
        let (log, previous) = (paths.console_log(), paths.previous_log());
        let pairs = [
            (log.clone(), previous.clone()),
            (format!("{log}.1"), format!("{previous}.1")),
            (paths.vmm_log(), paths.previous_vmm_log()),
        ];
        for (from, to) in pairs {
            // The older half belongs to the newer: without one, there must be none.
            let moved = if Path::new(&from).exists() { fs::rename(&from, &to) } else { fs::remove_file(&to) };
            match moved {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(vm = %self.name, %error, file = from, "a log can't be kept");
                }
                _ => {}
            }
        }
    }

    fn forget(&mut self) -> bool {
        if self.life.state().is_active() || !self.record.held.is_empty() {
            return false;
        }
        if let Ok(paths) = self.services.paths(&self.name)
            && let Err(error) = fs::remove_dir_all(&paths.kept)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(vm = %self.name, %error, "its logs could not be removed");
        }
        match record::remove(&self.services.config.state_dir, &self.name) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(vm = %self.name, %error, "it can't be forgotten yet");
                false
            }
        }
    }

    fn save(&mut self) {
        let now = now();
        self.record.wanted = self.life.wanted();
        self.record.incarnation = self.life.incarnation().0;
        self.record.failure = self.life.failure().cloned();
        self.record.restarts_unix_s =
            self.life.restarts(now).map(|at| unix_s().saturating_sub(now.since(at).as_secs())).collect();
        if let Err(error) = self.record.save(&self.services.config.state_dir, &self.name) {
            tracing::error!(vm = %self.name, %error, "its state could not be written down");
        }
    }

    fn publish(&mut self) {
        let state = self.life.state();
        if self.since.0 != state {
            self.since = (state, unix_s());
        }
        let new = snapshot(&self.life, &self.record, &self.problems, self.since);
        let changed = self.snapshot.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
        if changed {
            // A full queue has heard of it already.
            let _heard = self.changed.try_send(());
        }
    }
}
