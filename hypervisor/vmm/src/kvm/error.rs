//! What can go wrong with KVM, in words that say what to do.

/// KVM failed or can't do what is needed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no KVM.
    #[error(
        "there is no /dev/kvm: load kvm-intel or kvm-amd (the processor needs VT-x or AMD-V, switched on in its \
             firmware), or run the VM under QEMU's emulation"
    )]
    Absent,
    /// No right to use it.
    #[error("no permission for /dev/kvm: add this user to the group kvm")]
    Forbidden,
    /// It can't be opened for another reason.
    #[error("opening /dev/kvm: {0}")]
    Open(kvm_ioctls::Error),
    /// Another interface than that of every kernel since 2.6.22.
    #[error("this KVM speaks version {0} of its interface and 12 is needed")]
    Version(i32),
    /// A capability is missing.
    #[error("this host's KVM cannot do {0}: a newer kernel is needed")]
    Missing(&'static str),
    /// More processors than KVM allows.
    #[error("this host's KVM runs at most {most} processors in a VM and {wanted} are wanted")]
    TooManyProcessors {
        /// What is wanted.
        wanted: u8,
        /// The limit.
        most: usize,
    },
    /// An operation failed.
    #[error("{what}: {source}")]
    Operation {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// Not all MSRs were taken.
    #[error("KVM refused the model-specific register {0:#x}")]
    Msr(u32),
    /// An eventfd or a thread could not be made.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl KvmError {
    /// For `map_err`: the operation that failed.
    pub(crate) fn doing(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Operation { what, source }
    }

    /// For `map_err`: what the operating system did not give.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
