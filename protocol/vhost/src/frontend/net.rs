//! Frames over a vhost-user connection.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferro_protocol::net::Mac;
use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::GuestAddress;

use super::net_ring::SlotRing;
use super::session::{self, RingFds, RingPlace, wait_for_call};
use super::{DriverRing, FrontendError, GuestRam};
use crate::guest::{GuestView, Outside};
use crate::memory::GuestMap;
use crate::net::{FRAME_BYTES_MAX, HEADER_BYTES, QueuePair, VirtioNetHdr, feature};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const DESCRIPTOR_BYTES: u64 = 16;
const SEND_RARP: u32 = 19;
const NET_SET_MTU: u32 = 20;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;

/// How a client uses the device.
#[derive(Debug, Clone)]
pub struct NetClientOptions {
    /// Pairs of rings to run.
    pub pairs: u16,
    /// Descriptors of each ring.
    pub queue_size: u16,
    /// Device features to acknowledge, of [`feature::ALL`], where they are offered.
    pub features: u64,
    /// Negotiate and use `EVENT_IDX`.
    pub event_idx: bool,
    /// Negotiate indirect descriptors, and send with them what takes more than one descriptor.
    pub indirect: bool,
    /// Bytes of each receive buffer, header included.
    pub rx_buffer_bytes: u32,
    /// Frames (with their header) are sent in descriptors of this size.
    pub tx_segment_bytes: u32,
    /// The longest frame that is sent.
    pub frame_bytes_max: usize,
    /// Take the back end's configuration space and its notices.
    pub config_space: bool,
}

impl Default for NetClientOptions {
    fn default() -> Self {
        Self {
            pairs: 1,
            queue_size: 256,
            features: feature::ALL,
            event_idx: true,
            indirect: true,
            rx_buffer_bytes: 2048,
            tx_segment_bytes: 1 << 17,
            frame_bytes_max: FRAME_BYTES_MAX,
            config_space: false,
        }
    }
}

impl NetClientOptions {
    fn segments_max(&self) -> u64 {
        ((HEADER_BYTES + self.frame_bytes_max) as u64).div_ceil(u64::from(self.tx_segment_bytes.max(1)))
    }

    /// Table descriptors that a slot of a sending ring has.
    fn tx_stride(&self) -> u16 {
        if self.indirect { 1 } else { self.segments_max().min(u64::from(self.queue_size)) as u16 }
    }

    fn tx_table_bytes(&self) -> u64 {
        (DESCRIPTOR_BYTES * self.segments_max()).next_multiple_of(64)
    }

    fn tx_slot_bytes(&self) -> u64 {
        self.tx_table_bytes() + ((HEADER_BYTES + self.frame_bytes_max) as u64).next_multiple_of(64)
    }

    fn rx_slot_bytes(&self) -> u64 {
        u64::from(self.rx_buffer_bytes).next_multiple_of(64)
    }

    fn queue_bytes(&self) -> u64 {
        let slots = u64::from(self.queue_size) * self.rx_slot_bytes().max(self.tx_slot_bytes());
        DriverRing::bytes(self.queue_size) + slots.next_multiple_of(4096)
    }

    /// Bytes of guest memory that a client with these options needs.
    pub fn ram_bytes(&self) -> u64 {
        2 * u64::from(self.pairs) * self.queue_bytes()
    }
}

/// How a client meets its back end.
#[derive(Debug)]
pub enum NetDestination {
    /// The back end listens here.
    Connect(PathBuf),
    /// The back end connects to this.
    Listen(UnixListener),
}

impl NetDestination {
    fn meet(&self) -> Result<UnixStream, FrontendError> {
        Ok(match self {
            Self::Connect(path) => UnixStream::connect(path)?,
            Self::Listen(listener) => listener.accept()?.0,
        })
    }
}

#[derive(Debug)]
struct NetQueue {
    ring: SlotRing,
    slots: GuestAddress,
    fds: RingFds,
    /// Sending: slots that are free.
    free: Vec<u16>,
}

/// A connected vhost-user-net front end.
pub struct NetClient {
    destination: NetDestination,
    options: NetClientOptions,
    ram: GuestRam,
    view: Arc<GuestView>,
    frontend: Frontend,
    /// The same socket, for messages that the crate lacks.
    stream: UnixStream,
    back_channel: UnixStream,
    queues: Vec<NetQueue>,
    features: u64,
    /// Sleep for a call rather than spin on the ring.
    pub sleep: bool,
}

