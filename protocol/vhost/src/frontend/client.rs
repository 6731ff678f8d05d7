//! Block requests over a vhost-user connection.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::session::{self, RingFds, RingPlace, wait_for_call};
use super::{DriverRing, FrontendError, GuestRam, RingDescriptor};
use crate::blk::{CONFIG_BYTES, Sector, SectorRange};

/// How a client uses the device.
// Independent switches, as features are.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Queues to run.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
    /// Requests in flight per queue at most.
    pub depth: u16,
    /// Most data bytes of a request.
    pub data_bytes_max: u32,
    /// Data are split into descriptors of this size.
    pub segment_bytes: u32,
    /// Negotiate and use `EVENT_IDX`.
    pub event_idx: bool,
    /// Negotiate and use indirect descriptors.
    pub indirect: bool,
    /// Give the back end an in-flight region.
    pub inflight: bool,
    /// Split the request header over two descriptors, and use `ADD_MEM_REG` instead of `SET_MEM_TABLE`: legal, but rare.
    pub unusual: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 128,
            depth: 32,
            data_bytes_max: 1 << 20,
            segment_bytes: 1 << 20,
            event_idx: true,
            indirect: true,
            inflight: true,
            unusual: false,
        }
    }
}

impl ClientOptions {
    fn segments_max(&self) -> u64 {
        u64::from(self.data_bytes_max.div_ceil(self.segment_bytes.max(1))) + 4
    }

    fn slot_bytes(&self) -> u64 {
        let table = (16 * self.segments_max()).next_multiple_of(4096);
        // Header and status share a page with room to spare.
        4096 + table + u64::from(self.data_bytes_max).next_multiple_of(4096)
    }

    fn queue_bytes(&self) -> u64 {
        DriverRing::bytes(self.queue_size) + u64::from(self.depth) * self.slot_bytes()
    }

    /// Bytes of guest memory that a client with these options needs.
    pub fn ram_bytes(&self) -> u64 {
        u64::from(self.queues) * self.queue_bytes()
    }
}

/// A request.
#[derive(Debug, Clone)]
pub enum Op<'a> {
    /// Read so many bytes.
    Read(Sector, u32),
    /// Write these bytes.
    Write(Sector, &'a [u8]),
    /// Flush.
    Flush,
    /// Discard ranges.
    Discard(&'a [SectorRange]),
    /// Zero ranges; whether their space may be freed.
    WriteZeroes(&'a [SectorRange], bool),
    /// The disk's name.
    GetId,
}

/// Names a request that was put on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    queue: u16,
    slot: u16,
}

/// A request that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub ticket: Ticket,
    /// virtio-blk status byte; 0 is good.
    pub status: u8,
    /// Bytes that the device says it wrote, the status included.
    pub written: u32,
}

struct ClientQueue {
    ring: DriverRing,
    base: GuestAddress,
    fds: RingFds,
    free_slots: Vec<u16>,
    /// Head to slot.
    heads: HashMap<u16, u16>,
}

/// A connected vhost-user-blk front end.
pub struct BlkClient {
    path: PathBuf,
    options: ClientOptions,
    ram: GuestRam,
    frontend: Frontend,
    back_channel: UnixStream,
    inflight: Option<(VhostUserInflight, File)>,
    queues: Vec<ClientQueue>,
    /// Sleep for a call rather than spin on the ring.
    pub sleep: bool,
}

impl BlkClient {
    /// Connects, negotiates, and starts the rings.
    pub fn connect(path: &Path, options: ClientOptions) -> Result<Self, FrontendError> {
        let ram = GuestRam::new(options.ram_bytes().next_multiple_of(4096))?;
        let mut queues = Vec::new();
        for index in 0..options.queues {
            let base = GuestAddress(u64::from(index) * options.queue_bytes());
            queues.push(ClientQueue {
                ring: DriverRing::new(ram.mem().clone(), base, options.queue_size, options.event_idx)?,
                base: GuestAddress(base.0 + DriverRing::bytes(options.queue_size)),
                fds: RingFds::new()?,
                free_slots: (0..options.depth).rev().collect(),
                heads: HashMap::new(),
            });
        }
        let frontend = Frontend::connect(path, u64::from(options.queues))?;
        let (back_channel, theirs) = UnixStream::pair()?;
        let mut client = Self {
            path: path.to_owned(),
            options,
            ram,
            frontend,
            back_channel,
            inflight: None,
            queues,
            sleep: true,
        };
        client.handshake(&theirs)?;
        Ok(client)
    }

