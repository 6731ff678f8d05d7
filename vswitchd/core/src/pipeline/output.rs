//! Where a frame leaves: ports, uplinks, tunnels, mirrors, and the counting of it all.

use crate::bugs::Bug;
use crate::config::{GroupIx, UplinkIx};
use crate::frame::{Edit, Vid};
use crate::table::{PeerIx, Place};
use crate::team::TeamKey;
use crate::tunnel::FlowKey;

use super::count::{Cause, Counters};
use super::forward::{Many, Way};
use super::lane;
use super::trace::{Step, Watch};
use super::{Delivery, Egress, Frame, Ingress, Output, Switch};

impl Switch {
    /// To where the receiver is, and to those who see everything.
    pub(super) fn send_to<W: Watch>(
        &mut self,
        way: &Way<'_>,
        place: Place,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let sent = match place {
            Place::Port(ix) if way.from == Ingress::Port(ix) => Err(Cause::Hairpin),
            Place::Port(ix) if self.port(ix).is_none() => Err(Cause::NoReceiver),
            Place::Port(ix) => self.send_to_port(way, ix.slot, out, watch),
            Place::Peer(peer) => self.send_to_peer(way, peer, out, watch),
            Place::Uplink(_) => self.send_to_uplink(way, out, watch),
        };
        // A copy of it by another uplink was or will be taken instead.
        if sent != Err(Cause::OtherUplink) {
            way.taken.set(sent.is_ok());
            let but = if let Place::Port(ix) = place { Some(ix.slot) } else { None };
            self.send_to_watchers(way, but, out, watch);
        }
        sent
    }

    /// To those who see everything.
    fn send_to_watchers<W: Watch>(
        &mut self,
        way: &Way<'_>,
        but: Option<u32>,
        out: &mut Output,
        watch: &mut W,
    ) {
        for at in 0..self.domains[way.domain].watchers.len() {
            let slot = self.domains[way.domain].watchers[at];
            if but != Some(slot) {
                // Who may not see it, does not.
                let _ = self.send_to_port(way, slot, out, watch);
            }
        }
    }

    /// To the gateway here, and to those who see everything.
    pub(super) fn send_to_endpoint<W: Watch>(
        &mut self,
        way: &Way<'_>,
        group: GroupIx,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let to = Egress::Endpoint(group);
        if way.nested && !self.settings.bugs.has(Bug::HiddenTag) {
            watch.step(|| Step::Withheld(to, Cause::HiddenTag));
            return Err(Cause::HiddenTag);
        }
        watch.step(|| Step::Sent(to));
        let edit = Edit::between(way.has, None);
        out.deliveries.push(Delivery { frame: way.index, to, edit, at: way.at, mirror: false });
        if W::LIVE {
            self.endpoints[group.0 as usize].to.add(edit.len(way.len));
        }
        if !way.ether.dst.is_group() {
            self.send_to_watchers(way, None, out, watch);
        }
        Ok(())
    }

    /// To everybody in its VLAN; if only nobody knows the receiver, to those who might.
    pub(super) fn send_to_all<W: Watch>(
        &mut self,
        way: &Way<'_>,
        many: Many,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let before = out.deliveries.len();
        for at in 0..self.domains[way.domain].ports.len() {
            let slot = self.domains[way.domain].ports[at];
            let port = &self.ports[slot as usize];
            if many != Many::Unknown || port.learning.is_some() || port.watches() {
                // A port of another VLAN is no fault; what the port itself refused was counted there.
                let _ = self.send_to_port(way, slot, out, watch);
            }
        }
        let domain = &self.domains[way.domain];
        // What the physical network does not know either is not ours, unless somebody here learns.
        let outside =
            matches!(way.from, Ingress::Uplink(_)) && many == Many::Unknown && domain.learning.is_none();
        let mut failed = None;
        if !outside {
            for at in 0..self.domains[way.domain].peers.len() {
                let peer = self.domains[way.domain].peers[at];
                failed = self.send_to_peer(way, peer, out, watch).err().or(failed);
            }
        }
        failed = self.send_to_uplink(way, out, watch).err().or(failed);
        if out.deliveries.len() > before {
            return Ok(());
        }
        let nobody = if matches!(way.from, Ingress::Uplink(_)) { Cause::NotOurs } else { Cause::NoReceiver };
        Err(failed.filter(|cause| matches!(cause, Cause::NoUplink | Cause::TunnelDown)).unwrap_or(nobody))
    }

