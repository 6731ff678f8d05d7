//! All rings of one device: the state that the front end controls, on the data loop's side.
//!
//! ```text
//!             Attach                     Start(q)                    Stop(q)
//!  [detached] ------> [attached, idle] ----------> [ring q running] --------> [draining] --> [idle]
//!      ^                                                 |                        |  answers with the base when
//!      |  Detach: all in flight become *zombies*         | guest breaks a rule    |  the last request is done
//!      +-------------------------------------------------+--> [broken] -----------+
//! ```
//!
//! **Zombies** are requests of a front end that is gone, still being carried out by the caller. They may write blocks, so
//! nothing new is taken until the last is done: else an old write could land on top of a newer one. Their memory is
//! gone, their in-flight marks stay, so the next front end has them done again.
//!
//! **Broken**: nothing is taken or given back until the front end has stopped all rings, or disconnects.

use std::collections::HashSet;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::chain::Chain;
use crate::error::{DeviceBroken, RingFault, SessionError};
use crate::event::{Command, ControlPort, Notifier, Reply, ReplySlot, RingSetup};
use crate::inflight::InflightRegion;
use crate::memory::GuestMap;
use crate::ring::Ring;
use crate::{QueueIndex, RequestTag};

/// A descriptor for the data loop to poll for reading.
#[derive(Debug, Clone)]
pub struct Kick {
    /// The queue that is kicked.
    pub queue: QueueIndex,
    /// The eventfd; drain it with [`Notifier::drain`].
    pub fd: Notifier,
}

/// The rings of a device, and what a front end may do to them.
#[derive(Debug)]
pub struct Rings {
    port: Option<ControlPort>,
    running: Vec<Option<Ring>>,
    memory: Option<Arc<GuestMap>>,
    inflight: Option<Arc<InflightRegion>>,
    generation: u64,
    zombies: HashSet<RequestTag>,
    broken: Option<DeviceBroken>,
    attached: bool,
    kick_epoch: u64,
    /// Where the next poll starts, so that no queue starves another.
    turn: usize,
}

impl Rings {
    /// Rings of a device with `queues` queues, none running.
    pub fn new(queues: u16, port: ControlPort) -> Self {
        Self::with_port(queues, Some(port))
    }

    pub(crate) fn with_port(queues: u16, port: Option<ControlPort>) -> Self {
        Self {
            port,
            running: (0..queues).map(|_| None).collect(),
            memory: None,
            inflight: None,
            generation: 0,
            zombies: HashSet::new(),
            broken: None,
            attached: false,
            kick_epoch: 0,
            turn: 0,
        }
    }

    // ---- getters ----

    /// Readable when [`Rings::control`] has something to do.
    pub fn control_notifier(&self) -> Option<&Notifier> {
        self.port.as_ref().map(ControlPort::notifier)
    }

    /// The kick descriptors now. They change only when [`Rings::kick_epoch`] does.
    pub fn kicks(&self) -> Vec<Kick> {
        self.running
            .iter()
            .enumerate()
            .filter_map(|(queue, ring)| {
                let fd = ring.as_ref()?.kick()?.clone();
                Some(Kick { queue: QueueIndex(queue as u16), fd })
            })
            .collect()
    }

    /// Changes whenever the set of kick descriptors may have changed.
    pub fn kick_epoch(&self) -> u64 {
        self.kick_epoch
    }

    /// Whether a front end is connected.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether any ring runs.
    pub fn is_running(&self) -> bool {
        self.running.iter().any(Option::is_some)
    }

    /// Why the device stopped serving, if it did.
    pub fn broken(&self) -> Option<&DeviceBroken> {
        self.broken.as_ref()
    }

    /// Requests handed out and not completed, those of earlier front ends included.
    pub fn outstanding(&self) -> usize {
        self.zombies.len() + self.running.iter().flatten().map(Ring::outstanding).sum::<usize>()
    }

