//! What all VMs of a host share.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ferro_protocol::api::vm::VmName;
use ferro_protocol::api::{ApiError, ErrorCode};
use hypervisor_core::paths::Paths;
use tokio::sync::{mpsc, oneshot};

use super::claims::Claims;
use crate::backend::Backends;
use crate::config::Config;
use crate::host::capacity;
use crate::host::groups::Groups;
use crate::peers::{Vsand, Vswitchd};

/// A question: whether a VM is another host's. None is the answer if nobody can say now.
#[derive(Debug)]
pub struct Whose {
    /// Which VM.
    pub vm: VmName,
    /// Who wants to know.
    pub answer: oneshot::Sender<Option<bool>>,
}

/// What all VMs of this host share.
#[derive(Debug)]
pub struct Services {
    /// The settings.
    pub config: Config,
    /// Volumes.
    pub vsand: Vsand,
    /// Ports.
    pub vswitchd: Vswitchd,
    /// What runs VMs.
    pub backends: Backends,
    /// Control groups.
    pub groups: Groups,
    /// What was promised.
    pub claims: Claims,
    /// This program.
    pub program: PathBuf,
    /// What people call this host.
    pub name: Mutex<String>,
    /// Who knows whose VMs are.
    pub whose: mpsc::Sender<Whose>,
}

impl Services {
    /// What people call this host.
    pub fn host_name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a VM is another host's now; none if that can't be known now.
    pub(super) async fn is_elsewhere(&self, vm: &VmName) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        self.whose.send(Whose { vm: vm.clone(), answer }).await.ok()?;
        answered.await.ok()?
    }

    /// Where a VM's files are.
    pub fn paths(&self, name: &VmName) -> Result<Paths, ApiError> {
        let text = |path: &Path| path.display().to_string();
        Paths::new(&text(&self.config.run_dir), &text(&self.config.state_dir), name).map_err(|bad| {
            let next = "give the VM a shorter name, or hypervisord a shorter run_dir";
            ApiError::new(ErrorCode::BadPath, format!("VM {name}: {bad}"), next)
        })
    }

    /// Sets each VM's group to what it is entitled to beside the others.
    pub(super) async fn balance(&self) {
        let limits = self.claims.limits(&capacity::room(&self.config));
        let groups = self.groups.clone();
        let set = move || {
            for (name, (group, limits)) in limits {
                if let Some(Err(error)) = group.map(|group| groups.set(&group, &limits)) {
                    tracing::warn!(vm = %name, %error, "its control group could not be set");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(set).await {
            tracing::error!(%error, "control groups could not be set");
        }
    }
}
