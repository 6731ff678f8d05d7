//! Hashes and a hash map whose order depends on nothing but their key, so that a run can be repeated.
//!
//! The key is an input: the daemon draws it at random once, so that a guest that chooses its addresses can't make all of
//! them collide; the simulator takes it from the seed. It is no cryptographic hash: nothing is proved by it.

/// The secret that goes into every hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKey(pub u64, pub u64);

/// The folded product of two words: each bit of either moves half of the result.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl HashKey {
    /// The hash of two words.
    #[inline]
    pub const fn of(self, a: u64, b: u64) -> u64 {
        fold(fold(a ^ self.0, b ^ self.1) ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93)
    }
}

/// What the map is indexed by: any two words.
pub type Words = (u64, u32);

#[derive(Clone, Debug)]
struct Slot<V> {
    key: Words,
    value: V,
}

/// An open-addressing map with linear probing, at most three quarters full; removing closes the gap, so there are no
/// tombstones and a look-up never gets slower with age.
#[derive(Clone, Debug)]
pub struct Map<V> {
    hash: HashKey,
    slots: Vec<Option<Slot<V>>>,
    len: usize,
}

impl<V> Map<V> {
    /// An empty map.
    pub fn new(hash: HashKey) -> Self {
        Self { hash, slots: Vec::new(), len: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn home(&self, key: Words) -> usize {
        self.hash.of(key.0, u64::from(key.1)) as usize & (self.slots.len() - 1)
    }

    /// Where the key is, or the free slot where its search ends.
    #[inline]
    fn find(&self, key: Words) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut at = self.home(key);
        loop {
            match &self.slots[at] {
                Some(slot) if slot.key == key => return Some(at),
                Some(_) => at = (at + 1) & mask,
                None => return None,
            }
        }
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: Words) -> Option<&V> {
        self.find(key).and_then(|at| self.slots[at].as_ref()).map(|slot| &slot.value)
    }

    /// The value of a key, to change it.
    pub fn get_mut(&mut self, key: Words) -> Option<&mut V> {
        self.find(key).and_then(|at| self.slots[at].as_mut()).map(|slot| &mut slot.value)
    }

    /// Sets a value and returns the one that was there.
    pub fn insert(&mut self, key: Words, value: V) -> Option<V> {
        if let Some(old) = self.get_mut(key) {
            return Some(std::mem::replace(old, value));
        }
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        self.place(Slot { key, value });
        self.len += 1;
        None
    }

    fn place(&mut self, slot: Slot<V>) {
        let mask = self.slots.len() - 1;
        let mut at = self.home(slot.key);
        while self.slots[at].is_some() {
            at = (at + 1) & mask;
        }
        self.slots[at] = Some(slot);
    }

    fn grow(&mut self) {
        let wider = (self.slots.len() * 2).max(64);
        let old = std::mem::take(&mut self.slots);
        self.slots.resize_with(wider, || None);
        for slot in old.into_iter().flatten() {
            self.place(slot);
        }
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: Words) -> Option<V> {
        let mut hole = self.find(key)?;
        let taken = self.slots[hole].take();
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let Some(slot) = &self.slots[at] else { break };
            // It may move into the hole only if the hole is not before its home.
            let home = self.home(slot.key);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
        }
        self.len -= 1;
        taken.map(|slot| slot.value)
    }

    /// All entries, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (Words, &V)> {
        self.slots.iter().flatten().map(|slot| (slot.key, &slot.value))
    }

    /// The keys of up to `count` slots from `*at` on for which `which` holds; `*at` becomes the next slot to look at, and
    /// starts anew at the end. So a table is walked a little at a time.
    pub fn walk(&self, at: &mut usize, count: usize, which: impl Fn(&V) -> bool) -> Vec<Words> {
        let mut found = Vec::new();
        if *at >= self.slots.len() {
            *at = 0;
        }
        let end = self.slots.len().min(at.saturating_add(count));
        for slot in self.slots[*at..end].iter().flatten() {
            if which(&slot.value) {
                found.push(slot.key);
            }
        }
        *at = end;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_does_what_a_map_does() {
        let mut map = Map::new(HashKey(3, 4));
        let mut model = BTreeMap::new();
        let mut state = 1_u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = ((state >> 40) % 300, (state >> 33) as u32 % 2);
            match (state >> 60) % 3 {
                0 => assert_eq!(map.remove(key), model.remove(&key)),
                1 => assert_eq!(map.get(key), model.get(&key)),
                _ => assert_eq!(map.insert(key, state), model.insert(key, state)),
            }
            assert_eq!(map.len(), model.len());
        }
        let all: BTreeMap<Words, u64> = map.iter().map(|(k, v)| (k, *v)).collect();
        assert_eq!(all, model);
        let (mut at, mut seen) = (0, 0);
        while seen < map.len() {
            seen += map.walk(&mut at, 7, |_| true).len();
        }
        assert_eq!(seen, map.len());
    }

    #[test]
    fn the_key_decides_the_order() {
        let order = |key| {
            let mut map = Map::new(key);
            for n in 0..50_u64 {
                map.insert((n, 0), ());
            }
            map.iter().map(|(k, ())| k.0).collect::<Vec<_>>()
        };
        assert_eq!(order(HashKey(1, 2)), order(HashKey(1, 2)));
        assert_ne!(order(HashKey(1, 2)), order(HashKey(1, 3)));
    }
}
