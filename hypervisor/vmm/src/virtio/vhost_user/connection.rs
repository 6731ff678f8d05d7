//! One connection to a back end: the handshake, and starting and stopping its rings.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{BLOCK_CONFIG_BYTES, PROTOCOL_FEATURES, QUEUE_SIZE, Role, VhostUserError};
use crate::virtio::{Active, ActiveQueue};

/// A back end that says nothing for so long is given up, and dialled again.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Requests that a back end has taken: kept from one connection to the next.
pub(super) type InFlight = Option<(VhostUserInflight, File)>;

/// A connection after its handshake.
pub(super) struct Connection {
    path: PathBuf,
    frontend: Frontend,
    /// The same socket, to see the other side hang up.
    stream: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
}

impl Connection {
    /// Connects and agrees on the protocol.
    pub(super) fn open(path: &Path, role: Role) -> Result<Self, VhostUserError> {
        let connect = |source| VhostUserError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(connect)?;
        stream.set_write_timeout(Some(SILENCE_MAX)).map_err(connect)?;
        let other = stream.try_clone().map_err(connect)?;
        let frontend = Frontend::from_stream(other, u64::from(role.queues()));
        let mut connection = Self {
            path: path.to_owned(),
            frontend,
            stream,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        };
        connection.shake_hands(role)?;
        Ok(connection)
    }

    fn talk(&self, what: &'static str) -> impl FnOnce(vhost::Error) -> VhostUserError + use<> {
        let path = self.path.clone();
        move |source| VhostUserError::Talk { path, what, source }
    }

    fn missing(&self, what: &'static str) -> VhostUserError {
        VhostUserError::Missing { path: self.path.clone(), what }
    }

    fn shake_hands(&mut self, role: Role) -> Result<(), VhostUserError> {
        self.frontend.set_owner().map_err(self.talk("taking the device"))?;
        self.features = self.frontend.get_features().map_err(self.talk("asking for features"))?;
        if self.features & PROTOCOL_FEATURES == 0 {
            return Err(self.missing("features of the protocol"));
        }
        let offered = self
            .frontend
            .get_protocol_features()
            .map_err(self.wrap("asking for features of the protocol"))?;
        let used = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        self.protocol = offered & used;
        self.frontend
            .set_protocol_features(self.protocol)
            .map_err(self.wrap("choosing features of the protocol"))?;
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let block = matches!(role, Role::Block { .. });
        if block && !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(self.missing("a configuration"));
        }
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            let queues = self.frontend.get_queue_num().map_err(self.wrap("asking for queues"))?;
            if queues < u64::from(role.queues()) {
                return Err(self.missing("so many queues"));
            }
        } else if block && role.queues() > 1 {
            return Err(self.missing("several queues"));
        }
        Ok(())
    }

    /// As [`Self::talk`], for the calls that have the crate's inner error.
    fn wrap<E: Into<vhost::Error>>(&self, what: &'static str) -> impl FnOnce(E) -> VhostUserError + use<E> {
        let path = self.path.clone();
        move |source| VhostUserError::Talk { path, what, source: source.into() }
    }

    /// Whether requests that a back end has taken survive it.
    pub(super) fn tracks_requests(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// What the back end offers.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// A block device's configuration.
    pub(super) fn block_config(&mut self) -> Result<Vec<u8>, VhostUserError> {
        let buffer = [0u8; BLOCK_CONFIG_BYTES as usize];
        let (_, config) = self
            .frontend
            .get_config(0, BLOCK_CONFIG_BYTES, VhostUserConfigFlags::empty(), &buffer)
            .map_err(self.wrap("asking for the configuration"))?;
        Ok(config)
    }

    /// Starts the rings of an active device where they are.
    pub(super) fn start(
        &mut self,
        active: &Active,
        memory: &GuestMemoryMmap,
        in_flight: &mut InFlight,
        role: Role,
    ) -> Result<(), VhostUserError> {
        let features = active.features & !role.own_features();
        if features & !self.features != 0 {
            return Err(self.missing("features any more that the guest uses"));
        }
        self.frontend.set_features(features | PROTOCOL_FEATURES).map_err(self.talk("setting features"))?;
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(self.talk("describing the guest's memory"))?;
        self.frontend.set_mem_table(&regions).map_err(self.talk("sharing the guest's memory"))?;
        self.share_in_flight(in_flight, role.queues())?;
        for queue in &active.queues {
            self.start_ring(queue, memory)?;
        }
        for queue in &active.queues {
            self.frontend
                .set_vring_enable(usize::from(queue.index), true)
                .map_err(self.wrap("enabling a ring"))?;
        }
        Ok(())
    }

    fn share_in_flight(&mut self, in_flight: &mut InFlight, queues: u16) -> Result<(), VhostUserError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if in_flight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, queues, QUEUE_SIZE);
            let got = self
                .frontend
                .get_inflight_fd(&wanted)
                .map_err(self.wrap("asking for a place for requests"))?;
            *in_flight = Some(got);
        }
        if let Some((place, file)) = in_flight {
            self.frontend
                .set_inflight_fd(place, file.as_raw_fd())
                .map_err(self.wrap("giving back the place of requests"))?;
        }
        Ok(())
    }

    fn start_ring(&mut self, queue: &ActiveQueue, memory: &GuestMemoryMmap) -> Result<(), VhostUserError> {
        let index = usize::from(queue.index);
        let outside = |_| VhostUserError::Rings { path: self.path.clone() };
        let at = |address: GuestAddress| memory.get_host_address(address).map(|pointer| pointer as u64);
        // The used index is behind the flags (virtio 1.2, 2.7.8).
        let used = queue.device.0.checked_add(2).map(GuestAddress);
        let used = used.ok_or_else(|| VhostUserError::Rings { path: self.path.clone() })?;
        let base: u16 = memory.load(used, Ordering::Acquire).map_err(outside)?;
        let config = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: at(queue.descriptors).map_err(outside)?,
            used_ring_addr: at(queue.device).map_err(outside)?,
            avail_ring_addr: at(queue.driver).map_err(outside)?,
            log_addr: None,
        };
        let talk = self.talk("starting a ring");
        let frontend = &self.frontend;
        let start = || {
            frontend.set_vring_num(index, queue.size)?;
            frontend.set_vring_base(index, base)?;
            frontend.set_vring_addr(index, &config)?;
            match &queue.call {
                Some(call) => frontend.set_vring_call(index, call)?,
                // The driver polls: what is signalled goes nowhere.
                None => frontend.set_vring_call(
                    index,
                    &EventFd::new(EFD_NONBLOCK).map_err(|_| vhost::Error::InvalidQueue)?,
                )?,
            }
            frontend.set_vring_kick(index, &queue.kick)
        };
        start().map_err(talk)?;
        // What was rung before this back end was there.
        let _ = queue.kick.write(1);
        Ok(())
    }

    /// Stops the rings: nothing touches the guest's memory afterwards.
    pub(super) fn stop(&mut self, active: &Active) -> Result<(), VhostUserError> {
        for queue in &active.queues {
            self.frontend.get_vring_base(usize::from(queue.index)).map_err(self.talk("stopping a ring"))?;
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
