//! Our vmm under KVM: its control API over a Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Method;
use ferro_protocol::api::vm::{BalloonStats, ExitCause, KvmSupport, VmmKind};
use ferro_protocol::api::vmm::{BalloonRequest, VmmState, VmmStatus};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_transport::client::LocalClient;
use hypervisor_core::command::{Machine, vmm};
use hypervisor_core::paths::Paths;

use super::{Backend, Program, Result, Running};
use crate::config::Config;
use crate::host::users::find_user;
use crate::keep::Ended;

/// How long its answers may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Our vmm.
#[derive(Debug)]
pub struct Vmm {
    program: PathBuf,
    kvm: KvmSupport,
    confinement: vmm::Confinement,
}

impl Vmm {
    /// The one that the configuration names.
    pub fn new(config: &Config, kvm: KvmSupport) -> Self {
        let confinement = if rustix::process::geteuid().is_root() {
            vmm::Confinement::Full(find_user(&config.vmm_user))
        } else {
            vmm::Confinement::None
        };
        Self { program: config.vmm.clone(), kvm, confinement }
    }

    async fn put(&self, paths: &Paths, path: &str, body: Option<Vec<u8>>) -> Result<()> {
        let client = LocalClient::new(Path::new(&paths.api()));
        let body = body.map(|json| (json.into(), "application/json"));
        let done = client.ask_within(Method::PUT, path, body, ANSWER_MAX).await;
        done.map(drop).map_err(|error| error.into_api("the vmm"))
    }
}

async fn look(paths: &Paths, within: Duration) -> Result<VmmState> {
    let client = LocalClient::new(Path::new(&paths.api()));
    client.get("/v1/state", within).await.map_err(|error| error.into_api("the vmm"))
}

fn running(state: VmmState) -> Running {
    Running {
        paused: state.status == VmmStatus::Paused,
        cpu_time_us: Some(state.cpu_time_us),
        balloon: state.balloon.map(|balloon| BalloonStats {
            target_bytes: balloon.target_bytes,
            actual_bytes: balloon.actual_bytes,
            reported_free_bytes: balloon.reported_free_bytes,
            available_bytes: balloon.stats.and_then(|stats| stats.available_bytes),
        }),
    }
}

#[async_trait]
impl Backend for Vmm {
    fn kind(&self) -> VmmKind {
        VmmKind::Kvm
    }

    fn available(&self) -> Result<()> {
        let refuse = |message: String, next: &str| {
            Err(ApiError::new(ErrorCode::NotSupported, message, next).with("vmm", "kvm"))
        };
        if !self.kvm.usable {
            let next = "run the VM on a host with KVM, or under QEMU's emulation (`--vmm qemu`)";
            return refuse(format!("this host can't run VMs under KVM: {}", self.kvm.detail), next);
        }
        if !self.program.is_file() {
            let next = "install it, or name it in hypervisord.toml (`vmm`)";
            return refuse(format!("there is no vmm at {}", self.program.display()), next);
        }
        Ok(())
    }

    async fn prepare(&self, machine: Machine<'_>) -> Result<Program> {
        let arguments = vmm::arguments(machine, self.confinement).map_err(|bad| {
            ApiError::new(ErrorCode::BadPath, bad.to_string(), "give vsand and vswitchd other directories")
        })?;
        Ok(Program { program: self.program.clone(), arguments })
    }

    async fn ready(&self, paths: &Paths) -> Option<Running> {
        look(paths, LOOK_MAX).await.ok().map(running)
    }

    async fn state(&self, paths: &Paths) -> Result<Running> {
        look(paths, ANSWER_MAX).await.map(running)
    }

    async fn pause(&self, paths: &Paths) -> Result<()> {
        self.put(paths, "/v1/pause", None).await
    }

    async fn resume(&self, paths: &Paths) -> Result<()> {
        self.put(paths, "/v1/resume", None).await
    }

    async fn power_button(&self, paths: &Paths) -> Result<()> {
        self.put(paths, "/v1/power-button", None).await
    }

    async fn set_balloon(&self, paths: &Paths, bytes: u64) -> Result<()> {
        let json = serde_json::to_vec(&BalloonRequest { target_bytes: bytes });
        let json = json.map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("the balloon: {error}"), "this is worth a bug report")
        })?;
        self.put(paths, "/v1/balloon", Some(json)).await
    }

    fn cause(&self, _paths: &Paths, ended: Ended) -> (ExitCause, String) {
        match ended {
            Ended::Status(status) => (vmm::cause(status), vmm::words(status)),
            Ended::Signal(signal) => (ExitCause::Died, format!("signal {signal} ended the vmm")),
            Ended::Unknown => (ExitCause::Died, "the vmm has gone, and nobody saw how".to_owned()),
        }
    }
}