fn outside(_: Outside) -> FrontendError {
    FrontendError::Map("a slot outside of guest memory".into())
}

impl NetClient {
    /// Meets the back end, negotiates, starts the rings and gives all receive buffers.
    pub fn new(destination: NetDestination, options: NetClientOptions) -> Result<Self, FrontendError> {
        let ram = GuestRam::new(options.ram_bytes().next_multiple_of(4096))?;
        let view = Arc::new(GuestView::new(Arc::new(GuestMap::anonymous(ram.mem().clone()))));
        let stream = destination.meet()?;
        let frontend = Frontend::from_stream(stream.try_clone()?, 2 * u64::from(options.pairs));
        let (back_channel, theirs) = UnixStream::pair()?;
        let mut client = Self {
            destination,
            options,
            ram,
            view,
            frontend,
            stream,
            back_channel,
            queues: Vec::new(),
            features: 0,
            sleep: true,
        };
        client.make_rings()?;
        client.handshake(&theirs)?;
        client.set_enabled_all()?;
        Ok(client)
    }

    /// Meets the back end again after it, or the connection, went away: rings and buffers as they are.
    pub fn reconnect(&mut self) -> Result<(), FrontendError> {
        self.stream = self.destination.meet()?;
        self.frontend = Frontend::from_stream(self.stream.try_clone()?, 2 * u64::from(self.options.pairs));
        let (back_channel, theirs) = UnixStream::pair()?;
        self.back_channel = back_channel;
        self.handshake(&theirs)?;
        self.set_enabled_all()
    }

    /// Stops and empties all rings and starts them anew, as a guest's reset of its device does.
    pub fn reset(&mut self) -> Result<(), FrontendError> {
        for index in 0..self.queues.len() {
            self.frontend.get_vring_base(index)?;
        }
        self.make_rings()?;
        for index in 0..self.queues.len() {
            self.start_queue(index)?;
        }
        self.set_enabled_all()
    }

    fn make_rings(&mut self) -> Result<(), FrontendError> {
        let options = &self.options;
        let mut queues = Vec::new();
        for index in 0..2 * u64::from(options.pairs) {
            let base = GuestAddress(index * options.queue_bytes());
            let mut ring = SlotRing::new(&self.view, base, options.queue_size, options.event_idx)?;
            let slots = GuestAddress(base.0 + DriverRing::bytes(options.queue_size));
            let mut free = Vec::new();
            if index % 2 == 0 {
                for slot in 0..options.queue_size {
                    let addr = slots.0 + u64::from(slot) * options.rx_slot_bytes();
                    ring.descriptor(slot, addr, options.rx_buffer_bytes, WRITE, 0);
                    ring.put(slot);
                }
                ring.publish();
            } else {
                free.extend((0..options.queue_size / options.tx_stride()).rev());
            }
            // Calls are asked for when there is something to wait for.
            ring.want_calls(false);
            queues.push(NetQueue { ring, slots, fds: RingFds::new()?, free });
        }
        self.queues = queues;
        Ok(())
    }

    fn handshake(&mut self, back_channel: &UnixStream) -> Result<(), FrontendError> {
        let frontend = &mut self.frontend;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let transport = session::transport(self.options.event_idx, self.options.indirect);
        if transport & !offered != 0 {
            return Err(FrontendError::Missing("a virtio feature"));
        }
        self.features = transport | offered & self.options.features & feature::ALL;
        let mut wanted =
            Protocol::MQ | Protocol::REPLY_ACK | Protocol::RARP | Protocol::MTU | Protocol::STATUS;
        if self.options.config_space {
            wanted |= Protocol::CONFIG | Protocol::BACKEND_REQ;
        }
        session::settle_protocol(frontend, wanted)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if frontend.get_queue_num()? < 2 * u64::from(self.options.pairs) {
            return Err(FrontendError::Missing("that many pairs of queues"));
        }
        if self.options.config_space {
            frontend.set_backend_request_fd(back_channel)?;
        }
        frontend.set_features(self.features)?;
        session::share_memory(frontend, &self.ram, false)?;
        for index in 0..self.queues.len() {
            self.start_queue(index)?;
        }
        Ok(())
    }

