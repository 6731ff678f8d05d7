//! Several uplinks as one: which are in use, and which one a frame takes.
//!
//! ```text
//!   candidates: active, then standby, in the order of the configuration
//!   alive:      link up, and, with beacons, not silent while others hear each other
//!   in use:     as many as there are active ones (one, if the order is explicit): the first that are alive
//! ```
//!
//! Without failback, one that is in use stays so as long as it is alive. Ports spread over those in use by rendezvous
//! hashing: when one fails, only its ports move.
//!
//! With beacons, each uplink sends a small frame every [`BEACON_EVERY`], which the others hear through the physical
//! network. An uplink that neither hears nor is heard while two others are in contact has lost the network, though its
//! link is up. When nobody hears anybody, nothing can be told, and only links count.
//!
//! What it must not know: frames (but for beacons), VLANs, other hosts.

use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::Mac;

use crate::config::{Detection, Team as Config, TeamPolicy, UplinkIx};
use crate::frame::ether_type;
use crate::hash::HashKey;
use crate::time::Instant;

/// How often beacons are sent.
pub const BEACON_EVERY: Duration = Duration::from_millis(200);
/// How long an uplink may be silent.
pub const BEACON_SILENCE: Duration = Duration::from_millis(700);
/// How often ports are moved away from busy uplinks, one at a time.
pub const REBALANCE_EVERY: Duration = Duration::from_secs(30);

/// What a frame's uplink may depend on.
#[derive(Clone, Copy, Debug)]
pub struct TeamKey {
    /// Its port's place, or that of its network if it came from a tunnel.
    pub port: u32,
    /// Its source address.
    pub mac: Mac,
    /// A hash of its IP addresses.
    pub pair: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    uplink: UplinkIx,
    up: bool,
    /// When it last was in contact with another, or came up.
    contact: Instant,
    /// When two others last were in contact.
    others: Option<Instant>,
    in_use: bool,
}

/// The uplinks of one port group.
#[derive(Clone, Debug)]
pub struct Team {
    config: Config,
    hash: HashKey,
    members: Vec<Member>,
    /// Those in use, in order.
    used: Vec<UplinkIx>,
    /// By load: where ports were moved to, by their places.
    moved: Vec<Option<UplinkIx>>,
}

impl Team {
    /// A team; `up` says which links are up.
    pub fn new(now: Instant, config: Config, hash: HashKey, up: impl Fn(UplinkIx) -> bool) -> Self {
        let candidates = config.active.iter().chain(&config.standby);
        let members = candidates
            .map(|&uplink| Member { uplink, up: up(uplink), contact: now, others: None, in_use: false })
            .collect();
        let mut team = Self { config, hash, members, used: Vec::new(), moved: Vec::new() };
        team.settle(now);
        team
    }

    /// How it is configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The uplinks in use.
    pub fn used(&self) -> &[UplinkIx] {
        &self.used
    }

    /// A link came up or went down. True if other uplinks are in use now.
    pub fn handle_link(&mut self, now: Instant, uplink: UplinkIx, up: bool) -> bool {
        let Some(member) = self.members.iter_mut().find(|m| m.uplink == uplink) else { return false };
        if up && !member.up {
            (member.contact, member.others) = (now, None);
        }
        member.up = up;
        self.settle(now)
    }

    /// The beacon of one uplink arrived at another.
    pub fn handle_beacon(&mut self, now: Instant, from: UplinkIx, at: UplinkIx) -> bool {
        let ours = |uplink| self.members.iter().any(|m| m.uplink == uplink);
        if from == at || !ours(from) || !ours(at) {
            return false;
        }
        for member in &mut self.members {
            if member.uplink == from || member.uplink == at {
                member.contact = now;
            } else {
                member.others = Some(now);
            }
        }
        self.settle(now)
    }

    /// Time has passed. True if other uplinks are in use now.
    pub fn handle_time(&mut self, now: Instant) -> bool {
        self.config.detection == Detection::Beacon && self.settle(now)
    }

    /// The uplinks that are to send beacons.
    pub fn beacons(&self) -> impl Iterator<Item = UplinkIx> {
        let wanted = self.config.detection == Detection::Beacon;
        self.members.iter().filter(move |m| wanted && m.up).map(|m| m.uplink)
    }

    fn alive(&self, now: Instant, member: &Member) -> bool {
        let silent = self.config.detection == Detection::Beacon
            && now.since(member.contact) > BEACON_SILENCE
            && member.others.is_some_and(|at| now.since(at) <= BEACON_SILENCE);
        member.up && !silent
    }

