//! A memory balloon (virtio 1.2, 5.5): the guest gives memory back to the host.
//!
//! ```text
//!   BalloonHandle::set_target ──► configuration, interrupt ──► the guest inflates or deflates
//!   ring 0  inflate    numbers of pages that the guest does without ──┐
//!   ring 4  reporting  ranges that are free just now ─────────────────┴──► holes in the memory's file
//!   ring 1  deflate    pages that it takes again: they come back, as zeros, when it touches them
//!   ring 2  statistics one buffer, which the device keeps and gives back when somebody asks for newer ones
//! ```
//!
//! Memory that is punched out of the file is free for the host at once, also for what the back ends have mapped. A guest
//! can lie and touch what it gave away: it finds zeros there, and uses memory that it is entitled to anyway.
//!
//! **Which ring is which.** By the standard a ring keeps its number if an earlier one is not there. Linux before 6.11
//! counts only those that are, and we offer no free page hints (ring 3): so any ring above the statistics' is one of
//! reports.
//!
//! **Poison.** A guest that fills free pages with a pattern, and says so, wants to find it there again. Holes read as
//! zeros, so pages are punched only if the pattern is zero.

mod config;
mod pages;
mod stats;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;

use super::ring::{Head, Ring, RingFault};
use super::vhost_user::QUEUE_SIZE;
use super::worker::{Service, Waker, Worker};
use super::{Active, ConfigChange, Device, DeviceKind, IN_PROCESS_FEATURES};
use crate::machine::lock;
use crate::state::{self, DeviceState, RestoreError};
use crate::threads::Threads;
use config::Config;
use pages::Pages;
pub use pages::PagesError;
pub use stats::Statistics;

