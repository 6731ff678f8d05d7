//! The network device as the switch's worker sees it.

use std::collections::VecDeque;
use std::sync::Arc;

use ferro_protocol::net::Mac;

use super::config::{NetSettings, feature};
use super::ring::NetRing;
use super::{NetEvent, QueuePair};
use crate::QueueIndex;
use crate::chain::Chain;
use crate::error::{DeviceBroken, RingFault, SessionError};
use crate::event::{Command, ControlPort, Notifier, Reply, ReplySlot, RingSetup};
use crate::guest::GuestView;
use crate::memory::GuestMap;
use crate::rings::Kick;
use crate::server::SharedConfig;

/// Events that wait to be taken, at most; older ones give way.
const EVENTS_MAX: usize = 32;

/// A virtio-net device: guest's frames out, frames to the guest in. See the module for the order of calls.
#[derive(Debug)]
pub struct NetDevice {
    settings: NetSettings,
    config: Arc<SharedConfig>,
    port: Option<ControlPort>,
    view: Option<Arc<GuestView>>,
    /// Two a pair: to the guest, from the guest.
    pub(super) rings: Box<[Option<NetRing>]>,
    /// What the front end acknowledged; of the last ring that started.
    pub(super) features: u64,
    pub(super) broken: Option<DeviceBroken>,
    attached: bool,
    kick_epoch: u64,
    /// Pairs that frames can be given to.
    receiving: Vec<QueuePair>,
    events: VecDeque<NetEvent>,
    link_up: bool,
    pub(super) chain: Chain,
    /// Heads, and bytes written to each, of the frame that is being given to the guest.
    pub(super) picked: Vec<(u16, u32)>,
}

impl NetDevice {
    pub(crate) fn new(settings: NetSettings, port: Option<ControlPort>, config: Arc<SharedConfig>) -> Self {
        let queues = 2 * settings.pairs();
        Self {
            settings,
            config,
            port,
            view: None,
            rings: (0..queues).map(|_| None).collect(),
            features: 0,
            broken: None,
            attached: false,
            kick_epoch: 0,
            receiving: Vec::new(),
            events: VecDeque::new(),
            link_up: true,
            chain: Chain::default(),
            picked: Vec::new(),
        }
    }

    // ---- getters ----

    /// What the device is.
    pub fn settings(&self) -> &NetSettings {
        &self.settings
    }

    /// Features that the driver acknowledged, of [`feature::ALL`]; none while no ring runs.
    pub fn features(&self) -> u64 {
        if self.is_running() { self.features & feature::ALL } else { 0 }
    }

    /// Whether a front end is connected.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether any ring runs.
    pub fn is_running(&self) -> bool {
        self.rings.iter().any(Option::is_some)
    }

    /// Why the device stopped serving, if it did.
    pub fn broken(&self) -> Option<&DeviceBroken> {
        self.broken.as_ref()
    }

    /// Pairs that frames can be given to now: started, enabled, not broken.
    pub fn receiving(&self) -> &[QueuePair] {
        &self.receiving
    }

    /// The pair for a flow with this hash, so that its frames stay in order; `None`: the guest takes no frames.
    #[inline]
    pub fn receiver_of(&self, flow_hash: u32) -> Option<QueuePair> {
        match self.receiving.as_slice() {
            [] => None,
            [only] => Some(*only),
            several => several.get(flow_hash as usize % several.len()).copied(),
        }
    }

