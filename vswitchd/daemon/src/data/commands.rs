//! What the control plane tells, done.

use std::net::SocketAddr;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::NetName;
use ferro_protocol::time::Instant;
use vswitch_core::config::Config;
use vswitch_core::frame::HEAD_BYTES;
use vswitch_core::pipeline::{Counters, Frame, Ingress, Trace};
use vswitch_core::table::PeerIx;

use super::Loop;
use super::capture::{Capture, CaptureOf, CaptureOptions};
use super::devices::{LocalPort, LocalUplink};
use super::port::{AttachRefused, CaptureRefused, Command, PeerWord, TraceFrom, UnknownPlace};
use super::snapshot::{DeviceDrops, Names, PortLink};
use super::watch::{Token, Trigger};
use crate::ports::{PortDevice, UplinkDevice};

/// Answers; who asked may have gone.
fn answer<T>(to: tokio::sync::oneshot::Sender<T>, it: T) {
    let _gone = to.send(it);
}

impl Loop {
    pub(super) fn command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Configure(config, done) => {
                self.configure(now, *config);
                answer(done, ());
            }
            Command::Attach { name, device, answer: to } => answer(to, self.attach(now, name, device)),
            Command::Detach { name, answer: to } => {
                let slot = self.devices.by_name.get(&name).copied();
                if let Some(Some(port)) = slot.and_then(|slot| self.devices.ports.get(slot)) {
                    port.device.forget();
                }
                answer(to, slot.is_some_and(|slot| self.unplug(now, slot, PortLink::Detached)));
            }
            Command::Persist { name, stays, answer: to } => {
                let slot = self.devices.by_name.get(&name).copied();
                let port = slot.and_then(|slot| self.devices.ports.get(slot)?.as_ref());
                match port {
                    Some(port) if stays => port.device.keep(),
                    Some(port) => port.device.forget(),
                    None => {}
                }
                answer(to, port.is_some());
            }
            Command::AddUplink { name, device, answer: to } => {
                self.add_uplink(now, name, device);
                answer(to, ());
            }
            Command::RemoveUplink { name, answer: to } => {
                let place = self.devices.uplink_named(&name);
                let removed = place.and_then(|place| self.remove_uplink(place));
                self.check_links(now);
                answer(to, removed.is_some());
            }
            Command::Link { uplink, up } => {
                if up {
                    self.held.remove(&uplink);
                } else {
                    self.held.insert(uplink);
                }
                self.check_links(now);
            }
            Command::Peer { host, addresses } => self.set_peer(now, host, &addresses),
            Command::PeerSaid { host, word } => self.peer_said(now, host, word),
            Command::PeerRemove(host) => {
                if let Some(peer) = self.peers.remove(&host) {
                    self.forwarder.switch.peer_remove(now, peer);
                    if let Some(tunnels) = self.tunnels.as_mut() {
                        tunnels.remove_peer(now, peer);
                    }
                }
            }
            Command::LeaseBook { group, wall, book } => self.endpoints.set_book(now, &group, wall, *book),
            Command::Lease { group, answer } => self.lease_answered(now, &group, answer),
            Command::Announced(to) => answer(to, self.forwarder.switch.snapshot()),
            Command::Snapshot(to) => answer(to, Box::new(self.snapshot())),
            Command::Macs { limit, answer: to } => answer(to, self.macs(limit)),
            Command::Trace { from, frame, offload, answer: to } => {
                let traced = self.ingress(from).map(|from| {
                    let head = &frame[..frame.len().min(HEAD_BYTES)];
                    let frame = Frame { from, head, len: frame.len(), offload };
                    let trace = self.forwarder.switch.trace(now, &frame);
                    let names = self.names_of(&trace);
                    (trace, names)
                });
                answer(to, traced);
            }
            Command::CaptureStart { of, options, answer: to } => answer(to, self.capture(of, options)),
            Command::CaptureStop(id) => self.devices.captures.stop(id),
            Command::Release { vni, mac } => self.forwarder.switch.release(now, vni, mac),
            Command::Stop(to) => self.stopping = Some(to),
        }
        self.effects(now);
    }

    fn configure(&mut self, now: Instant, config: Config) {
        self.endpoints.configure(now, &config);
        self.forwarder.switch.configure(now, config);
        self.effects(now);
        let config = self.forwarder.switch.config();
        // Those without a guest: the others were taken out by an effect.
        let gone = |port: &&LocalPort| !config.ports().contains_key(&port.name);
        let gone: Vec<_> =
            self.devices.ports.iter().flatten().filter(gone).map(|it| it.name.clone()).collect();
        self.devices.place_uplinks(config);
        self.devices.captures.regroup(|name| {
            let place = config.groups().iter().position(|group| group.name == *name);
            place.map(|place| vswitch_core::config::GroupIx(place as u32))
        });
        for port in self.devices.ports.iter_mut().flatten() {
            if let Some(it) = config.ports().get(&port.name) {
                port.group = it.group;
                port.device.set_policy(it.policy.mtu, !it.policy.blocked);
            }
        }
        for name in gone {
            if let Some(slot) = self.devices.by_name.get(&name).copied() {
                self.unplug(now, slot, PortLink::Removed);
            }
        }
    }

    fn attach(&mut self, now: Instant, name: NetName, mut device: PortDevice) -> Result<(), AttachRefused> {
        let Some(config) = self.forwarder.switch.config().ports().get(&name) else {
            return Err(AttachRefused::Unknown(name));
        };
        if self.devices.by_name.contains_key(&name) {
            return Err(AttachRefused::Attached(name));
        }
        device.set_policy(config.policy.mtu, !config.policy.blocked);
        let (link, group) = (device.first_link(), config.group);
        let port = LocalPort {
            name: name.clone(),
            group,
            device,
            ix: None,
            link: PortLink::Waiting,
            drops: DeviceDrops::default(),
            past: Counters::default(),
            awake: false,
            awake_since: now,
            habit: super::spin::Habit::new(now),
            share: super::share::Share::default(),
            held_until: None,
            kicks: Vec::new(),
            kick_epoch: None,
            dirty: false,
            given: false,
        };
        let slot = self.devices.add_port(port);
        if let Some(Some(port)) = self.devices.ports.get(slot) {
            let (token, trigger) = match port.device {
                PortDevice::Vhost(_) => (Token::Control(slot as u32), Trigger::Level),
                PortDevice::Tap(_) => (Token::Port(slot as u32), Trigger::Edge),
            };
            let watched: Result<(), _> =
                port.device.descriptors().into_iter().try_for_each(|fd| self.watch.add(fd, token, trigger));
            if let Err(error) = watched {
                self.unplug(now, slot, PortLink::Detached);
                return Err(AttachRefused::Watch(name, error));
            }
        }
        self.set_link(now, slot, link);
        self.handle_control(now, slot);
        Ok(())
    }

    fn add_uplink(&mut self, now: Instant, name: NetName, device: UplinkDevice) {
        if let Some(place) = self.devices.uplink_named(&name) {
            self.remove_uplink(place);
        }
        let uplinks = &mut self.devices.uplinks;
        let place = uplinks.iter().position(Option::is_none).unwrap_or(uplinks.len());
        for (fd, token, trigger) in [
            (device.frames(), Token::Uplink(place as u32), Trigger::Edge),
            (device.links(), Token::Links(place as u32), Trigger::Level),
        ] {
            if let Err(error) = self.watch.add(fd, token, trigger) {
                tracing::error!(uplink = %name, %error, "the uplink can't be watched");
            }
        }
        let drops = DeviceDrops::default();
        let habit = super::spin::Habit::new(now);
        let uplink = LocalUplink { name, device, link: false, drops, awake: true, habit };
        if place == self.devices.uplinks.len() {
            self.devices.uplinks.push(None);
        }
        self.devices.uplinks[place] = Some(uplink);
        self.devices.place_uplinks(self.forwarder.switch.config());
        self.check_links(now);
    }

    /// Lets an uplink's card go; its name.
    pub(super) fn remove_uplink(&mut self, place: usize) -> Option<NetName> {
        self.devices.flush_uplinks(super::clock::now(), self.spinning.spin);
        let uplink = self.devices.uplinks.get_mut(place)?.take()?;
        self.watch.remove(uplink.device.frames());
        self.watch.remove(uplink.device.links());
        self.devices.place_uplinks(self.forwarder.switch.config());
        Some(uplink.name)
    }

    // ---- peers ----

    fn peer(&mut self, host: HostId) -> Option<PeerIx> {
        if let Some(peer) = self.peers.get(&host) {
            return Some(*peer);
        }
        let peer = self.forwarder.switch.peer_add(host);
        if let Some(peer) = peer {
            self.peers.insert(host, peer);
        } else {
            tracing::error!(%host, "too many peers: this one is not reached");
        }
        peer
    }

    fn set_peer(&mut self, now: Instant, host: HostId, addresses: &[SocketAddr]) {
        if let (Some(peer), Some(tunnels)) = (self.peer(host), self.tunnels.as_mut()) {
            tunnels.set_peer(now, peer, host, addresses);
        }
    }

    fn peer_said(&mut self, now: Instant, host: HostId, word: PeerWord) {
        // One that was removed meanwhile has nothing to say.
        let Some(peer) = self.peers.get(&host).copied() else { return };
        let switch = &mut self.forwarder.switch;
        match word {
            PeerWord::Alive(alive) => switch.peer_alive(peer, alive),
            PeerWord::Networks(networks) => switch.peer_networks(peer, &networks),
            PeerWord::Announce(it) => switch.peer_announce(now, peer, &it),
            PeerWord::Withdraw(it) => switch.peer_withdraw(now, peer, &it),
            PeerWord::Snapshot(networks, all) => switch.peer_snapshot(now, peer, &networks, &all),
        }
    }

    // ---- questions ----

    fn ingress(&self, from: TraceFrom) -> Result<Ingress, UnknownPlace> {
        let switch = &self.forwarder.switch;
        match from {
            TraceFrom::Port(name) => {
                switch.port_named(&name).map(Ingress::Port).ok_or(UnknownPlace::Port(name))
            }
            TraceFrom::Uplink(name) => {
                switch.config().uplink(&name).map(Ingress::Uplink).ok_or(UnknownPlace::Uplink(name))
            }
            TraceFrom::Peer { host, vni, tci } => {
                let peer = self.peers.get(&host).ok_or(UnknownPlace::Peer(host))?;
                Ok(Ingress::Tunnel { from: *peer, vni, tci })
            }
        }
    }

    fn names_of(&self, trace: &Trace) -> Names {
        let switch = &self.forwarder.switch;
        let mut names = Names {
            uplinks: switch.config().uplinks().iter().map(|it| it.name.clone()).collect(),
            groups: switch.config().groups().iter().map(|it| it.name.clone()).collect(),
            ..Names::default()
        };
        let port = |ix| switch.port(ix).map(|port| port.name().clone());
        names.mention(trace, port, |ix| switch.peer(ix).map(|peer| peer.host()));
        names
    }

    fn capture(&mut self, of: CaptureOf, options: CaptureOptions) -> Result<Capture, CaptureRefused> {
        let config = self.forwarder.switch.config();
        let mut group = None;
        match &of {
            CaptureOf::Port(name) if !config.ports().contains_key(name) => {
                return Err(UnknownPlace::Port(name.clone()).into());
            }
            CaptureOf::Uplink(name) if config.uplink(name).is_none() => {
                return Err(UnknownPlace::Uplink(name.clone()).into());
            }
            CaptureOf::Group(name) => {
                let place = config.groups().iter().position(|group| group.name == *name);
                let place = place.ok_or_else(|| UnknownPlace::Group(name.clone()))?;
                group = Some(vswitch_core::config::GroupIx(place as u32));
            }
            _ => {}
        }
        let captures = &mut self.devices.captures;
        captures.start(of, group, options).ok_or(CaptureRefused::TooMany(super::capture::CAPTURES_MAX))
    }
}
