//! The switch's real router over a Unix socket, with a control plane that keeps everything in memory and decides with the real
//! core, and the real `vswctl` run against it.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod control;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use control::Memory;
use ferro_protocol::api::switch::Spec;
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
        let served: Arc<dyn vswitchd::api::control::ControlPlane> = control.clone();
        runtime.spawn(vswitchd::api::serve(listener, served, async {
            let _ = stopped.await;
        }));
        Self { control, dir, runtime, stop: Some(stop) }
    }

    /// One with a switch, two port groups and three ports, the first two attached.
    pub(crate) fn with_network() -> Self {
        let served = Self::start();
        served.done(&["transaction", NETWORK]);
        for port in ["vm1", "vm2"] {
            served.done(&["port", "attach", port]);
        }
        served
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket(), "vswitchd", "vswctl", None)
    }

    pub(crate) fn spec(&self) -> Spec {
        self.control.state().spec.clone()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vswctl"));
        command.arg("--socket").arg(self.socket()).args(args).stdin(Stdio::null());
        command.env_remove("NO_COLOR").env_remove("VSWITCHD_SOCKET");
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
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

/// A network to begin with.
pub(crate) const NETWORK: &str = "
    switch create s0 --uplinks eth0,eth1,eth2
    portgroup create web --switch s0 --vlan 10 --vni 1010   # distributed
    portgroup create db --switch s0 --vlan 20
    port create vm1 --group web --mac 52:54:00:00:00:01 --address 10.0.0.1; port create vm2 --group web --mac 52:54:00:00:00:02
    port create vm3 --group db --mac 52:54:00:00:00:03";

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
        assert!(self.err.contains("next: ") || code == 2, "no next step in {self:?}");
    }
}
