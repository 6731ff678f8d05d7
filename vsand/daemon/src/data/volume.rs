//! One owned volume in the data loop: its owner, and the rings or transfers that its requests come from.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::ids::{Epoch, ObjectId};
use ferro_vhost::blk::{BlkDevice, Request as BlkRequest, RequestKind, Sector, SectorRange, Status};
use ferro_vhost::server::Server;
use ferro_vhost::{Notifier, RequestTag};
use tokio::sync::oneshot;
use vsand_core::limits::{Limits, Throttle};
use vsand_core::owner::ScrubEnd;
use vsand_core::owner::guest::{GuestError, GuestRequest, GuestResult, GuestTag};
use vsand_core::time::{Instant, Now};
use vsand_core::volume::VolumeOwner;
use vsand_store::ring::{BufPool, PollId};

use super::clock;
use super::port::{GuestSocket, VolumeView};
use super::stats::{IoStats, VolumeStats};

/// Requests taken from the rings in one turn: few, so that the first are on their way to disks and peers while the next are
/// looked at.
const TAKE_MAX: usize = 8;
/// The same in bytes to be written: no further request is taken in a turn that has as many.
const TAKE_BYTES_MAX: usize = 256 << 10;
/// Bytes of guest requests under way at most: the rings wait beyond that.
const UNDER_WAY_BYTES_MAX: usize = 64 << 20;

/// Which volume of the loop; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct VolumeKey(pub u32);

/// What a guest request belongs to.
enum Origin {
    Ring(RequestTag),
    Transfer(oneshot::Sender<GuestResult>),
}

/// A request of a ring: a discard may become several of the owner.
struct Whole {
    left: usize,
    failed: bool,
    kind: Kind,
    bytes: usize,
    began: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero,
    Flush,
}

/// One owned object.
pub(super) struct Volume {
    pub owner: VolumeOwner,
    /// When the directory said that this host has the lock.
    pub acquired: Instant,
    pub ticked: Instant,
    pub closing: Option<oneshot::Sender<Option<(ObjectId, Epoch)>>>,
    /// Gets the end of the scrub that runs.
    pub scrubbing: Option<oneshot::Sender<ScrubEnd>>,
    device: Option<BlkDevice>,
    /// Dropped, it ends the control thread and removes the socket.
    server: Option<Server>,
    path: Option<PathBuf>,
    pub kick_epoch: u64,
    pub polls: Vec<(PollId, Notifier)>,
    origins: HashMap<GuestTag, Origin>,
    wholes: HashMap<RequestTag, Whole>,
    next_tag: u64,
    under_way: usize,
    stats: VolumeStats,
    broken_reported: bool,
    /// What the guest may ask for at most, if that is limited.
    throttle: Option<Throttle>,
    /// Since when the rings are not watched because of it.
    held_since: Option<Instant>,
}

impl Volume {
    pub(super) fn new(
        now: Instant,
        owner: VolumeOwner,
        acquired: Instant,
        socket: Option<GuestSocket>,
    ) -> Self {
        let (server, device, path) = match socket {
            Some(socket) => (Some(socket.server), Some(socket.device), Some(socket.path)),
            None => (None, None, None),
        };
        Self {
            owner,
            acquired,
            ticked: now,
            closing: None,
            scrubbing: None,
            device,
            server,
            path,
            kick_epoch: 0,
            polls: Vec::new(),
            origins: HashMap::new(),
            wholes: HashMap::new(),
            next_tag: 1,
            under_way: 0,
            stats: VolumeStats::default(),
            broken_reported: false,
            throttle: None,
            held_since: None,
        }
    }

    pub(super) fn object(&self) -> ObjectId {
        self.owner.object()
    }

    pub(super) fn device(&mut self) -> Option<&mut BlkDevice> {
        self.device.as_mut()
    }

