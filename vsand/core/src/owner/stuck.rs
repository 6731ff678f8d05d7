//! Requests that are stuck: their disk answers others and not them, so it is not silent, and what waits for them would wait
//! for good.
//!
//! Age alone says nothing: under load a good disk takes seconds. So a request that is older than
//! [`super::Config::stuck_max`] is stuck only if one of these holds too, and load alone brings about none of them, since it
//! delays what was asked earlier and later alike:
//! - it was *overtaken*: the disk has answered another request of its kind that was asked half as much later;
//! - the disk answers nothing of its kind any more, for as long. Where that would take a component out of the in-sync set,
//!   all other copies must also have the write since then (a burst that holds up every copy is no disk's fault), or it must
//!   have lasted [`ALONE_FACTOR`] times as long.
//!
//! Kinds are looked at apart, because a disk whose journal hangs may go on reading, and a scheduler may prefer one to the
//! other.
//!
//! What follows is as little as lets I/O go on: a read or the source of a copy is asked elsewhere; a resync is dropped; for a
//! write, the chunk's component on that disk leaves the in-sync set, in the directory first, as a silent one does. Until the
//! disk has answered every stuck request, or is connected to anew, it is read from only where nobody else can be asked, and
//! no resync to it begins: that would hold up guests again and again.

use ferro_protocol::ids::{DiskId, Role};
use ferro_protocol::peer::{Request, RequestId};

use super::links::{Ask, Link, Purpose, Seal};
use super::{Owner, Trouble};
use crate::time::Instant;

/// Overtaken is what waited while another request was asked this part of `stuck_max` later and answered. With the whole of it,
/// a guest that pauses just before would make it twice as long until the stuck one is found; no queue of a disk that is
/// merely busy is out of order by half a second.
const OVERTAKEN_DIVISOR: u32 = 2;
/// A disk that answers no change is waited for so many times longer while it is not the only one.
const ALONE_FACTOR: u32 = 8;
/// A list looks at a whole component: it may take so many times longer. No guest waits for it.
const LIST_FACTOR: u32 = 8;
/// A change with so much data takes much.
const BULK_BYTES_MIN: usize = 64 << 10;
/// Stuck requests of one disk that are remembered.
const REMEMBERED_MAX: usize = 256;

/// Requests that a disk serves alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A change that takes little.
    Change,
    /// A change that takes much, and perhaps another way to the disk.
    Bulk,
    Read,
    List,
}

impl Kind {
    /// None of a seal: nothing else is asked before it is answered, so silence finds it.
    fn of(ask: &Ask) -> Option<Self> {
        match ask.request {
            Request::Seal { .. } => None,
            Request::Zero { .. } => Some(Self::Bulk),
            Request::Write { .. } | Request::Install { .. } if ask.payload.len() >= BULK_BYTES_MIN => {
                Some(Self::Bulk)
            }
            Request::Write { .. }
            | Request::Install { .. }
            | Request::Promote { .. }
            | Request::Forget { .. } => Some(Self::Change),
            Request::Read { .. } | Request::Fetch { .. } | Request::Verify { .. } => Some(Self::Read),
            Request::List { .. } => Some(Self::List),
        }
    }
}

/// How a disk gets on with one kind of request.
#[derive(Clone, Copy, Debug)]
struct Served {
    /// When the latest request of those that were answered had been asked.
    newest: Instant,
    /// When it last answered one.
    progress: Instant,
}

/// How a disk gets on with each kind.
#[derive(Debug)]
pub(super) struct Pace([Served; 4]);

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self([Served { newest: Instant(0), progress: now }; 4])
    }

    /// It answers.
    pub(super) fn answered(&mut self, now: Instant, ask: &Ask) {
        if let Some(kind) = Kind::of(ask) {
            let served = &mut self.0[kind as usize];
            served.newest = served.newest.max(ask.sent_at);
            served.progress = now;
        }
    }

    /// It was silent, and is not any more: it gets the time to answer the rest.
    pub(super) fn thawed(&mut self, now: Instant) {
        for served in &mut self.0 {
            served.progress = now;
        }
    }
}

