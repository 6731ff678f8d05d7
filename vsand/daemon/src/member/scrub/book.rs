//! What is known of the scrubs of all volumes: a document of the cluster directory, so that a restart does not begin anew,
//! whoever owns a volume goes on where the last one was, and every host can start, stop and show them. Pure.
//!
//! ```text
//!   never ──its time has come──▶ running ──every chunk──▶ done ──its time has come──▶ running
//!     │ start                    ▲  │ stop                  │ start
//!     └────────▶ wanted ─────────┘  └──▶ stopped ◀──────────┴▶ wanted
//! ```
//!
//! The document (`storage/scrubs`) has one entry for each volume that was ever scrubbed, or is to be.

use std::collections::BTreeMap;

use ferro_protocol::api::{ScrubInfo, ScrubState};
use ferro_protocol::ids::{ChunkIndex, ObjectId};
use ferro_protocol::units::BLOCK_BYTES;
use serde::{Deserialize, Serialize};
use vsand_core::directory::{Content, ObjectRecord, State};
use vsand_core::owner::ScrubEnd;

use crate::member::kept::Kept;

/// A day.
pub const DAY_S: u64 = 24 * 3600;

/// The document's content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Book {
    format: u8,
    volumes: BTreeMap<ObjectId, Entry>,
}

/// The latest scrub of one volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    state: ScrubState,
    began_unix_s: u64,
    /// When it ended or was stopped; 0 before.
    ended_unix_s: u64,
    /// When one last ended that skipped nothing; 0 if none did.
    whole_unix_s: u64,
    /// The first chunk that is not done.
    next: u32,
    blocks: u64,
    found: u64,
    mended: u64,
    skipped: u64,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            state: ScrubState::Never,
            began_unix_s: 0,
            ended_unix_s: 0,
            whole_unix_s: 0,
            next: 0,
            blocks: 0,
            found: 0,
            mended: 0,
            skipped: 0,
        }
    }
}

impl Entry {
    /// How urgent its scrub is: the lower the sooner; nothing if none is due.
    fn urgency(&self, record: &ObjectRecord, unix_s: u64, every_days: u64) -> Option<(u8, u64)> {
        match self.state {
            ScrubState::Running => Some((0, self.began_unix_s)),
            ScrubState::Waiting => Some((1, record.created_unix_s)),
            _ => {
                let at = self.next_unix_s(record, every_days)?;
                (at <= unix_s).then_some((2, at))
            }
        }
    }

    /// When the next scrub begins by itself. One that left something out is made again after a day.
    fn next_unix_s(&self, record: &ObjectRecord, every_days: u64) -> Option<u64> {
        if every_days == 0 || matches!(self.state, ScrubState::Running | ScrubState::Waiting) {
            return None;
        }
        let days = if self.state == ScrubState::Done && self.skipped > 0 { 1 } else { every_days };
        let since = if self.ended_unix_s > 0 { self.ended_unix_s } else { record.created_unix_s };
        Some(since.saturating_add(days * DAY_S))
    }

    /// The first of these chunks that is not done.
    pub fn next(&self, record: &ObjectRecord) -> Option<ChunkIndex> {
        record.chunks_from(ChunkIndex(self.next)).next()
    }

    /// Whether its scrub is under way.
    pub fn is_running(&self) -> bool {
        self.state == ScrubState::Running
    }

    /// A scrub begins, unless one goes on.
    pub fn begin(&mut self, unix_s: u64) {
        if !self.is_running() {
            let whole_unix_s = self.whole_unix_s;
            let state = ScrubState::Running;
            *self = Self { state, began_unix_s: unix_s, whole_unix_s, ..Self::default() };
        }
    }

    /// A chunk is done.
    pub fn add(&mut self, end: &ScrubEnd) {
        self.next = end.chunk.0.saturating_add(1);
        self.blocks += end.blocks;
        self.found += u64::from(end.found);
        self.mended += u64::from(end.mended);
        self.skipped += u64::from(end.skipped);
    }

    /// All chunks are done.
    pub fn end(&mut self, unix_s: u64) {
        self.state = ScrubState::Done;
        self.ended_unix_s = unix_s;
        if self.skipped == 0 {
            self.whole_unix_s = unix_s;
        }
    }

