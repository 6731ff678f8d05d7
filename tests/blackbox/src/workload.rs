//! A client of a volume in a thread of its own: reads and writes against the checker, many at once, and goes on over a
//! restart of the daemon as a VMM does.
//!
//! ```text
//!   running ──hang-up──▶ reconnecting (rings and in-flight region kept) ──▶ running
//!      │
//!      └─ verify: drain, read everything twice, check ──▶ running
//! ```
//!
//! A request that fails, one that is not answered within [`ANSWER_MAX`], and a read that brings what can't be there end the
//! thread with an error, which [`Workload::verify`] and [`Workload::finish`] hand out.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ferro_vhost::blk::{Sector, SectorRange};
use ferro_vhost::frontend::{BlkClient, ClientOptions, FrontendError, Op, Ticket};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::checker::{Checker, Ending, ReadId, SECTOR_BYTES, WriteId};

/// The longest that a request may take before the client gives up: faults here last less.
pub const ANSWER_MAX: Duration = Duration::from_secs(75);
/// The longest request.
const REQUEST_SECTORS: u64 = 128;
const GIB_SECTORS: u64 = (1 << 30) / SECTOR_BYTES as u64;
const MIB_SECTORS: u64 = (1 << 20) / SECTOR_BYTES as u64;

/// What a workload does.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// The seed of its dice.
    pub seed: u64,
    /// Requests under way at once.
    pub depth: u16,
    /// The parts of the volume that are used, in sectors.
    pub regions: Vec<Range<u64>>,
    /// At most so many requests a second, so that the machine has time for the faults.
    pub per_second: u32,
}

impl WorkloadOptions {
    /// Of a volume with at least two chunks: some of the first and across the border between them.
    pub fn new(seed: u64) -> Self {
        let regions = vec![0..6 * MIB_SECTORS, GIB_SECTORS - 3 * MIB_SECTORS..GIB_SECTORS + 3 * MIB_SECTORS];
        Self { seed, depth: 8, regions, per_second: 2_000 }
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests that were answered.
    pub done: u64,
    /// The longest that one took, since the last question.
    pub longest: Duration,
    /// Restarts of the daemon that were gone through.
    pub reconnects: u64,
    /// When the request was begun that has waited for longest.
    pub oldest: Option<Instant>,
}

enum Command {
    Verify(Sender<()>),
    Stop,
}

/// A running client.
pub struct Workload {
    commands: Sender<Command>,
    stats: Arc<Mutex<Stats>>,
    abandoned: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Checker>>>,
}

impl Workload {
    /// Connects and begins.
    pub fn start(socket: &Path, checker: Checker, options: WorkloadOptions) -> Result<Self> {
        let (commands, orders) = channel();
        let stats = Arc::new(Mutex::new(Stats::default()));
        let abandoned = Arc::new(AtomicBool::new(false));
        let mut client =
            Client::connect(socket, checker, options, Arc::clone(&stats), Arc::clone(&abandoned))?;
        let thread = std::thread::Builder::new().name("workload".to_owned()).spawn(move || {
            client.run(&orders)?;
            Ok(client.checker)
        })?;
        Ok(Self { commands, stats, abandoned, thread: Some(thread) })
    }

    fn stats_now(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        *self.stats_now()
    }

    /// The longest that any request took since the last call, one that is still waited for included.
    pub fn take_longest(&self) -> Duration {
        let mut stats = self.stats_now();
        let waiting = stats.oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed());
        std::mem::take(&mut stats.longest).max(waiting)
    }

