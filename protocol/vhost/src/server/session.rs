//! One front end's messages, turned into commands for the data loop.
//!
//! Holds what a front end has said about rings that do not run yet. A ring starts with its kick descriptor, which front
//! ends send after its size, addresses and base; it stops with `GET_VRING_BASE`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use ferro_protocol::net::Mac;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backchannel::BackChannel;
use super::extra::{self, Extra};
use super::{ServerSettings, SharedConfig, lock};
use crate::QueueIndex;
use crate::error::SessionError;
use crate::event::{Command, Link, Notifier, Reply, RingSetup};
use crate::inflight::{self, InflightRegion, InflightShape};
use crate::memory::{GuestMap, MEM_SLOTS_MAX, RegionSpec};

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | PROTOCOL_FEATURES;

/// Ring addresses as the front end gives them: in its own address space.
#[derive(Debug, Clone, Copy)]
struct UserAddrs {
    table: u64,
    avail: u64,
    used: u64,
}

#[derive(Debug, Default)]
struct RingState {
    size: u16,
    addrs: Option<UserAddrs>,
    base: u16,
    call: Option<Notifier>,
    err: Option<Notifier>,
    enabled: bool,
    running: bool,
}

/// A front end's session.
#[derive(Debug)]
pub(crate) struct Session<L> {
    settings: ServerSettings,
    config: Arc<SharedConfig>,
    link: L,
    features: u64,
    protocol_features: u64,
    memory: Arc<GuestMap>,
    rings: Vec<RingState>,
    back_channel: Option<BackChannel>,
    /// The device status as the front end sets it; kept for it, nothing here depends on it.
    status: u8,
}

/// Serves the next message. `false`: the front end hung up.
pub(crate) fn handle_one<L: Link>(
    peer: &UnixStream,
    session: &Arc<Mutex<Session<L>>>,
    handler: &mut BackendReqHandler<Mutex<Session<L>>>,
) -> Result<bool, SessionError> {
    let negotiated = lock(session).features != 0;
    if extra::is_next(peer, negotiated)? {
        lock(session).extra(peer)?;
        return Ok(true);
    }
    match handler.handle_request() {
        Ok(()) => Ok(true),
        Err(VhostError::Disconnected | VhostError::SocketBroken(_)) => Ok(false),
        Err(error) => Err(SessionError::Io(std::io::Error::other(error))),
    }
}

impl<L: Link> Session<L> {
    pub(crate) fn new(settings: ServerSettings, config: Arc<SharedConfig>, link: L) -> Self {
        let rings = (0..settings.queues).map(|_| RingState::default()).collect();
        Self {
            settings,
            config,
            link,
            features: 0,
            protocol_features: 0,
            memory: Arc::default(),
            rings,
            back_channel: None,
            status: 0,
        }
    }

    /// The link, and the memory: it is unmapped by whoever drops it last, which should not be the data loop.
    pub(crate) fn into_parts(self) -> (L, Arc<GuestMap>) {
        (self.link, self.memory)
    }

    pub(crate) fn attach(&mut self) -> Result<(), SessionError> {
        self.command(Command::Attach).map(drop)
    }

    pub(crate) fn config_changed(&mut self) {
        if let Some(channel) = &self.back_channel
            && let Err(error) = channel.config_changed()
        {
            tracing::warn!(socket = self.settings.name, %error, "guest not told of its new size");
        }
    }

    /// Serves a message that is not the crate's.
    fn extra(&mut self, peer: &UnixStream) -> Result<(), SessionError> {
        use VhostUserProtocolFeatures as Protocol;
        let message = extra::receive(peer, self.has_protocol(Protocol::REPLY_ACK))?;
        let (needed, name) = match &message.extra {
            Extra::BackChannel(_) => (Protocol::BACKEND_REQ, "SET_BACKEND_REQ_FD"),
            Extra::SendRarp(_) => (Protocol::RARP, "SEND_RARP"),
            Extra::SetMtu(_) => (Protocol::MTU, "NET_SET_MTU"),
            Extra::SetStatus(_) | Extra::GetStatus => (Protocol::STATUS, "the device status"),
            // Only a ring that does not run anyway can be disabled so early.
            Extra::EarlyEnable(index, enabled) => {
                self.enable(*index, *enabled)?;
                return Ok(message.acknowledge(peer, true)?);
            }
        };
        if !self.has_protocol(needed) {
            return Err(SessionError::Unsupported(name));
        }
        let done = match &message.extra {
            Extra::EarlyEnable(..) => true,
            Extra::GetStatus => return Ok(message.reply(peer, u64::from(self.status))?),
            Extra::BackChannel(file) => {
                self.back_channel = Some(BackChannel::new(file.try_clone()?)?);
                true
            }
            Extra::SendRarp(number) => {
                let mac = number.to_ne_bytes().first_chunk().copied().unwrap_or_default();
                self.command(Command::Announce(Mac(mac)))?;
                true
            }
            // An MTU that does not fit is answered, if it may be; the guest has another one then.
            Extra::SetMtu(number) => {
                match u16::try_from(*number).map(|mtu| self.command(Command::SetMtu(mtu))) {
                    Ok(Ok(_)) => true,
                    Ok(Err(SessionError::Mtu(_))) | Err(_) => false,
                    Ok(Err(error)) => return Err(error),
                }
            }
            Extra::SetStatus(number) => match u8::try_from(*number) {
                Ok(status) => {
                    self.status = status;
                    true
                }
                Err(_) => false,
            },
        };
        if !done {
            tracing::warn!(socket = self.settings.name, ?message, "front end's wish refused");
        }
        Ok(message.acknowledge(peer, done)?)
    }