    /// Somebody wants a scrub; one that is under way is one.
    pub fn start(&mut self) {
        if !self.is_running() {
            self.state = ScrubState::Waiting;
        }
    }

    /// Nobody wants it any more. True if there was one.
    pub fn stop(&mut self, unix_s: u64) -> bool {
        let was = matches!(self.state, ScrubState::Running | ScrubState::Waiting);
        if was {
            self.state = ScrubState::Stopped;
            self.ended_unix_s = unix_s;
        }
        was
    }

    /// For people.
    pub fn info(&self, record: &ObjectRecord, every_days: u64) -> ScrubInfo {
        let chunks: Vec<ChunkIndex> = record.chunks_from(ChunkIndex(0)).collect();
        let done = match self.state {
            ScrubState::Running | ScrubState::Stopped => chunks.iter().filter(|c| c.0 < self.next).count(),
            ScrubState::Done => chunks.len(),
            ScrubState::Never | ScrubState::Waiting => 0,
        };
        let at = |unix_s: u64| (unix_s > 0).then_some(unix_s);
        ScrubInfo {
            volume: record.name.clone(),
            object: record.id,
            state: self.state,
            began_unix_s: at(self.began_unix_s),
            ended_unix_s: at(self.ended_unix_s),
            whole_unix_s: at(self.whole_unix_s),
            next_unix_s: self.next_unix_s(record, every_days),
            chunks: chunks.len() as u32,
            chunks_done: done as u32,
            bytes: self.blocks * BLOCK_BYTES as u64,
            bad_blocks: self.found,
            mended_blocks: self.mended,
            skipped: self.skipped,
        }
    }

    /// Since when the volume is waiting for a whole scrub: the last one's end, or when it was made.
    pub fn unscrubbed_since(&self, record: &ObjectRecord) -> u64 {
        self.whole_unix_s.max(record.created_unix_s)
    }

    /// Bad blocks that the latest scrub could not have mended.
    pub fn left_bad(&self) -> u64 {
        self.found.saturating_sub(self.mended)
    }
}

impl Default for Book {
    fn default() -> Self {
        Self { format: Self::FORMAT, volumes: BTreeMap::new() }
    }
}

impl Book {
    /// What is known of a volume.
    pub fn entry(&self, object: ObjectId) -> Entry {
        self.volumes.get(&object).cloned().unwrap_or_default()
    }

    /// For a change; entries of volumes that are gone go.
    pub fn edit(&mut self, state: &State, object: ObjectId) -> &mut Entry {
        self.volumes.retain(|id, _| state.objects.contains_key(id));
        self.volumes.entry(object).or_default()
    }

    /// Those of the volumes whose time has come, the most urgent first.
    pub fn due<'a>(
        &self,
        volumes: impl Iterator<Item = &'a ObjectRecord>,
        unix_s: u64,
        every_days: u64,
    ) -> Vec<&'a ObjectRecord> {
        let never = Entry::default();
        let urgency = |record: &'a ObjectRecord| {
            let entry = self.volumes.get(&record.id).unwrap_or(&never);
            Some((entry.urgency(record, unix_s, every_days)?, record.id, record))
        };
        let mut due: Vec<_> =
            volumes.filter(|r| r.content != Content::Importing).filter_map(urgency).collect();
        due.sort_unstable_by_key(|(urgency, id, _)| (*urgency, *id));
        due.into_iter().map(|(.., record)| record).collect()
    }
}

impl Kept for Book {
    const WHAT: &'static str = "the list of scrubs";
    const DOCUMENT: &'static str = "storage/scrubs";
    const FORMAT: u8 = 1;

