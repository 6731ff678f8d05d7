//! What every front end says to a back end, whatever the device.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{FrontendError, GuestRam};

const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Transport features for a driver.
pub(super) fn transport(event_idx: bool, indirect: bool) -> u64 {
    1 << VIRTIO_F_VERSION_1
        | PROTOCOL_FEATURES
        | u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX
        | u64::from(indirect) << VIRTIO_RING_F_INDIRECT_DESC
}

/// Settles the protocol features; all that are wanted must be offered.
pub(super) fn settle_protocol(
    frontend: &mut Frontend,
    wanted: VhostUserProtocolFeatures,
) -> Result<(), FrontendError> {
    let offered = frontend.get_protocol_features()?;
    if !offered.contains(wanted) {
        return Err(FrontendError::Missing("a protocol feature"));
    }
    frontend.set_protocol_features(wanted)?;
    Ok(())
}

/// Shares guest memory, at once or region by region.
pub(super) fn share_memory(
    frontend: &mut Frontend,
    ram: &GuestRam,
    one_by_one: bool,
) -> Result<(), FrontendError> {
    let regions =
        ram.mem().iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect::<Result<Vec<_>, _>>()?;
    if one_by_one {
        frontend.get_max_mem_slots()?;
        for region in &regions {
            frontend.add_mem_region(region)?;
        }
    } else {
        frontend.set_mem_table(&regions)?;
    }
    Ok(())
}

/// The descriptors of a ring.
#[derive(Debug)]
pub(super) struct RingFds {
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    pub(super) err: EventFd,
}

impl RingFds {
    pub(super) fn new() -> Result<Self, FrontendError> {
        let eventfd = || EventFd::new(EFD_NONBLOCK);
        Ok(Self { kick: eventfd()?, call: eventfd()?, err: eventfd()? })
    }
}

/// Where a ring is, and where it stands.
pub(super) struct RingPlace {
    pub(super) size: u16,
    /// Descriptor table, available ring, used ring.
    pub(super) addrs: (GuestAddress, GuestAddress, GuestAddress),
    pub(super) base: u16,
}

/// Starts a ring, without enabling it.
pub(super) fn start_ring(
    frontend: &mut Frontend,
    index: usize,
    ram: &GuestRam,
    place: &RingPlace,
    fds: &RingFds,
) -> Result<(), FrontendError> {
    let (table, avail, used) = place.addrs;
    frontend.set_vring_num(index, place.size)?;
    frontend.set_vring_base(index, place.base)?;
    let config = VringConfigData {
        queue_max_size: place.size,
        queue_size: place.size,
        flags: 0,
        desc_table_addr: ram.user_addr(table)?,
        used_ring_addr: ram.user_addr(used)?,
        avail_ring_addr: ram.user_addr(avail)?,
        log_addr: None,
    };
    frontend.set_vring_addr(index, &config)?;
    frontend.set_vring_call(index, &fds.call)?;
    frontend.set_vring_err(index, &fds.err)?;
    frontend.set_vring_kick(index, &fds.kick)?;
    Ok(())
}

/// Sleeps until the back end calls, at most so long.
pub(super) fn wait_for_call(call: &EventFd, most: Duration) -> Result<(), FrontendError> {
    let time = Timespec::try_from(most).map_err(std::io::Error::other)?;
    let mut fds = [PollFd::from_borrowed_fd(borrow(call), PollFlags::IN)];
    match poll(&mut fds, Some(&time)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
        Ok(_) => match call.read() {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// The descriptor of an eventfd, whose crate has no other way to it.
pub(super) fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the result borrows the eventfd, which so stays open.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}