    /// Starts a stopped ring with its parts (descriptor table, available ring, used ring) at other places.
    pub fn start_ring_at(
        &mut self,
        queue: crate::QueueIndex,
        [table, avail, used]: [GuestAddress; 3],
    ) -> Result<(), FrontendError> {
        let index = usize::from(queue.0);
        let entry = &self.queues[index];
        let base = entry.ring.shared_used_idx();
        let place = RingPlace { size: entry.ring.size(), addrs: (table, avail, used), base };
        session::start_ring(&mut self.frontend, index, &self.ram, &place, &entry.fds)
    }

    fn start_queue(&mut self, index: usize) -> Result<(), FrontendError> {
        let queue = &self.queues[index];
        let place = RingPlace {
            size: queue.ring.size(),
            addrs: queue.ring.addrs(),
            base: queue.ring.shared_used_idx(),
        };
        session::start_ring(&mut self.frontend, index, &self.ram, &place, &queue.fds)
    }

    fn set_enabled_all(&mut self) -> Result<(), FrontendError> {
        for pair in 0..self.options.pairs {
            self.set_enabled(QueuePair(pair), true)?;
        }
        Ok(())
    }

    /// Enables or disables a pair, as a VMM does when its guest changes how many it uses.
    pub fn set_enabled(&mut self, pair: QueuePair, enabled: bool) -> Result<(), FrontendError> {
        for queue in [pair.rx(), pair.tx()] {
            self.frontend.set_vring_enable(usize::from(queue.0), enabled)?;
        }
        Ok(())
    }

    /// Stops a pair and returns the bases that the back end reports, receiving and sending.
    pub fn stop(&mut self, pair: QueuePair) -> Result<[u32; 2], FrontendError> {
        let base = |queue: crate::QueueIndex| self.frontend.get_vring_base(usize::from(queue.0));
        Ok([base(pair.rx())?, base(pair.tx())?])
    }

    /// Starts a stopped pair where it was.
    pub fn restart(&mut self, pair: QueuePair) -> Result<(), FrontendError> {
        for queue in [pair.rx(), pair.tx()] {
            self.start_queue(usize::from(queue.0))?;
        }
        Ok(())
    }

    // ---- messages of network devices ----

    fn message(&mut self, request: u32, number: Option<u64>) -> Result<u64, FrontendError> {
        // Version 1, a reply wanted; GET_STATUS has one of its own.
        let flags: u32 = if request == GET_STATUS { 1 } else { 1 | 8 };
        let size: u32 = if number.is_some() { 8 } else { 0 };
        let mut message: Vec<u8> = [request, flags, size].into_iter().flat_map(u32::to_ne_bytes).collect();
        message.extend(number.into_iter().flat_map(u64::to_ne_bytes));
        self.stream.write_all(&message)?;
        let mut reply = [0; 20];
        self.stream.read_exact(&mut reply)?;
        let number = reply.last_chunk().copied().unwrap_or_default();
        Ok(u64::from_ne_bytes(number))
    }

    /// Tells the back end the guest's MTU; whether it takes it.
    pub fn set_mtu(&mut self, mtu: u64) -> Result<bool, FrontendError> {
        Ok(self.message(NET_SET_MTU, Some(mtu))? == 0)
    }

    /// Asks the back end to announce an address.
    pub fn send_rarp(&mut self, mac: Mac) -> Result<bool, FrontendError> {
        let mut number = [0; 8];
        number[..mac.0.len()].copy_from_slice(&mac.0);
        Ok(self.message(SEND_RARP, Some(u64::from_ne_bytes(number)))? == 0)
    }

    /// Sets the device status.
    pub fn set_status(&mut self, status: u8) -> Result<bool, FrontendError> {
        Ok(self.message(SET_STATUS, Some(u64::from(status)))? == 0)
    }

    /// Reads the device status back.
    pub fn status(&mut self) -> Result<u64, FrontendError> {
        self.message(GET_STATUS, None)
    }

    /// The configuration space, if the back end offers it.
    pub fn config(&mut self, bytes: u32) -> Result<Vec<u8>, FrontendError> {
        let buffer = vec![0; bytes as usize];
        Ok(self.frontend.get_config(0, bytes, VhostUserConfigFlags::empty(), &buffer)?.1)
    }

