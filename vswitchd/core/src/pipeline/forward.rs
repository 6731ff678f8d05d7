//! One frame's way through the switch.

use std::cell::Cell;

use crate::bugs::Bug;
use crate::config::{AtLimit, GroupIx, LEARNING_MAX, TeamPolicy};
use crate::frame::{Ether, Tci, Vid, ip};
use crate::table::{Key, Learned, Place};
use crate::team::{TeamKey, parse_beacon};
use crate::time::Instant;

use super::count::Cause;
use super::guard;
use super::lane::{self, Lane};
use super::trace::{Live, Step, Trace, Watch};
use super::{Frame, Ingress, Output, Switch};

/// The most addresses that are learned from one uplink or tunnel.
const LEARNED_OUTSIDE_MAX: u32 = LEARNING_MAX * 16;
/// As long as a learned address was heard here within this time, what an uplink brings from it is an echo.
const ECHO: std::time::Duration = std::time::Duration::from_secs(1);

/// A frame on its way.
pub(super) struct Way<'a> {
    /// Its place in the batch.
    pub(super) index: u32,
    pub(super) from: Ingress,
    pub(super) head: &'a [u8],
    pub(super) len: usize,
    pub(super) ether: Ether,
    /// Bytes of its largest packet: what MTUs are about.
    pub(super) packet: usize,
    /// The place of its network.
    pub(super) domain: usize,
    pub(super) lane: Lane,
    /// The tag that stands in its bytes.
    pub(super) has: Option<Tci>,
    /// Its priority, without a VLAN.
    pub(super) priority: Tci,
    /// A tag stands where only a type may, once the own one is off.
    pub(super) nested: bool,
    /// The group whose uplinks it takes.
    pub(super) group: Option<GroupIx>,
    pub(super) now: Instant,
    /// When it may leave.
    pub(super) at: Instant,
    /// An uplink brought it, and its receiver takes it from there.
    pub(super) taken: Cell<bool>,
    /// The hash of its flow, once it was needed.
    pub(super) flow: Cell<Option<u32>>,
}

/// What limits apply to a frame that goes to many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Many {
    Broadcast,
    Multicast,
    Unknown,
}