    fn command(&mut self, command: Command) -> Result<Reply, SessionError> {
        self.link.call(command, self.settings.apply_timeout)
    }

    fn offered(&self) -> u64 {
        self.settings.device_features | TRANSPORT_FEATURES
    }

    /// Protocol features hold from `SET_PROTOCOL_FEATURES` on, which comes before `SET_FEATURES`.
    fn has_protocol(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol_features & feature.bits() != 0
    }

    fn ring(&mut self, index: u32) -> Result<(QueueIndex, &mut RingState), SessionError> {
        let queue = u16::try_from(index).map_err(|_| SessionError::NoSuchQueue(index))?;
        let ring = self.rings.get_mut(usize::from(queue)).ok_or(SessionError::NoSuchQueue(index))?;
        Ok((QueueIndex(queue), ring))
    }

    /// A ring whose set-up is about to change, so it must not run.
    fn idle_ring(&mut self, index: u32) -> Result<(QueueIndex, &mut RingState), SessionError> {
        let (queue, ring) = self.ring(index)?;
        if ring.running {
            return Err(SessionError::Running(queue));
        }
        Ok((queue, ring))
    }

    fn start(&mut self, queue: QueueIndex, kick: Option<Notifier>) -> Result<(), SessionError> {
        let (features, memory) = (self.features, Arc::clone(&self.memory));
        let (_, ring) = self.ring(u32::from(queue.0))?;
        let incomplete = |missing| SessionError::Incomplete { queue, missing };
        let addrs = ring.addrs.ok_or(incomplete("addresses"))?;
        if ring.size == 0 {
            return Err(incomplete("size"));
        }
        let guest = |addr| {
            memory
                .guest_addr_of(addr)
                .ok_or(SessionError::Ring { queue, fault: crate::RingFault::BadAddresses })
        };
        // Without the protocol feature there is no SET_VRING_ENABLE, and rings start enabled.
        ring.enabled |= features & PROTOCOL_FEATURES == 0;
        let setup = RingSetup {
            size: ring.size,
            table: guest(addrs.table)?,
            avail: guest(addrs.avail)?,
            used: guest(addrs.used)?,
            base: ring.base,
            kick,
            call: ring.call.clone(),
            err: ring.err.clone(),
            enabled: ring.enabled,
            event_idx: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            features,
        };
        self.command(Command::Start(queue, Box::new(setup)))?;
        self.ring(u32::from(queue.0))?.1.running = true;
        Ok(())
    }

    fn set_memory(&mut self, memory: GuestMap) -> Result<(), SessionError> {
        // Kept until the data loop has let go of it, so that unmapping gigabytes takes this thread's time.
        let before = std::mem::replace(&mut self.memory, Arc::new(memory));
        let result = self.command(Command::SetMemory(Arc::clone(&self.memory))).map(drop);
        drop(before);
        result
    }

    fn stop(&mut self, index: u32) -> Result<u16, SessionError> {
        let (queue, ring) = self.ring(index)?;
        ring.running = false;
        // A stopped ring starts anew with a new kick; its enabling is kept, as QEMU expects.
        let timeout = self.settings.drain_timeout;
        match self.link.call(Command::Stop(queue), timeout)? {
            Reply::Base(base) => {
                self.ring(index)?.1.base = base;
                Ok(base)
            }
            _ => Ok(self.ring(index)?.1.base),
        }
    }

    fn notifier(fd: Option<File>, what: &'static str) -> Result<Option<Notifier>, SessionError> {
        fd.map(|fd| Notifier::from_peer(OwnedFd::from(fd), what)).transpose()
    }