    /// Pairs whose frames have to be fetched: those with a running ring, the disabled ones too (their frames are thrown
    /// away, but the guest must get its buffers back).
    pub fn sending(&self) -> impl Iterator<Item = QueuePair> + '_ {
        (0..self.rings.len() / 2)
            .filter(|pair| self.rings[2 * pair + 1].is_some())
            .map(|p| QueuePair(p as u16))
    }

    /// Readable when [`NetDevice::control`] has something to do.
    pub fn control_notifier(&self) -> Option<&Notifier> {
        self.port.as_ref().map(ControlPort::notifier)
    }

    /// The kick descriptors now: of the rings with the guest's frames only, for the others are looked at when there is a
    /// frame. They change only when [`NetDevice::kick_epoch`] does.
    pub fn kicks(&self) -> Vec<Kick> {
        let ring_kick = |(queue, ring): (usize, &Option<NetRing>)| {
            let fd = ring.as_ref()?.kick()?.clone();
            Some(Kick { queue: QueueIndex(queue as u16), fd })
        };
        self.rings.iter().enumerate().skip(1).step_by(2).filter_map(ring_kick).collect()
    }

    /// Changes whenever the set of kick descriptors may have changed.
    pub fn kick_epoch(&self) -> u64 {
        self.kick_epoch
    }

    // ---- control ----

    /// Applies all that the control thread asks for.
    pub fn control(&mut self) {
        if let Some(port) = &self.port {
            port.notifier().drain();
        }
        while let Some(envelope) = self.port.as_ref().and_then(ControlPort::next) {
            self.apply(envelope.command, envelope.reply);
        }
    }

    /// What happened since the last question; ask until `None` before each sleep: rings break while they are polled.
    pub fn poll_event(&mut self) -> Option<NetEvent> {
        self.events.pop_front()
    }

    /// Tells the guest of its link. Seen only by front ends that take our configuration space.
    pub fn set_link(&mut self, up: bool) {
        if self.link_up != up {
            self.link_up = up;
            self.update_config(false);
        }
    }

    /// Asks the guest to announce itself on the network, as after a move (section 5.1.6.5.4). Seen only by front ends that
    /// take our configuration space; others ask us instead ([`NetEvent::Announce`]).
    pub fn ask_to_announce(&mut self) {
        self.update_config(true);
    }

    /// Changes the MTU that a front end may set from now on, and that is shown in the configuration space at once.
    pub fn set_mtu(&mut self, mtu: Option<u16>) {
        self.settings.mtu = mtu;
        self.update_config(false);
    }

    /// The request to announce stands for one change only: the next one takes it back.
    fn update_config(&self, announce: bool) {
        self.config.update(self.settings.config_space(self.link_up, announce));
    }

    pub(crate) fn apply(&mut self, command: Command, reply: ReplySlot) {
        let result = match command {
            Command::Attach => {
                self.detach();
                self.attached = true;
                self.event(NetEvent::Attached);
                Ok(())
            }
            Command::Detach => {
                self.detach();
                Ok(())
            }
            Command::SetMemory(map) => {
                self.set_memory(map);
                Ok(())
            }
            Command::SetInflight(_) => {
                Err(SessionError::Unsupported("an in-flight region of a network device"))
            }
            Command::Start(queue, setup) => self.start(queue, *setup),
            Command::Stop(queue) => return self.stop(queue, reply),
            Command::SetKick(queue, kick) => {
                self.kick_epoch += 1;
                self.with_ring(queue, |ring| ring.set_kick(kick))
            }
            Command::SetCall(queue, call) => self.with_ring(queue, |ring| ring.set_call(call)),
            Command::SetErr(queue, err) => self.with_ring(queue, |ring| ring.set_err(err)),
            Command::Enable(queue, enabled) => self.with_ring(queue, |ring| ring.set_enabled(enabled)),
            Command::Announce(mac) => self.announced(mac),
            Command::SetMtu(mtu) => self.front_end_mtu(mtu),
        };
        self.find_receiving();
        reply.send(match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused(error),
        });
    }

    fn slot(&mut self, queue: QueueIndex) -> Result<&mut Option<NetRing>, SessionError> {
        self.rings.get_mut(usize::from(queue.0)).ok_or(SessionError::NoSuchQueue(u32::from(queue.0)))
    }

    fn with_ring(
        &mut self,
        queue: QueueIndex,
        change: impl FnOnce(&mut NetRing),
    ) -> Result<(), SessionError> {
        if let Some(ring) = self.slot(queue)? {
            change(ring);
        }
        Ok(())
    }

    fn set_memory(&mut self, map: Arc<GuestMap>) {
        let view = Arc::new(GuestView::new(map));
        self.view = Some(Arc::clone(&view));
        for queue in 0..self.rings.len() {
            if let Some(ring) = &mut self.rings[queue]
                && let Err(fault) = ring.remap(&view)
            {
                // Its memory is gone: it can't even be told so.
                self.rings[queue] = None;
                self.kick_epoch += 1;
                self.break_device(QueueIndex(queue as u16), fault);
            }
        }
    }

    fn start(&mut self, queue: QueueIndex, setup: RingSetup) -> Result<(), SessionError> {
        let view = self.view.clone().ok_or(SessionError::Incomplete { queue, missing: "guest memory" })?;
        if !self.is_running() {
            self.broken = None;
        }
        let features = setup.features;
        let slot = self.slot(queue)?;
        if slot.is_some() {
            return Err(SessionError::Running(queue));
        }
        let mut ring = NetRing::start(queue, setup, &view)?;
        // Polled until it is armed; a ring for the guest's buffers is never waited for.
        ring.disarm();
        *slot = Some(ring);
        self.features = features;
        self.kick_epoch += 1;
        Ok(())
    }

    fn stop(&mut self, queue: QueueIndex, reply: ReplySlot) {
        let answer = match self.slot(queue) {
            // Never started: the front end's own base is the answer, which the control thread knows.
            Ok(slot) => slot.take().map_or(Reply::Done, |ring| Reply::Base(ring.into_base())),
            Err(error) => Reply::Refused(error),
        };
        self.kick_epoch += 1;
        self.find_receiving();
        reply.send(answer);
    }

    fn detach(&mut self) {
        if self.attached {
            self.event(NetEvent::Detached);
        }
        for ring in self.rings.iter_mut().filter_map(Option::take) {
            // The driver may outlive its front end's connection: what was given back, it shall see.
            ring.into_base();
        }
        self.view = None;
        self.broken = None;
        self.attached = false;
        self.kick_epoch += 1;
    }

    fn announced(&mut self, mac: Mac) -> Result<(), SessionError> {
        // Anything else is no address of a port; the front end is not worth dropping for it.
        if mac.is_station() {
            self.event(NetEvent::Announce(mac));
        }
        Ok(())
    }

    fn front_end_mtu(&mut self, mtu: u16) -> Result<(), SessionError> {
        if !self.settings.allows_mtu(u64::from(mtu)) {
            return Err(SessionError::Mtu(mtu));
        }
        self.event(NetEvent::Mtu(mtu));
        Ok(())
    }

    fn event(&mut self, event: NetEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn find_receiving(&mut self) {
        self.receiving.clear();
        if self.broken.is_some() {
            return;
        }
        let ready = |ring: &Option<NetRing>| ring.as_ref().is_some_and(NetRing::is_enabled);
        let pairs = self.rings.iter().step_by(2).enumerate().filter(|(_, ring)| ready(ring));
        self.receiving.extend(pairs.map(|(pair, _)| QueuePair(pair as u16)));
    }

    /// Stops serving a guest that broke the rules.
    pub(super) fn break_device(&mut self, queue: QueueIndex, fault: RingFault) {
        if self.broken.is_some() {
            return;
        }
        let broken = DeviceBroken { queue, fault };
        tracing::warn!(%broken, "network device stopped");
        self.event(NetEvent::Broken(broken.clone()));
        self.broken = Some(broken);
        if let Some(ring) = self.rings.get(usize::from(queue.0)).and_then(Option::as_ref) {
            ring.signal_err();
        }
        self.find_receiving();
    }

    // ---- the loop's boundaries ----

    /// Shows guests what was given back and calls them, at most once a queue, for all since the last time. Frames given to
    /// a guest are not seen by it before this.
    pub fn flush_notifications(&mut self) {
        for ring in self.rings.iter_mut().flatten() {
            ring.notify();
        }
    }

    /// Before the loop sleeps: asks for kicks. `true`: something arrived meanwhile, poll again instead of sleeping.
    pub fn arm(&mut self) -> bool {
        let mut any = false;
        for queue in (1..self.rings.len()).step_by(2) {
            if self.broken.is_some() {
                return false;
            }
            match self.rings[queue].as_mut().map(NetRing::arm) {
                None => {}
                Some(Ok(more)) => any |= more,
                Some(Err(fault)) => self.break_device(QueueIndex(queue as u16), fault),
            }
        }
        any && self.broken.is_none()
    }

    /// After the loop woke: kicks are not needed while it polls anyway.
    pub fn disarm(&mut self) {
        for ring in self.rings.iter_mut().skip(1).step_by(2).flatten() {
            ring.disarm();
        }
    }
}