    /// Connects again after the back end went away, with the rings and the in-flight region as they are.
    pub fn reconnect(&mut self) -> Result<(), FrontendError> {
        self.frontend = Frontend::connect(&self.path, u64::from(self.options.queues))?;
        let (back_channel, theirs) = UnixStream::pair()?;
        self.back_channel = back_channel;
        self.handshake(&theirs)
    }

    fn handshake(&mut self, back_channel: &UnixStream) -> Result<(), FrontendError> {
        let frontend = &mut self.frontend;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let mut features = session::transport(self.options.event_idx, self.options.indirect);
        // The device's own features are all understood.
        features |= offered & 0x00ff_ffff;
        if features & !offered != 0 {
            return Err(FrontendError::Missing("a virtio feature"));
        }
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        session::settle_protocol(frontend, wanted)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if frontend.get_queue_num()? < u64::from(self.options.queues) {
            return Err(FrontendError::Missing("that many queues"));
        }
        frontend.set_backend_request_fd(back_channel)?;
        frontend.set_features(features)?;
        session::share_memory(&mut self.frontend, &self.ram, self.options.unusual)?;
        if self.options.inflight {
            self.share_inflight()?;
        }
        for index in 0..self.queues.len() {
            self.start_queue(index)?;
        }
        Ok(())
    }