    fn send_to_port<W: Watch>(
        &mut self,
        way: &Way<'_>,
        slot: u32,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let ix = self.ports[slot as usize].ix;
        if way.from == Ingress::Port(ix) {
            return Err(Cause::Hairpin);
        }
        let to = Egress::Port(ix);
        let ready = self.may_leave(way, slot).and_then(|edit| {
            let bytes = edit.len(way.len);
            let at = self.ports[slot as usize].shape_out(way.at, bytes, W::LIVE);
            at.map(|at| (edit, at)).ok_or(Cause::ShapedEgress)
        });
        let (edit, at) = match ready {
            Ok(ready) => ready,
            Err(cause) => {
                watch.step(|| Step::Withheld(to, cause));
                let own = matches!(
                    cause,
                    Cause::TooLarge | Cause::ShapedEgress | Cause::Blocked | Cause::HiddenTag
                );
                if W::LIVE && own {
                    self.ports[slot as usize].counters.drop(cause);
                }
                return Err(cause);
            }
        };
        watch.step(|| Step::Sent(to));
        out.deliveries.push(Delivery { frame: way.index, to, edit, at, mirror: false });
        let port = &mut self.ports[slot as usize];
        if W::LIVE {
            port.counters.to.add(edit.len(way.len));
            port.load += way.len as u64;
        }
        for at_copy in 0..self.ports[slot as usize].copies_out.len() {
            let copy = self.ports[slot as usize].copies_out[at_copy];
            self.mirror(way, copy, edit, out, watch);
        }
        Ok(())
    }

    /// Whether a port may have a frame, and with which tag.
    fn may_leave(&self, way: &Way<'_>, slot: u32) -> Result<Edit, Cause> {
        let port = &self.ports[slot as usize];
        let bugs = self.settings.bugs;
        if port.mirror_only {
            return Err(Cause::MirrorOnly);
        }
        let vid = lane::leave(&port.vlan, way.lane, bugs)?;
        if port.config.policy.blocked {
            return Err(Cause::Blocked);
        }
        if vid.is_none() && way.nested && !bugs.has(Bug::HiddenTag) {
            return Err(Cause::HiddenTag);
        }
        if let (Ingress::Uplink(uplink), false) = (way.from, way.taken.get()) {
            let mac = if way.ether.dst.is_group() { port.mac() } else { way.ether.dst };
            let key = TeamKey { port: slot, mac, pair: 0 };
            if !self.teams[port.config.group.0 as usize].receives(uplink, &key) && !bugs.has(Bug::Reflection)
            {
                return Err(Cause::OtherUplink);
            }
        }
        if way.packet > usize::from(port.config.policy.mtu) {
            return Err(Cause::TooLarge);
        }
        Ok(Edit::between(way.has, vid.map(|vid| way.priority.with(vid))))
    }

    fn send_to_peer<W: Watch>(
        &mut self,
        way: &Way<'_>,
        peer: PeerIx,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        if self.stays(way) {
            return Err(Cause::NotOurs);
        }
        let domain = &self.domains[way.domain];
        let vni = domain.vni.ok_or(Cause::NotThere)?;
        // A frame from a tunnel never leaves by a tunnel.
        if let Ingress::Tunnel { from, .. } = way.from
            && (from == peer || !self.settings.bugs.has(Bug::SplitHorizonOff))
        {
            return Err(Cause::NotOurs);
        }
        // Of a broadcast that every uplink brings, one copy goes on.
        if let (Ingress::Uplink(uplink), Some(group)) = (way.from, domain.bridge) {
            let mac = if way.ether.dst.is_group() { ferro_protocol::net::Mac::ZERO } else { way.ether.dst };
            let key = TeamKey { port: domain.team_port(), mac, pair: 0 };
            if !self.teams[group.0 as usize].receives(uplink, &key) {
                return Err(Cause::OtherUplink);
            }
        }
        let tci = way.priority.with(way.lane.wire);
        let source = match way.from {
            Ingress::Port(ix) => ix.slot as u16,
            // All that comes from outside is one.
            Ingress::Uplink(_) | Ingress::Tunnel { .. } | Ingress::Endpoint(_) => u16::MAX,
        };
        let to = Egress::Tunnel { to: peer, vni, tci, flow: FlowKey { hash: self.flow(way), source } };
        let alive = self.peers.get(usize::from(peer.0)).is_some_and(|peer| peer.alive);
        if !alive {
            watch.step(|| Step::Withheld(to, Cause::TunnelDown));
            return Err(Cause::TunnelDown);
        }
        watch.step(|| Step::Sent(to));
        let edit = Edit::between(way.has, None);
        out.deliveries.push(Delivery { frame: way.index, to, edit, at: way.at, mirror: false });
        if W::LIVE {
            self.peers[usize::from(peer.0)].counters.to.add(edit.len(way.len));
        }
        Ok(())
    }

