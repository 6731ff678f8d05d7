//! What each sector of a volume may hold.
//!
//! Every write has a number, and every sector of it carries that number, so a read tells which write it sees. A sector has a
//! set of *versions* that it may hold: a write joins the set when it begins, because from then on a read may see it, and
//! takes others out of the set when it has been acknowledged or seen:
//!
//! ```text
//!   write W begins        + W
//!   W is acknowledged     - every version that had ended before W began           (it was certainly overwritten)
//!   a read sees V         - every other version that had ended before the read began (V is what came after it)
//! ```
//!
//! *Ended* is acknowledged, failed or given up: from then on nothing more of it can happen. A write that failed stays a
//! possible value until one that began later is acknowledged or seen. The third rule is what finds a block that changes between
//! two reads without a write, and a read that goes back in time. This is linearizability of each sector, checked as it goes.
//!
//! What it must not know: sockets, hosts, time. Its clock is a counter of its own calls.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

/// Bytes of a sector: what a guest may write at once, at least.
pub const SECTOR_BYTES: usize = 512;
const MAGIC: u64 = 0x6665_7272_6f62_6278;

/// A write; 0 is the volume's first content, zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// A read that is under way: when it began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReadId(u64);

/// What was found and can't be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    Zero,
    Stamp(WriteId),
}

#[derive(Clone, Copy, Debug)]
struct Version {
    id: WriteId,
    content: Content,
    ended: Option<u64>,
    /// Since when it is certainly no more there. Kept while a read is under way that began before.
    gone: Option<u64>,
}

#[derive(Clone, Debug)]
struct Write {
    sectors: Range<u64>,
    begun: u64,
    ended: Option<(u64, Ending)>,
}

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It was acknowledged.
    Acknowledged,
    /// It failed: it may have happened or not.
    Failed,
    /// Nobody will answer it any more: it may have happened or not.
    GivenUp,
}

/// The possible values of every sector that is looked after.
#[derive(Clone, Debug)]
pub struct Checker {
    clock: u64,
    sectors: HashMap<u64, Vec<Version>>,
    writes: BTreeMap<WriteId, Write>,
    reads: BTreeMap<ReadId, u32>,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// Of a volume that was never written.
    pub fn new() -> Self {
        Self { clock: 1, sectors: HashMap::new(), writes: BTreeMap::new(), reads: BTreeMap::new() }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn versions(&mut self, sector: u64) -> &mut Vec<Version> {
        self.sectors.entry(sector).or_insert_with(|| {
            vec![Version { id: WriteId(0), content: Content::Zero, ended: Some(0), gone: None }]
        })
    }

    /// A write begins; with the data to write.
    pub fn begin_write(&mut self, sectors: Range<u64>) -> (WriteId, Vec<u8>) {
        let id = self.begin(&sectors, Content::Stamp);
        (id, sectors.flat_map(|sector| stamp(id, sector)).collect())
    }

    /// A discard or a write of zeros begins.
    pub fn begin_zero(&mut self, sectors: Range<u64>) -> WriteId {
        self.begin(&sectors, |_| Content::Zero)
    }

    fn begin(&mut self, sectors: &Range<u64>, content: impl Fn(WriteId) -> Content) -> WriteId {
        let begun = self.tick();
        let id = WriteId(self.writes.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let oldest_read = self.reads.first_key_value().map_or(u64::MAX, |(read, _)| read.0);
        for sector in sectors.clone() {
            let versions = self.versions(sector);
            versions.retain(|v| v.gone.is_none_or(|gone| gone > oldest_read));
            versions.push(Version { id, content: content(id), ended: None, gone: None });
        }
        self.writes.insert(id, Write { sectors: sectors.clone(), begun, ended: None });
        id
    }

    /// A write has ended.
    pub fn end_write(&mut self, id: WriteId, ending: Ending) {
        let now = self.tick();
        let Some(write) = self.writes.get_mut(&id).filter(|w| w.ended.is_none()) else { return };
        write.ended = Some((now, ending));
        let (sectors, begun) = (write.sectors.clone(), write.begun);
        for sector in sectors {
            for version in self.versions(sector) {
                if version.id == id {
                    version.ended = Some(now);
                } else if ending == Ending::Acknowledged
                    && version.gone.is_none()
                    && version.ended.is_some_and(|ended| ended < begun)
                {
                    version.gone = Some(now);
                }
            }
        }
    }

    /// Nobody answers the writes under way any more, and none of them can happen after this. Returns how many there were.
    pub fn give_up(&mut self) -> usize {
        let open: Vec<WriteId> =
            self.writes.iter().filter(|(_, w)| w.ended.is_none()).map(|(id, _)| *id).collect();
        for id in &open {
            self.end_write(*id, Ending::GivenUp);
        }
        self.reads.clear();
        open.len()
    }

    /// A read begins.
    pub fn begin_read(&mut self) -> ReadId {
        let read = ReadId(self.tick());
        self.reads.insert(read, 1);
        read
    }

    /// A read has ended without data.
    pub fn cancel_read(&mut self, read: ReadId) {
        self.reads.remove(&read);
    }

    /// A read has brought this.
    pub fn end_read(&mut self, read: ReadId, first: u64, data: &[u8]) -> Result<(), Violation> {
        let now = self.tick();
        self.reads.remove(&read);
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR_BYTES)) {
            self.check(read, now, sector, bytes)?;
        }
        Ok(())
    }

