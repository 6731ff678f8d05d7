//! What this host's KVM is and can do.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::KvmError;
use crate::config::CpuCount;

const API_VERSION: i32 = 12;
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "memory of user space"),
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::ExtCpuid, "CPUID for guests"),
    (Cap::MpState, "states of processors"),
];

/// An open `/dev/kvm`.
#[derive(Debug)]
pub struct Host {
    pub(super) kvm: Kvm,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Host {
    /// Opens KVM and looks whether it has what every VM needs.
    pub fn open() -> Result<Self, KvmError> {
        Self::new(Self::open_device()?)
    }

    /// Opens `/dev/kvm`, and no more.
    #[allow(unsafe_code)]
    pub fn open_device() -> Result<OwnedFd, KvmError> {
        let opened = Kvm::open_with_cloexec(true).map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Absent,
            libc::EACCES | libc::EPERM => KvmError::Forbidden,
            _ => KvmError::Open(error),
        })?;
        // SAFETY: the call has just made the descriptor and gives it away.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }

    /// Looks whether an opened KVM has what every VM needs.
    #[allow(unsafe_code)]
    pub fn new(device: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is open and nobody else has it. Of another file than KVM's the first call fails.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Version(version));
        }
        for (capability, name) in NEEDED {
            if !kvm.check_extension(*capability) {
                return Err(KvmError::Missing(name));
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::doing("asking KVM for the CPUID that it supports"))?;
        Ok(Self { kvm, cpuid: cpuid.as_slice().to_vec() })
    }

    /// CPUID as far as KVM supports it here.
    pub fn supported_cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Whether KVM emulates the TSC deadline timer.
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// Refuses more processors than KVM runs in a VM.
    pub fn check_processors(&self, wanted: CpuCount) -> Result<(), KvmError> {
        let most = self.kvm.get_max_vcpus();
        if usize::from(wanted.get()) > most {
            return Err(KvmError::TooManyProcessors { wanted: wanted.get(), most });
        }
        Ok(())
    }
}