impl Switch {
    /// Forwards a batch: `out` is emptied and says afterwards what goes where.
    pub fn process(&mut self, now: Instant, frames: &[Frame<'_>], out: &mut Output) {
        out.clear();
        for (at, frame) in frames.iter().enumerate() {
            self.count_from(frame);
            if let Err(cause) = self.forward(now, at as u32, frame, out, &mut Live) {
                self.count_drop(frame.from, cause);
            }
        }
    }

    /// What would become of a frame. Nothing is counted, learned or used up.
    pub fn trace(&mut self, now: Instant, frame: &Frame<'_>) -> Trace {
        let (mut steps, mut output) = (Vec::new(), Output::default());
        if let Err(cause) = self.forward(now, 0, frame, &mut output, &mut steps) {
            steps.push(Step::Dropped(cause));
        }
        Trace { steps, output }
    }

    fn forward<W: Watch>(
        &mut self,
        now: Instant,
        index: u32,
        frame: &Frame<'_>,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let ether = Ether::parse(frame.head, frame.len).map_err(|_| Cause::Malformed)?;
        watch.step(|| Step::Parsed(ether));
        let super_frame = frame.offload.check(frame.head, frame.len).map_err(|_| Cause::BadOffload)?;
        if ether.is_reserved() {
            return Err(Cause::Reserved);
        }
        let packet = super_frame.map_or(frame.len.saturating_sub(ether.l3), |it| it.packet_max());
        let mut way = Way {
            index,
            from: frame.from,
            head: frame.head,
            len: frame.len,
            ether,
            packet,
            domain: 0,
            lane: Lane::plain(Vid::NONE),
            has: ether.tag,
            priority: ether.tag.unwrap_or_default().with(Vid::NONE),
            nested: ether.hides_tag(),
            group: None,
            now,
            at: now,
            taken: Cell::new(false),
            flow: Cell::new(None),
        };
        let mtu = match frame.from {
            Ingress::Port(_) => self.enter_port(&mut way)?,
            Ingress::Uplink(_) => self.enter_uplink(now, &mut way, watch)?,
            Ingress::Tunnel { .. } => self.enter_tunnel(&mut way)?,
            Ingress::Endpoint(group) => self.enter_endpoint(&mut way, group)?,
        };
        let to_gateway = self.gateway(&way, frame.offload)?;
        watch.step(|| Step::Entered(way.lane));
        self.mirror_in(&way, out, watch);
        if way.packet > usize::from(mtu) {
            return Err(Cause::TooLarge);
        }
        self.acl(&way)?;
        self.learn(now, &way, watch)?;
        if let Some((group, only)) = to_gateway {
            // What is also for others is limited with their copies.
            let many = (!only).then_some(Many::Multicast);
            self.limit(now, &mut way, many, watch)?;
            let sent = self.send_to_endpoint(&way, group, out, watch);
            if only {
                return sent;
            }
            return self.send_to_all(&way, Many::Multicast, out, watch).or(sent);
        }
        if let Ingress::Port(ix) = way.from
            && self.answer(ix.slot, frame, &ether, way.lane, out)
        {
            watch.step(|| Step::Answered);
            let limited = self.limit(now, &mut way, None, watch);
            if limited.is_err() {
                out.made.pop();
            } else if W::LIVE
                && let Some(made) = out.made.last()
            {
                self.ports[ix.slot as usize].counters.to.add(made.bytes.len());
            }
            return limited;
        }
        self.find(now, &mut way, out, watch)
    }

    /// Looks the receiver up, lets rates have their say, and sends.
    fn find<W: Watch>(
        &mut self,
        now: Instant,
        way: &mut Way<'_>,
        out: &mut Output,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let dst = way.ether.dst;
        // To the one who sent it: there is nowhere to go.
        if dst == way.ether.src {
            return Err(Cause::Hairpin);
        }
        if dst.is_group() {
            watch.step(|| Step::ToAll);
            let many = if dst.is_broadcast() { Many::Broadcast } else { Many::Multicast };
            self.limit(now, way, Some(many), watch)?;
            return self.send_to_all(way, many, out, watch);
        }
        let found = self.look(&self.domains[way.domain], way.lane, dst);
        watch.step(|| Step::Found(found));
        if let Some(place) = found {
            self.limit(now, way, None, watch)?;
            return self.send_to(way, place, out, watch);
        }
        self.limit(now, way, Some(Many::Unknown), watch)?;
        self.send_to_all(way, Many::Unknown, out, watch)
    }

    /// Port security, and the VLAN of what a port sends.
    fn enter_port(&self, way: &mut Way<'_>) -> Result<u16, Cause> {
        let Ingress::Port(ix) = way.from else { return Err(Cause::NotThere) };
        let port = self.port(ix).ok_or(Cause::NotThere)?;
        let policy = &port.config.policy;
        if policy.blocked {
            return Err(Cause::Blocked);
        }
        if port.mirror_only {
            return Err(Cause::MirrorOnly);
        }
        let forged = way.ether.src != port.mac() && !policy.security.forged_transmits;
        if forged && !self.settings.bugs.has(Bug::ForgedMac) {
            return Err(Cause::Forged);
        }
        way.lane = lane::enter(&port.vlan, &way.ether, self.settings.bugs)?;
        (way.domain, way.group) = (port.domain, Some(port.config.group));
        Ok(policy.mtu)
    }

    /// The network and VLAN of what an uplink brings.
    fn enter_uplink<W: Watch>(&mut self, now: Instant, way: &mut Way<'_>, _: &mut W) -> Result<u16, Cause> {
        let Ingress::Uplink(uplink) = way.from else { return Err(Cause::NotThere) };
        if let Some((host, from)) = parse_beacon(way.head) {
            if W::LIVE {
                self.handle_beacon(now, host, from, uplink);
            }
            return Err(Cause::Beacon);
        }
        let switch = self.config.uplinks().get(usize::from(uplink.0)).ok_or(Cause::NotThere)?.switch;
        if way.has.is_none() && way.nested {
            return Err(Cause::ServiceTag);
        }
        let wire = match way.has {
            None => Vid::NONE,
            Some(tci) => tci.vid().map_err(|_| Cause::Malformed)?,
        };
        if way.has.is_some() && wire == Vid::NONE && way.nested {
            return Err(Cause::HiddenTag);
        }
        let bridged = self.bridged.get(&(switch.0, wire.get()));
        way.domain = *bridged.or_else(|| self.standard.get(&switch.0)).ok_or(Cause::NotOurs)?;
        let domain = &self.domains[way.domain];
        way.lane = lane::of_wire(&domain.private, wire);
        way.group = domain.bridge;
        let key = Key::new(domain.id, way.lane.vid, way.ether.src);
        let source = self.table.find(key, domain.has_trunks);
        let echo = match source {
            Some((Place::Port(_) | Place::Peer(_), None)) => true,
            Some((Place::Port(_) | Place::Peer(_), Some(seen))) => now.since(seen) < ECHO,
            _ => self.is_echo(now, key),
        };
        if echo && !self.settings.bugs.has(Bug::Reflection) {
            return Err(Cause::Reflected);
        }
        Ok(self.config.switches()[usize::from(switch.0)].mtu)
    }

    /// The network and VLAN of what a tunnel brings.
    fn enter_tunnel(&self, way: &mut Way<'_>) -> Result<u16, Cause> {
        let Ingress::Tunnel { from, vni, tci } = way.from else { return Err(Cause::NotThere) };
        if usize::from(from.0) >= self.peers.len() {
            return Err(Cause::NotThere);
        }
        way.domain = *self.by_vni.get((u64::from(vni.get()), 0)).ok_or(Cause::NotThere)?;
        let domain = &self.domains[way.domain];
        way.lane = lane::of_wire(&domain.private, tci.vid().map_err(|_| Cause::Malformed)?);
        // Its own tag was taken off; one that is there belongs to what it carries.
        way.nested = way.has.is_some() || way.nested;
        way.has = None;
        way.priority = tci.with(Vid::NONE);
        way.group = domain.bridge;
        Ok(self.config.switches()[usize::from(domain.switch.0)].mtu)
    }

    /// Here is the place of access lists and a stateful firewall: they see the frame, its port and its VLAN, and may
    /// refuse it. There are none yet but the guards against guests that are no routers and no servers.
    fn acl(&self, way: &Way<'_>) -> Result<(), Cause> {
        let Ingress::Port(ix) = way.from else { return Ok(()) };
        if self.settings.bugs.has(Bug::GuardOff) {
            return Ok(());
        }
        guard::check(&self.ports[ix.slot as usize].config.policy, way.head, &way.ether)
    }

    /// Learns the source address, where that is wanted.
    fn learn<W: Watch>(&mut self, now: Instant, way: &Way<'_>, watch: &mut W) -> Result<(), Cause> {
        let domain = &self.domains[way.domain];
        let (place, learning) = match way.from {
            Ingress::Port(ix) => {
                let port = &self.ports[ix.slot as usize];
                let own = way.ether.src == port.mac();
                (Place::Port(ix), port.learning.filter(|_| !own))
            }
            Ingress::Uplink(uplink) => (Place::Uplink(uplink), domain.learning),
            Ingress::Tunnel { from, .. } => (Place::Peer(from), domain.learning),
            // Where it is, is known.
            Ingress::Endpoint(_) => return Ok(()),
        };
        let Some(learning) = learning else { return Ok(()) };
        watch.step(|| Step::WouldLearn);
        let limit = if matches!(place, Place::Port(_)) { learning.limit } else { LEARNED_OUTSIDE_MAX };
        let (vni, key) = (domain.vni, Key::new(domain.id, way.lane.vid, way.ether.src));
        let strict = matches!(place, Place::Port(_)) && learning.at_limit == AtLimit::Drop;
        if !W::LIVE {
            let here = self.table.look(key) == Some(place);
            let full = !here && self.table.learned_at(place) >= limit;
            let claimed = self.table.is_claimed(key);
            return if full && strict && !claimed { Err(Cause::LearningLimit) } else { Ok(()) };
        }
        match self.table.learn(now, key, place, limit) {
            Learned::Done(moved) => self.report(vni, key, moved),
            Learned::Full if strict => return Err(Cause::LearningLimit),
            Learned::Claimed | Learned::Full => {}
        }
        Ok(())
    }

    /// Storm limits and the rate of the port that sent it.
    fn limit<W: Watch>(
        &mut self,
        now: Instant,
        way: &mut Way<'_>,
        many: Option<Many>,
        watch: &mut W,
    ) -> Result<(), Cause> {
        let Ingress::Port(ix) = way.from else { return Ok(()) };
        let port = &mut self.ports[ix.slot as usize];
        if let Some(many) = many
            && let Some(limit) = &mut port.limits[many as usize]
        {
            let passes = if W::LIVE { limit.admit(now) } else { limit.allows(now) };
            if !passes {
                return Err(match many {
                    Many::Broadcast => Cause::StormBroadcast,
                    Many::Multicast => Cause::StormMulticast,
                    Many::Unknown => Cause::StormUnknown,
                });
            }
        }
        if W::LIVE {
            port.load += way.len as u64;
        }
        if let Some(shaper) = &mut port.shaper_in {
            let bytes = way.len as u64;
            let at = if W::LIVE { shaper.admit(now, bytes) } else { shaper.when(now) };
            way.at = at.ok_or(Cause::ShapedIngress)?;
            let wait = way.at.since(now);
            watch.step(|| Step::Shaped(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)));
        }
        Ok(())
    }

