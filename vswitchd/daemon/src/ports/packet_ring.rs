//! `AF_PACKET` itself: the socket, its ring of received frames, and what a network card says of its link; and whether a TAP
//! outlives who made it. All `unsafe` of this crate is here.
//!
//! ```text
//!   block (1 MiB):  | slot | slot | ... 15 of them |      TPACKET_V2: one slot a frame, handed over one by one
//!   slot:           | tpacket2_hdr 32 | ... | virtio_net_hdr 10 | frame |
//!                      status: kernel's ──► ours ──► kernel's      ^ tp_mac
//! ```
//!
//! Version 2 and not 3: version 3 hands over whole blocks, when they are full or a timer of at least a millisecond has run,
//! which every single frame of a quiet network would wait for. A slot holds the largest super-frame, since what does not fit
//! is cut off. See `docs/decisions/0010-worker.md`.

use std::io::{Error, IoSlice, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a slot: the largest super-frame of 64 KiB with its headers, and what the kernel puts in front.
const SLOT_BYTES: usize = 65_536 + 256;
const BLOCK_BYTES: usize = 1 << 20;
const SLOTS_PER_BLOCK: usize = BLOCK_BYTES / SLOT_BYTES;
const BLOCKS: usize = 34;
const SLOTS: usize = SLOTS_PER_BLOCK * BLOCKS;
/// Bytes of `virtio_net_hdr` as the kernel writes it: without the number of buffers.
pub(super) const VNET_BYTES: usize = 10;
/// What may be on its way out.
const SEND_BYTES: libc::c_int = 8 << 20;
/// Frames that one system call sends at most.
pub(super) const SEND_FRAMES: usize = 64;

/// A frame in its slot, until the next one is asked for.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    pub(super) vnet: [u8; VNET_BYTES],
    /// Protocol and content of the tag that was taken off.
    pub(super) tag: Option<(u16, u16)>,
    /// All of the frame, or `None` if it did not fit.
    pub(super) bytes: Option<&'a [u8]>,
}

/// A socket on one network card, with its ring.
#[derive(Debug)]
pub(super) struct PacketRing {
    socket: OwnedFd,
    map: *mut u8,
    at: usize,
    /// The slot that was given out last is to go back.
    out: bool,
    interface: String,
    index: libc::c_int,
}

// SAFETY: the map belongs to this value alone and goes with it from thread to thread.
unsafe impl Send for PacketRing {}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> Result<()> {
    let (pointer, bytes) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `bytes` bytes of a value that lives as long as the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, bytes) })?;
    Ok(())
}

fn socket(domain: libc::c_int, protocol: libc::c_int) -> Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved; the descriptor is new and nobody else's.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(domain, kind, protocol))?)) }
}

fn bind<T>(socket: &OwnedFd, address: &T) -> Result<()> {
    let (pointer, bytes) = (std::ptr::from_ref(address).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `bytes` bytes of an address that lives as long as the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, bytes) })?;
    Ok(())
}