    fn check(&mut self, read: ReadId, now: u64, sector: u64, bytes: &[u8]) -> Result<(), Violation> {
        let Some(content) = parse(bytes, sector) else {
            let begin: Vec<String> = bytes.iter().take(32).map(|b| format!("{b:02x}")).collect();
            return Err(self.violation(
                sector,
                read,
                &format!("bytes that nobody wrote: {}…", begin.join("")),
            ));
        };
        let versions = self.versions(sector);
        let seen = |v: &Version| v.content == content && v.gone.is_none_or(|gone| gone > read.0);
        if !versions.iter().any(seen) {
            let what = match content {
                Content::Zero => "zeros".to_owned(),
                Content::Stamp(id) => format!("write {}", id.0),
            };
            return Err(self.violation(sector, read, &what));
        }
        for version in versions.iter_mut().filter(|v| v.content != content && v.gone.is_none()) {
            if version.ended.is_some_and(|ended| ended <= read.0) {
                version.gone = Some(now);
            }
        }
        Ok(())
    }

    /// What was found, what may be there, and what happened to the sector.
    fn violation(&self, sector: u64, read: ReadId, found: &str) -> Violation {
        let history: Vec<String> = self
            .writes
            .iter()
            .filter(|(_, w)| w.sectors.contains(&sector))
            .map(|(id, w)| format!("{} ({}..{:?})", id.0, w.begun, w.ended))
            .collect();
        let may: Vec<String> =
            self.sectors.get(&sector).into_iter().flatten().map(|v| format!("{v:?}")).collect();
        let last = &history[history.len().saturating_sub(8)..];
        Violation(format!(
            "sector {sector} holds {found}, seen by a read that began at {}\n  may hold: {}\n  last writes: {}",
            read.0,
            may.join("\n            "),
            last.join(", ")
        ))
    }

    /// How many writes there were.
    pub fn writes(&self) -> usize {
        self.writes.len()
    }
}

/// A sector's content: who wrote it, where it belongs, and bytes that follow from both.
fn stamp(id: WriteId, sector: u64) -> Vec<u8> {
    let mut state = (id.0 << 32) ^ sector ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let head = [MAGIC, id.0, sector];
    let words = head.into_iter().chain(std::iter::repeat_with(&mut next));
    words.take(SECTOR_BYTES / 8).flat_map(u64::to_le_bytes).collect()
}