    fn echo(&self, key: Key) -> (usize, u64) {
        let hash = self.settings.hash.of(key.mac.bits(), u64::from(key.domain.0) << 16 | u64::from(key.vid));
        (hash as usize % self.echoes.len(), hash)
    }

    fn is_echo(&self, now: Instant, key: Key) -> bool {
        let (at, hash) = self.echo(key);
        self.echoes[at].0 == hash && now.since(self.echoes[at].1) < ECHO
    }

    /// A frame leaves by an uplink: it will be known when another brings it back.
    pub(super) fn remember(&mut self, way: &Way<'_>) {
        let own =
            matches!(way.from, Ingress::Port(ix) if self.ports[ix.slot as usize].mac() == way.ether.src);
        if !own {
            let (at, hash) = self.echo(Key::new(self.domains[way.domain].id, way.lane.vid, way.ether.src));
            self.echoes[at] = (hash, way.now);
        }
    }

    /// The flow that it belongs to.
    pub(super) fn flow(&self, way: &Way<'_>) -> u32 {
        if let Some(flow) = way.flow.get() {
            return flow;
        }
        let flow = ip::flow_hash(self.settings.hash, way.head, &way.ether);
        way.flow.set(Some(flow));
        flow
    }

    /// What its uplink depends on.
    pub(super) fn team_key(&self, way: &Way<'_>, group: GroupIx) -> TeamKey {
        let policy = self.teams[group.0 as usize].config().policy;
        let bundle = policy == TeamPolicy::IpHash;
        let port = match way.from {
            Ingress::Port(ix) => ix.slot,
            _ => self.domains[way.domain].team_port(),
        };
        let pair = if bundle { ip::pair_hash(self.settings.hash, way.head, &way.ether) } else { 0 };
        TeamKey { port, mac: way.ether.src, pair }
    }
}
