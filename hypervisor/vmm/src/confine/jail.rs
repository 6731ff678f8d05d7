//! The jailed process: it locks itself in before it has anything, then takes what its broker gives, then runs the VM.
//!
//! The order is the argument: nothing that a guest wrote is looked at before the last step, and each step takes away what
//! the ones before it needed.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use tracing::Span;

use super::channel::{self, Asked};
use super::{ConfineError, Filters, User, step};
use crate::config::VmConfig;
use crate::run::{End, run};
use crate::threads::Threads;

/// Where the empty root is put together: a folder that is there wherever this program can be run anew.
const ROOT: &str = "/proc";
/// Descriptors: interrupts and doorbells of 31 devices with 16 queues, and some.
const DESCRIPTORS_MAX: u64 = 4096;
/// The last capability that there could be.
const CAPABILITIES: u32 = 64;

/// Runs a VM as the jailed process of a broker that this descriptor leads to.
pub fn jailed(config: &VmConfig, user: User, channel: RawFd) -> Result<End, ConfineError> {
    let channel = only(channel)?;
    // When rustix is asked for a time first, it looks for the kernel's fast clock, by calls that no filter lets through.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    enter(user)?;
    let (given, pid) = channel::take(&channel).map_err(ConfineError::NoBroker)?;
    let filters = Filters::new().map_err(ConfineError::Filter)?;
    let threads = Threads::confined(Span::current(), filters);
    threads.confine_start().map_err(ConfineError::Filter)?;
    Ok(run(config, given, Arc::new(Asked::new(channel)), &threads, pid)?)
}

/// Keeps this descriptor and the standard ones, and closes what else was inherited.
#[allow(unsafe_code)]
fn only(channel: RawFd) -> Result<OwnedFd, ConfineError> {
    let failed = |source| ConfineError::System { what: "closing inherited descriptors", source };
    let Ok(number) = u32::try_from(channel) else {
        return Err(ConfineError::NoBroker(Errno::BADF.into()));
    };
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: nothing of this program has opened a descriptor besides the standard ones, as it has only just read its
        // arguments.
        match unsafe { libc::close_range(first, last, 0) } {
            0 => Ok(()),
            _ => Err(failed(std::io::Error::last_os_error())),
        }
    };
    // SAFETY: the call looks whether there is a descriptor of this number, and changes nothing.
    if number < 3 || unsafe { libc::fcntl(channel, libc::F_GETFD) } < 0 {
        return Err(ConfineError::NoBroker(Errno::BADF.into()));
    }
    close(3, number - 1)?;
    close(number + 1, u32::MAX)?;
    // SAFETY: the number comes from the broker, which has left this descriptor open for us; nobody else here has it.
    Ok(unsafe { OwnedFd::from_raw_fd(channel) })
}

/// Locks this process in, for good: it must have one thread, and be root.
pub fn enter(user: User) -> Result<(), ConfineError> {
    namespaces()?;
    empty_root()?;
    limits()?;
    capabilities_bounded()?;
    become_user(user)?;
    // After the change of user, which takes both of them back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("ending with the broker"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("no core dumps"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("no new privileges"))?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
    .map_err(step("giving up capabilities"))
}

#[allow(unsafe_code)]
fn namespaces() -> Result<(), ConfineError> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: descriptors are shared as before.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(step("namespaces for mounts, network, IPC and names"))
}

/// A root without a single file, that nothing can be written to.
fn empty_root() -> Result<(), ConfineError> {
    use rustix::mount::{mount, mount_change, mount_move, unmount};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("mounts of its own"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("jail", ROOT, "tmpfs", flags, c"size=4k,nr_inodes=2,mode=555")
        .map_err(step("an empty file system"))?;
    rustix::process::chdir(ROOT).map_err(step("going to the empty file system"))?;
    match rustix::process::pivot_root(".", ".") {
        // The old root lies on the new one now.
        Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(step("leaving the old root"))?,
        // The initial file system of the kernel can't be left; it can be covered.
        Err(Errno::INVAL) => {
            mount_move(".", "/").map_err(step("covering the old root"))?;
            rustix::process::chroot(".").map_err(step("leaving the old root"))?;
        }
        Err(error) => return Err(step("making the empty file system the root")(error)),
    }
    rustix::process::chdir("/").map_err(step("going to the root"))
}

fn limits() -> Result<(), ConfineError> {
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, DESCRIPTORS_MAX)] {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(resource, limit).map_err(step("limits of resources"))?;
    }
    Ok(())
}

fn capabilities_bounded() -> Result<(), ConfineError> {
    let failed = "giving up capabilities for good";
    rustix::thread::clear_ambient_capability_set().map_err(step(failed))?;
    for bit in 0..CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // There are no more of them.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(step(failed)(error)),
        }
    }
    Ok(())
}

fn become_user(user: User) -> Result<(), ConfineError> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let failed = "becoming another user";
    set_thread_groups(&[]).map_err(step(failed))?;
    set_thread_res_gid(user.gid(), user.gid(), user.gid()).map_err(step(failed))?;
    set_thread_res_uid(user.uid(), user.uid(), user.uid()).map_err(step(failed))
}