    pub(crate) fn memory(&self) -> Option<&Arc<GuestMap>> {
        self.memory.as_ref()
    }

    pub(crate) fn is_current(&self, tag: RequestTag) -> bool {
        self.ring(tag.queue).is_some_and(|ring| ring.is_in_flight(tag))
    }

    fn ring(&self, queue: QueueIndex) -> Option<&Ring> {
        self.running.get(usize::from(queue.0))?.as_ref()
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

    pub(crate) fn apply(&mut self, command: Command, reply: ReplySlot) {
        let result = match command {
            Command::Attach => {
                self.detach();
                self.attached = true;
                Ok(())
            }
            Command::Detach => {
                self.detach();
                Ok(())
            }
            Command::SetMemory(memory) => {
                self.memory = Some(memory);
                Ok(())
            }
            Command::SetInflight(region) => {
                self.inflight = Some(region);
                Ok(())
            }
            Command::Start(queue, setup) => self.start(queue, *setup),
            Command::Stop(queue) => return self.stop(queue, reply),
            Command::SetKick(queue, kick) => {
                self.kick_epoch += 1;
                self.with_ring(queue, |ring| ring.set_kick(kick))
            }
            Command::SetCall(queue, call) => self.with_ring(queue, |ring| ring.set_call(call)),
            Command::SetErr(queue, err) => self.with_ring(queue, |ring| ring.set_err(err)),
            Command::Enable(queue, enabled) => {
                let broken = self.broken.is_some();
                let done = self.with_ring(queue, |ring| ring.set_enabled(enabled && !broken));
                self.reap_stopped(queue);
                done
            }
            Command::Announce(_) => Err(SessionError::Unsupported("SEND_RARP")),
            Command::SetMtu(_) => Err(SessionError::Unsupported("NET_SET_MTU")),
        };
        reply.send(match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused(error),
        });
    }

    fn with_ring(&mut self, queue: QueueIndex, change: impl FnOnce(&mut Ring)) -> Result<(), SessionError> {
        let slot = self
            .running
            .get_mut(usize::from(queue.0))
            .ok_or(SessionError::NoSuchQueue(u32::from(queue.0)))?;
        if let Some(ring) = slot {
            change(ring);
        }
        Ok(())
    }

    fn start(&mut self, queue: QueueIndex, setup: RingSetup) -> Result<(), SessionError> {
        if !self.is_running() {
            self.broken = None;
        }
        let memory =
            self.memory.clone().ok_or(SessionError::Incomplete { queue, missing: "guest memory" })?;
        let slot = self
            .running
            .get_mut(usize::from(queue.0))
            .ok_or(SessionError::NoSuchQueue(u32::from(queue.0)))?;
        if slot.is_some() {
            return Err(SessionError::Running(queue));
        }
        let ring = Ring::start(queue, setup, memory.mem(), self.inflight.as_ref())?;
        ring.call_anyway();
        *slot = Some(ring);
        self.kick_epoch += 1;
        Ok(())
    }

    fn stop(&mut self, queue: QueueIndex, reply: ReplySlot) {
        match self.running.get_mut(usize::from(queue.0)) {
            Some(Some(ring)) => ring.stop(reply),
            // Never started: the front end's own base is the answer, which the control thread knows.
            Some(None) => return reply.send(Reply::Done),
            None => {
                let error = SessionError::NoSuchQueue(u32::from(queue.0));
                return reply.send(Reply::Refused(error));
            }
        }
        self.reap_stopped(queue);
    }

    fn reap_stopped(&mut self, queue: QueueIndex) {
        let Some(slot) = self.running.get_mut(usize::from(queue.0)) else { return };
        if let Some(ring) = slot.take_if(|ring| ring.is_stopped()) {
            ring.into_base(self.memory.as_ref().map(|memory| memory.mem()));
            self.kick_epoch += 1;
        }
    }