fn parse(bytes: &[u8], sector: u64) -> Option<Content> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(Content::Zero);
    }
    let id = WriteId(u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?));
    (bytes == stamp(id, sector)).then_some(Content::Stamp(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(checker: &mut Checker, data: &[u8]) -> Result<(), Violation> {
        let read = checker.begin_read();
        checker.end_read(read, 0, data)
    }

    fn acknowledged(checker: &mut Checker) -> Vec<u8> {
        let (id, data) = checker.begin_write(0..1);
        checker.end_write(id, Ending::Acknowledged);
        data
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut checker = Checker::new();
        let first = acknowledged(&mut checker);
        let second = acknowledged(&mut checker);
        assert!(read(&mut checker, &second).is_ok());
        assert!(read(&mut checker, &first).is_err());
        assert!(read(&mut checker, &[0; 512]).is_err());
    }

    #[test]
    fn wrong_bytes_are_found() {
        let mut checker = Checker::new();
        let mut data = acknowledged(&mut checker);
        assert!(checker.clone().end_read(ReadId(9), 1, &data).is_err(), "at another sector");
        data[300] ^= 1;
        assert!(read(&mut checker, &data).is_err());
    }

    #[test]
    fn a_write_under_way_may_be_seen_or_not_but_does_not_go_back() {
        let mut checker = Checker::new();
        let old = acknowledged(&mut checker);
        let (id, new) = checker.begin_write(0..1);
        assert!(read(&mut checker, &old).is_ok());
        assert!(read(&mut checker, &new).is_ok());
        assert!(read(&mut checker, &old).is_err(), "it was seen, and then it was not");
        checker.end_write(id, Ending::Acknowledged);
        assert!(read(&mut checker, &new).is_ok());
    }

    #[test]
    fn a_read_that_began_before_may_bring_what_was_there_then() {
        let mut checker = Checker::new();
        let old = acknowledged(&mut checker);
        let early = checker.begin_read();
        let new = acknowledged(&mut checker);
        assert!(checker.end_read(early, 0, &old).is_ok());
        assert!(read(&mut checker, &new).is_ok());
    }

    #[test]
    fn a_failed_write_is_decided_by_the_first_read() {
        for happened in [false, true] {
            let mut checker = Checker::new();
            let old = acknowledged(&mut checker);
            let (id, maybe) = checker.begin_write(0..1);
            checker.end_write(id, Ending::Failed);
            let (is, is_not) = if happened { (maybe, old) } else { (old, maybe) };
            assert!(read(&mut checker, &is).is_ok());
            assert!(
                read(&mut checker, &is_not).is_err(),
                "a block changed between two reads without a write"
            );
        }
    }

    #[test]
    fn a_write_that_nobody_answers_may_land_until_it_is_given_up() {
        let mut checker = Checker::new();
        let old = acknowledged(&mut checker);
        let (_, late) = checker.begin_write(0..1);
        assert!(read(&mut checker, &old).is_ok());
        let mut fenced = checker.clone();
        assert!(read(&mut checker, &late).is_ok());
        assert_eq!(fenced.give_up(), 1);
        assert!(read(&mut fenced, &old).is_ok());
        assert!(read(&mut fenced, &late).is_err(), "it landed after the read that did not see it");
    }

    #[test]
    fn two_writes_at_once_may_end_either_way() {
        let mut checker = Checker::new();
        let (a, first) = checker.begin_write(0..1);
        let (b, second) = checker.begin_write(0..1);
        checker.end_write(b, Ending::Acknowledged);
        checker.end_write(a, Ending::Acknowledged);
        assert!(read(&mut checker.clone(), &first).is_ok());
        assert!(read(&mut checker.clone(), &second).is_ok());
        assert!(read(&mut checker, &[0; 512]).is_err());
    }

    #[test]
    fn zeros_are_a_value_like_others() {
        let mut checker = Checker::new();
        let old = acknowledged(&mut checker);
        let id = checker.begin_zero(0..1);
        checker.end_write(id, Ending::Acknowledged);
        assert!(read(&mut checker, &[0; 512]).is_ok());
        assert!(read(&mut checker, &old).is_err());
    }
}
