//! A disk whose writes and flushes are recorded, and its files as they may be found after the power was cut at any of them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use vsand_store::{Family, FileKind, IoHook, IoRequest, MetaOp, Verdict, write_meta};

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub(crate) enum Io {
    Write { file: FileKind, offset: u64, data: Vec<u8>, dsync: bool },
    Sync { file: FileKind },
    Meta(Vec<MetaOp>),
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Issued(u64, Io),
    Done(u64),
    Submitted(usize),
    Acked(usize),
}

pub(crate) type Log = Arc<Mutex<Vec<Event>>>;

/// Also makes sure that two writes to the same place are never under way at once: a disk may carry them out in either order,
/// and the older one might come to stay.
pub(crate) struct Recorder {
    log: Log,
    under_way: Vec<(u64, FileKind, Range<u64>)>,
}

impl Recorder {
    pub(crate) fn of(log: &Log) -> Self {
        Self { log: Arc::clone(log), under_way: Vec::new() }
    }

    fn begins(&mut self, id: u64, file: FileKind, place: Range<u64>) {
        let meets = |other: &&(u64, FileKind, Range<u64>)| {
            other.1 == file && other.2.start < place.end && place.start < other.2.end
        };
        let other = self.under_way.iter().find(meets);
        assert!(other.is_none(), "a write of {file:?} at {place:?} meets one that is under way: {other:?}");
        self.under_way.push((id, file, place));
    }
}

impl IoHook for Recorder {
    fn issue(&mut self, id: u64, request: &IoRequest<'_>) -> Verdict {
        if let IoRequest::Write { file, offset, bufs, .. } = request {
            let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
            self.begins(id, *file, *offset..*offset + bytes as u64);
        }
        let io = match request {
            IoRequest::Read { .. } => return Verdict::Pass,
            IoRequest::Write { file, offset, bufs, dsync } => {
                Io::Write { file: *file, offset: *offset, data: bufs.concat(), dsync: *dsync }
            }
            IoRequest::Sync { file } => Io::Sync { file: *file },
            IoRequest::Meta(ops) => Io::Meta(ops.to_vec()),
        };
        self.log.lock().unwrap().push(Event::Issued(id, io));
        Verdict::Pass
    }
    fn done(&mut self, id: u64) {
        self.under_way.retain(|(other, ..)| *other != id);
        self.log.lock().unwrap().push(Event::Done(id));
    }
}

/// The content of a disk's files.
#[derive(Clone, Default)]
pub(crate) struct Image {
    sectors: BTreeMap<(FileKind, u64), [u8; SECTOR]>,
    meta: BTreeMap<(Family, Vec<u8>), Vec<u8>>,
}

impl Image {
    fn write(
        &mut self,
        file: FileKind,
        offset: u64,
        data: &[u8],
        mut keep: impl FnMut((FileKind, u64)) -> bool,
    ) {
        for (n, sector) in data.chunks_exact(SECTOR).enumerate() {
            let place = (file, offset / SECTOR as u64 + n as u64);
            if keep(place) {
                self.sectors.insert(place, sector.try_into().unwrap());
            }
        }
    }

    fn commit(&mut self, ops: &[MetaOp]) {
        for op in ops {
            match op {
                MetaOp::Put(family, key, value) => {
                    self.meta.insert((*family, key.clone()), value.clone());
                }
                MetaOp::Delete(family, key) => {
                    self.meta.remove(&(*family, key.clone()));
                }
                MetaOp::DeleteRange(family, from, to) => {
                    self.meta.retain(|(f, key), _| f != family || key < from || key >= to);
                }
            }
        }
    }

    /// What the metadata has of blocks belongs to an extent that it has.
    pub(crate) fn check_rows(&self, what: &str) {
        for (family, key) in self.meta.keys().filter(|(family, _)| *family == Family::Blocks) {
            let extent = (Family::Map, key[..key.len() - 1].to_vec());
            assert!(self.meta.contains_key(&extent), "{what}: {family:?} {key:?} is left behind");
        }
    }

