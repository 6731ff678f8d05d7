//! A hypervisord in memory behind its API's routes on a Unix socket, with consoles that answer, and the real `vmctl` run against
//! it.

pub(crate) mod control;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use control::Memory;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A served API and a directory of its own.
pub(crate) struct Served {
    pub(crate) control: Arc<Memory>,
    pub(crate) dir: TempDir,
    _runtime: Runtime,
}

impl Served {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let control = Arc::new(Memory::new(dir.path()));
        let listener =
            runtime.block_on(async { tokio::net::UnixListener::bind(dir.path().join("api.sock")).unwrap() });
        let router = control::router(control.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { control, dir, _runtime: runtime }
    }

    /// One with a VM that runs.
    pub(crate) fn with_machine() -> Self {
        let served = Self::start();
        served.done(&["create", "web1", "--volume", "web1-root", "--portgroup", "blue", "--start"]);
        served
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.arg("--socket").arg(self.socket()).args(args).stdin(Stdio::null());
        command.env_remove("NO_COLOR").env_remove("HYPERVISORD_SOCKET");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }

    /// Runs it, wants it done, and gives what it printed.
    #[track_caller]
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.out
    }

    /// Runs it with `--json`, wants it done, and gives the JSON.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let all: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.done(&all)).unwrap()
    }

    /// Runs a shell's line at a terminal; `vmctl` in it is the tool with its socket.
    pub(crate) fn at_terminal(&self, line: &str) -> AtTerminal {
        let tool = format!("'{}' --socket '{}'", env!("CARGO_BIN_EXE_vmctl"), self.socket().display());
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &line.replace("vmctl", &tool), "/dev/null"]);
        command.env("TERM", "xterm").env("NO_COLOR", "1").env("SHELL", "/bin/sh");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (pieces, seen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                let _ = pieces.send(buffer[..count].to_vec());
            }
        });
        AtTerminal { child, keys, seen, text: Vec::new(), from: 0 }
    }
}

/// A command at a terminal of its own.
pub(crate) struct AtTerminal {
    child: Child,
    keys: ChildStdin,
    seen: Receiver<Vec<u8>>,
    text: Vec<u8>,
    /// What was looked for is found behind what was found before.
    from: usize,
}

impl AtTerminal {
    /// Waits until this is printed.
    #[track_caller]
    pub(crate) fn sees(&mut self, word: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self.text[self.from..].windows(word.len()).position(|it| it == word.as_bytes());
            if let Some(at) = found {
                self.from += at + word.len();
                return;
            }
            match self.seen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.text.extend(piece),
                Err(why) => panic!("no {word:?} ({why}) in {:?}", String::from_utf8_lossy(&self.text)),
            }
        }
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for its end: the exit code, and all that was printed.
    pub(crate) fn ends(mut self) -> (i32, String) {
        let end = Instant::now() + PATIENCE;
        while let Ok(piece) = self.seen.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.text.extend(piece);
        }
        if Instant::now() >= end {
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap();
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&self.text).into_owned())
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Wants this exit code, and an error that names these things and says what to do next.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.out.is_empty(), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {self:?}");
        }
        assert!(self.err.contains("next: ") || code == 2, "no next step in {self:?}");
    }
}