impl PacketRing {
    /// Opens a ring on an interface and begins to receive.
    pub(super) fn open(interface: &str) -> Result<Self> {
        // Protocol 0: nothing is received before the address is bound.
        let socket = socket(libc::AF_PACKET, 0)?;
        let index = interface_index(&socket, interface)?;
        set(
            &socket,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V2 as libc::c_int),
        )?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
        // Frames that leave by this interface, ours and the host's own, are no arrivals.
        set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BYTES)?;
        let ring = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: SLOT_BYTES as u32,
            tp_frame_nr: SLOTS as u32,
        };
        set(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &ring)?;
        // SAFETY: a new mapping wherever the kernel likes; it is unmapped by `drop` only.
        let map = unsafe {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            libc::mmap(std::ptr::null_mut(), BLOCKS * BLOCK_BYTES, access, flags, socket.as_raw_fd(), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        // From here on `drop` unmaps.
        let ring =
            Self { socket, map: map.cast(), at: 0, out: false, interface: interface.to_owned(), index };
        // SAFETY: all zeroes is an address of no family.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        bind(&ring.socket, &address)?;
        // SAFETY: all zeroes is a membership of no kind.
        let mut member: libc::packet_mreq = unsafe { std::mem::zeroed() };
        (member.mr_ifindex, member.mr_type) = (index, libc::PACKET_MR_PROMISC as u16);
        set(&ring.socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)?;
        Ok(ring)
    }

    fn slot(&self, at: usize) -> *mut u8 {
        let offset = (at / SLOTS_PER_BLOCK) * BLOCK_BYTES + (at % SLOTS_PER_BLOCK) * SLOT_BYTES;
        // SAFETY: `at` is less than SLOTS, so the slot lies in the map.
        unsafe { self.map.add(offset) }
    }

    fn status(&self, at: usize) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, aligned for it (slots and blocks are multiples of 16), in memory that is
        // mapped as long as `self`; the kernel accesses it atomically too.
        unsafe { AtomicU32::from_ptr(self.slot(at).cast()) }
    }

    /// The next frame, if there is one. The slot of the one before goes back to the kernel.
    pub(super) fn next(&mut self) -> Option<Slot<'_>> {
        if self.out {
            self.status(self.at).store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.at = (self.at + 1) % SLOTS;
            self.out = false;
        }
        let status = self.status(self.at).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.out = true;
        let slot = self.slot(self.at);
        // SAFETY: the status says that the slot is ours, so the kernel does not write to it before we give it back, which
        // needs `&mut self` and so ends what borrows from it. The header is plain data and lies in the slot.
        let (header, slot) = unsafe {
            let header: libc::tpacket2_hdr = std::ptr::read(slot.cast());
            (header, std::slice::from_raw_parts(slot, SLOT_BYTES))
        };
        let mac = usize::from(header.tp_mac);
        let mut vnet = [0; VNET_BYTES];
        if let Some(bytes) = mac.checked_sub(VNET_BYTES).and_then(|from| slot.get(from..mac)) {
            vnet.copy_from_slice(bytes);
        }
        let tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            (if known { header.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 }, header.tp_vlan_tci)
        });
        let whole = header.tp_snaplen == header.tp_len;
        let bytes = slot.get(mac..mac + header.tp_snaplen as usize).filter(|_| whole);
        Some(Slot { vnet, tag, bytes })
    }

    /// Gives the last slot back, when no more are asked for now.
    pub(super) fn settle(&mut self) {
        if self.out {
            self.status(self.at).store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.at = (self.at + 1) % SLOTS;
            self.out = false;
        }
    }

    /// Sends one frame that lies in pieces, its header first.
    pub(super) fn send(&self, pieces: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
        let mut control = rustix::net::SendAncillaryBuffer::default();
        rustix::net::sendmsg(&self.socket, pieces, &mut control, rustix::net::SendFlags::DONTWAIT)
    }

    /// Sends frames in their order, each in one piece with its header first, and at most [`SEND_FRAMES`] of them: how many
    /// went. An error is the first one's, and then none has gone.
    pub(super) fn send_many(&self, frames: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
        // SAFETY: all zeroes is a message to nobody in particular, of no pieces, with nothing beside it.
        let mut messages: [libc::mmsghdr; SEND_FRAMES] = unsafe { std::mem::zeroed() };
        let count = frames.len().min(SEND_FRAMES);
        for (message, frame) in messages.iter_mut().zip(frames) {
            message.msg_hdr.msg_iov = std::ptr::from_ref(frame).cast_mut().cast();
            message.msg_hdr.msg_iovlen = 1;
        }
        let (socket, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        // SAFETY: `count` messages, each with one piece: an `IoSlice` has the layout of `iovec`, and it and its bytes are
        // borrowed for the call. The kernel only reads them; it writes nothing but the messages' lengths.
        let sent = unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), count as libc::c_uint, flags) };
        usize::try_from(sent).map_err(|_| {
            let error = Error::last_os_error();
            rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
        })
    }

    /// How many frames found no slot since the last question.
    pub(super) fn losses(&self) -> Result<u64> {
        // SAFETY: plain numbers.
        let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut bytes = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let (socket, pointer) = (self.socket.as_raw_fd(), std::ptr::from_mut(&mut stats).cast());
        // SAFETY: the kernel writes at most `bytes` bytes to a value of that size.
        check(unsafe {
            libc::getsockopt(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, pointer, &raw mut bytes)
        })?;
        Ok(u64::from(stats.tp_drops))
    }

    /// Whether the interface is up and has a carrier. An error: it is not there any more, or another one of its name is.
    pub(super) fn link(&self) -> Result<bool> {
        if interface_index(&self.socket, &self.interface)? != self.index {
            return Err(Error::from_raw_os_error(libc::ENODEV));
        }
        let request = ask(&self.socket, &self.interface, libc::SIOCGIFFLAGS as libc::Ioctl)?;
        // SAFETY: after SIOCGIFFLAGS the union holds flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(flags & wanted == wanted)
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the map is this one's alone, and nothing borrows from it any more.
        unsafe { libc::munmap(self.map.cast(), BLOCKS * BLOCK_BYTES) };
    }
}

impl AsFd for PacketRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn ask(socket: &OwnedFd, interface: &str, request: libc::Ioctl) -> Result<libc::ifreq> {
    // SAFETY: all zeroes is a request about no interface.
    let mut it: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: names end there.
    if interface.len() >= it.ifr_name.len() {
        return Err(Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in it.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the request reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut it) })?;
    Ok(it)
}

fn interface_index(socket: &OwnedFd, interface: &str) -> Result<libc::c_int> {
    let request = ask(socket, interface, libc::SIOCGIFINDEX as libc::Ioctl)?;
    // SAFETY: after SIOCGIFINDEX the union holds an index.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Whether this network namespace has an interface of this name.
pub(super) fn interface_exists(interface: &str) -> Result<bool> {
    match interface_index(&socket(libc::AF_NETLINK, libc::NETLINK_ROUTE)?, interface) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a TAP stays when the descriptor is closed.
pub(super) fn set_persistent(tap: BorrowedFd<'_>, stays: bool) -> Result<()> {
    // SAFETY: the request takes a number and touches no memory.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(stays)) })?;
    Ok(())
}

/// A socket that is readable whenever a link of this network namespace has changed.
pub(super) fn link_changes() -> Result<OwnedFd> {
    let socket = socket(libc::AF_NETLINK, libc::NETLINK_ROUTE)?;
    // SAFETY: all zeroes is an address of no family.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    (address.nl_family, address.nl_groups) = (libc::AF_NETLINK as u16, libc::RTMGRP_LINK as u32);
    bind(&socket, &address)?;
    Ok(socket)
}