    fn format(&self) -> u8 {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsand_core::directory::{ChunkRecord, Document, Policy};

    fn object(n: u8, created_unix_s: u64) -> ObjectRecord {
        let chunks = [ChunkIndex(0), ChunkIndex(3)].map(|i| (i, ChunkRecord { components: Vec::new() }));
        ObjectRecord {
            id: ObjectId::from_bytes([n; 16]),
            name: format!("v{n}").parse().unwrap(),
            size_bytes: 8 << 30,
            policy: Policy::Mirror { copies: 2 },
            content: Content::Whole,
            epoch: ferro_protocol::ids::Epoch(1),
            lock: None,
            chunks: chunks.into_iter().collect(),
            created_unix_s,
            revision: 1,
        }
    }

    fn end(chunk: u32, skipped: u32) -> ScrubEnd {
        ScrubEnd { chunk: ChunkIndex(chunk), blocks: 10, found: 2, mended: 1, skipped, lost: 0 }
    }

    #[test]
    fn a_scrub_goes_through_its_chunks_and_comes_again() {
        let record = object(1, 1_000);
        let mut entry = Entry::default();
        assert_eq!(entry.urgency(&record, 1_000 + 13 * DAY_S, 14), None);
        assert_eq!(entry.urgency(&record, 1_000 + 14 * DAY_S, 14), Some((2, 1_000 + 14 * DAY_S)));
        assert_eq!(entry.urgency(&record, u64::MAX, 0), None, "only when somebody asks");
        entry.begin(5_000);
        assert_eq!(entry.next(&record), Some(ChunkIndex(0)));
        entry.add(&end(0, 0));
        entry.begin(6_000);
        assert_eq!((entry.next(&record), entry.began_unix_s), (Some(ChunkIndex(3)), 5_000), "it goes on");
        entry.add(&end(3, 0));
        assert_eq!(entry.next(&record), None);
        entry.end(7_000);
        assert_eq!((entry.whole_unix_s, entry.left_bad()), (7_000, 2));
        assert_eq!(entry.next_unix_s(&record, 14), Some(7_000 + 14 * DAY_S));
        entry.begin(9_000);
        entry.add(&end(3, 1));
        entry.end(9_500);
        assert_eq!(entry.whole_unix_s, 7_000, "something was left out");
        assert_eq!(entry.next_unix_s(&record, 14), Some(9_500 + DAY_S));
    }

    #[test]
    fn people_start_and_stop_them() {
        let record = object(1, 1_000);
        let mut entry = Entry::default();
        assert!(!entry.stop(1));
        entry.start();
        assert_eq!(entry.urgency(&record, 0, 0), Some((1, 1_000)));
        entry.begin(10);
        entry.add(&end(0, 0));
        entry.start();
        assert!(entry.is_running(), "it goes on");
        assert!(entry.stop(20));
        let info = entry.info(&record, 14);
        assert_eq!((info.state, info.chunks, info.chunks_done), (ScrubState::Stopped, 2, 1));
        assert_eq!(info.next_unix_s, Some(20 + 14 * DAY_S));
    }

    #[test]
    fn what_was_begun_comes_first_then_what_is_wanted() {
        let volumes = [object(1, 1), object(2, 2), object(3, 3), object(4, 4)];
        let mut state = State::default();
        for volume in &volumes {
            state.objects.insert(volume.id, std::sync::Arc::new(volume.clone()));
        }
        let mut book = Book::default();
        let due = |book: &Book| {
            let due = book.due(volumes.iter(), 100 * DAY_S, 14).into_iter();
            due.map(|r| r.created_unix_s).collect::<Vec<_>>()
        };
        assert_eq!(due(&book), [1, 2, 3, 4], "the one that has waited longest comes first");
        book.edit(&state, volumes[2].id).start();
        assert_eq!(due(&book), [3, 1, 2, 4]);
        book.edit(&state, volumes[3].id).begin(5);
        assert_eq!(due(&book), [4, 3, 1, 2]);
        let content = serde_json::to_string(&book).unwrap();
        state.documents.insert(Book::document(), std::sync::Arc::new(Document { revision: 1, content }));
        assert_eq!(Book::of(&state), Some(book.clone()));
        state.objects.clear();
        book.edit(&state, volumes[0].id);
        assert_eq!(book.volumes.len(), 1, "volumes that are gone are forgotten");
        let later = r#"{"format":2,"volumes":{}}"#.to_owned();
        state
            .documents
            .insert(Book::document(), std::sync::Arc::new(Document { revision: 2, content: later }));
        assert_eq!(Book::of(&state), None);
    }
}
