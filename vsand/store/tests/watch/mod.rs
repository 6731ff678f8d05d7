//! A disk whose requests are watched, and some of which are made to go wrong.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferro_protocol::ids::ChunkId;
use vsand_store::{Family, FileKind, IoHook, IoRequest, MetaOp, Verdict};

/// What a disk is asked to do, and what is made to go wrong.
#[derive(Default)]
pub(crate) struct Seen {
    /// The rows of extents.
    pub(crate) rows: BTreeSet<(Family, Vec<u8>)>,
    pub(crate) data_bytes: usize,
    /// Where the last read of data began.
    pub(crate) read_at: u64,
    pub(crate) fail_next_read: bool,
    /// Each read takes a while: other things come first.
    pub(crate) slow_reads: bool,
    /// Reads that touch these bytes fail.
    pub(crate) unreadable: Range<u64>,
    /// No batch of metadata is ever done.
    pub(crate) hold_meta: bool,
    /// Nor is a write to a place.
    pub(crate) hold_data: bool,
    /// Writes to places that are not through to the medium never get there, as in a power cut.
    pub(crate) lose_data: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Watch(pub(crate) Arc<Mutex<Seen>>);

impl Watch {
    pub(crate) fn set(&self, f: impl FnOnce(&mut Seen)) {
        f(&mut self.0.lock().unwrap());
    }

    pub(crate) fn data_bytes(&self) -> usize {
        self.0.lock().unwrap().data_bytes
    }

    /// How many rows there are of extents of this component.
    pub(crate) fn rows_of(&self, chunk: ChunkId) -> usize {
        let prefix = [chunk.object.as_bytes().as_slice(), &chunk.index.0.to_be_bytes()].concat();
        self.0.lock().unwrap().rows.iter().filter(|(_, key)| key.starts_with(&prefix)).count()
    }
}

impl IoHook for Watch {
    fn issue(&mut self, _: u64, request: &IoRequest<'_>) -> Verdict {
        let mut seen = self.0.lock().unwrap();
        match request {
            IoRequest::Read { offset, len, .. } => {
                seen.read_at = *offset;
                if seen.slow_reads {
                    std::thread::sleep(Duration::from_millis(2));
                }
                let bad = seen.unreadable.start < offset + *len as u64 && *offset < seen.unreadable.end;
                if std::mem::take(&mut seen.fail_next_read) || bad {
                    return Verdict::Fail(libc::EIO);
                }
            }
            IoRequest::Write { file: FileKind::Data, bufs, dsync, .. } => {
                let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
                seen.data_bytes += bytes;
                if seen.hold_data {
                    return Verdict::Hang;
                }
                if seen.lose_data && !dsync {
                    return Verdict::Short(bytes as u32);
                }
            }
            IoRequest::Meta(_) if seen.hold_meta => return Verdict::Hang,
            IoRequest::Meta(ops) => {
                for op in *ops {
                    match op {
                        MetaOp::Put(Family::State, ..) => {}
                        MetaOp::Put(family, key, _) => {
                            seen.rows.insert((*family, key.clone()));
                        }
                        MetaOp::Delete(family, key) => {
                            seen.rows.remove(&(*family, key.clone()));
                        }
                        MetaOp::DeleteRange(family, from, to) => {
                            seen.rows.retain(|(f, key)| f != family || key < from || key >= to);
                        }
                    }
                }
            }
            _ => {}
        }
        Verdict::Pass
    }
    fn done(&mut self, _: u64) {}
}
