//! What ties the daemon to one QEMU that runs: its control socket, its console, and what its events say of its end, written down
//! so that a daemon that comes later can read it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hypervisor_core::command::vmm::CONSOLE_LOG_BYTES;
use hypervisor_core::paths::Paths;
use serde_json::Value;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;

use super::console::{Console, Places};
use super::qmp::{Event, Qmp, QmpError};

/// The guest has reset its machine, and QEMU was ended for it.
pub(super) const RESET: &str = "reset";
/// The guest's kernel has panicked.
pub(super) const PANICKED: &str = "panicked";

/// How long an event may take from QEMU's end until it is written down.
const ON_ITS_WAY_MAX: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Events that wait to be written down.
const EVENTS_MAX: usize = 64;

/// A link to one QEMU.
#[derive(Debug)]
pub(super) struct Link {
    qmp: Qmp,
    memory_bytes: OnceCell<u64>,
    balloon_target: AtomicU64,
    /// Hears events, and has a hand on the connection to end QEMU.
    events: JoinHandle<()>,
    /// Served as long as the link is there.
    _console: Console,
}

impl Drop for Link {
    fn drop(&mut self) {
        // Else the connection would stand as long as QEMU, and nobody else would be let in.
        self.events.abort();
    }
}

impl Link {
    /// Links to a QEMU that runs.
    pub(super) async fn new(paths: &Paths, group: &str) -> Result<Self, QmpError> {
        let places = Places {
            serial: paths.serial().into(),
            console: paths.console().into(),
            log: paths.console_log().into(),
            log_bytes: CONSOLE_LOG_BYTES,
            group: group.to_owned(),
        };
        let (events, mut happened) = mpsc::channel::<Event>(EVENTS_MAX);
        let qmp = Qmp::connect(Path::new(&paths.api()), move |event| {
            // Nothing that matters comes in such numbers; what a guest floods us with may be lost.
            let _ = events.try_send(event);
        })
        .await?;
        let console = Console::serve(places).await?;
        let (ender, end) = (qmp.clone(), end_file(paths));
        let events = tokio::spawn(async move {
            while let Some(event) = happened.recv().await {
                note(&event, &end, &ender).await;
            }
        });
        Ok(Self {
            qmp,
            memory_bytes: OnceCell::new(),
            balloon_target: AtomicU64::new(0),
            events,
            _console: console,
        })
    }

    /// Whether it still stands.
    pub(super) fn is_open(&self) -> bool {
        self.qmp.is_open()
    }

    /// Has QEMU do something.
    pub(super) async fn ask(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.ask(command, arguments).await
    }

    /// The memory that the machine was given.
    pub(super) async fn memory_bytes(&self) -> Option<u64> {
        let ask = async {
            let answer = self.ask("query-memory-size-summary", Value::Null).await?;
            answer.get("base-memory").and_then(Value::as_u64).ok_or(QmpError::Closed)
        };
        self.memory_bytes.get_or_try_init(|| ask).await.ok().copied()
    }

    /// What the guest was last asked to give back, by this daemon.
    pub(super) fn balloon_target(&self) -> u64 {
        self.balloon_target.load(Ordering::Relaxed)
    }

    pub(super) fn set_balloon_target(&self, bytes: u64) {
        self.balloon_target.store(bytes, Ordering::Relaxed);
    }
}

async fn note(event: &Event, end: &Path, qmp: &Qmp) {
    let (word, quit) = match event.name.as_str() {
        "RESET" if event.by_guest() => (RESET.to_owned(), true),
        "GUEST_PANICKED" => (PANICKED.to_owned(), false),
        "SHUTDOWN" => (event.word("reason").to_owned(), false),
        _ => return,
    };
    // What was heard first is the cause; what follows, its consequence.
    if !end.exists()
        && let Err(error) = fs::write(end, &word)
    {
        tracing::error!(file = %end.display(), %error, "how a machine under QEMU ends can't be written down");
    }
    if quit && let Err(error) = qmp.ask("quit", Value::Null).await {
        tracing::debug!(%error, "QEMU has gone before it could be told to");
    }
}

fn end_file(paths: &Paths) -> PathBuf {
    PathBuf::from(format!("{}/end", paths.run))
}

/// What was heard of a machine's end. Where it matters, what is on its way here still is waited for.
pub(super) fn end(paths: &Paths, matters: bool) -> Option<String> {
    let began = Instant::now();
    loop {
        match fs::read_to_string(end_file(paths)) {
            Err(_) if matters && began.elapsed() < ON_ITS_WAY_MAX => std::thread::sleep(LOOK_EVERY),
            read => return read.ok(),
        }
    }
}

/// Forgets it.
pub(super) fn forget(paths: &Paths) -> io::Result<()> {
    match fs::remove_file(end_file(paths)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
