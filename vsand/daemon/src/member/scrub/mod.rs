//! Scrubbing: which volume is scrubbed now on this host, chunk by chunk, by its owner in the data loop
//! (`vsand_core::owner`, module `scrub`; docs/decisions/0024-scrub.md).
//!
//! One volume at a time, so the rate of its owner is the rate of the host. A volume that nobody has open is owned for as long
//! as it takes, as for a repair: whoever wants to open it gets it at once, and the scrub goes on there. What is done is
//! written down in the [`book`] now and then; a host that takes over, or starts again, repeats a few chunks at most.

pub mod book;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferro_protocol::api::{EventKind, EventLevel};
use ferro_protocol::ids::ObjectId;
use tokio::sync::oneshot;
use vsand_core::directory::ObjectRecord;
use vsand_core::owner::ScrubEnd;
use vsand_core::time::Instant;

use super::Member;
use super::kept::{Kept, KeptError, change};
use super::ownership::{At, is_ours_to_tend};
use crate::data::clock;
use crate::data::port::Command as DataCommand;
use crate::events::Draft;
use book::{Book, Entry};

/// How often it is looked whether there is something to scrub, and whether somebody has stopped it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is written down how far a scrub is.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// A volume with a disk that went away when it was asked is left alone for so long.
const PUT_OFF: Duration = Duration::from_secs(600);
/// A volume that another took over, or that could not be taken, is looked at again after so long.
const PUT_OFF_SHORT: Duration = Duration::from_secs(5);
/// What this host scrubs.
#[derive(Debug, Default)]
pub struct Scrubs {
    at: At,
    chunks: AtomicU64,
    blocks: AtomicU64,
}

impl Scrubs {
    /// Whether this object is being scrubbed here.
    pub fn is_at(&self, object: ObjectId) -> bool {
        self.at.is(object)
    }

    /// Chunks and blocks with data that were scrubbed since the daemon started.
    pub fn done(&self) -> (u64, u64) {
        (self.chunks.load(Ordering::Relaxed), self.blocks.load(Ordering::Relaxed))
    }
}

/// How the scrub of a volume left off.
enum Left {
    Done,
    Stopped,
    PutOff(Duration),
    LoopGone,
}

/// Scrubs what is due, for as long as the daemon runs.
pub async fn scrub(member: Arc<Member>) {
    let mut not_before: BTreeMap<ObjectId, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !member.taken_up.load(Ordering::Relaxed) {
            continue;
        }
        let now = clock::mono();
        not_before.retain(|_, at| *at > now);
        let Some(record) = next(&member, |object| !not_before.contains_key(&object)) else { continue };
        member.scrubs.at.set(Some(record.id));
        let left = scrub_volume(&member, &record).await;
        member.scrubs.at.set(None);
        match left {
            Left::Done | Left::Stopped => {}
            Left::PutOff(time) => drop(not_before.insert(record.id, clock::mono() + time)),
            Left::LoopGone => return,
        }
    }
}

/// The volume whose turn it is, of those that are this host's to scrub.
fn next(member: &Member, may: impl Fn(ObjectId) -> bool) -> Option<Arc<ObjectRecord>> {
    let state = member.state();
    let book = Book::of(&state)?;
    let volumes = state.volumes().filter(|record| may(record.id)).map(Arc::as_ref);
    let due = book.due(volumes, clock::unix_s(), member.config.scrub.every_days);
    let next = due.into_iter().find(|record| is_ours_to_tend(member, record))?.id;
    state.objects.get(&next).cloned()
}

