//! What is plugged in: ports and uplinks, and the way of a frame out to them.
//!
//! A port has two places: a *slot* here, from the moment that a device is plugged in, and a [`PortIx`] in the switch, as long
//! as its guest takes frames. A frame that waited for a port that has gone meanwhile finds another generation there and is
//! thrown away.

use std::collections::BTreeMap;

use ferro_protocol::net::NetName;
use ferro_protocol::time::Instant;
use ferro_vhost::Notifier;
use vswitch_core::config::{Config, GroupIx, UplinkIx};
use vswitch_core::frame::Offload;
use vswitch_core::pipeline::{Counters, Egress};
use vswitch_core::table::PortIx;
use vswitch_core::tunnel::{Meta, Source};

use super::capture::{Captures, Direction, Spot};
use super::delayed::Delayed;
use super::mend::Mender;
use super::share::Share;
use super::snapshot::{DeviceDrops, PortLink};
use super::spin::{Habit, Spin, Touch};
use crate::ports::{PortDevice, Refusal, UplinkDevice};
use crate::tunnel::data::Tunnels;

/// A port with a device.
#[derive(Debug)]
pub(super) struct LocalPort {
    pub(super) name: NetName,
    pub(super) group: GroupIx,
    pub(super) device: PortDevice,
    /// Its place in the switch, while its guest takes frames.
    pub(super) ix: Option<PortIx>,
    pub(super) link: PortLink,
    pub(super) drops: DeviceDrops,
    /// What it counted in the switch before its guest was last gone.
    pub(super) past: Counters,
    /// It is looked at each turn, and nobody tells us of its frames.
    pub(super) awake: bool,
    pub(super) awake_since: Instant,
    /// How soon it has frames.
    pub(super) habit: Habit,
    /// What it has had of the worker's time.
    pub(super) share: Share,
    /// Its rate lets no frame in before this.
    pub(super) held_until: Option<Instant>,
    /// The kick descriptors that are watched, and of which state of the device.
    pub(super) kicks: Vec<Notifier>,
    pub(super) kick_epoch: Option<u64>,
    /// Frames were put where its guest does not see them yet.
    pub(super) dirty: bool,
    /// Frames for its guest are among them.
    pub(super) given: bool,
}

impl LocalPort {
    /// Looked at each turn from now on.
    pub(super) fn rouse(&mut self, now: Instant) {
        self.awake = true;
        self.awake_since = now;
        self.device.disarm();
    }

    /// Its guest is to be told of something at the end of the turn.
    #[inline]
    pub(super) fn soil(&mut self, slot: usize, dirty: &mut Vec<usize>) {
        if !self.dirty {
            self.dirty = true;
            dirty.push(slot);
        }
    }
}

/// An uplink's network card.
#[derive(Debug)]
pub(super) struct LocalUplink {
    pub(super) name: NetName,
    pub(super) device: UplinkDevice,
    /// What its link says.
    pub(super) link: bool,
    pub(super) drops: DeviceDrops,
    pub(super) awake: bool,
    pub(super) habit: Habit,
}

impl LocalUplink {
    /// Sends what it was given.
    fn flush(&mut self, mender: &mut Mender) {
        let Self { device, drops, .. } = self;
        device.flush(|device, refusal, offload, bytes| {
            drops.after(mend(device, mender, refusal, offload, &[bytes]));
        });
    }
}

/// Sends a frame that the kernel did not take in a way that it does, if there is one.
fn mend(
    device: &UplinkDevice,
    mender: &mut Mender,
    refusal: Refusal,
    offload: Offload,
    pieces: &[&[u8]],
) -> Result<(), Refusal> {
    match refusal {
        Refusal::Offload => {
            mender.mend(offload, pieces, true, |offload, pieces| device.send(offload, pieces))
        }
        other => Err(other),
    }
}

/// A frame in up to two pieces: a changed beginning and the rest.
///
/// It is lent, never copied: the processor can't forward fields that were just stored to the wider loads of a copy, and waits
/// until all earlier stores, those to the guests' memory among them, have left it (a fifth of the time of a small frame).
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    parts: [&'a [u8]; 2],
    count: usize,
}

impl<'a> Pieces<'a> {
    pub(super) fn one(bytes: &'a [u8]) -> Self {
        Self { parts: [bytes, &[]], count: 1 }
    }

