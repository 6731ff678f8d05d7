//! The real router over a Unix socket, with a control plane that keeps everything in memory, and the real `vsanctl` run
//! against it.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod control;
mod fixtures;
pub(crate) mod insight;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use control::Memory;
use ferro_tools::client::Client;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A served API and a directory of its own.
pub(crate) struct Served {
    pub(crate) control: Arc<Memory>,
    pub(crate) dir: TempDir,
    pub(crate) runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
}

impl Served {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let control = Arc::new(Memory::default());
        let (stop, stopped) = oneshot::channel();
        let listener =
            runtime.block_on(async { tokio::net::UnixListener::bind(dir.path().join("api.sock")).unwrap() });
        let served: Arc<dyn vsand::api::control::ControlPlane> = control.clone();
        runtime.spawn(vsand::api::serve(listener, served, async {
            let _ = stopped.await;
        }));
        Self { control, dir, runtime, stop: Some(stop) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket(), "vsand", "vsanctl", None)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(&self.socket(), args)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }

    /// Runs it, wants it done, and gives what it printed.
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.out
    }

    /// Runs it with `-o json`, wants it done, and gives the JSON.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let all: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.done(&all)).unwrap()
    }

    /// Runs it at a terminal, with someone who types this.
    pub(crate) fn at_terminal(&self, env: &[(&str, &str)], args: &[&str], typed: &str) -> Ran {
        let words: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
        let line = format!(
            "'{}' --socket '{}' {}",
            env!("CARGO_BIN_EXE_vsanctl"),
            self.socket().display(),
            words.join(" ")
        );
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        command.envs(env.iter().copied());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        Ran::of(&output)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

pub(crate) fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vsanctl"));
    command
        .arg("--socket")
        .arg(socket)
        .args(args)
        .stdin(Stdio::null())
        .env_remove("NO_COLOR")
        .env_remove("VSAND_SOCKET");
    command
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
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {self:?}");
        }
    }
}