    fn settle(&mut self, now: Instant) -> bool {
        let wanted = match self.config.policy {
            TeamPolicy::Explicit => 1,
            _ => self.config.active.len().max(1),
        };
        let alive: Vec<bool> = self.members.iter().map(|m| self.alive(now, m)).collect();
        let mut chosen = vec![false; alive.len()];
        let mut room = wanted;
        for keep in [true, false] {
            // Without failback those in use come first.
            for (at, member) in self.members.iter().enumerate() {
                let turn = if self.config.failback { !keep } else { keep == member.in_use };
                if room > 0 && turn && alive[at] && !chosen[at] {
                    chosen[at] = true;
                    room -= 1;
                }
            }
        }
        let mut changed = false;
        for (member, chosen) in self.members.iter_mut().zip(chosen) {
            changed |= member.in_use != chosen;
            member.in_use = chosen;
        }
        if changed {
            self.used = self.members.iter().filter(|m| m.in_use).map(|m| m.uplink).collect();
        }
        changed
    }

    /// Which uplink a frame takes; none when all are dead.
    pub fn pick(&self, key: &TeamKey) -> Option<UplinkIx> {
        let by = match self.config.policy {
            TeamPolicy::Explicit => return self.used.first().copied(),
            TeamPolicy::PortId => u64::from(key.port),
            TeamPolicy::Load => {
                let moved = self.moved.get(key.port as usize).copied().flatten();
                if let Some(uplink) = moved.filter(|uplink| self.used.contains(uplink)) {
                    return Some(uplink);
                }
                u64::from(key.port)
            }
            TeamPolicy::SourceMac => key.mac.bits(),
            TeamPolicy::IpHash => u64::from(key.pair),
        };
        self.used.iter().copied().max_by_key(|uplink| self.hash.of(by, u64::from(uplink.0)))
    }

    /// Whether what arrives at an uplink for this receiver is to be taken: a broadcast arrives at every uplink and must be
    /// delivered once. A bundle (IP hash) delivers it once by itself.
    pub fn receives(&self, at: UplinkIx, key: &TeamKey) -> bool {
        match self.config.policy {
            TeamPolicy::IpHash => self.used.contains(&at),
            _ => self.pick(key) == Some(at),
        }
    }

    /// By load: moves one port from the busiest uplink to the idlest, if that evens them out. `loads` are ports' places
    /// and the bytes that each sent and got since the last time. Returns the port that moved.
    pub fn rebalance(&mut self, loads: &[(u32, u64)]) -> Option<u32> {
        if self.config.policy != TeamPolicy::Load || self.used.len() < 2 {
            return None;
        }
        let at = |port| self.pick(&TeamKey { port, mac: Mac::ZERO, pair: 0 });
        let total = |uplink: &UplinkIx| {
            let theirs = loads.iter().filter(|(port, _)| at(*port) == Some(*uplink));
            theirs.map(|(_, bytes)| *bytes).sum::<u64>()
        };
        let busiest = *self.used.iter().max_by_key(|uplink| total(uplink))?;
        let idlest = *self.used.iter().min_by_key(|uplink| total(uplink))?;
        let gap = total(&busiest).saturating_sub(total(&idlest));
        // Less than a quarter of the busiest is not worth a move.
        if gap * 4 < total(&busiest) {
            return None;
        }
        // What is larger than the gap would only swap their parts.
        let movable = loads.iter().filter(|(port, bytes)| at(*port) == Some(busiest) && *bytes < gap);
        let (port, _) = *movable.max_by_key(|(_, bytes)| *bytes)?;
        if self.moved.len() <= port as usize {
            self.moved.resize(port as usize + 1, None);
        }
        self.moved[port as usize] = Some(idlest);
        Some(port)
    }
}

/// The group address of beacons: locally administered.
const BEACON_GROUP: Mac = Mac([0x03, 0x46, 0x45, 0x52, 0x52, 0x4f]);
const BEACON_MAGIC: [u8; 4] = *b"fsb1";
const BEACON_BYTES: usize = 60;

/// Writes the beacon of a host's uplink.
pub fn put_beacon(host: HostId, uplink: UplinkIx, out: &mut Vec<u8>) {
    let start = out.len();
    let id = host.as_bytes();
    out.extend_from_slice(&BEACON_GROUP.0);
    // A station's address of its own, locally administered, made of the host's id.
    out.extend_from_slice(&[0x02, id[11], id[12], id[13], id[14], id[15]]);
    out.extend_from_slice(&ether_type::LOCAL_EXPERIMENT.to_be_bytes());
    out.extend_from_slice(&BEACON_MAGIC);
    out.extend_from_slice(id);
    out.extend_from_slice(&uplink.0.to_be_bytes());
    out.resize(start + BEACON_BYTES, 0);
}