    /// Puts the files together in a directory.
    pub(crate) fn restore(&self, formatted: &Path, dir: &Path) {
        std::fs::create_dir(dir).unwrap();
        std::fs::copy(formatted.join("superblock"), dir.join("superblock")).unwrap();
        for (file, name) in [(FileKind::Data, "data"), (FileKind::Journal, "journal")] {
            let len = std::fs::metadata(formatted.join(name)).unwrap().len();
            let out = OpenOptions::new().write(true).create_new(true).open(dir.join(name)).unwrap();
            out.set_len(len).unwrap();
            let mut run: (u64, Vec<u8>) = (0, Vec::new());
            for (&(_, sector), bytes) in self.sectors.range((file, 0)..=(file, u64::MAX)) {
                if run.0 + (run.1.len() / SECTOR) as u64 != sector {
                    out.write_all_at(&run.1, run.0 * SECTOR as u64).unwrap();
                    run = (sector, Vec::new());
                }
                run.1.extend_from_slice(bytes);
            }
            out.write_all_at(&run.1, run.0 * SECTOR as u64).unwrap();
        }
        let ops: Vec<MetaOp> =
            self.meta.iter().map(|((f, k), v)| MetaOp::Put(*f, k.clone(), v.clone())).collect();
        write_meta(&dir.join("meta"), &ops).unwrap();
    }
}

/// What is under way or not flushed at some point of a log, and what is stable.
#[derive(Default)]
pub(crate) struct Cut {
    pub(crate) stable: Image,
    /// Which write brought a stable sector. An older one that is not flushed can't come after it: it had completed before this one
    /// was issued ([`Recorder`]), and no device brings back what it was told to replace.
    brought: BTreeMap<(FileKind, u64), u64>,
    /// Issued, in order, not flushed. Whether it has completed; the numbers of the flushes that cover it. There may be two under
    /// way at once, and either may end first.
    open: Vec<(u64, Io, bool, Vec<u64>)>,
}

impl Cut {
    /// Nothing is under way.
    pub(crate) fn of(stable: Image) -> Self {
        Self { stable, ..Self::default() }
    }

    pub(crate) fn pass(&mut self, event: &Event) {
        match event {
            Event::Issued(id, Io::Sync { file }) => {
                for (_, io, done, flushes) in &mut self.open {
                    if *done && matches!(io, Io::Write { file: f, .. } if f == file) {
                        flushes.push(*id);
                    }
                }
                self.open.push((*id, Io::Sync { file: *file }, false, Vec::new()));
            }
            Event::Issued(id, io) => self.open.push((*id, io.clone(), false, Vec::new())),
            Event::Done(id) => {
                let mut rest = Vec::new();
                for (n, io, done, flushes) in std::mem::take(&mut self.open) {
                    let stable =
                        (n == *id && !matches!(io, Io::Write { dsync: false, .. })) || flushes.contains(id);
                    match io {
                        Io::Write { file, offset, data, .. } if stable => {
                            let brought = &mut self.brought;
                            self.stable.write(file, offset, &data, |place| {
                                let last = brought.entry(place).or_insert(n);
                                *last = n.max(*last);
                                *last == n
                            });
                        }
                        Io::Meta(ops) if stable => self.stable.commit(&ops),
                        Io::Sync { .. } if stable => {}
                        io => rest.push((n, io, done || n == *id, flushes)),
                    }
                }
                self.open = rest;
            }
            Event::Submitted(_) | Event::Acked(_) => {}
        }
    }

    /// The files after the power cut. `mode` 0: nothing that was not flushed is there; 1: all of it; else some, torn.
    pub(crate) fn image(&self, mode: u32, rng: &mut ChaCha8Rng) -> Image {
        let mut image = self.stable.clone();
        for (id, io, ..) in &self.open {
            let share = match mode {
                0 => 0.0,
                1 => 1.0,
                _ => [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)],
            };
            match io {
                Io::Write { file, offset, data, .. } => {
                    let replaced = |place| self.brought.get(&place).is_some_and(|by| by > id);
                    image.write(*file, *offset, data, |place| !replaced(place) && rng.random_bool(share));
                }
                Io::Meta(ops) if rng.random_bool(share) => image.commit(ops),
                _ => {}
            }
        }
        image
    }
}
