//! Where each address is.
//!
//! Two layers. *Claims* are what is known: a vNIC attached here, or what a peer announced; of several the one with the
//! highest sequence number wins, and a tie goes to the higher host id, so all hosts agree. *Entries* are what the data path
//! looks at: the winning claim of each address, or, where a port group opts in, what was learned from frames. A claim
//! always beats learning.
//!
//! ```text
//!   claim ──► winner changed? ──► entry replaced at once ──► counted as a move
//!                                        │ five in 180 s
//!                                        ▼
//!                                  frozen: stays where it is, alarm, until it is released or its claim ends
//! ```
//!
//! What it must not know: frames, ports' rights, VLAN modes.

use std::collections::BTreeMap;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, Sequence};

use crate::bugs::{Bug, Bugs};
use crate::config::UplinkIx;
use crate::frame::Vid;
use crate::hash::{HashKey, Map, Words};
use crate::time::Instant;

/// So many moves within [`MOVES_SPAN`] freeze an address (the numbers of RFC 7432, section 15.1).
pub const MOVES_MAX: u8 = 5;
/// See [`MOVES_MAX`].
pub const MOVES_SPAN: Duration = Duration::from_secs(180);
/// The most addresses that one peer may claim.
pub const CLAIMS_MAX: usize = 65_536;
/// How many slots one call of [`Table::expire`] looks at.
const EXPIRE_SLOTS: usize = 4096;

/// A network that nothing crosses: see `pipeline::Domain`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(pub u32);

/// A port's place, and which of the ports that have been there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortIx {
    /// The place.
    pub slot: u32,
    /// Which of them.
    pub generation: u32,
}

/// A peer's place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerIx(pub u16);

/// Where something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// At a port here.
    Port(PortIx),
    /// At another host.
    Peer(PeerIx),
    /// In the physical network.
    Uplink(UplinkIx),
}

/// An address in a network: what the table is indexed by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The network.
    pub domain: DomainId,
    /// The VLAN in it; [`Key::ALL`] for a port that carries many.
    pub vid: u16,
    /// The address.
    pub mac: Mac,
}

impl Key {
    /// In place of a VLAN: all that the port carries.
    pub const ALL: u16 = 0xffff;

    /// An address in one VLAN.
    #[inline]
    pub fn new(domain: DomainId, vid: Vid, mac: Mac) -> Self {
        Self { domain, vid: vid.get(), mac }
    }

    #[inline]
    fn words(self) -> Words {
        (self.mac.bits() | u64::from(self.vid) << 48, self.domain.0)
    }

    fn of((low, domain): Words) -> Self {
        let mut mac = [0; 6];
        mac.copy_from_slice(&low.to_be_bytes()[2..]);
        Self { domain: DomainId(domain), vid: (low >> 48) as u16, mac: Mac(mac) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: Place,
    /// When it was last seen, if it was learned.
    learned: Option<Instant>,
}

/// Somebody's word that an address is theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Claim {
    place: Place,
    host: HostId,
    sequence: Sequence,
}

#[derive(Clone, Copy, Debug, Default)]
struct Moves {
    since: Instant,
    count: u8,
    frozen: bool,
}

/// What came of a claim or a frame from an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// Nothing changed.
    No,
    /// It is new, gone, or somewhere else.
    Yes,
    /// It moved too often and is frozen from now on.
    Froze,
}

/// What came of learning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// It is where it was, or is now.
    Done(Moved),
    /// It is known to be somebody's; frames don't change that.
    Claimed,
    /// There is no room for it.
    Full,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    bugs: Bugs,
    entries: Map<Entry>,
    claims: BTreeMap<Key, Vec<Claim>>,
    moves: BTreeMap<Key, Moves>,
    /// How many were learned at each place.
    learned: BTreeMap<Place, u32>,
    /// How many each peer claims.
    claimed: BTreeMap<Place, usize>,
    cursor: usize,
}

impl Table {
    /// An empty table.
    pub fn new(hash: HashKey, bugs: Bugs) -> Self {
        Self {
            bugs,
            entries: Map::new(hash),
            claims: BTreeMap::new(),
            moves: BTreeMap::new(),
            learned: BTreeMap::new(),
            claimed: BTreeMap::new(),
            cursor: 0,
        }
    }

    /// Where an address is.
    pub fn look(&self, key: Key) -> Option<Place> {
        self.entries.get(key.words()).map(|entry| entry.place)
    }

