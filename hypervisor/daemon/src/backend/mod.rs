//! What runs a VM: our vmm under KVM ([`vmm`]), or QEMU ([`qemu`]). One is chosen when a VM is started ([`Backends::choose`]) and stays
//! its own until it ends.
//!
//! A back end says which program is to be started for a VM, when that is ready, and speaks to it then. Starting it, watching it
//! and ending it is the same for all and is done elsewhere.
//!
//! What it must not know: volumes, ports, control groups, the directory.

pub mod qemu;
pub mod vmm;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use ferro_protocol::api::vm::spec::VmmSpec;
use ferro_protocol::api::vm::{BalloonStats, ExitCause, KvmSupport, VmmKind};
use ferro_protocol::api::{ApiError, ErrorCode};
use hypervisor_core::command::Machine;
use hypervisor_core::paths::Paths;

use crate::config::Config;
use crate::host::capacity;
use crate::keep::Ended;

/// An answer or why there is none.
pub type Result<T> = std::result::Result<T, ApiError>;

/// A program and its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its file.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// What a back end says of a VM that runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Running {
    /// Whether its processors stand still.
    pub paused: bool,
    /// The processor time that it has used, in microseconds, where it says.
    pub cpu_time_us: Option<u64>,
    /// Its balloon, if it has one.
    pub balloon: Option<BalloonStats>,
}

/// What runs VMs. Every method but [`Backend::prepare`] and [`Backend::cause`] speaks to a VM that was started, by its paths.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Which it is.
    fn kind(&self) -> VmmKind;
    /// Whether it can run anything here, and why not.
    fn available(&self) -> Result<()>;
    /// What is to be started for this VM. May write files into its folders; they are removed with those.
    async fn prepare(&self, machine: Machine<'_>) -> Result<Program>;
    /// Whether the VM has begun: its control socket answers. None before that; asked again and again.
    async fn ready(&self, paths: &Paths) -> Option<Running>;
    /// How it is.
    async fn state(&self, paths: &Paths) -> Result<Running>;
    /// Stops its processors; returns when they stand still.
    async fn pause(&self, paths: &Paths) -> Result<()>;
    /// Lets them go on.
    async fn resume(&self, paths: &Paths) -> Result<()>;
    /// Presses its power button.
    async fn power_button(&self, paths: &Paths) -> Result<()>;
    /// Has the guest give back so many bytes.
    async fn set_balloon(&self, paths: &Paths, bytes: u64) -> Result<()>;
    /// What its end says of the guest, and the words for it. Called after the end and before its folders are removed, perhaps twice.
    fn cause(&self, paths: &Paths, ended: Ended) -> (ExitCause, String);
}

/// The back ends of this host.
#[derive(Clone, Debug)]
pub struct Backends {
    kvm: KvmSupport,
    vmm: Arc<dyn Backend>,
    qemu: Option<Arc<dyn Backend>>,
}

impl Backends {
    /// Those that this host has.
    pub fn find(config: &Config) -> Self {
        let kvm = capacity::kvm();
        let vmm: Arc<dyn Backend> = Arc::new(vmm::Vmm::new(config, kvm.clone()));
        Self { kvm, vmm, qemu: Some(Arc::new(qemu::Qemu::new(config))) }
    }

    /// What is known of KVM.
    pub fn kvm(&self) -> &KvmSupport {
        &self.kvm
    }

    /// Whether VMs can run under QEMU here.
    pub fn has_qemu(&self) -> bool {
        self.qemu.as_ref().is_some_and(|qemu| qemu.available().is_ok())
    }

    /// That of this kind, for a VM that it runs already.
    pub fn of(&self, kind: VmmKind) -> Option<&Arc<dyn Backend>> {
        match kind {
            VmmKind::Kvm => Some(&self.vmm),
            VmmKind::Qemu => self.qemu.as_ref(),
        }
    }

    /// The one that runs a VM of this specification, and why it is not the one that people expect.
    pub fn choose(&self, wish: VmmSpec) -> Result<(Arc<dyn Backend>, Option<String>)> {
        let emulated = |why: Option<String>| match &self.qemu {
            Some(qemu) => qemu.available().map(|()| (Arc::clone(qemu), why)),
            None => Err(no_qemu()),
        };
        match wish {
            VmmSpec::Kvm => self.vmm.available().map(|()| (Arc::clone(&self.vmm), None)),
            VmmSpec::Qemu => emulated(None),
            VmmSpec::Auto if self.kvm.stock_kernels => {
                self.vmm.available().map(|()| (Arc::clone(&self.vmm), None))
            }
            VmmSpec::Auto => emulated(Some(self.kvm.detail.clone())).map_err(|error| {
                ApiError::new(
                    error.code,
                    format!("{}; and {}", self.kvm.detail, error.message),
                    "run the VM on a host with KVM, or install QEMU here",
                )
            }),
        }
    }
}

fn no_qemu() -> ApiError {
    ApiError::new(
        ErrorCode::NotSupported,
        "this hypervisord can't run VMs under QEMU",
        "ask for KVM (`--vmm kvm`), or use a host with KVM",
    )
    .with("vmm", "qemu")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(usable: bool, stock_kernels: bool) -> Backends {
        // Any file does: nothing is started.
        let config = Config { vmm: std::env::current_exe().unwrap(), ..Config::default() };
        let kvm = KvmSupport { usable, stock_kernels, detail: "how KVM is".to_owned() };
        let vmm: Arc<dyn Backend> = Arc::new(vmm::Vmm::new(&config, kvm.clone()));
        Backends { kvm, vmm, qemu: None }
    }

    #[test]
    fn what_can_not_run_a_vm_is_not_chosen_and_says_why() {
        let chosen = |usable, stock, wish| {
            backends(usable, stock)
                .choose(wish)
                .map(|(backend, _)| backend.kind())
                .map_err(|error| error.to_string())
        };
        assert_eq!(chosen(true, true, VmmSpec::Auto), Ok(VmmKind::Kvm));
        assert_eq!(chosen(true, false, VmmSpec::Kvm), Ok(VmmKind::Kvm));
        for (usable, stock, wish) in
            [(true, false, VmmSpec::Auto), (false, false, VmmSpec::Auto), (false, false, VmmSpec::Kvm)]
        {
            let refused = chosen(usable, stock, wish).unwrap_err();
            assert!(refused.contains("how KVM is"), "{wish:?}: {refused}");
        }
        assert!(chosen(true, true, VmmSpec::Qemu).is_err());
    }
}
