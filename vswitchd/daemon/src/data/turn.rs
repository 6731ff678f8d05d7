//! One turn of the loop.

use std::time::Duration;

use ferro_protocol::time::Instant;
use ferro_vhost::net::NetEvent;
use vswitch_core::pipeline::{Effect, Ingress};

use super::capture::{Direction, Spot};
use super::devices::{LocalPort, Pieces};
use super::port::Event;
use super::share::Shares;
use super::snapshot::PortLink;
use super::spin::{Touch, Wait};
use super::views::Sum;
use super::watch::{Token, Trigger};
use super::{AWAKE, LOOK_EVERY, Loop, TICK, TURN_COMMANDS, TURN_DATAGRAMS, clock};
use crate::ports::PortDevice;
use crate::ports::batch::BATCH_FRAMES;
use crate::tunnel::data::Event as TunnelEvent;

impl Loop {
    /// Turns until it is told to stop.
    pub(super) fn run(mut self) -> std::io::Result<()> {
        while self.stopping.is_none() {
            self.turns += 1;
            let now = clock::now();
            let more = self.turn(now);
            self.rest(now, more)?;
        }
        let slots: Vec<usize> = (0..self.devices.ports.len()).collect();
        for slot in slots {
            self.unplug(clock::now(), slot, PortLink::Detached);
        }
        if let Some(answer) = self.stopping.take() {
            // Who asked may have gone.
            let _gone = answer.send(());
        }
        Ok(())
    }