    /// Where an address is in a VLAN, and when it was last seen there if that was learned. With `trunks` somebody may claim
    /// it for all VLANs, which beats what was learned in this one.
    #[inline]
    pub fn find(&self, key: Key, trunks: bool) -> Option<(Place, Option<Instant>)> {
        let exact = self.entries.get(key.words()).map(|entry| (entry.place, entry.learned));
        if !trunks || matches!(exact, Some((_, None))) {
            return exact;
        }
        let all = self.entries.get(Key { vid: Key::ALL, ..key }.words());
        all.map(|entry| (entry.place, entry.learned)).or(exact)
    }

    /// How many addresses are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many were learned there.
    pub fn learned_at(&self, place: Place) -> u32 {
        self.learned.get(&place).copied().unwrap_or(0)
    }

    /// Whether an address moved too often and stays where it is.
    pub fn is_frozen(&self, key: Key) -> bool {
        self.moves.get(&key).is_some_and(|moves| moves.frozen)
    }

    /// Whether an address is somebody's by claim.
    pub fn is_claimed(&self, key: Key) -> bool {
        self.entries.get(key.words()).is_some_and(|entry| entry.learned.is_none())
    }

    /// The addresses that are frozen.
    pub fn frozen(&self) -> impl Iterator<Item = Key> {
        self.moves.iter().filter(|(_, moves)| moves.frozen).map(|(key, _)| *key)
    }