    /// Whether no request of a guest or a transfer is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.owner.is_idle() && self.origins.is_empty()
    }

    /// Whether a VMM is connected.
    pub(super) fn is_attached(&self) -> bool {
        self.device.as_ref().is_some_and(|d| d.rings().is_attached())
    }

    /// Closes the guest's socket: what it asked is neither done nor failed, as when a cable is pulled.
    pub(super) fn drop_socket(&mut self) {
        self.device = None;
        self.server = None;
    }

    pub(super) fn view(&self, now: Instant) -> (VolumeView, VolumeStats) {
        let view = VolumeView {
            object: self.object(),
            epoch: self.owner.epoch(),
            serving: self.owner.main().is_serving(),
            troubles: self.owner.troubles().cloned().collect(),
            resyncs: self.owner.resyncs(now),
            conversion: self.owner.conversion(),
            socket: self.path.clone(),
            attached: self.is_attached(),
            in_flight: self.origins.len(),
        };
        (view, self.stats.clone())
    }

    /// The guest sees the size that the directory says.
    pub(super) fn follow_size(&mut self) {
        let sectors = Sector(self.owner.record().size_bytes / 512);
        if let Some(device) = &mut self.device
            && device.settings().capacity != sectors
        {
            device.resize(sectors);
        }
    }

    /// The guest may ask for no more than this from now on.
    pub(super) fn limit(&mut self, now: Instant, limits: Limits) {
        let limited = limits.requests_per_s.is_some() || limits.bytes_per_s.is_some();
        if self.throttle.as_ref().map(Throttle::asked) != limited.then_some(limits) {
            self.throttle = limited.then(|| Throttle::new(now, limits));
        }
    }

    /// How long the guest's next request has to wait because of its limit.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.throttle.as_ref()?.wait(now)
    }

    /// Whether more requests are taken now. If not, the rings are not watched: completions come first, or the guest has had what it may.
    pub(super) fn takes_requests(&self, now: Instant) -> bool {
        self.closing.is_none() && self.under_way < UNDER_WAY_BYTES_MAX && self.wait(now).is_none()
    }

    /// Takes requests from the rings and gives them to the owner; true if there may be more.
    pub(super) fn take_requests(&mut self, now: Now, pool: &BufPool) -> bool {
        if !self.takes_requests(now.mono) {
            return false;
        }
        let mut bytes = 0;
        for _ in 0..TAKE_MAX {
            let Some(device) = &mut self.device else { return false };
            let mut request = None;
            let outcome = device.poll(1, &mut |taken| request = Some(taken));
            if let Some(since) = self.held_since.take().filter(|_| request.is_some()) {
                // It was there, or came meanwhile: a guest that asks for nothing is not held back.
                self.stats.limited += now.mono.since(since);
            }
            if let Some(request) = request {
                if matches!(request.kind, RequestKind::Write { .. }) {
                    bytes += request.data_bytes() as usize;
                }
                if let Some(throttle) = &mut self.throttle
                    && !matches!(request.kind, RequestKind::Flush)
                {
                    throttle.take(now.mono, request.data_bytes().into());
                }
                self.begin(now, request, pool);
            }
            if outcome.taken == 0 {
                self.report_broken();
                return false;
            }
            if bytes >= TAKE_BYTES_MAX || !self.takes_requests(now.mono) {
                break;
            }
        }
        self.held_since = self.wait(now.mono).map(|_| now.mono);
        self.takes_requests(now.mono)
    }

    fn report_broken(&mut self) {
        let Some(device) = &self.device else { return };
        if let Some(broken) = device.rings().broken()
            && !self.broken_reported
        {
            tracing::warn!(object = %self.owner.object(), %broken, "a guest broke the rules of its rings; its disk is stopped");
            self.broken_reported = true;
        }
    }

    fn begin(&mut self, now: Now, request: BlkRequest, pool: &BufPool) {
        let bytes = request.data_bytes() as usize;
        let (kind, asks) = match &request.kind {
            RequestKind::Read { sector, bytes } => {
                (Kind::Read, vec![GuestRequest::Read { offset: sector.bytes(), bytes: u64::from(*bytes) }])
            }
            RequestKind::Write { sector, .. } => match self.fetch(request.tag, bytes, pool) {
                Some(data) => (Kind::Write, vec![GuestRequest::Write { offset: sector.bytes(), data }]),
                None => return,
            },
            RequestKind::Flush => (Kind::Flush, vec![GuestRequest::Flush]),
            RequestKind::Discard(ranges) => (Kind::Zero, ranges.iter().map(zero).collect()),
            RequestKind::WriteZeroes { ranges } => {
                (Kind::Zero, ranges.iter().map(|(r, _)| zero(r)).collect())
            }
        };
        if asks.is_empty() {
            if let Some(device) = &mut self.device {
                device.complete(request.tag, Status::Ok);
            }
            return;
        }
        self.under_way += bytes;
        let whole = Whole { left: asks.len(), failed: false, kind, bytes, began: now.mono };
        self.wholes.insert(request.tag, whole);
        for ask in asks {
            let tag = self.tag(Origin::Ring(request.tag));
            self.owner.handle_guest(clock::fresh(now), tag, ask);
        }
    }

    /// Copies a write's data out of the guest's memory; a request that can't be copied is completed with an error.
    fn fetch(&mut self, tag: RequestTag, bytes: usize, pool: &BufPool) -> Option<Bytes> {
        let device = self.device.as_mut()?;
        let mut buf = pool.take(bytes);
        match device.copy_out(tag, &mut buf[..bytes]) {
            Ok(()) => {
                buf.truncate(bytes);
                Some(buf.freeze())
            }
            Err(error) => {
                tracing::debug!(%error, "a guest's write can't be read");
                device.complete(tag, Status::IoErr);
                None
            }
        }
    }

    /// An import or export asks.
    pub(super) fn transfer(&mut self, now: Now, request: GuestRequest, answer: oneshot::Sender<GuestResult>) {
        let tag = self.tag(Origin::Transfer(answer));
        self.owner.handle_guest(clock::fresh(now), tag, request);
    }

    fn tag(&mut self, origin: Origin) -> GuestTag {
        let tag = GuestTag(self.next_tag);
        self.next_tag += 1;
        self.origins.insert(tag, origin);
        tag
    }

    /// The owner has completed a request.
    pub(super) fn complete(&mut self, now: Instant, tag: GuestTag, result: GuestResult) {
        match self.origins.remove(&tag) {
            Some(Origin::Ring(request)) => self.complete_ring(now, request, result),
            Some(Origin::Transfer(answer)) => {
                // A client that went away needs no answer.
                let _gone = answer.send(result);
            }
            None => {}
        }
    }

    fn complete_ring(&mut self, now: Instant, tag: RequestTag, result: GuestResult) {
        let Some(whole) = self.wholes.get_mut(&tag) else { return };
        whole.left -= 1;
        let mut data = None;
        match result {
            GuestResult::Done => {}
            GuestResult::Data(pieces) => data = Some(pieces),
            GuestResult::Failed(error) => {
                whole.failed = true;
                if error == GuestError::Lost {
                    tracing::error!(object = %self.owner.object(), "a guest's request failed: {error}");
                }
            }
        }
        if whole.left > 0 {
            return;
        }
        let Some(whole) = self.wholes.remove(&tag) else { return };
        self.under_way -= whole.bytes;
        let took = now.since(whole.began);
        if let Some(device) = &mut self.device {
            match data {
                Some(pieces) if !whole.failed => {
                    if let Err(error) = device.complete_read(tag, pieces.iter().map(|p| &p[..])) {
                        tracing::debug!(%error, "a guest's buffer can't be written");
                    }
                }
                _ => device.complete(tag, if whole.failed { Status::IoErr } else { Status::Ok }),
            }
        }
        self.count(&whole, took);
    }

    fn count(&mut self, whole: &Whole, took: Duration) {
        if whole.failed {
            self.stats.errors += 1;
            return;
        }
        let io: &mut IoStats = match whole.kind {
            Kind::Read => &mut self.stats.read,
            Kind::Write => &mut self.stats.write,
            Kind::Zero => &mut self.stats.zero,
            Kind::Flush => return,
        };
        io.ops += 1;
        io.bytes += whole.bytes as u64;
        io.latency.add(took);
    }
}

fn zero(range: &SectorRange) -> GuestRequest {
    GuestRequest::Zero { offset: range.first.bytes(), bytes: u64::from(range.count) * 512 }
}