    /// The channel on which the back end tells of configuration changes.
    pub fn back_channel(&self) -> &UnixStream {
        &self.back_channel
    }

    // ---- getters ----

    /// Features that were acknowledged.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Addresses of descriptor table, available ring and used ring of a queue.
    pub fn ring_addrs(&self, queue: crate::QueueIndex) -> (GuestAddress, GuestAddress, GuestAddress) {
        self.queues[usize::from(queue.0)].ring.addrs()
    }

    /// Whether the back end has signalled an error on the queue since the last question.
    pub fn take_error(&self, queue: crate::QueueIndex) -> bool {
        self.queues[usize::from(queue.0)].fds.err.read().is_ok()
    }

    /// Takes the calls on a queue since the last question.
    pub fn take_calls(&self, queue: crate::QueueIndex) -> u64 {
        self.queues[usize::from(queue.0)].fds.call.read().unwrap_or(0)
    }

    /// What the back end signals when frames have arrived on a pair.
    pub fn rx_call(&self, pair: QueuePair) -> BorrowedFd<'_> {
        session::borrow(&self.queues[usize::from(pair.rx().0)].fds.call)
    }

    // ---- sending ----

    /// Takes back the slots of frames that were sent; how many.
    pub fn reap_tx(&mut self, pair: QueuePair) -> usize {
        let stride = self.options.tx_stride();
        let queue = &mut self.queues[usize::from(pair.tx().0)];
        let done = queue.ring.completed(1);
        for _ in 0..done {
            let (head, _) = queue.ring.reap();
            queue.free.push(head / stride);
        }
        usize::from(done)
    }

    /// Puts a frame on the ring, without a kick. `false`: the ring is full.
    pub fn send_quietly(
        &mut self,
        pair: QueuePair,
        header: VirtioNetHdr,
        frame: &[u8],
    ) -> Result<bool, FrontendError> {
        if frame.len() > self.options.frame_bytes_max {
            return Err(FrontendError::TooLarge(frame.len()));
        }
        let queue = usize::from(pair.tx().0);
        if self.queues[queue].free.is_empty() {
            self.reap_tx(pair);
        }
        let Some(slot) = self.queues[queue].free.pop() else { return Ok(false) };
        let queue = &mut self.queues[queue];
        let table = queue.slots.0 + u64::from(slot) * self.options.tx_slot_bytes();
        let data = table + self.options.tx_table_bytes();
        self.view.write(data, &header.encode()).map_err(outside)?;
        self.view.write(data + HEADER_BYTES as u64, frame).map_err(outside)?;
        let (step, bytes) = (self.options.tx_segment_bytes, (HEADER_BYTES + frame.len()) as u32);
        let segments = bytes.div_ceil(step) as u16;
        let segment = |at: u16| {
            let from = u32::from(at) * step;
            (data + u64::from(from), step.min(bytes - from), if at + 1 < segments { NEXT } else { 0 })
        };
        let head = slot * self.options.tx_stride();
        if segments == 1 {
            queue.ring.descriptor(head, data, bytes, 0, 0);
        } else if self.options.indirect {
            for at in 0..segments {
                let (addr, len, flags) = segment(at);
                let fields = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes()].concat();
                let entry = table + DESCRIPTOR_BYTES * u64::from(at);
                self.view.write(entry, &fields).map_err(outside)?;
                self.view.write(entry + 14, &(at + 1).to_le_bytes()).map_err(outside)?;
            }
            queue.ring.descriptor(head, table, 16 * u32::from(segments), INDIRECT, 0);
        } else {
            for at in 0..segments {
                let (addr, len, flags) = segment(at);
                queue.ring.descriptor(head + at, addr, len, flags, head + at + 1);
            }
        }
        queue.ring.put(head);
        Ok(true)
    }

    /// Shows the back end what was put on the ring, and kicks it if it wants that.
    pub fn kick(&mut self, pair: QueuePair) -> Result<(), FrontendError> {
        let queue = &mut self.queues[usize::from(pair.tx().0)];
        queue.ring.publish();
        if queue.ring.needs_kick() {
            queue.fds.kick.write(1)?;
        }
        Ok(())
    }

    /// Sends a frame. `false`: the ring is full.
    pub fn send(
        &mut self,
        pair: QueuePair,
        header: VirtioNetHdr,
        frame: &[u8],
    ) -> Result<bool, FrontendError> {
        let sent = self.send_quietly(pair, header, frame)?;
        self.kick(pair)?;
        Ok(sent)
    }

    /// Sends again up to `count` frames of the length given, with whatever the slots hold: for load generators, which fill
    /// all slots once and don't want to measure how fast they themselves copy. Of frames that take more than one descriptor all
    /// slots hold some of that length. How many.
    pub fn resend(&mut self, pair: QueuePair, frame_bytes: usize, count: usize) -> usize {
        self.reap_tx(pair);
        let bytes = (HEADER_BYTES + frame_bytes) as u32;
        let step = self.options.tx_segment_bytes;
        let first = match bytes.div_ceil(step) {
            0 | 1 => bytes,
            segments if self.options.indirect => DESCRIPTOR_BYTES as u32 * segments,
            _ => step,
        };
        let queue = &mut self.queues[usize::from(pair.tx().0)];
        let mut sent = 0;
        while sent < count
            && let Some(slot) = queue.free.pop()
        {
            let head = slot * self.options.tx_stride();
            queue.ring.descriptor_len(head, first);
            queue.ring.put(head);
            sent += 1;
        }
        sent
    }

    // ---- receiving ----

    /// The next frame, if there is one, into `out`. Its buffers are given again.
    pub fn try_recv(
        &mut self,
        pair: QueuePair,
        out: &mut Vec<u8>,
    ) -> Result<Option<VirtioNetHdr>, FrontendError> {
        out.clear();
        let queue = &mut self.queues[usize::from(pair.rx().0)];
        if queue.ring.completed(1) == 0 {
            return Ok(None);
        }
        let mut header = VirtioNetHdr::default();
        let mut buffers = 1;
        let mut at = 0;
        while at < buffers {
            if queue.ring.completed(1) == 0 {
                return Err(FrontendError::Missing("all buffers of a frame at once"));
            }
            let (slot, written) = queue.ring.reap();
            let addr = queue.slots.0 + u64::from(slot) * self.options.rx_slot_bytes();
            if written > self.options.rx_buffer_bytes || slot >= queue.ring.size() {
                return Err(FrontendError::Missing("a buffer as large as it says"));
            }
            let mut skip = 0;
            if at == 0 {
                header = VirtioNetHdr::parse(self.view.read_array(addr).map_err(outside)?);
                buffers = header.num_buffers;
                skip = HEADER_BYTES;
            }
            let bytes = (written as usize).saturating_sub(skip);
            let from = out.len();
            out.resize(from + bytes, 0);
            self.view.read(addr + skip as u64, &mut out[from..]).map_err(outside)?;
            queue.ring.put(slot);
            at += 1;
        }
        queue.ring.publish();
        if queue.ring.needs_kick() {
            queue.fds.kick.write(1)?;
        }
        Ok(Some(header))
    }

    /// Takes up to `budget` buffers with frames and gives them again without a look at them: for load generators. How many
    /// buffers.
    pub fn discard_rx(&mut self, pair: QueuePair, budget: u16) -> usize {
        let queue = &mut self.queues[usize::from(pair.rx().0)];
        let done = queue.ring.completed(budget).min(budget);
        for _ in 0..done {
            let (slot, _) = queue.ring.reap();
            queue.ring.put(slot);
        }
        if done > 0 {
            queue.ring.publish();
        }
        usize::from(done)
    }

    /// Waits for a frame, asleep or polling.
    pub fn recv(
        &mut self,
        pair: QueuePair,
        out: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<VirtioNetHdr, FrontendError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(header) = self.try_recv(pair, out)? {
                self.want_rx_calls(pair, false);
                return Ok(header);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FrontendError::Timeout(timeout));
            }
            if !self.sleep {
                std::hint::spin_loop();
            } else if !self.want_rx_calls(pair, true) {
                wait_for_call(&self.queues[usize::from(pair.rx().0)].fds.call, left)?;
            }
        }
    }

    /// Asks to be called when a frame arrives, or not to be. `true`: one arrived meanwhile.
    pub fn want_rx_calls(&mut self, pair: QueuePair, wanted: bool) -> bool {
        self.queues[usize::from(pair.rx().0)].ring.want_calls(wanted)
    }

    /// Closes the connection without stopping anything first, as a VMM that is killed does.
    pub fn hang_up(&self) -> std::io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Both)
    }
}