    /// Everything that is there, once. Whether there is more.
    fn turn(&mut self, now: Instant) -> bool {
        let mut more = false;
        self.worked = false;
        if self.commanded {
            more |= self.take_commands(now);
            // That is no port's time.
            self.serving_since = clock::now();
        }
        more |= self.take_from_ports(now);
        more |= self.take_from_uplinks(now);
        more |= self.take_from_tunnels(now);
        self.send_delayed(now);
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            self.forwarder.switch.handle_time(now);
            self.devices.captures.sweep();
            self.port.retry();
            self.check_links(now);
        }
        self.gateways(now);
        self.effects(now);
        self.flush(now);
        more
    }

    fn take_commands(&mut self, now: Instant) -> bool {
        self.port.drain();
        for _ in 0..TURN_COMMANDS {
            let Some(command) = self.port.next() else {
                self.commanded = false;
                return false;
            };
            self.command(now, command);
        }
        true
    }

    // ---- frames ----

    fn take_from_ports(&mut self, now: Instant) -> bool {
        let mut more = false;
        let mut at = 0;
        let Self { awake, devices, shares, .. } = self;
        shares.begin(now, awake.iter().filter_map(|slot| Some(&devices.ports.get(*slot)?.as_ref()?.share)));
        self.serving_since = self.serving_since.max(now);
        while at < self.awake.len() {
            let slot = self.awake[at];
            let port = self.devices.ports.get(slot).and_then(Option::as_ref);
            if port.is_some_and(|port| !self.shares.admits(&port.share)) {
                more = true;
                at += 1;
                continue;
            }
            match self.take_from_port(now, slot) {
                None => {
                    self.awake.swap_remove(at);
                    continue;
                }
                Some(again) => more |= again,
            }
            at += 1;
        }
        // Who was first is last next time.
        if self.awake.len() > 1 {
            self.awake.rotate_left(1);
        }
        more
    }

    /// A batch from one port. Whether there is more; `None`: the port sleeps, or is gone.
    fn take_from_port(&mut self, now: Instant, slot: usize) -> Option<bool> {
        let port = self.devices.ports.get_mut(slot)?.as_mut()?;
        let Some(ix) = port.ix else {
            port.awake = false;
            return None;
        };
        let frames_max = port.share.frames_max();
        let switch = &self.forwarder.switch;
        let shaped = switch.port(ix).is_some_and(|port| port.policy().ingress.is_some());
        if !shaped {
            let taken = self.take_batch(now, slot, frames_max)?;
            return self.rest_of_port(now, slot, taken);
        }
        // One at a time, as its rate allows: what may not leave yet stays with the guest.
        let mut last = (false, false);
        for _ in 0..frames_max {
            let ready_at = self.forwarder.switch.ready_at(ix);
            if ready_at > now {
                self.account(slot, (true, false));
                self.devices.ports.get_mut(slot)?.as_mut()?.held_until = Some(ready_at);
                return Some(false);
            }
            last = self.take_batch(now, slot, 1)?;
            if !last.0 {
                break;
            }
        }
        self.rest_of_port(now, slot, last)
    }

    /// Charges a port for what it was served, if others may have waited for it.
    fn account(&mut self, slot: usize, (any, more): (bool, bool)) {
        let contended = self.awake.len() > 1 && (more || self.shares.contended());
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        if !any {
            port.share.rest();
        } else if contended {
            let until = clock::now();
            self.shares.spend(&mut port.share, until.since(self.serving_since), more);
            self.serving_since = until;
        } else {
            Shares::spend_freely(&mut port.share, more);
        }
    }

    /// A batch of up to `frames_max` frames: whether there were any, whether there are more.
    fn take_batch(&mut self, now: Instant, slot: usize, frames_max: usize) -> Option<(bool, bool)> {
        let port = self.devices.ports.get_mut(slot)?.as_mut()?;
        let ix = port.ix?;
        port.held_until = None;
        self.batch.clear(frames_max);
        let more = port.device.take(&mut self.batch, &mut port.drops);
        let any = more || !self.batch.is_empty();
        if any {
            self.worked = true;
            port.habit.touch(now, Touch::Taken, self.spinning.spin);
            port.soil(slot, &mut self.devices.dirty);
        }
        if port.device.is_broken() && port.link == PortLink::Running {
            self.handle_control(now, slot);
        }
        if !self.batch.is_empty() {
            self.capture_in(slot);
            let (batch, tunnels) = (&self.batch, self.tunnels.as_mut());
            self.forwarder.batch(now, Ingress::Port(ix), batch, &mut self.devices, tunnels);
        }
        Some((any, more))
    }

    fn capture_in(&mut self, slot: usize) {
        if !self.devices.captures.any() {
            return;
        }
        let Some(Some(port)) = self.devices.ports.get(slot) else { return };
        let spot = Spot { name: &port.name, group: Some(port.group), direction: Direction::In };
        for n in 0..self.batch.len() {
            let (bytes, offload) = self.batch.get(n);
            self.devices.captures.see(spot, offload, &[bytes]);
        }
    }

    /// Arms a port that has been idle for long enough.
    fn rest_of_port(&mut self, now: Instant, slot: usize, (any, more): (bool, bool)) -> Option<bool> {
        self.account(slot, (any, more));
        let port = self.devices.ports.get_mut(slot)?.as_mut()?;
        if any || now.since(port.awake_since.max(port.habit.touched_at())) < AWAKE {
            return Some(more);
        }
        if port.device.arm() {
            port.awake_since = now;
            return Some(true);
        }
        port.awake = false;
        None
    }

    fn take_from_uplinks(&mut self, now: Instant) -> bool {
        let mut more = false;
        for place in 0..self.devices.uplinks.len() {
            let Some(Some(uplink)) = self.devices.uplinks.get_mut(place) else { continue };
            if !uplink.awake {
                continue;
            }
            self.batch.clear(BATCH_FRAMES);
            let again = uplink.device.take(&mut self.batch, &mut uplink.drops);
            if self.batch.is_empty() && !again {
                // Edges are kept for us: one between this look and the sleep ends the sleep.
                uplink.awake = now.since(uplink.habit.touched_at()) < AWAKE;
                continue;
            }
            self.worked = true;
            uplink.habit.touch(now, Touch::Taken, self.spinning.spin);
            more |= again;
            let Some(ix) = self.forwarder.switch.config().uplink(&uplink.name) else { continue };
            if self.devices.captures.any() {
                let spot = Spot { name: &uplink.name, group: None, direction: Direction::In };
                for n in 0..self.batch.len() {
                    let (bytes, offload) = self.batch.get(n);
                    self.devices.captures.see(spot, offload, &[bytes]);
                }
            }
            let (batch, tunnels) = (&self.batch, self.tunnels.as_mut());
            self.forwarder.batch(now, Ingress::Uplink(ix), batch, &mut self.devices, tunnels);
        }
        more
    }

    fn take_from_tunnels(&mut self, now: Instant) -> bool {
        let Some(tunnels) = self.tunnels.as_mut() else { return false };
        let (forwarder, devices) = (&mut self.forwarder, &mut self.devices);
        let mut any = false;
        let mut deliver = |from, arrived: vswitch_core::tunnel::Arrived<'_>| {
            any = true;
            forwarder.arrived(now, from, arrived.meta, arrived.bytes, devices);
        };
        let mut more = false;
        if self.tunnels_ready {
            more = tunnels.receive(now, TURN_DATAGRAMS, &mut deliver);
            self.tunnels_ready = more;
        }
        if tunnels.next_at().is_some_and(|at| at <= now) {
            tunnels.handle_time(now, &mut deliver);
        }
        if any {
            self.worked = true;
            self.habit.touch(now, Touch::Taken, self.spinning.spin);
        }
        while let Some(event) = tunnels.poll_event() {
            let (peer, path, up) = match event {
                TunnelEvent::Up { peer, path } => (peer, path, true),
                TunnelEvent::Down { peer, path } => (peer, path, false),
            };
            if let Some(peer) = self.forwarder.switch.peer(peer) {
                self.port.tell(Event::Path { host: peer.host(), path, up });
            }
        }
        more
    }

    fn send_delayed(&mut self, now: Instant) {
        while let Some(waiting) = self.devices.delayed.due(now) {
            let pieces = Pieces::one(&waiting.bytes);
            let tunnels = self.tunnels.as_mut();
            self.devices.send(now, waiting.to, waiting.flow, waiting.offload, &pieces, tunnels);
        }
    }

    /// What is to be shown to guests and hosts, once for all of the turn.
    fn flush(&mut self, now: Instant) {
        let spin = self.spinning.spin;
        for slot in self.devices.dirty.drain(..) {
            // One may be gone, and another in its place: telling that one does no harm.
            let Some(Some(port)) = self.devices.ports.get_mut(slot) else { continue };
            port.dirty = false;
            if std::mem::take(&mut port.given) {
                port.habit.touch(now, Touch::Given, spin);
                // It is likely to answer: it need not kick.
                if !port.awake && port.ix.is_some() && port.habit.expected_until() > now {
                    port.rouse(now);
                    self.awake.push(slot);
                }
            }
            port.device.flush();
        }
        self.devices.flush_uplinks(now, spin);
        if std::mem::take(&mut self.devices.tunnelled) {
            self.habit.touch(now, Touch::Given, spin);
        }
        if let Some(tunnels) = self.tunnels.as_mut() {
            tunnels.flush(now);
        }
    }

    // ---- what happens besides ----

    /// What the switch wants to be done or told.
    pub(super) fn effects(&mut self, now: Instant) {
        while let Some(effect) = self.forwarder.switch.poll_effect() {
            match effect {
                Effect::Announce(it) => self.port.tell(Event::Announce(it)),
                Effect::Withdraw(it) => self.port.tell(Event::Withdraw(it)),
                Effect::Networks(it) => self.port.tell(Event::Networks(it)),
                Effect::Frozen { vni, mac } => self.port.tell(Event::Frozen { vni, mac }),
                Effect::Send { uplink, bytes } => {
                    let to = vswitch_core::pipeline::Egress::Uplink(uplink);
                    let offload = vswitch_core::frame::Offload::NONE;
                    self.devices.send(now, to, 0, offload, &Pieces::one(&bytes), None);
                }
                Effect::Detached(ix) => {
                    // It has left the configuration.
                    if let Some(slot) = self.devices.slot_of(ix) {
                        self.devices.unbind(ix);
                        if let Some(Some(port)) = self.devices.ports.get_mut(slot) {
                            port.ix = None;
                        }
                        self.unplug(now, slot, PortLink::Removed);
                    }
                }
            }
        }
    }

    /// A port's control thread, or its rings, have something to say.
    pub(super) fn handle_control(&mut self, now: Instant, slot: usize) {
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        let mut link = port.link.clone();
        let mut moved_here = None;
        if let PortDevice::Tap(tap) = &port.device
            && let Some(why) = &tap.broken
        {
            link = PortLink::Broken(why.clone());
        }
        if let PortDevice::Vhost(vhost) = &mut port.device {
            vhost.device.control();
            while let Some(event) = vhost.device.poll_event() {
                match event {
                    NetEvent::Attached => link = PortLink::Connected,
                    NetEvent::Detached => link = PortLink::Waiting,
                    NetEvent::Announce(mac) => moved_here = Some(mac),
                    NetEvent::Mtu(mtu) => {
                        tracing::debug!(port = %port.name, mtu, "the front end has set an MTU");
                    }
                    NetEvent::Broken(why) => link = PortLink::Broken(why.to_string()),
                }
            }
            let running = vhost.device.is_running() && vhost.device.broken().is_none();
            link = match link {
                PortLink::Connected | PortLink::Broken(_) if running => PortLink::Running,
                PortLink::Running if !running && vhost.device.broken().is_none() => PortLink::Connected,
                link => link,
            };
        }
        self.watch_kicks(slot);
        self.set_link(now, slot, link);
        // A guest that was moved here and has another address than the port was given: its policy decides.
        let port = self.devices.ports.get(slot).and_then(Option::as_ref);
        if let (Some(mac), Some(ix)) = (moved_here, port.and_then(|port| port.ix)) {
            self.forwarder.switch.set_guest(now, ix, Some(mac), false);
        }
    }

    /// A port's device is well, or is not: the switch knows its address only while it is.
    pub(super) fn set_link(&mut self, now: Instant, slot: usize, link: PortLink) {
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        let name = port.name.clone();
        match (link == PortLink::Running, port.ix) {
            (true, None) => match self.forwarder.switch.attach(now, &name) {
                Ok(ix) => {
                    port.ix = Some(ix);
                    self.devices.bind(ix, slot);
                }
                Err(error) => tracing::error!(port = %name, %error, "the switch does not take the port"),
            },
            (false, Some(_)) => self.unbind(now, slot),
            _ => {}
        }
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        if port.link != link {
            tracing::info!(port = %name, ?link, "port");
            port.link = link.clone();
            self.port.tell(Event::Port { name, link });
        }
        self.wake_port(slot);
    }

    /// The switch forgets a port; what it counted is kept.
    fn unbind(&mut self, now: Instant, slot: usize) {
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        let Some(ix) = port.ix.take() else { return };
        if let Some(counted) = self.forwarder.switch.port(ix) {
            port.past.add(counted.counters());
        }
        self.devices.unbind(ix);
        self.forwarder.switch.detach(now, ix);
    }

    /// Takes a port's device out and lets go of it. Whether there was one.
    pub(super) fn unplug(&mut self, now: Instant, slot: usize, why: PortLink) -> bool {
        self.unbind(now, slot);
        let Some(port) = self.devices.take_port(slot) else { return false };
        let LocalPort { name, device, kicks, .. } = port;
        for kick in kicks {
            self.watch.remove(&kick);
        }
        for fd in device.descriptors() {
            self.watch.remove(fd);
        }
        self.awake.retain(|awake| *awake != slot);
        drop(device);
        tracing::info!(port = %name, link = ?why, "port");
        self.port.tell(Event::Port { name, link: why });
        self.effects(now);
        true
    }

    /// Looks at a port each turn from now on.
    pub(super) fn wake_port(&mut self, slot: usize) {
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        port.device.readable();
        if !port.awake && port.ix.is_some() {
            port.rouse(clock::now());
            self.awake.push(slot);
        }
    }

    /// Watches the kick descriptors that a device has now.
    pub(super) fn watch_kicks(&mut self, slot: usize) {
        let Some(Some(port)) = self.devices.ports.get_mut(slot) else { return };
        let PortDevice::Vhost(vhost) = &port.device else { return };
        if port.kick_epoch == Some(vhost.device.kick_epoch()) {
            return;
        }
        port.kick_epoch = Some(vhost.device.kick_epoch());
        for kick in port.kicks.drain(..) {
            self.watch.remove(&kick);
        }
        for kick in vhost.device.kicks() {
            match self.watch.add(&kick.fd, Token::Port(slot as u32), Trigger::Edge) {
                Ok(()) => port.kicks.push(kick.fd),
                Err(error) => tracing::error!(port = %port.name, %error, "a queue can't be watched"),
            }
        }
    }

    /// Uplinks' links, as far as they have changed.
    pub(super) fn check_links(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (place, uplink) in self.devices.uplinks.iter_mut().enumerate() {
            let Some(uplink) = uplink else { continue };
            uplink.device.count_losses(&mut uplink.drops);
            match uplink.device.link() {
                Ok(up) => uplink.link = up,
                Err(error) => {
                    let (uplink, interface) = (&uplink.name, uplink.device.interface());
                    tracing::warn!(%uplink, interface, %error, "the interface is gone");
                    gone.push(place);
                }
            }
        }
        for place in gone {
            if let Some(name) = self.remove_uplink(place) {
                self.port.tell(Event::UplinkGone(name));
            }
        }
        let found = self.devices.uplinks.iter().flatten();
        let mut links: std::collections::BTreeMap<_, _> =
            found.map(|it| (it.name.clone(), it.link && !self.held.contains(&it.name))).collect();
        for name in self.links.keys() {
            links.entry(name.clone()).or_insert(false);
        }
        for (name, up) in links {
            if self.links.get(&name) != Some(&up) {
                tracing::info!(uplink = %name, up, "uplink");
                self.forwarder.switch.handle_link(now, &name, up);
                self.links.insert(name.clone(), up);
                self.port.tell(Event::Uplink { name, up });
            }
        }
        self.effects(now);
    }

    // ---- sleep ----

    /// Looks at descriptors, and sleeps if there is nothing to do and nothing likely to come.
    fn rest(&mut self, now: Instant, more: bool) -> std::io::Result<()> {
        let busy = more || self.worked || self.commanded;
        let mut sleep = Duration::ZERO;
        if busy {
            self.spinning.worked();
        }
        let wait = if busy { Wait::Look } else { self.spinning.wait(now, self.expected_until()) };
        match wait {
            Wait::Look if now.since(self.looked_at) < LOOK_EVERY => return Ok(()),
            Wait::Look => {}
            Wait::Yield => std::thread::yield_now(),
            Wait::Sleep if self.arm_all() => return Ok(()),
            Wait::Sleep => sleep = self.sleep_for(),
        }
        self.sleeps += u64::from(!sleep.is_zero());
        let mut ports = Vec::new();
        let mut controls = Vec::new();
        let mut links = false;
        let Self { watch, devices, commanded, tunnels_ready, .. } = self;
        watch.wait(sleep, |token| match token {
            Token::Wake => *commanded = true,
            Token::Control(slot) => controls.push(slot as usize),
            Token::Port(slot) => ports.push(slot as usize),
            Token::Tunnel => *tunnels_ready = true,
            Token::Timer => {}
            Token::Uplink(place) => {
                if let Some(Some(uplink)) = devices.uplinks.get_mut(place as usize) {
                    uplink.awake = true;
                }
            }
            Token::Links(place) => {
                links = true;
                if let Some(Some(uplink)) = devices.uplinks.get_mut(place as usize) {
                    uplink.device.drain_links();
                }
            }
        })?;
        for slot in ports {
            self.wake_port(slot);
        }
        let now = clock::now();
        self.looked_at = now;
        for slot in controls {
            self.handle_control(now, slot);
        }
        if links {
            self.check_links(now);
        }
        Ok(())
    }

    /// Until when a frame is likely to come from somewhere.
    fn expected_until(&self) -> Instant {
        let port = |slot: &usize| {
            let port = self.devices.ports.get(*slot)?.as_ref()?;
            port.held_until.is_none().then(|| port.habit.expected_until())
        };
        let uplinks = self.devices.uplinks.iter().flatten().map(|uplink| uplink.habit.expected_until());
        let tunnels = self.habit.expected_until();
        self.awake.iter().filter_map(port).chain(uplinks).fold(tunnels, Instant::max)
    }

    /// Asks all guests for kicks, before a sleep. Whether one has frames already.
    fn arm_all(&mut self) -> bool {
        let mut any = false;
        let ports = &mut self.devices.ports;
        self.awake.retain(|slot| {
            let Some(Some(port)) = ports.get_mut(*slot) else { return false };
            // What its rate holds back is waited for by time.
            if port.ix.is_some() && (port.held_until.is_some() || port.device.arm()) {
                any |= port.held_until.is_none();
                return true;
            }
            port.awake = false;
            false
        });
        for uplink in self.devices.uplinks.iter_mut().flatten() {
            uplink.awake = false;
        }
        any
    }

    fn sleep_for(&self) -> Duration {
        let held = self.awake.iter().filter_map(|slot| self.devices.ports.get(*slot)?.as_ref()?.held_until);
        let tunnels = self.tunnels.as_ref().and_then(crate::tunnel::data::Tunnels::next_at);
        let next = held
            .chain(self.devices.delayed.next_at())
            .chain(tunnels)
            .chain(self.endpoints.next_at())
            .fold(self.tick_at, Instant::min);
        next.since(clock::now())
    }
}