    fn send_to_uplink<W: Watch>(
        &mut self,
        way: &Way<'_>,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let inside = matches!(way.from, Ingress::Uplink(_)) || self.stays(way);
        if inside || !self.domains[way.domain].is_physical() {
            return Err(Cause::NotOurs);
        }
        let group = way.group.ok_or(Cause::NoUplink)?;
        let team = &self.teams[group.0 as usize];
        let uplink = team.pick(&self.team_key(way, group)).ok_or(Cause::NoUplink)?;
        let to = Egress::Uplink(uplink);
        let wire = way.lane.wire;
        if wire == Vid::NONE && way.nested && !self.settings.bugs.has(Bug::HiddenTag) {
            watch.step(|| Step::Withheld(to, Cause::HiddenTag));
            return Err(Cause::HiddenTag);
        }
        let tag = (wire != Vid::NONE).then(|| way.priority.with(wire));
        watch.step(|| Step::Sent(to));
        let edit = Edit::between(way.has, tag);
        out.deliveries.push(Delivery { frame: way.index, to, edit, at: way.at, mirror: false });
        if W::LIVE {
            self.remember(way);
            self.uplinks[usize::from(uplink.0)].to.add(edit.len(way.len));
        }
        Ok(())
    }

    /// Whether a frame is its host's own affair: a gateway sent it, and the others have their own.
    fn stays(&self, way: &Way<'_>) -> bool {
        matches!(way.from, Ingress::Endpoint(_)) && !self.settings.bugs.has(Bug::GatewayLeak)
    }

    /// Copies of what a mirrored port sends.
    pub(super) fn mirror_in<W: Watch>(&mut self, way: &Way<'_>, out: &mut Output, watch: &mut W) {
        let Ingress::Port(ix) = way.from else { return };
        for at in 0..self.ports[ix.slot as usize].copies_in.len() {
            let copy = self.ports[ix.slot as usize].copies_in[at];
            self.mirror(way, copy, Edit::NONE, out, watch);
        }
    }

    fn mirror<W: Watch>(&mut self, way: &Way<'_>, slot: u32, edit: Edit, out: &mut Output, watch: &mut W) {
        let to = Egress::Port(self.ports[slot as usize].ix);
        let port = &mut self.ports[slot as usize];
        let Some(at) = port.shape_out(way.at, edit.len(way.len), W::LIVE) else {
            if W::LIVE {
                port.counters.drop(Cause::ShapedEgress);
            }
            return;
        };
        watch.step(|| Step::Mirrored(to));
        out.deliveries.push(Delivery { frame: way.index, to, edit, at, mirror: true });
        if W::LIVE {
            self.ports[slot as usize].counters.to.add(edit.len(way.len));
        }
    }

    fn counters(&mut self, from: Ingress) -> Option<&mut Counters> {
        match from {
            Ingress::Port(ix) => {
                let port = self.ports.get_mut(ix.slot as usize).filter(|port| port.ix == ix && port.attached);
                port.map(|port| &mut port.counters)
            }
            Ingress::Uplink(UplinkIx(at)) => self.uplinks.get_mut(usize::from(at)),
            Ingress::Tunnel { from, .. } => {
                self.peers.get_mut(usize::from(from.0)).map(|peer| &mut peer.counters)
            }
            Ingress::Endpoint(group) => self.endpoints.get_mut(group.0 as usize),
        }
    }

    pub(super) fn count_from(&mut self, frame: &Frame<'_>) {
        if let Some(counters) = self.counters(frame.from) {
            counters.from.add(frame.len);
        }
    }

    pub(super) fn count_drop(&mut self, from: Ingress, cause: Cause) {
        if let Some(counters) = self.counters(from) {
            counters.drop(cause);
        }
    }
}