    fn detach(&mut self) {
        for ring in self.running.iter_mut().filter_map(Option::take) {
            self.zombies.extend(ring.tags());
        }
        self.memory = None;
        self.inflight = None;
        self.broken = None;
        self.attached = false;
        self.kick_epoch += 1;
    }

    // ---- data ----

    /// Whether taking requests has any point now.
    pub(crate) fn may_take(&self) -> bool {
        self.broken.is_none() && self.zombies.is_empty()
    }

    pub(crate) fn queues(&self) -> usize {
        self.running.len()
    }

    /// The queue to look at first; a different one each time.
    pub(crate) fn next_turn(&mut self) -> usize {
        self.turn = (self.turn + 1) % self.running.len().max(1);
        self.turn
    }

    /// Takes one request from one queue.
    pub(crate) fn take(&mut self, queue: QueueIndex, chain: &mut Chain) -> Option<RequestTag> {
        let memory = self.memory.as_ref()?;
        let ring = self.running.get_mut(usize::from(queue.0))?.as_mut()?;
        match ring.take(memory.mem(), self.generation + 1, chain) {
            Ok(Some(tag)) => {
                self.generation += 1;
                Some(tag)
            }
            Ok(None) => None,
            Err(fault) => {
                self.break_device(queue, fault);
                None
            }
        }
    }

    /// Ends a request. Stale tags are only counted off.
    pub(crate) fn give_back(&mut self, tag: RequestTag, written: u32) {
        if self.zombies.remove(&tag) || !self.is_current(tag) {
            return;
        }
        let broken = self.broken.is_some();
        let Some(memory) = self.memory.as_ref() else { return };
        let Some(Some(ring)) = self.running.get_mut(usize::from(tag.queue.0)) else { return };
        if broken {
            ring.drop_tag(tag);
        } else if let Err(fault) = ring.give_back(memory.mem(), tag, written) {
            self.break_device(tag.queue, fault);
        }
        self.reap_stopped(tag.queue);
    }

    /// Stops serving a guest that broke the rules.
    pub(crate) fn break_device(&mut self, queue: QueueIndex, fault: RingFault) {
        if self.broken.is_some() {
            return;
        }
        let broken = DeviceBroken { queue, fault };
        tracing::warn!(%broken, "device stopped");
        self.broken = Some(broken);
        for ring in self.running.iter_mut().flatten() {
            ring.break_off();
        }
        if let Some(ring) = self.ring(queue) {
            ring.signal_err();
        }
        for queue in 0..self.running.len() {
            self.reap_stopped(QueueIndex(queue as u16));
        }
    }

    fn each_running(
        &mut self,
        mut visit: impl FnMut(&mut Ring, &GuestMemoryMmap) -> Result<bool, RingFault>,
    ) -> bool {
        let Some(memory) = self.memory.clone() else { return false };
        let mut any = false;
        for queue in 0..self.running.len() {
            let Some(ring) = self.running[queue].as_mut() else { continue };
            match visit(ring, memory.mem()) {
                Ok(more) => any |= more,
                Err(fault) => self.break_device(QueueIndex(queue as u16), fault),
            }
        }
        any
    }

    /// Calls the driver, at most once a queue, for all that was completed since the last time.
    pub fn flush_notifications(&mut self) {
        self.each_running(|ring, mem| {
            ring.notify(mem);
            Ok(false)
        });
    }

    /// Before the loop sleeps: asks for kicks. `true`: something arrived meanwhile, poll again instead of sleeping.
    pub fn arm(&mut self) -> bool {
        if !self.may_take() {
            return false;
        }
        self.each_running(Ring::arm)
    }

    /// After the loop woke: kicks are not needed while it polls anyway.
    pub fn disarm(&mut self) {
        if self.may_take() {
            self.each_running(|ring, mem| {
                ring.disarm(mem);
                Ok(false)
            });
        }
    }
}