    pub(super) fn two(first: &'a [u8], rest: &'a [u8]) -> Self {
        Self { parts: [first, rest], count: 2 }
    }

    #[inline]
    pub(super) fn get(&self) -> &[&'a [u8]] {
        &self.parts[..self.count]
    }
}

impl Source for Pieces<'_> {
    fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }

    fn copy(&self, at: usize, len: usize, out: &mut Vec<u8>) {
        let [first, rest] = self.parts;
        let (from, to) = (at.min(first.len()), (at + len).min(first.len()));
        out.extend_from_slice(&first[from..to]);
        let skip = at.max(first.len()) - first.len();
        out.extend_from_slice(&rest[skip..skip + len - (to - from)]);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) ports: Vec<Option<LocalPort>>,
    pub(super) by_name: BTreeMap<NetName, usize>,
    /// The slot of each of the switch's ports.
    by_switch: Vec<Option<(PortIx, usize)>>,
    pub(super) uplinks: Vec<Option<LocalUplink>>,
    /// The place in `uplinks` of each uplink of the configuration.
    by_uplink: Vec<Option<usize>>,
    /// Slots of ports whose guests are to be told of something.
    pub(super) dirty: Vec<usize>,
    /// Frames were given to tunnels in this turn.
    pub(super) tunnelled: bool,
    pub(super) captures: Captures,
    pub(super) delayed: Delayed,
    mender: Mender,
}

impl Devices {
    /// Puts a port where there is room; its slot.
    pub(super) fn add_port(&mut self, port: LocalPort) -> usize {
        let slot = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        self.by_name.insert(port.name.clone(), slot);
        if slot == self.ports.len() {
            self.ports.push(None);
        }
        self.ports[slot] = Some(port);
        slot
    }

    /// Takes a port out.
    pub(super) fn take_port(&mut self, slot: usize) -> Option<LocalPort> {
        let port = self.ports.get_mut(slot)?.take()?;
        self.by_name.remove(&port.name);
        Some(port)
    }

    /// The switch knows the port by this place now.
    pub(super) fn bind(&mut self, ix: PortIx, slot: usize) {
        let at = ix.slot as usize;
        if self.by_switch.len() <= at {
            self.by_switch.resize(at + 1, None);
        }
        self.by_switch[at] = Some((ix, slot));
    }

    /// The switch no longer knows it.
    pub(super) fn unbind(&mut self, ix: PortIx) {
        if let Some(bound @ Some(_)) = self.by_switch.get_mut(ix.slot as usize)
            && bound.is_some_and(|(bound, _)| bound == ix)
        {
            *bound = None;
        }
    }

    /// The slot of one of the switch's ports.
    pub(super) fn slot_of(&self, ix: PortIx) -> Option<usize> {
        match self.by_switch.get(ix.slot as usize) {
            Some(Some((bound, slot))) if *bound == ix => Some(*slot),
            _ => None,
        }
    }

    /// The place of an uplink of this name.
    pub(super) fn uplink_named(&self, name: &NetName) -> Option<usize> {
        self.uplinks.iter().position(|it| it.as_ref().is_some_and(|it| it.name == *name))
    }

    /// Which card is which uplink of the configuration.
    pub(super) fn place_uplinks(&mut self, config: &Config) {
        self.by_uplink = config.uplinks().iter().map(|uplink| self.uplink_named(&uplink.name)).collect();
    }

    /// The card of an uplink.
    pub(super) fn uplink(&mut self, ix: UplinkIx) -> Option<&mut LocalUplink> {
        let place = (*self.by_uplink.get(usize::from(ix.0))?)?;
        self.uplinks.get_mut(place)?.as_mut()
    }

    /// Whether the receiver wants to know the flow.
    #[inline]
    pub(super) fn wants_flow(&self, to: Egress) -> bool {
        let Egress::Port(ix) = to else { return false };
        let port = self.slot_of(ix).and_then(|slot| self.ports[slot].as_ref());
        port.is_some_and(|port| port.device.wants_flow())
    }

