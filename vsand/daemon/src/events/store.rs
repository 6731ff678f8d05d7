//! The log's two files: when the current one is full it takes the place of the previous one. So at least half of the bound is
//! always there.
//!
//! ```text
//!   events/previous   {"v":1,"seq":1,…}\n … {"v":1,"seq":9000,…}\n
//!   events/current    {"v":1,"seq":9001,…}\n …
//! ```
//!
//! A batch is one write and one flush. A line that a power cut has torn is skipped when it is read, and the next batch begins
//! on a line of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Draft, Page, Query, RECORD_VERSION, Record};

/// The size at which a file is full.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The longest message that is kept, in characters.
const MESSAGE_CHARS_MAX: usize = 1_024;

/// The log on this host's disk.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    current: File,
    next_seq: u64,
    /// The last line of the current file has no end.
    torn: bool,
    bytes_max: u64,
}

impl Store {
    /// Opens it, or makes it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_with(dir, FILE_BYTES_MAX)
    }

    fn open_with(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let current = open_current(dir)?;
        let mut store = Self { dir: dir.to_owned(), current, next_seq: 1, torn: false, bytes_max };
        let text = store.text("current")?;
        store.torn = text.last().is_some_and(|byte| *byte != b'\n');
        let last = |text: &[u8]| records(text).map(|record| record.seq).max();
        let before = last(&text).max(last(&store.text("previous")?));
        store.next_seq = before.map_or(1, |seq| seq.saturating_add(1));
        Ok(store)
    }

    /// Writes these down as of now.
    pub fn append(&mut self, at_ms: u64, drafts: Vec<Draft>) -> io::Result<()> {
        if self.current.metadata()?.len() >= self.bytes_max {
            std::fs::rename(self.dir.join("current"), self.dir.join("previous"))?;
            self.current = open_current(&self.dir)?;
            File::open(&self.dir)?.sync_all()?;
            self.torn = false;
        }
        let mut text = if self.torn { b"\n".to_vec() } else { Vec::new() };
        for Draft { kind, level, subject, check, message } in drafts {
            let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
            let record =
                Record { v: RECORD_VERSION, seq: self.next_seq, at_ms, kind, level, subject, check, message };
            self.next_seq = self.next_seq.saturating_add(1);
            serde_json::to_writer(&mut text, &record)?;
            text.push(b'\n');
        }
        // Until it is known to be whole it may be half there.
        self.torn = true;
        self.current.write_all(&text)?;
        self.current.sync_data()?;
        self.torn = false;
        Ok(())
    }

    /// The newest of those that are asked for.
    pub fn read(&self, query: Query) -> io::Result<Page> {
        let (previous, current) = (self.text("previous")?, self.text("current")?);
        let all = records(&previous).chain(records(&current));
        let mut records: Vec<Record> = all.filter(|record| record.at_ms >= query.since_ms).collect();
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let left_out = records.len().saturating_sub(limit);
        records.drain(..left_out);
        Ok(Page { records, more: left_out > 0 })
    }

    fn text(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        match File::open(self.dir.join(name)) {
            // No more than we ever write, whoever else did.
            Ok(file) => file.take(self.bytes_max.saturating_mul(4)).read_to_end(&mut text).map(|_| text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
            Err(error) => Err(error),
        }
    }
}

fn open_current(dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(dir.join("current"))
}

/// The records in a file; what can't be read is left out.
fn records(text: &[u8]) -> impl Iterator<Item = Record> + '_ {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .filter_map(|line| serde_json::from_slice::<Record>(line).ok())
        .filter(|record| record.v <= RECORD_VERSION)
}

#[cfg(test)]
mod tests {
    use ferro_protocol::api::{EventKind, EventLevel};

    use super::*;

    const ALL: Query = Query { since_ms: 0, limit: u32::MAX };

    fn draft(message: &str) -> Draft {
        Draft::new(EventKind::HostDown, EventLevel::Warning, "host 1", message)
    }

    fn messages(store: &Store, query: Query) -> Vec<String> {
        store.read(query).unwrap().records.into_iter().map(|record| record.message).collect()
    }

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.append(10, vec![draft("a"), draft("b")]).unwrap();
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        store.append(20, vec![draft("c")]).unwrap();
        let page = store.read(ALL).unwrap();
        assert_eq!(page.records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(messages(&store, Query { since_ms: 11, limit: 9 }), ["c"]);
        let newest = store.read(Query { since_ms: 0, limit: 2 }).unwrap();
        assert!(newest.more && newest.records[0].message == "b", "{newest:?}");
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.append(1, vec![draft("a"), draft("b")]).unwrap();
        drop(store);
        let path = dir.path().join("current");
        let mut text = std::fs::read(&path).unwrap();
        text.truncate(text.len() - 9);
        text.extend_from_slice(b"\xff\xfe");
        std::fs::write(&path, &text).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.append(2, vec![draft("c")]).unwrap();
        assert_eq!(messages(&store, ALL), ["a", "c"]);
        // What a later version writes is its own business.
        std::fs::write(
            &path,
            br#"{"v":2,"seq":9,"at_ms":1,"kind":"x","level":"info","subject":"","message":""}"#,
        )
        .unwrap();
        assert!(messages(&Store::open(dir.path()).unwrap(), ALL).is_empty());
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open_with(dir.path(), 2_000).unwrap();
        for n in 0..200 {
            store.append(n, vec![draft(&format!("number {n}"))]).unwrap();
        }
        let bytes: u64 = ["current", "previous"]
            .iter()
            .map(|f| std::fs::metadata(dir.path().join(f)).unwrap().len())
            .sum();
        assert!(bytes < 2 * 2_200, "{bytes}");
        let kept = messages(&store, ALL);
        assert!(kept.len() > 12 && kept.last().unwrap() == "number 199", "{kept:?}");
        let reopened = Store::open_with(dir.path(), 2_000).unwrap();
        assert_eq!(reopened.next_seq, 201);
        let mut store = reopened;
        store.append(0, vec![draft(&"long ".repeat(1_000))]).unwrap();
        assert_eq!(messages(&store, ALL).last().unwrap().chars().count(), MESSAGE_CHARS_MAX);
    }
}