async fn scrub_volume(member: &Member, record: &Arc<ObjectRecord>) -> Left {
    let object = record.id;
    let begun = change(member, |book: &mut Book, state| {
        let entry = book.edit(state, object);
        let news = !entry.is_running();
        entry.begin(clock::unix_s());
        news
    });
    if let Err(error) = begun.await {
        tracing::debug!(volume = %record.name, %error, "a scrub can't begin now");
        return Left::PutOff(PUT_OFF_SHORT);
    }
    // The next look may be at a state from before that.
    let Ok(state) = member.directory.linearizable_state().await else { return Left::PutOff(PUT_OFF_SHORT) };
    let Some(entry) = Book::of(&state).map(|book| book.entry(object)) else {
        return Left::PutOff(PUT_OFF_SHORT);
    };
    if state.holder(record, member.host()).is_none() && !member.own_to_tend(object).await {
        return Left::PutOff(PUT_OFF_SHORT);
    }
    let mut work = Work { object, entry, written: clock::mono() };
    let left = work.run(member).await;
    if let Err(error) = work.write(member, matches!(left, Left::Done)).await {
        tracing::debug!(volume = %record.name, %error, "it could not be written down how far a scrub is");
        return Left::PutOff(PUT_OFF_SHORT);
    }
    if matches!(left, Left::Done) {
        work.tell(member, record).await;
    }
    left
}

/// A scrub that runs here.
struct Work {
    object: ObjectId,
    entry: Entry,
    written: Instant,
}

impl Work {
    async fn run(&mut self, member: &Member) -> Left {
        loop {
            let Some(record) = member.state().objects.get(&self.object).cloned() else {
                return Left::Stopped;
            };
            let Some(chunk) = self.entry.next(&record) else { return Left::Done };
            let (answer, mut ended) = oneshot::channel();
            let bytes_per_s = member.config.scrub.rate_mib_s << 20;
            let command = DataCommand::Scrub { object: self.object, chunk, bytes_per_s, answer };
            if member.data.send(command).is_err() {
                return Left::LoopGone;
            }
            let end: ScrubEnd = loop {
                match tokio::time::timeout(LOOK_EVERY, &mut ended).await {
                    Ok(Ok(end)) => break end,
                    // It has another owner now, here or elsewhere.
                    Ok(Err(_)) => return Left::PutOff(PUT_OFF_SHORT),
                    Err(_) if self.stopped(member) => {
                        let _ending = member.data.send(DataCommand::StopScrub(self.object));
                        return Left::Stopped;
                    }
                    Err(_) => {}
                }
            };
            if end.lost > 0 {
                tracing::info!(volume = %record.name, %chunk, "a disk went away while it was being scrubbed; it is tried again later");
                return Left::PutOff(PUT_OFF);
            }
            self.entry.add(&end);
            member.scrubs.chunks.fetch_add(1, Ordering::Relaxed);
            member.scrubs.blocks.fetch_add(end.blocks, Ordering::Relaxed);
            if self.stopped(member) {
                return Left::Stopped;
            }
            if clock::mono().since(self.written) >= WRITE_EVERY {
                self.written = clock::mono();
                if let Err(error) = self.write(member, false).await {
                    tracing::debug!(volume = %record.name, %error, "it could not be written down how far a scrub is");
                }
            }
        }
    }

    /// Whether somebody has stopped it.
    fn stopped(&self, member: &Member) -> bool {
        Book::of(&member.state()).is_none_or(|book| !book.entry(self.object).is_running())
    }

    /// Writes down how far it is, unless somebody has stopped it.
    async fn write(&self, member: &Member, done: bool) -> Result<(), KeptError> {
        let (object, entry) = (self.object, &self.entry);
        change(member, |book: &mut Book, state| {
            if !state.objects.contains_key(&object) || !book.entry(object).is_running() {
                return false;
            }
            let known = book.edit(state, object);
            known.clone_from(entry);
            if done {
                known.end(clock::unix_s());
            }
            true
        })
        .await
    }

    async fn tell(&self, member: &Member, record: &ObjectRecord) {
        let info = self.entry.info(record, 0);
        let left_out = match info.skipped {
            0 => String::new(),
            n => format!("; {n} copies of parts were left out"),
        };
        let message = format!(
            "all of volume {} was scrubbed: {} bad blocks, {} of them mended{left_out}",
            record.name, info.bad_blocks, info.mended_blocks
        );
        let level = if self.entry.left_bad() > 0 { EventLevel::Warning } else { EventLevel::Info };
        tracing::info!(volume = %record.name, bad = info.bad_blocks, mended = info.mended_blocks, "a scrub has ended");
        let draft = Draft::new(EventKind::ScrubEnded, level, format!("volume {}", record.id), message);
        member.events.add(vec![draft]).await;
    }
}