    fn share_inflight(&mut self) -> Result<(), FrontendError> {
        if self.inflight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, self.options.queues, self.options.queue_size);
            self.inflight = Some(self.frontend.get_inflight_fd(&wanted)?);
        }
        if let Some((info, file)) = &self.inflight {
            self.frontend.set_inflight_fd(info, file.as_raw_fd())?;
        }
        Ok(())
    }

    fn start_queue(&mut self, index: usize) -> Result<(), FrontendError> {
        let queue = &self.queues[index];
        let place = RingPlace {
            size: queue.ring.size(),
            addrs: queue.ring.addrs(),
            base: queue.ring.shared_used_idx()?,
        };
        session::start_ring(&mut self.frontend, index, &self.ram, &place, &queue.fds)?;
        self.frontend.set_vring_enable(index, true)?;
        Ok(())
    }

    /// Stops a queue, as a guest's reset does, and returns the base that the back end reports.
    pub fn stop_queue(&mut self, queue: u16) -> Result<u32, FrontendError> {
        Ok(self.frontend.get_vring_base(usize::from(queue))?)
    }

    /// Starts a stopped queue where it was.
    pub fn restart_queue(&mut self, queue: u16) -> Result<(), FrontendError> {
        self.start_queue(usize::from(queue))
    }

    /// The configuration space.
    pub fn config(&mut self) -> Result<Vec<u8>, FrontendError> {
        let buffer = [0u8; CONFIG_BYTES];
        let (_, bytes) =
            self.frontend.get_config(0, CONFIG_BYTES as u32, VhostUserConfigFlags::empty(), &buffer)?;
        Ok(bytes)
    }

    /// The disk's size according to the configuration space.
    pub fn capacity(&mut self) -> Result<Sector, FrontendError> {
        let config = self.config()?;
        let bytes = config.first_chunk::<8>().ok_or(FrontendError::Missing("a capacity"))?;
        Ok(Sector(u64::from_le_bytes(*bytes)))
    }

    /// The channel on which the back end tells of configuration changes.
    pub fn back_channel(&self) -> &UnixStream {
        &self.back_channel
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The eventfd that the back end signals.
    pub fn call_fd(&self, queue: u16) -> &EventFd {
        &self.queues[usize::from(queue)].fds.call
    }

    /// Whether the back end has signalled an error on the queue since the last question.
    pub fn take_error(&self, queue: u16) -> bool {
        self.queues[usize::from(queue)].fds.err.read().is_ok()
    }

    /// Addresses of a queue's descriptor table, available ring and used ring.
    pub fn ring_addrs(&self, queue: u16) -> (GuestAddress, GuestAddress, GuestAddress) {
        self.queues[usize::from(queue)].ring.addrs()
    }

    /// Empties all rings and forgets what was on them, as a guest's reset of its device does, and starts them again.
    pub fn reset(&mut self) -> Result<(), FrontendError> {
        for index in 0..self.queues.len() {
            self.frontend.get_vring_base(index)?;
        }
        // A new device has nothing in flight.
        self.inflight = None;
        for queue in &mut self.queues {
            let (base, _, _) = queue.ring.addrs();
            queue.ring = DriverRing::new(
                self.ram.mem().clone(),
                base,
                self.options.queue_size,
                self.options.event_idx,
            )?;
            queue.free_slots = (0..self.options.depth).rev().collect();
            queue.heads.clear();
        }
        if self.options.inflight {
            self.share_inflight()?;
        }
        for index in 0..self.queues.len() {
            self.start_queue(index)?;
        }
        Ok(())
    }

    fn slot_addrs(&self, ticket: Ticket) -> (GuestAddress, GuestAddress, GuestAddress) {
        let queue = &self.queues[usize::from(ticket.queue)];
        let header = queue.base.0 + u64::from(ticket.slot) * self.options.slot_bytes();
        let table = header + 4096;
        let data = table + (16 * self.options.segments_max()).next_multiple_of(4096);
        (GuestAddress(header), GuestAddress(table), GuestAddress(data))
    }

    /// Puts a request on a queue and kicks the back end if it wants that.
    pub fn submit(&mut self, queue: u16, op: &Op<'_>) -> Result<Ticket, FrontendError> {
        let ticket = self.submit_quietly(queue, op)?;
        self.kick(queue)?;
        Ok(ticket)
    }

    /// Puts a request on a queue without a kick; several can share one [`BlkClient::kick`].
    pub fn submit_quietly(&mut self, queue: u16, op: &Op<'_>) -> Result<Ticket, FrontendError> {
        let slot = self.queues[usize::from(queue)].free_slots.pop().ok_or(FrontendError::Full(queue))?;
        let ticket = Ticket { queue, slot };
        match self.place(ticket, op) {
            Ok(Some(head)) => {
                self.queues[usize::from(queue)].heads.insert(head, slot);
                Ok(ticket)
            }
            failed => {
                self.queues[usize::from(queue)].free_slots.push(slot);
                failed.and(Err(FrontendError::Full(queue)))
            }
        }
    }

    fn place(&mut self, ticket: Ticket, op: &Op<'_>) -> Result<Option<u16>, FrontendError> {
        let (header, table, data) = self.slot_addrs(ticket);
        let status = GuestAddress(header.0 + 64);
        let range_bytes = |ranges: &[SectorRange], flags: u32| -> Vec<u8> {
            ranges
                .iter()
                .flat_map(|range| {
                    let mut bytes = range.first.0.to_le_bytes().to_vec();
                    bytes.extend_from_slice(&range.count.to_le_bytes());
                    bytes.extend_from_slice(&flags.to_le_bytes());
                    bytes
                })
                .collect()
        };
        let (kind, sector, payload, read_bytes) = match op {
            Op::Read(sector, bytes) => (0u32, *sector, Vec::new(), *bytes),
            Op::Write(sector, bytes) => (1, *sector, bytes.to_vec(), 0),
            Op::Flush => (4, Sector(0), Vec::new(), 0),
            Op::GetId => (8, Sector(0), Vec::new(), 20),
            Op::Discard(ranges) => (11, Sector(0), range_bytes(ranges, 0), 0),
            Op::WriteZeroes(ranges, unmap) => (13, Sector(0), range_bytes(ranges, u32::from(*unmap)), 0),
        };
        let bytes = payload.len().max(read_bytes as usize);
        if bytes > self.options.data_bytes_max as usize {
            return Err(FrontendError::TooLarge(bytes));
        }
        let mem = self.ram.mem();
        mem.write_obj(kind.to_le(), header)?;
        mem.write_obj(0u32, GuestAddress(header.0 + 4))?;
        mem.write_obj(sector.0.to_le(), GuestAddress(header.0 + 8))?;
        mem.write_obj(0xffu8, status)?;
        mem.write_slice(&payload, data)?;
        let chain = self.chain(header, data, status, bytes as u32, read_bytes > 0);
        let indirect = self.options.indirect.then_some(table);
        self.queues[usize::from(ticket.queue)].ring.add(&chain, indirect)
    }

    fn chain(
        &self,
        header: GuestAddress,
        data: GuestAddress,
        status: GuestAddress,
        bytes: u32,
        device_writes: bool,
    ) -> Vec<RingDescriptor> {
        let readable = |addr, len| RingDescriptor { addr, len, device_writes: false };
        let mut chain = if self.options.unusual {
            vec![readable(header, 5), readable(GuestAddress(header.0 + 5), 11)]
        } else {
            vec![readable(header, 16)]
        };
        let step = self.options.segment_bytes.max(1);
        let mut at = 0;
        while at < bytes {
            let len = step.min(bytes - at);
            chain.push(RingDescriptor { addr: GuestAddress(data.0 + u64::from(at)), len, device_writes });
            at += len;
        }
        chain.push(RingDescriptor { addr: status, len: 1, device_writes: true });
        chain
    }

    /// Kicks the back end if it wants that.
    pub fn kick(&mut self, queue: u16) -> Result<(), FrontendError> {
        let queue = &mut self.queues[usize::from(queue)];
        if queue.ring.needs_kick()? {
            queue.fds.kick.write(1)?;
        }
        Ok(())
    }

    /// A completion, if there is one now. Its slot, and so a read's data, may be reused by the next submission.
    pub fn try_reap(&mut self, queue: u16) -> Result<Option<Completion>, FrontendError> {
        let Some((head, written)) = self.queues[usize::from(queue)].ring.reap()? else {
            return Ok(None);
        };
        let entry = &mut self.queues[usize::from(queue)];
        // A head that was not given out: the back end completed something twice.
        let slot = entry.heads.remove(&head).ok_or(FrontendError::Missing("a single completion"))?;
        entry.free_slots.push(slot);
        let ticket = Ticket { queue, slot };
        let (header, _, _) = self.slot_addrs(ticket);
        let status = self.ram.mem().read_obj(GuestAddress(header.0 + 64))?;
        Ok(Some(Completion { ticket, status, written }))
    }

    /// Waits for a completion.
    pub fn wait(&mut self, queue: u16, timeout: Duration) -> Result<Completion, FrontendError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(completion) = self.try_reap(queue)? {
                return Ok(completion);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FrontendError::Timeout(timeout));
            }
            if !self.sleep {
                std::hint::spin_loop();
                continue;
            }
            let entry = &mut self.queues[usize::from(queue)];
            if entry.ring.want_calls(true)? {
                continue;
            }
            wait_for_call(&entry.fds.call, left)?;
        }
    }

    /// A completed read's data.
    pub fn data(&self, ticket: Ticket, out: &mut [u8]) -> Result<(), FrontendError> {
        let (_, _, data) = self.slot_addrs(ticket);
        Ok(self.ram.mem().read_slice(out, data)?)
    }

    /// Submits one request on queue 0 and waits for its status.
    pub fn run(&mut self, op: &Op<'_>) -> Result<Completion, FrontendError> {
        self.run_on(0, op)
    }

    /// Submits one request on a queue with nothing else in flight, and waits for its status.
    pub fn run_on(&mut self, queue: u16, op: &Op<'_>) -> Result<Completion, FrontendError> {
        self.submit(queue, op)?;
        self.wait(queue, Duration::from_secs(20))
    }

    /// Reads; any status but 0 is an error.
    pub fn read(&mut self, sector: Sector, out: &mut [u8]) -> Result<(), FrontendError> {
        let completion = self.run(&Op::Read(sector, out.len() as u32))?;
        if completion.status != 0 {
            return Err(FrontendError::Failed(completion.status));
        }
        self.data(completion.ticket, out)
    }

    /// Writes; any status but 0 is an error.
    pub fn write(&mut self, sector: Sector, bytes: &[u8]) -> Result<(), FrontendError> {
        match self.run(&Op::Write(sector, bytes))?.status {
            0 => Ok(()),
            status => Err(FrontendError::Failed(status)),
        }
    }
}