impl Owner {
    /// Finds stuck requests, and goes on without them.
    pub(super) fn check_stuck(&mut self, now: Instant) {
        let stuck: Vec<RequestId> =
            self.asks.iter().filter(|(id, ask)| self.is_stuck(now, **id, ask)).map(|(id, _)| *id).collect();
        for id in stuck {
            self.go_on_without(now, id);
        }
    }

    fn is_stuck(&self, now: Instant, id: RequestId, ask: &Ask) -> bool {
        let limit = self.config.stuck_max;
        if !ask.sent || now.since(ask.sent_at) < limit {
            return false;
        }
        let (Some(kind), Some(link)) = (Kind::of(ask), self.links.get(&ask.disk)) else {
            return false;
        };
        if !link.usable() || link.seal != Seal::Done || link.stuck.contains(&id) {
            return false;
        }
        let served = link.pace.0[kind as usize];
        if served.newest.since(ask.sent_at) >= limit / OVERTAKEN_DIVISOR {
            return true;
        }
        let nothing_for = now.since(served.progress.max(ask.sent_at));
        match (kind, ask.purpose) {
            (Kind::List, _) => nothing_for >= limit * LIST_FACTOR,
            (_, Purpose::Write { chunk, seq }) => {
                let write = self.groups.get(&chunk).and_then(|g| g.writes.get(&seq));
                let alone = write.is_some_and(|w| w.pending.len() == 1 && now.since(w.progress) >= limit);
                nothing_for >= if alone { limit } else { limit * ALONE_FACTOR }
            }
            _ => nothing_for >= limit,
        }
    }

    fn go_on_without(&mut self, now: Instant, id: RequestId) {
        // It may have gone with another one.
        let Some((disk, purpose)) = self.asks.get(&id).map(|ask| (ask.disk, ask.purpose)) else { return };
        match purpose {
            Purpose::Seal => {}
            Purpose::Read(part) => {
                if self.another_source(part, disk) {
                    self.remember_stuck(id, disk);
                    self.cancel_asks(|a| a.purpose == Purpose::Read(part));
                    if let Some(part) = self.parts.get_mut(&part)
                        && matches!(part.piece.chunk.role(), Role::Shard(_))
                    {
                        // No other component of it: it is decoded.
                        part.tried.insert(disk);
                        part.stuck = true;
                    }
                    self.read_part(now, part);
                }
            }
            Purpose::Write { chunk, .. } => {
                self.remember_stuck(id, disk);
                self.member_failed(now, chunk, disk);
            }
            Purpose::Copy(copy) => {
                self.remember_stuck(id, disk);
                let Some(known) = self.copies.get(&copy) else { return };
                let (chunk, fetching) = (known.chunk, known.fetch == Some(id));
                if fetching {
                    self.cancel_asks(|a| a.purpose == Purpose::Copy(copy));
                    return self.fetch(now, copy);
                }
                if self.groups.get(&chunk).is_some_and(|g| !g.is_serving()) {
                    // Nothing is served before all that are in sync agree.
                    self.member_failed(now, chunk, disk);
                }
                self.end_copy(now, copy, false);
            }
            Purpose::Scrub => {
                self.remember_stuck(id, disk);
                self.scrub_lost(disk);
            }
            Purpose::List { chunk, disk: target } => {
                self.remember_stuck(id, disk);
                self.abort_resync(now, chunk, target);
            }
        }
    }

    fn remember_stuck(&mut self, id: RequestId, disk: DiskId) {
        let Some(link) = self.links.get_mut(&disk) else { return };
        if link.stuck.len() < REMEMBERED_MAX {
            link.stuck.insert(id);
        }
        self.troubles.insert(Trouble::Stuck(disk));
    }

    /// A stuck request was answered after all, whether or not anything still waits for it.
    pub(super) fn unstick(&mut self, now: Instant, id: RequestId) {
        let found = self.links.iter_mut().find_map(|(disk, link)| link.stuck.remove(&id).then_some(*disk));
        let Some(disk) = found else { return };
        if self.links.get(&disk).is_some_and(Link::trusted) {
            self.troubles.remove(&Trouble::Stuck(disk));
            self.disk_recovered(disk);
            self.unstall(now);
        }
    }
}