/// Reads a beacon: whose it is. `None` if the frame is none.
pub fn parse_beacon(head: &[u8]) -> Option<(HostId, UplinkIx)> {
    let kind = head.get(12..14)? == ether_type::LOCAL_EXPERIMENT.to_be_bytes();
    if !kind || *head.get(..6)? != BEACON_GROUP.0 || *head.get(14..18)? != BEACON_MAGIC {
        return None;
    }
    let host = HostId::from_bytes(head.get(18..34)?.try_into().ok()?);
    let uplink = u16::from_be_bytes(head.get(34..36)?.try_into().ok()?);
    Some((host, UplinkIx(uplink)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant(0);

    fn config(active: &[u16], standby: &[u16], policy: TeamPolicy) -> Config {
        let list = |all: &[u16]| all.iter().map(|n| UplinkIx(*n)).collect();
        Config { active: list(active), standby: list(standby), policy, failback: true, ..Config::default() }
    }

    fn team(config: Config) -> Team {
        Team::new(T0, config, HashKey(1, 2), |_| true)
    }

    fn used(team: &Team) -> Vec<u16> {
        team.used().iter().map(|u| u.0).collect()
    }

    fn key(port: u32) -> TeamKey {
        TeamKey { port, mac: Mac([2, 0, 0, 0, 0, port as u8]), pair: port }
    }

    #[test]
    fn a_standby_takes_over_and_gives_back() {
        let mut it = team(config(&[0, 1], &[2, 3], TeamPolicy::PortId));
        assert_eq!(used(&it), [0, 1]);
        let before: Vec<_> = (0..64).map(|n| it.pick(&key(n))).collect();
        assert!(before.contains(&Some(UplinkIx(0))) && before.contains(&Some(UplinkIx(1))));
        assert!(it.handle_link(T0, UplinkIx(0), false));
        assert_eq!(used(&it), [1, 2]);
        for (port, old) in before.iter().enumerate() {
            if *old == Some(UplinkIx(1)) {
                let new = it.pick(&key(port as u32));
                assert!(new == *old || new == Some(UplinkIx(2)));
            }
        }
        assert!(it.handle_link(T0, UplinkIx(0), true));
        assert_eq!(used(&it), [0, 1]);
        for uplink in 0..4 {
            it.handle_link(T0, UplinkIx(uplink), false);
        }
        assert_eq!(it.pick(&key(1)), None);
    }

    #[test]
    fn without_failback_it_stays() {
        let mut it = team(Config { failback: false, ..config(&[0], &[1], TeamPolicy::Explicit) });
        it.handle_link(T0, UplinkIx(0), false);
        assert_eq!(used(&it), [1]);
        assert!(!it.handle_link(T0, UplinkIx(0), true));
        assert_eq!(used(&it), [1]);
        it.handle_link(T0, UplinkIx(1), false);
        assert_eq!(used(&it), [0]);
    }

    #[test]
    fn each_receiver_has_one_uplink() {
        for policy in [TeamPolicy::PortId, TeamPolicy::SourceMac, TeamPolicy::Explicit, TeamPolicy::Load] {
            let it = team(config(&[0, 1, 2], &[], policy));
            for port in 0..50 {
                let takes = (0..3).filter(|n| it.receives(UplinkIx(*n), &key(port))).count();
                assert_eq!(takes, 1);
            }
        }
        let bundle = team(config(&[0, 1], &[2], TeamPolicy::IpHash));
        assert!(bundle.receives(UplinkIx(1), &key(1)) && !bundle.receives(UplinkIx(2), &key(1)));
    }

    #[test]
    fn a_silent_uplink_is_dead_when_others_talk() {
        let mut it =
            team(Config { detection: Detection::Beacon, ..config(&[0, 1], &[2], TeamPolicy::PortId) });
        let ms = |n: u64| Instant(n * 1_000_000);
        for n in (0..2000).step_by(200) {
            it.handle_beacon(ms(n), UplinkIx(1), UplinkIx(2));
            it.handle_beacon(ms(n), UplinkIx(2), UplinkIx(1));
        }
        it.handle_time(ms(2000));
        assert_eq!(used(&it), [1, 2]);
        assert!(it.handle_beacon(ms(2100), UplinkIx(0), UplinkIx(2)));
        assert_eq!(used(&it), [0, 1]);
        it.handle_time(ms(60_000));
        assert_eq!(used(&it), [0, 1], "nobody hears anybody: nothing can be told");
    }

    #[test]
    fn load_is_evened_out() {
        let mut it = team(config(&[0, 1], &[], TeamPolicy::Load));
        let on_zero: Vec<u32> = (0..40).filter(|n| it.pick(&key(*n)) == Some(UplinkIx(0))).take(4).collect();
        let loads: Vec<(u32, u64)> = on_zero.iter().map(|port| (*port, 100)).collect();
        assert!(it.rebalance(&loads).is_some());
        assert!(it.rebalance(&loads).is_some());
        assert_eq!(it.rebalance(&loads), None, "two here, two there");
        let there = on_zero.iter().filter(|n| it.pick(&key(**n)) == Some(UplinkIx(1))).count();
        assert_eq!(there, 2);
    }

    #[test]
    fn beacons_are_read() {
        let mut frame = Vec::new();
        let host = HostId::from_bytes([7; 16]);
        put_beacon(host, UplinkIx(3), &mut frame);
        assert_eq!(parse_beacon(&frame), Some((host, UplinkIx(3))));
        assert!((0..60).all(|len| len >= 36 || parse_beacon(&frame[..len]).is_none()));
    }
}