/// `VIRTIO_BALLOON_F_STATS_VQ`.
pub const STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest may take pages back before it kills a program.
pub const DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_POISON`.
pub const PAGE_POISON: u64 = 1 << 4;
/// `VIRTIO_BALLOON_F_REPORTING`.
pub const REPORTING: u64 = 1 << 5;

const QUEUES: usize = 5;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS_RING: u16 = 2;
/// Most bytes of page numbers in a request: 256 MiB of pages. Linux sends a thousand bytes at a time.
const NUMBERS_BYTES_MAX: u64 = 256 << 10;
/// Between two times that the guest is asked for statistics.
const STATISTICS_EVERY: Duration = Duration::from_secs(1);

/// What a balloon does, as somebody who manages the VM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonState {
    /// How much the guest should give back, in bytes.
    pub target_bytes: u64,
    /// How much it has given back by inflating, in bytes.
    pub actual_bytes: u64,
    /// How much it has reported as free and so returned, since its start, in bytes; it may have been used again.
    pub reported_bytes: u64,
    /// What its driver said last.
    pub statistics: Option<Statistics>,
}

/// Why a target can't be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a balloon of {wanted} bytes leaves nothing of the VM's {memory}: ask for less than that")]
pub struct TargetError {
    /// What was asked for, in bytes.
    pub wanted: u64,
    /// The VM's memory, in bytes.
    pub memory: u64,
}

/// What processors, thread and handles have in common.
#[derive(Debug, Default)]
struct Shared {
    config: Config,
    reported_bytes: u64,
    statistics: Option<Statistics>,
    /// Somebody wants newer ones.
    statistics_wanted: bool,
}

/// For those who manage the VM. Nothing here waits for the guest.
#[derive(Debug, Clone)]
pub struct BalloonHandle {
    shared: Arc<Mutex<Shared>>,
    change: ConfigChange,
    waker: Waker,
    memory_bytes: u64,
}

impl BalloonHandle {
    /// Tells the guest how much memory to do without: whole pages of 4 KiB, rounded down.
    pub fn set_target(&self, bytes: u64) -> Result<(), TargetError> {
        if bytes >= self.memory_bytes {
            return Err(TargetError { wanted: bytes, memory: self.memory_bytes });
        }
        lock(&self.shared).config.set_target(bytes);
        self.change.changed();
        Ok(())
    }

    /// What it does now. Newer statistics are asked for at the same time, for the next one who looks.
    pub fn state(&self) -> BalloonState {
        let mut shared = lock(&self.shared);
        shared.statistics_wanted = true;
        let state = BalloonState {
            target_bytes: shared.config.target_bytes(),
            actual_bytes: shared.config.actual_bytes(),
            reported_bytes: shared.reported_bytes,
            statistics: shared.statistics,
        };
        drop(shared);
        self.waker.wake();
        state
    }
}

/// The device.
#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Mutex<Shared>>,
    worker: Worker,
    change: ConfigChange,
    memory_bytes: u64,
}

impl Balloon {
    /// A device for a VM with this memory, which has to be of files, and its thread.
    pub fn new(memory: GuestMemoryMmap, threads: &Threads) -> Result<Self, PagesError> {
        let pages = Pages::of(&memory)?;
        let memory_bytes = pages.bytes();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let change = ConfigChange::default();
        let bag = Bag { shared: Arc::clone(&shared), pages, features: 0, kept: None, asked_at: None };
        let worker = Worker::start("virtio-balloon", bag, memory, change.clone(), threads)
            .map_err(PagesError::Thread)?;
        Ok(Self { shared, worker, change, memory_bytes })
    }

    /// For those who manage the VM.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle {
            shared: Arc::clone(&self.shared),
            change: self.change.clone(),
            waker: self.worker.waker(),
            memory_bytes: self.memory_bytes,
        }
    }
}

impl Device for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        IN_PROCESS_FEATURES | STATISTICS | DEFLATE_ON_OOM | PAGE_POISON | REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        lock(&self.shared).config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        lock(&self.shared).config.write(offset, data);
    }

    fn config_change(&self) -> ConfigChange {
        self.change.clone()
    }

    fn activate(&mut self, active: Active) {
        self.worker.activate(active);
    }

    /// The target stays: it is ours. What the guest has inflated is its own again.
    fn reset(&mut self) {
        let mut shared = lock(&self.shared);
        shared.config.forget_driver();
        shared.statistics = None;
        drop(shared);
        self.worker.reset();
    }

    fn save(&self) -> DeviceState {
        let shared = lock(&self.shared);
        let reported_bytes = shared.reported_bytes;
        DeviceState::Balloon(state::BalloonState { reported_bytes, ..shared.config.save() })
    }

    fn check(&self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Balloon(_) => Ok(()),
            _ => Err(RestoreError::Damaged("a balloon with another device's state")),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if let DeviceState::Balloon(state) = state {
            let mut shared = lock(&self.shared);
            shared.config = Config::restored(state);
            shared.reported_bytes = state.reported_bytes;
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.worker.is_quiet()
    }

    fn hold(&mut self, still: bool) {
        self.worker.hold(still);
    }

    fn is_held(&self) -> bool {
        self.worker.is_quiet()
    }
}

/// The thread's half.
struct Bag {
    shared: Arc<Mutex<Shared>>,
    pages: Pages,
    features: u64,
    /// The buffer for statistics that the guest waits for.
    kept: Option<Head>,
    asked_at: Option<Instant>,
}

/// What serves the rings of a balloon of its own.
pub(super) fn bag(memory: &GuestMemoryMmap) -> Result<impl Service, PagesError> {
    let pages = Pages::of(memory)?;
    Ok(Bag { shared: Arc::default(), pages, features: 0, kept: None, asked_at: None })
}

impl Bag {
    fn serve_ring(&mut self, ring: &mut Ring, now: Instant) -> Result<Option<Instant>, RingFault> {
        for _ in 0..ring.size() {
            let Some(chain) = ring.take()? else {
                ring.tell()?;
                return Ok(ring.listen()?.then_some(now));
            };
            match ring.index() {
                INFLATE => {
                    if chain.readable_bytes() > NUMBERS_BYTES_MAX {
                        return Err(RingFault::Request(INFLATE, "too many pages at once"));
                    }
                    let numbers = ring.read(&chain, NUMBERS_BYTES_MAX as usize)?;
                    self.pages.give_away(&numbers).map_err(|what| RingFault::Request(INFLATE, what))?;
                }
                // They come back when they are touched.
                DEFLATE => {}
                STATISTICS_RING if self.features & STATISTICS != 0 => {
                    self.read_statistics(ring, &chain)?;
                    continue;
                }
                reporting => {
                    if self.features & REPORTING == 0 {
                        return Err(RingFault::Request(reporting, "it was not agreed on"));
                    }
                    self.take_report(reporting, chain.writable())?;
                }
            }
            ring.give_back(chain.head(), 0)?;
        }
        ring.tell()?;
        Ok(Some(now))
    }

    fn take_report(&self, ring: u16, ranges: &[super::ring::Buffer]) -> Result<(), RingFault> {
        let poisoned = self.features & PAGE_POISON != 0 && lock(&self.shared).config.poison() != 0;
        if poisoned {
            return Ok(());
        }
        let bytes = self.pages.give_away_ranges(ranges).map_err(|what| RingFault::Request(ring, what))?;
        lock(&self.shared).reported_bytes += bytes;
        Ok(())
    }

    /// Keeps the buffer; one that was kept before goes back, as the guest seems to have more than one.
    fn read_statistics(&mut self, ring: &mut Ring, chain: &super::ring::Chain) -> Result<(), RingFault> {
        let bytes = ring.read(chain, stats::BYTES_MAX)?;
        let mut shared = lock(&self.shared);
        shared.statistics = Some(Statistics::parse(&bytes));
        drop(shared);
        if let Some(before) = self.kept.replace(chain.head()) {
            ring.give_back(before, 0)?;
        }
        Ok(())
    }

    /// Gives the buffer back if somebody wants newer statistics; when to do so if it is too early.
    fn ask(&mut self, ring: &mut Ring, now: Instant) -> Result<Option<Instant>, RingFault> {
        let mut shared = lock(&self.shared);
        let (true, Some(head)) = (shared.statistics_wanted, self.kept) else { return Ok(None) };
        let early = self.asked_at.map(|at| at + STATISTICS_EVERY).filter(|next| *next > now);
        if early.is_some() {
            return Ok(early);
        }
        shared.statistics_wanted = false;
        drop(shared);
        (self.kept, self.asked_at) = (None, Some(now));
        ring.give_back(head, 0)?;
        ring.tell()?;
        Ok(None)
    }
}

impl Service for Bag {
    fn begin(&mut self, features: u64) {
        self.features = features;
        // What was kept is still in the ring, and comes again.
        self.kept = None;
    }

    fn serve(&mut self, rings: &mut [Ring], now: Instant) -> Result<Option<Instant>, RingFault> {
        let mut again = None;
        let mut sooner = |time: Option<Instant>| {
            again = [again, time].into_iter().flatten().min();
        };
        for ring in rings {
            sooner(self.serve_ring(ring, now)?);
            if ring.index() == STATISTICS_RING && self.features & STATISTICS != 0 {
                sooner(self.ask(ring, now)?);
            }
        }
        Ok(again)
    }
}