    /// Waits until so many more requests were answered.
    pub fn progress(&mut self, requests: u64, limit: Duration) -> Result<()> {
        let (began, from) = (Instant::now(), self.stats().done);
        while self.stats().done < from + requests {
            self.alive()?;
            ensure!(
                began.elapsed() < limit,
                "only {} of {requests} requests were answered within {limit:?}",
                self.stats().done - from
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Fails if the thread has ended, with its error.
    fn alive(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.join()?;
        bail!("the workload has ended by itself")
    }

    fn join(&mut self) -> Result<Checker> {
        let thread = self.thread.take().context("the workload has ended already")?;
        thread.join().map_err(|_| anyhow!("the workload has panicked"))?
    }

    /// Reads all that is looked after, twice, and checks it; then goes on.
    pub fn verify(&mut self) -> Result<()> {
        let (done, answer) = channel();
        if self.commands.send(Command::Verify(done)).is_err() || answer.recv().is_err() {
            self.alive()?;
        }
        Ok(())
    }

    /// Waits for all answers, reads everything twice, checks it, and ends.
    pub fn finish(mut self) -> Result<Checker> {
        self.verify()?;
        let _ended = self.commands.send(Command::Stop);
        self.join()
    }

    /// Ends at once, with writes under way, as when a virtual machine is killed. They may happen or not, until the checker is
    /// told otherwise ([`Checker::give_up`]).
    pub fn abandon(mut self) -> Result<Checker> {
        self.abandoned.store(true, Ordering::SeqCst);
        self.join()
    }
}

enum Request {
    Read(ReadId, Range<u64>),
    Write(WriteId, Range<u64>),
    Flush,
}

struct Pending {
    request: Request,
    began: Instant,
}

struct Client {
    socket: PathBuf,
    blk: BlkClient,
    checker: Checker,
    options: WorkloadOptions,
    dice: StdRng,
    pending: HashMap<Ticket, Pending>,
    stats: Arc<Mutex<Stats>>,
    abandoned: Arc<AtomicBool>,
    began: Instant,
    begun: u64,
}

impl Client {
    fn connect(
        socket: &Path,
        checker: Checker,
        options: WorkloadOptions,
        stats: Arc<Mutex<Stats>>,
        abandoned: Arc<AtomicBool>,
    ) -> Result<Self> {
        let client = ClientOptions {
            depth: options.depth,
            data_bytes_max: (REQUEST_SECTORS as u32) * SECTOR_BYTES as u32,
            segment_bytes: 16 << 10,
            ..ClientOptions::default()
        };
        let blk = BlkClient::connect(socket, client)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        blk.back_channel().set_nonblocking(true)?;
        Ok(Self {
            socket: socket.to_owned(),
            blk,
            checker,
            dice: StdRng::seed_from_u64(options.seed),
            options,
            pending: HashMap::new(),
            stats,
            abandoned,
            began: Instant::now(),
            begun: 0,
        })
    }

    fn run(&mut self, orders: &Receiver<Command>) -> Result<()> {
        loop {
            match orders.try_recv() {
                Ok(Command::Verify(done)) => {
                    self.verify()?;
                    // Whoever asked may be gone.
                    let _gone = done.send(());
                }
                Ok(Command::Stop) => return self.drain(),
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) if self.is_abandoned() => return Ok(()),
                Err(TryRecvError::Empty) => {}
            }
            let due = (self.began.elapsed().as_secs_f64() * f64::from(self.options.per_second)) as u64;
            while self.pending.len() < usize::from(self.options.depth) && self.begun < due {
                self.begin_any()?;
            }
            // After a pause it does not make up for what it did not do.
            self.begun = self.begun.max(due.saturating_sub(u64::from(self.options.depth)));
            self.reap()?;
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    fn begin_any(&mut self) -> Result<()> {
        self.begun += 1;
        let region = self.options.regions[self.dice.random_range(0..self.options.regions.len())].clone();
        let (unit, count) = match self.dice.random_range(0..100) {
            0..70 => (8, 8),
            70..80 => (1, self.dice.random_range(1..8)),
            80..90 => (8, 32),
            90..95 => (1, self.dice.random_range(9..64)),
            _ => (8, REQUEST_SECTORS),
        };
        let first =
            region.start + self.dice.random_range(0..=(region.end - region.start - count) / unit) * unit;
        let sectors = first..first + count;
        match self.dice.random_range(0..100) {
            0..60 => self.write(sectors),
            60..95 => self.read(sectors),
            95..98 => self.zero(sectors),
            _ => self.put(Request::Flush, &Op::Flush),
        }
    }

    fn put(&mut self, request: Request, op: &Op<'_>) -> Result<()> {
        let ticket = self.blk.submit(0, op)?;
        self.pending.insert(ticket, Pending { request, began: Instant::now() });
        self.publish();
        Ok(())
    }

    fn read(&mut self, sectors: Range<u64>) -> Result<()> {
        let bytes = (sectors.end - sectors.start) as u32 * SECTOR_BYTES as u32;
        let op = Op::Read(Sector(sectors.start), bytes);
        let read = self.checker.begin_read();
        self.put(Request::Read(read, sectors), &op)
    }

    fn write(&mut self, sectors: Range<u64>) -> Result<()> {
        let (id, data) = self.checker.begin_write(sectors.clone());
        let op = Op::Write(Sector(sectors.start), &data);
        self.put(Request::Write(id, sectors), &op)
    }

    fn zero(&mut self, sectors: Range<u64>) -> Result<()> {
        let id = self.checker.begin_zero(sectors.clone());
        let range =
            [SectorRange { first: Sector(sectors.start), count: (sectors.end - sectors.start) as u32 }];
        let op = if self.dice.random() { Op::Discard(&range) } else { Op::WriteZeroes(&range, true) };
        self.put(Request::Write(id, sectors), &op)
    }

    /// Takes what was answered; waits a moment if nothing was.
    fn reap(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        match self.blk.wait(0, Duration::from_millis(5)) {
            Ok(completion) => self.complete(completion.ticket, completion.status)?,
            Err(FrontendError::Timeout(_)) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(completion) = self.blk.try_reap(0)? {
            self.complete(completion.ticket, completion.status)?;
        }
        self.publish();
        if let Some(waiting) = self.pending.values().map(|p| p.began.elapsed()).max() {
            ensure!(waiting < ANSWER_MAX, "a request was not answered within {ANSWER_MAX:?}");
        }
        if self.hung_up()? {
            self.reconnect()?;
        }
        Ok(())
    }

    fn complete(&mut self, ticket: Ticket, status: u8) -> Result<()> {
        let pending = self.pending.remove(&ticket).context("an answer to no question")?;
        let took = pending.began.elapsed();
        {
            let mut so_far = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
            so_far.done += 1;
            so_far.longest = so_far.longest.max(took);
        }
        match pending.request {
            Request::Read(read, sectors) if status == 0 => {
                let mut data = vec![0; (sectors.end - sectors.start) as usize * SECTOR_BYTES];
                self.blk.data(ticket, &mut data)?;
                self.checker.end_read(read, sectors.start, &data)?;
            }
            Request::Write(id, _) if status == 0 => self.checker.end_write(id, Ending::Acknowledged),
            Request::Flush if status == 0 => {}
            Request::Write(_, sectors) => {
                bail!("a write of sectors {sectors:?} failed with status {status} after {took:?}")
            }
            Request::Read(_, sectors) => {
                bail!("a read of sectors {sectors:?} failed with status {status} after {took:?}")
            }
            Request::Flush => bail!("a flush failed with status {status} after {took:?}"),
        }
        Ok(())
    }

    fn publish(&self) {
        let oldest = self.pending.values().map(|p| p.began).min();
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).oldest = oldest;
    }

    /// Whether the daemon is gone. What it says on its channel (the size has changed) is not of interest here.
    fn hung_up(&mut self) -> Result<bool> {
        let mut bytes = [0; 256];
        match self.blk.back_channel().read(&mut bytes) {
            Ok(0) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn reconnect(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.blk.reconnect() {
                Ok(()) => break,
                Err(_) if self.is_abandoned() => return Ok(()),
                Err(error) if began.elapsed() > ANSWER_MAX => {
                    return Err(error).with_context(|| {
                        format!("no daemon on {} for {ANSWER_MAX:?}", self.socket.display())
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        self.blk.back_channel().set_nonblocking(true)?;
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).reconnects += 1;
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            self.reap()?;
        }
        Ok(())
    }

    /// Twice: a block that changes between two reads without a write is as wrong as a lost one.
    fn verify(&mut self) -> Result<()> {
        self.drain()?;
        for _pass in 0..2 {
            for region in self.options.regions.clone() {
                for first in region.clone().step_by(REQUEST_SECTORS as usize) {
                    while self.pending.len() >= usize::from(self.options.depth) {
                        self.reap()?;
                    }
                    self.read(first..(first + REQUEST_SECTORS).min(region.end))?;
                }
            }
            self.drain()?;
        }
        Ok(())
    }
}