    /// Sends a frame where it goes, now. What its receiver refuses is counted there.
    #[inline]
    pub(super) fn send(
        &mut self,
        now: Instant,
        to: Egress,
        flow: u32,
        offload: Offload,
        pieces: &Pieces<'_>,
        tunnels: Option<&mut Tunnels>,
    ) {
        match to {
            Egress::Port(ix) => {
                if let Some(slot) = self.slot_of(ix) {
                    self.send_to_port(slot, flow, offload, pieces);
                }
            }
            Egress::Uplink(ix) => self.send_to_uplink(ix, offload, pieces),
            Egress::Tunnel { to, vni, tci, flow } => {
                // What finds no connection is counted there.
                if let Some(tunnels) = tunnels {
                    self.tunnelled = true;
                    let _counted = tunnels.send(now, to, &Meta { vni, tci, offload }, flow, pieces);
                }
            }
            // They don't come here: see `Forwarder::batch`.
            Egress::Endpoint(_) => {}
        }
    }

    #[inline]
    fn send_to_port(&mut self, slot: usize, flow: u32, offload: Offload, pieces: &Pieces<'_>) {
        let Some(port) = self.ports[slot].as_mut() else { return };
        if self.captures.any() {
            let spot = Spot { name: &port.name, group: Some(port.group), direction: Direction::Out };
            self.captures.see(spot, offload, pieces.get());
        }
        let device = &mut port.device;
        let given = match device.give(flow, offload, pieces.get()) {
            Err(Refusal::Offload) => {
                let takes_csum = device.takes_csum();
                let emit = |offload: Offload, pieces: &[&[u8]]| device.give(flow, offload, pieces);
                self.mender.mend(offload, pieces.get(), takes_csum, emit)
            }
            given => given,
        };
        match given {
            Ok(()) => {
                port.given = true;
                port.soil(slot, &mut self.dirty);
            }
            Err(refusal) => port.drops.refused(refusal),
        }
    }

    fn send_to_uplink(&mut self, ix: UplinkIx, offload: Offload, pieces: &Pieces<'_>) {
        let Some(Some(place)) = self.by_uplink.get(usize::from(ix.0)).copied() else { return };
        let Some(uplink) = self.uplinks[place].as_mut() else { return };
        if self.captures.any() {
            let spot = Spot { name: &uplink.name, group: None, direction: Direction::Out };
            self.captures.see(spot, offload, pieces.get());
        }
        if uplink.device.give(offload, pieces.get()) {
            return;
        }
        uplink.flush(&mut self.mender);
        if uplink.device.give(offload, pieces.get()) {
            return;
        }
        if let Err(refusal) = uplink.device.send(offload, pieces.get()) {
            let bytes = pieces.get();
            uplink.drops.after(mend(&uplink.device, &mut self.mender, refusal, offload, bytes));
        }
    }

    /// Sends what uplinks were given.
    pub(super) fn flush_uplinks(&mut self, now: Instant, spin: Spin) {
        for uplink in self.uplinks.iter_mut().flatten() {
            if uplink.device.has_waiting() {
                uplink.habit.touch(now, Touch::Given, spin);
                uplink.flush(&mut self.mender);
            }
        }
    }

    /// Keeps a frame until its time.
    pub(super) fn delay(
        &mut self,
        at: Instant,
        to: Egress,
        flow: u32,
        offload: Offload,
        pieces: &Pieces<'_>,
    ) {
        if self.delayed.keep(at, to, flow, offload, pieces.get()) {
            return;
        }
        match to {
            Egress::Port(ix) => {
                if let Some(port) = self.slot_of(ix).and_then(|slot| self.ports[slot].as_mut()) {
                    port.drops.delayed += 1;
                }
            }
            Egress::Uplink(ix) => {
                if let Some(uplink) = self.uplink(ix) {
                    uplink.drops.delayed += 1;
                }
            }
            // Frames wait for their port's rate before they reach a tunnel, where the sender's queue has its bound.
            Egress::Tunnel { .. } | Egress::Endpoint(_) => {}
        }
    }
}

impl DeviceDrops {
    /// Counts what did not go.
    fn after(&mut self, given: Result<(), Refusal>) {
        if let Err(refusal) = given {
            self.refused(refusal);
        }
    }

    /// Counts a refusal.
    pub(super) fn refused(&mut self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::NotReady => &mut self.not_ready,
            Refusal::NoRoom => &mut self.no_room,
            Refusal::TooLong => &mut self.too_long,
            Refusal::Offload => &mut self.offload,
            Refusal::Failed => &mut self.failed,
        };
        *counter += 1;
    }
}
