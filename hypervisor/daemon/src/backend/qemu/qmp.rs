//! QEMU's control socket (QMP; QEMU's docs/interop/qmp-spec.txt): lines of JSON, commands with answers, and events.
//!
//! QEMU listens, serves one client at a time, and takes the next when that has gone: so a daemon that was started anew comes in
//! after its predecessor. What comes from QEMU is bounded and checked: a guest may have taken it over.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// The longest line that is taken.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Commands that wait to be sent.
const ASKS_MAX: usize = 16;
/// How long the greeting may take: QEMU gives it as soon as nobody else is connected.
const GREETING_MAX: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Why QEMU did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// It said so.
    #[error("QEMU refuses {command}: {why}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// What it said.
        why: String,
    },
    /// It took too long.
    #[error("QEMU did not answer {command} within {} s", ANSWER_MAX.as_secs())]
    Late {
        /// What was asked.
        command: &'static str,
    },
    /// The connection has ended.
    #[error("QEMU has closed its control socket")]
    Closed,
    /// It can't be reached.
    #[error("QEMU's control socket can't be used: {0}")]
    Io(#[from] io::Error),
    /// It speaks another language.
    #[error("QEMU's control socket says {0:?}, which is no QMP")]
    Nonsense(String),
}

/// What happened to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub(super) name: String,
    /// What came with it.
    pub(super) data: Value,
}

impl Event {
    /// A word of its data.
    pub(super) fn word(&self, name: &str) -> &str {
        self.data.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether the guest did it.
    pub(super) fn by_guest(&self) -> bool {
        self.data.get("guest").and_then(Value::as_bool).unwrap_or(false)
    }
}

type Answer = Result<Value, String>;

struct Ask {
    command: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Answer>,
}

/// A connection to one QEMU.
#[derive(Clone, Debug)]
pub(super) struct Qmp {
    asks: mpsc::Sender<Ask>,
}

impl Qmp {
    /// Connects and agrees on the protocol. Each event is given to `happened`, which must not wait.
    pub(super) async fn connect(
        socket: &Path,
        happened: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(socket).await?;
        let (read, mut write) = stream.into_split();
        let mut lines = Lines { from: BufReader::new(read), rest: Vec::new() };
        let greeting = tokio::time::timeout(GREETING_MAX, lines.next());
        let greeting = greeting.await.map_err(|_| QmpError::Late { command: "the greeting" })??;
        let greeting = greeting.ok_or(QmpError::Closed)?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Nonsense(Value::Object(greeting).to_string()));
        }
        send(&mut write, "qmp_capabilities", &Value::Null, 0).await?;
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (agreed, agreement) = oneshot::channel();
        let waiting = BTreeMap::from([(0, agreed)]);
        tokio::spawn(Talk { lines, write, asked, waiting, last: 0, happened }.run());
        match tokio::time::timeout(ANSWER_MAX, agreement).await {
            Ok(Ok(Ok(_))) => Ok(Self { asks }),
            Ok(Ok(Err(why))) => Err(QmpError::Refused { command: "qmp_capabilities", why }),
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => Err(QmpError::Late { command: "qmp_capabilities" }),
        }
    }

    /// Whether it still stands.
    pub(super) fn is_open(&self) -> bool {
        !self.asks.is_closed()
    }

    /// Has QEMU do something, and gives what it answers.
    pub(super) async fn ask(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask { command, arguments, answer }).await.map_err(|_| QmpError::Closed)?;
            answered.await.map_err(|_| QmpError::Closed)
        };
        match tokio::time::timeout(ANSWER_MAX, asked).await {
            Ok(answer) => answer?.map_err(|why| QmpError::Refused { command, why }),
            Err(_) => Err(QmpError::Late { command }),
        }
    }
}

async fn send(to: &mut OwnedWriteHalf, command: &str, arguments: &Value, id: u64) -> io::Result<()> {
    let mut ask = json!({ "execute": command, "id": id });
    if !arguments.is_null() {
        ask["arguments"] = arguments.clone();
    }
    let mut line = ask.to_string();
    line.push('\n');
    to.write_all(line.as_bytes()).await
}

/// What goes on at a connection; it ends with it, or when nobody asks any more.
struct Talk<F> {
    lines: Lines,
    write: OwnedWriteHalf,
    asked: mpsc::Receiver<Ask>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    last: u64,
    happened: F,
}

impl<F: FnMut(Event)> Talk<F> {
    async fn run(mut self) {
        loop {
            tokio::select! {
                line = self.lines.next() => match line {
                    Ok(Some(line)) => self.take(line),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "a connection to QEMU's control socket has ended");
                        return;
                    }
                },
                ask = self.asked.recv() => {
                    let Some(Ask { command, arguments, answer }) = ask else { return };
                    self.last += 1;
                    if send(&mut self.write, command, &arguments, self.last).await.is_err() {
                        return;
                    }
                    self.waiting.retain(|_, answer| !answer.is_closed());
                    self.waiting.insert(self.last, answer);
                }
            }
        }
    }

    fn take(&mut self, mut line: Map<String, Value>) {
        if let Some(Value::String(name)) = line.remove("event") {
            let data = line.remove("data").unwrap_or_default();
            return (self.happened)(Event { name, data });
        }
        let waits = line.get("id").and_then(Value::as_u64).and_then(|id| self.waiting.remove(&id));
        let Some(waits) = waits else { return };
        let answer = match (line.remove("return"), line.remove("error")) {
            (Some(value), _) => Ok(value),
            (None, Some(error)) => {
                Err(error.get("desc").and_then(Value::as_str).unwrap_or("it does not say why").to_owned())
            }
            (None, None) => Err("its answer says nothing".to_owned()),
        };
        // Whoever asked may have given up.
        let _ = waits.send(answer);
    }
}

struct Lines {
    from: BufReader<OwnedReadHalf>,
    /// What has come of a line; kept here, so that nothing is lost when a look is broken off.
    rest: Vec<u8>,
}

impl Lines {
    /// The next object; `None` at the end.
    async fn next(&mut self) -> Result<Option<Map<String, Value>>, QmpError> {
        loop {
            let piece = self.from.fill_buf().await?;
            if piece.is_empty() {
                return Ok(None);
            }
            let (taken, whole) = match piece.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (piece.len(), false),
            };
            self.rest.extend_from_slice(&piece[..taken]);
            self.from.consume(taken);
            if whole {
                let line = std::mem::take(&mut self.rest);
                let parsed: Result<Map<String, Value>, _> = serde_json::from_slice(&line);
                return parsed.map(Some).map_err(|_| nonsense(&line));
            }
            if self.rest.len() > LINE_BYTES_MAX {
                return Err(nonsense(&self.rest));
            }
        }
    }
}

fn nonsense(line: &[u8]) -> QmpError {
    QmpError::Nonsense(String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned())
}
