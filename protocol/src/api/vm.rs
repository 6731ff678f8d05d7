//! Types of the local HTTP API that `hypervisord` serves on its Unix socket and `vmctl` speaks. The rules of
//! [`crate::api`] hold here too: sizes are bytes, times are seconds unless the name says otherwise, requests with unknown
//! fields are refused and answers may gain fields.
//!
//! A VM is a [`VmSpec`], kept in the cluster directory, and, while it is meant to run, a host that has it:
//!
//! ```text
//!   POST /v1/vms ──► spec in the directory ──► start ──► host that holds its first disk's lock ──► vmm
//!        │ any fault                             │ any step fails
//!        └──► nothing has changed                └──► every step before is undone: no lock, port, cgroup, socket is left
//! ```
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/vms` | | [`VmList`] |
//! | `POST /v1/vms` | [`VmSpec`] | 201, [`VmInfo`] |
//! | `GET /v1/vms/{name}` | | [`VmInfo`] |
//! | `PUT /v1/vms/{name}?basis=REVISION` (basis optional) | [`VmSpec`] | [`VmInfo`]; `vm_not_off` while it runs |
//! | `DELETE /v1/vms/{name}` | | 204; `vm_not_off` while it runs |
//! | `POST /v1/vms/{name}/start` | [`StartVm`] | [`VmInfo`] when it runs |
//! | `POST /v1/vms/{name}/stop` | [`StopVm`] | [`VmInfo`] when it is off |
//! | `POST /v1/vms/{name}/kill`, `/reset`, `/pause`, `/resume` | | [`VmInfo`] when it is so |
//! | `POST /v1/vms/{name}/disks`, `/nics` | [`AttachDisk`], [`AttachNic`] | [`VmInfo`] |
//! | `DELETE /v1/vms/{name}/disks/{volume}`, `/nics/{index}` | | [`VmInfo`] |
//! | `GET /v1/vms/{name}/stats` | | [`VmStats`]; `vm_elsewhere` on another host |
//! | `GET /v1/vms/{name}/log?previous=BOOL&lines=N` | | [`VmLog`]; `vm_elsewhere` on another host |
//! | `GET /v1/vms/{name}/console` | | [`ConsoleInfo`]; `vm_elsewhere` on another host |
//! | `GET /v1/host` | | [`HostCapacity`] |
//! | `GET /v1/status` | | [`HypervisorStatus`] |
//!
//! Of a VM on another host the wanted state is written down for that host and the answer waits for what comes of it.
//!
//! What it must not know: what makes a specification right (the hypervisor's core), how a VM is run.

mod host;
mod info;
mod request;
pub mod spec;

pub use host::{
    CpuCapacity, HostCapacity, HostVms, HypervisorHost, HypervisorStatus, KvmSupport, MemoryCapacity,
    VmTotals,
};
pub use info::{
    BalloonStats, DiskStats, ExitCause, ExitReport, NicStats, VmInfo, VmList, VmPower, VmState, VmStats,
    VmStatus, VmmKind, VmmProcess,
};
pub use request::{AttachDisk, AttachNic, ConsoleInfo, LOG_LINES_MAX, ResetVm, StartVm, StopVm, VmLog};
pub use spec::VmSpec;

/// Where the daemon's socket is unless configured otherwise.
pub const SOCKET_DEFAULT: &str = "/run/hypervisord/api.sock";

crate::name::name!(
    /// A virtual machine's name: 1 to 63 characters of `a-z`, `0-9`, `-`, `_`, `.`; the first a letter or a digit (it becomes
    /// part of the names of sockets, control groups and documents).
    VmName,
    u8::is_ascii_lowercase,
    /// Why a text is no such name.
    BadVmName,
    "{0:?} is not a VM's name: use 1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit"
);
