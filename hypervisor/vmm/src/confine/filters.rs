//! Which system calls each kind of thread may make, and with which arguments where that matters. Anything else kills the
//! process, with a line in the kernel's log.
//!
//! The filter of the start is inherited by all threads and only ever narrowed: each thread adds its own when it begins,
//! and the first one when the VM runs.
//!
//! Nowhere is there a call that opens a path, makes a socket, starts a program or maps memory to be executed; threads are
//! made at the start only.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::threads::ThreadKind;

/// What all threads do: memory, locks, time, descriptors that they have, their end.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Besides: what making a VM takes. Some of it the threads need later, too.
const START: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_pread64,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_statx,
];

/// The console's socket and log, the broker.
const MAIN: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_fstat,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_statx,
];

/// A back end's socket, and the pair on which it gives notice.
const LINK: &[libc::c_long] = &[
    libc::SYS_eventfd2,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_socketpair,
];

/// Holes in the guest's memory.
const DEVICE: &[libc::c_long] = &[libc::SYS_fallocate];

/// Connections of the control API.
const API: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// KVM's calls of a processor that runs: the guest, its registers after a failure, kvm-clock after a pause; interrupts and
/// doorbells that a driver sets up (linux/kvm.h).
const PROCESSOR_IOCTLS: &[u64] = &[
    0xae80,      // KVM_RUN
    0x8090_ae81, // KVM_GET_REGS
    0xaead,      // KVM_KVMCLOCK_CTRL
    0x4020_ae76, // KVM_IRQFD
    0x4040_ae79, // KVM_IOEVENTFD
    0x4008_ae6a, // KVM_SET_GSI_ROUTING
];
/// A client's socket does not block.
const FIONBIO: u64 = 0x5421;

/// `fcntl`: whether a descriptor is open, which unoptimised programs ask before they close one; another one of a socket,
/// and one that does not block.
const F_GETFD: u64 = 1;
const F_GETFL: u64 = 3;
const F_SETFL: u64 = 4;
const F_DUPFD_CLOEXEC: u64 = 1030;
const PROT_EXEC: u64 = 4;
/// `prctl`: a thread's name, names of memory, no new privileges (which installing a filter says again).
const PRCTLS: &[u64] = &[15, 0x5356_4d41, 38];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters, compiled.
#[derive(Debug)]
pub struct Filters {
    start: BpfProgram,
    main: BpfProgram,
    processor: BpfProgram,
    link: BpfProgram,
    device: BpfProgram,
    api: BpfProgram,
}

impl Filters {
    /// Compiles them.
    pub fn new() -> Result<Self, String> {
        let mut start = rules(&[START])?;
        start.insert(libc::SYS_fcntl, Vec::new());
        start.insert(libc::SYS_prctl, one_of(0, PRCTLS)?);
        start.insert(libc::SYS_prlimit64, vec![rule(2, SeccompCmpOp::Eq, 0)?]);
        start.insert(libc::SYS_tgkill, own()?);
        let mut main = rules(&[MAIN])?;
        main.insert(libc::SYS_ioctl, one_of(1, &[FIONBIO])?);
        main.insert(libc::SYS_tgkill, own()?);
        let mut processor = rules(&[])?;
        processor.insert(libc::SYS_ioctl, one_of(1, PROCESSOR_IOCTLS)?);
        let mut link = rules(&[LINK])?;
        link.insert(libc::SYS_fcntl, one_of(1, &[F_GETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC])?);
        link.insert(libc::SYS_ioctl, one_of(1, &[FIONBIO])?);
        let mut api = rules(&[API])?;
        api.insert(libc::SYS_tgkill, own()?);
        Ok(Self {
            start: compile(start)?,
            main: compile(main)?,
            processor: compile(processor)?,
            link: compile(link)?,
            device: compile(rules(&[DEVICE])?)?,
            api: compile(api)?,
        })
    }

    /// Puts the process's only thread, and those that it starts, under the filter of the start.
    pub fn confine_start(&self) -> Result<(), String> {
        apply(&self.start)
    }

    /// Puts the first thread under its own, when the others run.
    pub fn confine_main(&self) -> Result<(), String> {
        apply(&self.main)
    }

    /// Puts a thread under the filter of its kind.
    pub fn confine(&self, kind: ThreadKind) -> Result<(), String> {
        apply(match kind {
            ThreadKind::Processor => &self.processor,
            ThreadKind::Link => &self.link,
            ThreadKind::Device => &self.device,
            ThreadKind::Api => &self.api,
        })
    }
}

fn apply(program: &BpfProgram) -> Result<(), String> {
    seccompiler::apply_filter(program).map_err(|error| error.to_string())
}

/// Common calls and these, and memory that is never executed.
fn rules(more: &[&[libc::c_long]]) -> Result<Rules, String> {
    let calls = COMMON.iter().chain(more.iter().copied().flatten());
    let mut rules: Rules = calls.map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_fcntl, one_of(1, &[F_GETFD])?);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, SeccompCmpOp::MaskedEq(PROT_EXEC), 0)?]);
    }
    Ok(rules)
}

fn rule(argument: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, String> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operation, value);
    condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(|error| error.to_string())
}

/// Calls whose argument, as 32 bits, is one of these: the kernel looks at no more of a request or an option.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, String> {
    let condition = |value: &u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| error.to_string())
    };
    values.iter().map(condition).collect()
}

/// Signals to threads of this process: they bring processors out of the guest.
fn own() -> Result<Vec<SeccompRule>, String> {
    one_of(0, &[u64::from(std::process::id())])
}

fn compile(rules: Rules) -> Result<BpfProgram, String> {
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64);
    filter.and_then(TryInto::try_into).map_err(|error| error.to_string())
}