    /// All addresses, with where they are and whether they were learned.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Place, bool)> {
        self.entries.iter().map(|(words, entry)| (Key::of(words), entry.place, entry.learned.is_some()))
    }

    /// Takes a claim: of a port here, or of a peer. An older one of the same claimant is replaced; a peer with too many is
    /// not heard.
    pub fn claim(&mut self, now: Instant, key: Key, place: Place, host: HostId, sequence: Sequence) -> Moved {
        let counted = self.claimed.entry(place).or_insert(0);
        let claims = self.claims.entry(key).or_default();
        match claims.iter_mut().find(|claim| claim.place == place) {
            Some(claim) if claim.sequence > sequence => return Moved::No,
            Some(claim) => claim.sequence = sequence,
            None if *counted >= CLAIMS_MAX => {
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
                return Moved::No;
            }
            None => {
                *counted += 1;
                claims.push(Claim { place, host, sequence });
            }
        }
        self.settle(now, key)
    }

    /// Ends a claim that is not newer than `sequence`.
    pub fn unclaim(&mut self, now: Instant, key: Key, place: Place, sequence: Sequence) -> Moved {
        let Some(claims) = self.claims.get_mut(&key) else { return Moved::No };
        let Some(at) = claims.iter().position(|c| c.place == place && c.sequence <= sequence) else {
            return Moved::No;
        };
        claims.remove(at);
        if let Some(count) = self.claimed.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.claimed.remove(&place);
            }
        }
        if self.bugs.has(Bug::UnplugKeepsMac) && matches!(place, Place::Port(_)) {
            return Moved::No;
        }
        self.settle(now, key)
    }

    /// Makes the entry what the claims say.
    fn settle(&mut self, now: Instant, key: Key) -> Moved {
        let claims = self.claims.get(&key).map_or(&[][..], Vec::as_slice);
        let current = self.entries.get(key.words()).copied();
        let winner = if self.bugs.has(Bug::StaleMac) {
            claims.first()
        } else {
            claims.iter().max_by_key(|claim| (claim.sequence, claim.host))
        };
        let Some(winner) = winner.copied() else {
            self.claims.remove(&key);
            self.moves.remove(&key);
            // What was learned stays: it never was a claim.
            if current.is_some_and(|entry| entry.learned.is_none()) {
                self.entries.remove(key.words());
                return Moved::Yes;
            }
            return Moved::No;
        };
        match current {
            Some(entry) if entry.place == winner.place && entry.learned.is_none() => return Moved::No,
            Some(entry) if entry.learned.is_none() => {
                let stays = claims.iter().any(|claim| claim.place == entry.place);
                if stays && self.is_frozen(key) {
                    return Moved::No;
                }
                self.put(key, winner.place, None);
                return self.count_move(now, key);
            }
            _ => {}
        }
        self.put(key, winner.place, None);
        Moved::Yes
    }

    fn put(&mut self, key: Key, place: Place, learned: Option<Instant>) {
        let old = self.entries.insert(key.words(), Entry { place, learned });
        if let Some(Entry { place, learned: Some(_) }) = old {
            self.forget(place);
        }
        if learned.is_some() {
            *self.learned.entry(place).or_insert(0) += 1;
        }
    }

    fn forget(&mut self, place: Place) {
        if let Some(count) = self.learned.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.learned.remove(&place);
            }
        }
    }

    fn count_move(&mut self, now: Instant, key: Key) -> Moved {
        let moves = self.moves.entry(key).or_default();
        if moves.count == 0 || now.since(moves.since) > MOVES_SPAN {
            *moves = Moves { since: now, count: 0, frozen: false };
        }
        moves.count += 1;
        if moves.count < MOVES_MAX {
            return Moved::Yes;
        }
        moves.frozen = true;
        Moved::Froze
    }

    /// Lets a frozen address move again, and puts it where the newest claim says.
    pub fn release(&mut self, now: Instant, key: Key) -> Moved {
        self.moves.remove(&key);
        if self.claims.contains_key(&key) { self.settle(now, key) } else { Moved::No }
    }

    /// Learns that an address is at a place, of which at most `limit` are learned there. In the steady state this is one
    /// look-up and allocates nothing.
    pub fn learn(&mut self, now: Instant, key: Key, place: Place, limit: u32) -> Learned {
        let Some(entry) = self.entries.get_mut(key.words()) else {
            if self.learned_at(place) >= limit {
                return Learned::Full;
            }
            self.put(key, place, Some(now));
            return Learned::Done(Moved::Yes);
        };
        if entry.learned.is_none() {
            return Learned::Claimed;
        }
        if entry.place == place {
            entry.learned = Some(now);
            return Learned::Done(Moved::No);
        }
        if self.is_frozen(key) {
            return Learned::Done(Moved::No);
        }
        if self.learned_at(place) >= limit {
            return Learned::Full;
        }
        self.put(key, place, Some(now));
        Learned::Done(self.count_move(now, key))
    }

    /// Forgets what was learned and has been silent, a part of the table at a time. `age` is that of a domain.
    pub fn expire(&mut self, now: Instant, age: impl Fn(DomainId) -> Duration) {
        let mut cursor = self.cursor;
        let old = self.entries.walk(&mut cursor, EXPIRE_SLOTS, |entry| entry.learned.is_some());
        self.cursor = cursor;
        for words in old {
            let Some(Entry { learned: Some(seen), place }) = self.entries.get(words).copied() else {
                continue;
            };
            if now.since(seen) > age(DomainId(words.1)) {
                self.entries.remove(words);
                self.moves.remove(&Key::of(words));
                self.forget(place);
            }
        }
    }

    /// Forgets everything that was learned at a place.
    pub fn flush_learned(&mut self, place: Place) {
        if self.learned_at(place) == 0 {
            return;
        }
        let all = self.entries.walk(&mut 0, usize::MAX, |e| e.place == place && e.learned.is_some());
        for words in all {
            self.entries.remove(words);
            self.moves.remove(&Key::of(words));
        }
        self.learned.remove(&place);
    }

    /// Forgets networks that are no longer there.
    pub fn purge(&mut self, keep: impl Fn(DomainId) -> bool) {
        let gone: Vec<Words> = self.entries.iter().map(|(w, _)| w).filter(|w| !keep(DomainId(w.1))).collect();
        for words in gone {
            if let Some(Entry { place, learned: Some(_) }) = self.entries.remove(words) {
                self.forget(place);
            }
        }
        self.moves.retain(|key, _| keep(key.domain));
        let claimed = &mut self.claimed;
        self.claims.retain(|key, claims| {
            if keep(key.domain) {
                return true;
            }
            for claim in claims {
                if let Some(count) = claimed.get_mut(&claim.place) {
                    *count = count.saturating_sub(1);
                }
            }
            false
        });
        self.claimed.retain(|_, count| *count > 0);
    }

    /// Ends all claims of a place.
    pub fn unclaim_all(&mut self, now: Instant, place: Place) {
        let theirs = |claims: &Vec<Claim>| claims.iter().any(|claim| claim.place == place);
        let keys: Vec<Key> = self.claims.iter().filter(|(_, c)| theirs(c)).map(|(key, _)| *key).collect();
        for key in keys {
            self.unclaim(now, key, place, Sequence(u64::MAX));
        }
    }

    /// All addresses that a place claims.
    pub fn claims_of(&self, place: Place) -> impl Iterator<Item = (Key, Sequence)> {
        self.claims.iter().flat_map(move |(key, claims)| {
            claims.iter().filter(move |claim| claim.place == place).map(|claim| (*key, claim.sequence))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HostId = HostId::from_bytes([1; 16]);
    const THERE: HostId = HostId::from_bytes([2; 16]);

    fn table() -> Table {
        Table::new(HashKey(1, 2), Bugs::NONE)
    }

    fn key(n: u8) -> Key {
        Key { domain: DomainId(5), vid: 10, mac: Mac([2, 0, 0, 0, 0, n]) }
    }

    fn port(slot: u32) -> Place {
        Place::Port(PortIx { slot, generation: 0 })
    }

    const PEER: Place = Place::Peer(PeerIx(0));
    const NOW: Instant = Instant(0);

    #[test]
    fn the_higher_sequence_wins_and_the_other_is_not_forgotten() {
        let mut it = table();
        assert_eq!(it.claim(NOW, key(1), port(1), HERE, Sequence(5)), Moved::Yes);
        assert_eq!(it.claim(NOW, key(1), PEER, THERE, Sequence(4)), Moved::No);
        assert_eq!(it.look(key(1)), Some(port(1)));
        assert_eq!(it.claim(NOW, key(1), PEER, THERE, Sequence(6)), Moved::Yes);
        assert_eq!(it.look(key(1)), Some(PEER));
        assert_eq!(it.unclaim(NOW, key(1), PEER, Sequence(5)), Moved::No, "an old withdrawal");
        assert_eq!(it.unclaim(NOW, key(1), PEER, Sequence(6)), Moved::Yes);
        assert_eq!(it.look(key(1)), Some(port(1)));
        assert_eq!(it.unclaim(NOW, key(1), port(1), Sequence(5)), Moved::Yes);
        assert_eq!((it.look(key(1)), it.len()), (None, 0));
        assert_eq!(it.claim(NOW, key(1), port(1), HERE, Sequence(7)), Moved::Yes);
        assert_eq!(it.claim(NOW, key(1), PEER, THERE, Sequence(7)), Moved::Yes, "a tie: the higher host");
    }

    #[test]
    fn five_moves_freeze() {
        let mut it = table();
        it.claim(NOW, key(1), port(1), HERE, Sequence(1));
        let mut sequence = 1;
        let mut go = |it: &mut Table, now: u64| {
            sequence += 1;
            let (place, host) = if sequence % 2 == 0 { (PEER, THERE) } else { (port(1), HERE) };
            it.claim(Instant(now), key(1), place, host, Sequence(sequence))
        };
        let slow = 200_000_000_000;
        for n in 1..=6 {
            assert_eq!(go(&mut it, n * slow), Moved::Yes, "rarely enough");
        }
        let now = 10 * slow;
        let all: Vec<Moved> = (0..5).map(|_| go(&mut it, now)).collect();
        assert_eq!(all, [Moved::Yes, Moved::Yes, Moved::Yes, Moved::Yes, Moved::Froze]);
        let frozen = it.look(key(1));
        assert_eq!(go(&mut it, now), Moved::No);
        assert_eq!(it.look(key(1)), frozen);
        assert!(it.is_frozen(key(1)));
        assert_eq!(it.release(Instant(now), key(1)), Moved::Yes);
        assert_ne!(it.look(key(1)), frozen);
    }

    #[test]
    fn learning_has_limits_and_ages_and_never_beats_a_claim() {
        let mut it = table();
        it.claim(NOW, key(1), PEER, THERE, Sequence(1));
        assert_eq!(it.learn(NOW, key(1), port(1), 2), Learned::Claimed);
        assert_eq!(it.learn(NOW, key(2), port(1), 2), Learned::Done(Moved::Yes));
        assert_eq!(it.learn(NOW, key(3), port(1), 2), Learned::Done(Moved::Yes));
        assert_eq!(it.learn(NOW, key(4), port(1), 2), Learned::Full);
        assert_eq!(it.learn(NOW, key(3), port(2), 2), Learned::Done(Moved::Yes), "it moved, and made room");
        assert_eq!(it.learned_at(port(1)), 1);
        let age = |_| Duration::from_secs(300);
        let later = NOW + Duration::from_secs(200);
        assert_eq!(it.learn(later, key(2), port(1), 2), Learned::Done(Moved::No));
        it.expire(later + Duration::from_secs(150), age);
        assert_eq!((it.look(key(2)), it.look(key(3)), it.look(key(1))), (Some(port(1)), None, Some(PEER)));
        it.claim(later, key(2), PEER, THERE, Sequence(1));
        assert_eq!((it.look(key(2)), it.learned_at(port(1))), (Some(PEER), 0));
        it.learn(later, key(5), port(1), 2);
        it.flush_learned(port(1));
        it.unclaim_all(later, PEER);
        assert!(it.is_empty() && it.claims.is_empty() && it.learned.is_empty() && it.claimed.is_empty());
    }
}
