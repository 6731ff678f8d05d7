//! One connection to a back end: the handshake, and starting and stopping its rings.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::warn;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::notices::{self, Notices};
use super::role::{PROTOCOL_FEATURES, lacks};
use super::{QUEUE_SIZE, Role, VhostUserError};
use crate::outside::BackEnd;
use crate::virtio::{Active, ActiveQueue};

/// A back end that says nothing for so long is given up, and dialled again.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Requests that a back end has taken: kept from one connection to the next.
#[derive(Default)]
pub(super) struct InFlight(pub(super) Option<(VhostUserInflight, File)>);

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlight").field(&self.0.as_ref().map(|(place, _)| place.mmap_size)).finish()
    }
}

/// A connection after its handshake.
pub(super) struct Connection {
    path: PathBuf,
    role: Role,
    frontend: Frontend,
    /// The same socket, to see the other side hang up.
    stream: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    /// What the back end says of its own accord.
    notices: Option<Notices>,
}

impl Connection {
    /// Connects and agrees on the protocol.
    pub(super) fn open(back_end: &BackEnd, role: Role) -> Result<Self, VhostUserError> {
        let path = back_end.path();
        let connect = |source| VhostUserError::Connect { path: path.to_owned(), source };
        let stream = back_end.dial().map_err(connect)?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(connect)?;
        stream.set_write_timeout(Some(SILENCE_MAX)).map_err(connect)?;
        let other = stream.try_clone().map_err(connect)?;
        let frontend = Frontend::from_stream(other, u64::from(role.data_queues_max()));
        let mut connection = Self {
            path: path.to_owned(),
            role,
            frontend,
            stream,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            notices: None,
        };
        connection.shake_hands()?;
        connection.open_notices()?;
        Ok(connection)
    }

    fn talk(&self, what: &'static str) -> impl FnOnce(vhost::Error) -> VhostUserError + use<> {
        let path = self.path.clone();
        move |source| VhostUserError::Talk { path, what, source }
    }

    fn missing(&self, what: &'static str) -> VhostUserError {
        VhostUserError::Missing { path: self.path.clone(), what }
    }

    fn shake_hands(&mut self) -> Result<(), VhostUserError> {
        let role = self.role;
        self.frontend.set_owner().map_err(self.talk("taking the device"))?;
        self.features = self.frontend.get_features().map_err(self.talk("asking for features"))?;
        if self.features & PROTOCOL_FEATURES == 0 {
            return Err(self.missing("features of the protocol"));
        }
        role.check(self.features).map_err(lacks(&self.path))?;
        let offered = self
            .frontend
            .get_protocol_features()
            .map_err(self.wrap("asking for features of the protocol"))?;
        let mut used = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        if offered.contains(VhostUserProtocolFeatures::CONFIG) {
            used |= VhostUserProtocolFeatures::BACKEND_REQ;
        }
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
            if queues < u64::from(role.data_queues_max()) {
                return Err(self.missing(
                    "so many queues: give the VM fewer, or the port more (vswctl port attach --queues)",
                ));
            }
        } else if role.data_queues_max() > if block { 1 } else { 2 } {
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

    /// Whether it has a configuration.
    pub(super) fn has_config(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
    }

    /// The configuration for the guest.
    pub(super) fn config(&mut self) -> Result<Vec<u8>, VhostUserError> {
        if !self.has_config() {
            return Ok(self.role.config(None));
        }
        let bytes = self.role.config_bytes();
        let (_, config) = self
            .frontend
            .get_config(0, bytes, VhostUserConfigFlags::empty(), &vec![0; bytes as usize])
            .map_err(self.wrap("asking for the configuration"))?;
        Ok(self.role.config(Some(config)))
    }

    /// Gives the back end a channel for its notices, if it has any.
    fn open_notices(&mut self) -> Result<(), VhostUserError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            return Ok(());
        }
        let system = |source| VhostUserError::System { path: self.path.clone(), source };
        let (ours, theirs) = Notices::pair().map_err(system)?;
        self.frontend.set_backend_request_fd(&theirs).map_err(self.wrap("giving a channel for notices"))?;
        self.notices = Some(ours);
        Ok(())
    }

    /// Tells the back end the MTU that the guest is told; it may refuse.
    pub(super) fn check_mtu(&mut self) -> Result<(), VhostUserError> {
        let Role::Net { mtu: Some(mtu), .. } = self.role else { return Ok(()) };
        if !self.protocol.contains(VhostUserProtocolFeatures::MTU) {
            return Ok(());
        }
        let answers = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let agreed = notices::set_mtu(&self.stream, mtu, answers)
            .map_err(|source| VhostUserError::System { path: self.path.clone(), source })?;
        if agreed { Ok(()) } else { Err(VhostUserError::Mtu { path: self.path.clone(), mtu }) }
    }

    /// What the back end's notices come through.
    pub(super) fn notices(&self) -> Option<&UnixStream> {
        self.notices.as_ref().map(Notices::socket)
    }

    /// Whether a notice says that the configuration has changed.
    pub(super) fn take_notices(&mut self) -> bool {
        let Some(notices) = &mut self.notices else { return false };
        match notices.take() {
            Ok(changed) => changed,
            Err(error) => {
                warn!("{}: no more notices from the back end: {error}", self.path.display());
                self.notices = None;
                false
            }
        }
    }

    /// Starts the rings of an active device where they are; of a network card so many pairs are in use.
    pub(super) fn start(
        &mut self,
        active: &Active,
        memory: &GuestMemoryMmap,
        in_flight: &mut InFlight,
        pairs: u16,
    ) -> Result<(), VhostUserError> {
        let features = self.role.pass_on(active.features, self.features);
        let features = features.ok_or_else(|| self.missing("features any more that the guest uses"))?;
        self.frontend.set_features(features | PROTOCOL_FEATURES).map_err(self.talk("setting features"))?;
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(self.talk("describing the guest's memory"))?;
        self.frontend.set_mem_table(&regions).map_err(self.talk("sharing the guest's memory"))?;
        self.share_in_flight(in_flight, self.role.data_queues_max())?;
        let enabled = self.role.enabled_queues(active.features, pairs);
        for queue in self.role.served(active) {
            self.start_ring(queue, memory)?;
        }
        for queue in self.role.served(active).filter(|queue| queue.index < enabled) {
            self.enable(queue, true)?;
        }
        Ok(())
    }

    /// So many pairs of a network card's rings are in use from now on.
    pub(super) fn use_pairs(&mut self, active: &Active, pairs: u16) -> Result<(), VhostUserError> {
        let enabled = self.role.enabled_queues(active.features, pairs);
        for queue in self.role.served(active) {
            self.enable(queue, queue.index < enabled)?;
        }
        Ok(())
    }

    fn enable(&mut self, queue: &ActiveQueue, on: bool) -> Result<(), VhostUserError> {
        self.frontend.set_vring_enable(usize::from(queue.index), on).map_err(self.wrap("enabling a ring"))
    }

    fn share_in_flight(&mut self, in_flight: &mut InFlight, queues: u16) -> Result<(), VhostUserError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if in_flight.0.is_none() {
            let wanted = VhostUserInflight::new(0, 0, queues, QUEUE_SIZE);
            let got = self
                .frontend
                .get_inflight_fd(&wanted)
                .map_err(self.wrap("asking for a place for requests"))?;
            in_flight.0 = Some(got);
        }
        if let Some((place, file)) = &mut in_flight.0 {
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
        for queue in self.role.served(active) {
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