    fn enable(&mut self, index: u32, enabled: bool) -> Result<(), SessionError> {
        let (queue, ring) = self.ring(index)?;
        ring.enabled = enabled;
        if ring.running {
            self.command(Command::Enable(queue, enabled))?;
        }
        Ok(())
    }
}

fn spec_of(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        user_addr: region.user_addr,
        file_offset: region.mmap_offset,
        size: region.memory_size,
    }
}

impl<L: Link> VhostUserBackendReqHandlerMut for Session<L> {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        // Deprecated by the specification in favour of disabling all rings.
        for index in 0..u32::from(self.settings.queues) {
            self.enable(index, false)?;
        }
        Ok(())
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        Err(SessionError::Unsupported("RESET_DEVICE").into())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(SessionError::Features(unknown).into());
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<Vec<u64>>> {
        let regions = regions.iter().map(spec_of).zip(files);
        let memory = GuestMap::new(regions, self.settings.seal_policy).map_err(SessionError::from)?;
        self.set_memory(memory)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let max = self.settings.queue_size_max;
        let (queue, ring) = self.idle_ring(index)?;
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= max => ring.size = size,
            _ => return Err(SessionError::RingSize { queue, size: num, max }.into()),
        }
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        // Dirty logging (LOG_SHMFD, live migration without shared storage) would be honoured here and in `Ring`.
        if !flags.is_empty() {
            return Err(SessionError::Unsupported("dirty logging").into());
        }
        let (_, ring) = self.idle_ring(index)?;
        ring.addrs = Some(UserAddrs { table: descriptor, avail: available, used });
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let (queue, ring) = self.idle_ring(index)?;
        ring.base = u16::try_from(base)
            .map_err(|_| SessionError::Ring { queue, fault: crate::RingFault::BadAddresses })?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let base = self.stop(index)?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let kick = Self::notifier(fd, "kick")?;
        let (queue, ring) = self.ring(u32::from(index))?;
        if ring.running {
            self.command(Command::SetKick(queue, kick))?;
        } else {
            self.start(queue, kick)?;
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let call = Self::notifier(fd, "call")?;
        let (queue, ring) = self.ring(u32::from(index))?;
        ring.call.clone_from(&call);
        if ring.running {
            self.command(Command::SetCall(queue, call))?;
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let err = Self::notifier(fd, "error")?;
        let (queue, ring) = self.ring(u32::from(index))?;
        ring.err.clone_from(&err);
        if ring.running {
            self.command(Command::SetErr(queue, err))?;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(self.settings.protocol)
    }

    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(SessionError::Features(unknown).into());
        }
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(u64::from(self.settings.queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        Ok(self.enable(index, enable)?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> VhostResult<Vec<u8>> {
        Ok(self.config.read(offset, size))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> VhostResult<()> {
        // Nothing in the space is writable without CONFIG_WCE. A guest can make its VMM send this, so it is no reason
        // to drop the VMM.
        tracing::debug!(socket = self.settings.name, offset, len = bytes.len(), "config write ignored");
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> VhostResult<()> {
        Err(SessionError::Unsupported("GPU_SET_SOCKET").into())
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        Err(SessionError::Unsupported("GET_SHARED_OBJECT").into())
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> VhostResult<(VhostUserInflight, File)> {
        let shape = InflightShape { queues: wanted.num_queues, queue_size: wanted.queue_size };
        let file = inflight::create(shape).map_err(SessionError::from)?;
        let reply = VhostUserInflight::new(shape.bytes(), 0, shape.queues, shape.queue_size);
        Ok((reply, file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> VhostResult<()> {
        if let Some(running) = self.rings.iter().position(|ring| ring.running) {
            return Err(SessionError::Running(QueueIndex(running as u16)).into());
        }
        let shape = InflightShape { queues: given.num_queues, queue_size: given.queue_size };
        let region = InflightRegion::map(file, given.mmap_offset, given.mmap_size, shape)
            .map_err(SessionError::from)?;
        self.command(Command::SetInflight(Arc::new(region)))?;
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(MEM_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<u64>> {
        let memory = self
            .memory
            .with_region(spec_of(region), file, self.settings.seal_policy)
            .map_err(SessionError::from)?;
        self.set_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let memory = self.memory.without_region(spec_of(region)).map_err(SessionError::from)?;
        self.set_memory(memory)?;
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> VhostResult<Option<File>> {
        Err(SessionError::Unsupported("SET_DEVICE_STATE_FD").into())
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        Err(SessionError::Unsupported("CHECK_DEVICE_STATE").into())
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        Err(SessionError::Unsupported("GET_SHMEM_CONFIG").into())
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        Err(SessionError::Unsupported("SET_LOG_BASE").into())
    }
}
