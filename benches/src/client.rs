//! The client: a vhost-user-blk front end that nobody here wrote (`blkio`'s `virtio-blk-vhost-user` driver), and the
//! loop that keeps a workload's requests in flight.
//!
//! ```text
//!   attach ──► self-check ──► run(workload) … run(workload) ──► drop (disconnect)
//!
//!   run:  submit `depth` ─► wait for ≥ 1 completion ─► record each, submit one for each ─┐
//!                                   ▲                                                     │
//!                                   └─────────────────────────────────────────────────────┘
//! ```
//!
//! The memory it shares with the back end is one memfd: random bytes that writes are taken from, then one slot for each
//! request in flight that reads go to.
//!
//! What it must not know: whose back end it talks to.

use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::ptr::with_exposed_provenance_mut;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use blkio::{Blkio, Blkioq, Completion, Errno, MemoryRegion, ReqFlags};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use crate::measure::{ClientMode, Figures, Latencies};
use crate::process::Stop;
use crate::usage::{self, Watched};
use crate::workload::{Access, DEPTH_MAX, LARGE_BYTES, SMALL_BYTES, Times, Until, VOLUME_BYTES, Workload};

/// Random bytes that writes are taken from: too many for any compressor's window to find the repetition.
const SOURCE_BYTES: usize = 32 << 20;
const SLOTS_BYTES: usize = DEPTH_MAX * LARGE_BYTES;
/// How long the back end may take to answer the vhost-user handshake.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a wait lasts before we look whether we were asked to stop.
const WAIT_STEP: Duration = Duration::from_secs(1);
/// How long no request may complete before the run fails.
const STALL_MAX: Duration = Duration::from_secs(30);

/// A connection to a vhost-user-blk socket.
pub struct Client {
    // Dropped before `device`, whose mapping of the rings it points into.
    queue: Blkioq,
    // Never used again, but dropping it disconnects.
    _device: Blkio,
    memory: Memory,
    volume_bytes: u64,
    random: StdRng,
}

/// What a run may need from outside.
pub struct Surroundings<'a> {
    /// Ends it early.
    pub stop: &'a Stop,
    /// Whose use of the machine to report.
    pub watched: &'a [Watched],
}

impl Client {
    /// Connects and checks that what is written is what is read.
    pub fn attach(socket: &Path, mode: ClientMode) -> anyhow::Result<Self> {
        let path = socket.to_str().context("the socket's path is not UTF-8")?.to_owned();
        let (sender, receiver) = mpsc::sync_channel(1);
        // The driver waits for the handshake without end, so it does so on a thread that can be given up.
        std::thread::spawn(move || {
            let _gone_if_given_up = sender.send(Self::connect(&path, mode));
        });
        let mut client = receiver
            .recv_timeout(ATTACH_TIMEOUT)
            .ok()
            .with_context(|| format!("no vhost-user answer in {} s", ATTACH_TIMEOUT.as_secs()))
            .and_then(|connected| connected)
            .with_context(|| format!("attaching to {}", socket.display()))?;
        client.self_check().with_context(|| format!("checking the disk at {}", socket.display()))?;
        Ok(client)
    }

    fn connect(path: &str, mode: ClientMode) -> anyhow::Result<Self> {
        let mut device = Blkio::new("virtio-blk-vhost-user")?;
        device.set_str("path", path)?;
        device.connect()?;
        let (sleeping, polling) = match mode {
            ClientMode::Sleeping => (1, 0),
            ClientMode::Polling => (0, 1),
        };
        device.set_i32("num-queues", sleeping)?;
        device.set_i32("num-poll-queues", polling)?;
        let volume_bytes = device.get_u64("capacity")?;
        let segment_bytes_max = device.get_i32("max-segment-len")?;
        ensure!(
            segment_bytes_max == 0 || segment_bytes_max as usize >= LARGE_BYTES,
            "the device takes segments of at most {segment_bytes_max} bytes; {LARGE_BYTES} are needed"
        );
        let alignment = device.get_i32("request-alignment")?;
        ensure!(
            SMALL_BYTES.is_multiple_of(alignment.max(1) as usize),
            "the device's blocks of {alignment} bytes do not divide {SMALL_BYTES}"
        );
        ensure!(
            volume_bytes >= VOLUME_BYTES,
            "the disk has {volume_bytes} bytes; the workloads need {VOLUME_BYTES}"
        );
        let mut started = device.start()?;
        let queue = started.queues.pop().or_else(|| started.poll_queues.pop()).context("no queue")?;
        let mut random = StdRng::seed_from_u64(0x5eed);
        let region = device.alloc_mem_region(SOURCE_BYTES + SLOTS_BYTES)?;
        let memory = Memory::new(region, &mut random)?;
        device.map_mem_region(&region)?;
        Ok(Self { queue, _device: device, memory, volume_bytes, random })
    }

    /// Bytes the disk says it has.
    pub fn disk_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// Runs a workload to its end.
    pub fn run(
        &mut self,
        workload: &Workload,
        until: Until,
        around: &Surroundings<'_>,
    ) -> anyhow::Result<Figures> {
        let run = Run::new(self, workload, until)?;
        run.finish(around).with_context(|| format!("workload {}", workload.name))
    }

    /// Runs a workload at a pace, in requests a second, as long as its depth allows. A request's latency counts from when it was due:
    /// one that had to wait for those before it is no quicker for that.
    pub fn run_at_pace(
        &mut self,
        workload: &Workload,
        pace: f64,
        times: Times,
        around: &Surroundings<'_>,
    ) -> anyhow::Result<Figures> {
        ensure!(pace > 0.0, "a pace of {pace} requests a second");
        let run = Run::new(self, workload, Until::Time(times))?;
        run.keep_pace(Duration::from_secs_f64(1.0 / pace), around)
            .with_context(|| format!("workload {}", workload.name))
    }

    /// Writes a megabyte and reads it back: figures of a disk that loses data are worth nothing.
    fn self_check(&mut self) -> anyhow::Result<()> {
        let stop = Stop::default();
        let mut done = Vec::with_capacity(1);
        self.queue.write(0, self.memory.source(0), LARGE_BYTES, 0, ReqFlags::empty());
        wait(&mut self.queue, &mut done, &stop)?;
        self.queue.read(0, self.memory.slot(0), LARGE_BYTES, 0, ReqFlags::empty());
        wait(&mut self.queue, &mut done, &stop)?;
        ensure!(self.memory.slot_equals_source(LARGE_BYTES)?, "it does not return what was written to it");
        Ok(())
    }
}

/// The memory shared with the back end: `SOURCE_BYTES` of random bytes, then `DEPTH_MAX` slots of `LARGE_BYTES`.
struct Memory {
    region: MemoryRegion,
    file: File,
}

impl Memory {
    fn new(region: MemoryRegion, random: &mut StdRng) -> anyhow::Result<Self> {
        // The region's bytes are reached through its memfd, which needs no unsafe code.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", region.fd))
            .context("opening the shared memory")?;
        let mut bytes = vec![0; LARGE_BYTES];
        for piece in 0..SOURCE_BYTES / LARGE_BYTES {
            random.fill_bytes(&mut bytes);
            file.write_all_at(&bytes, (piece * LARGE_BYTES) as u64).context("filling the shared memory")?;
        }
        // Touched now, so that no measured request pays for a page.
        bytes.fill(0);
        for slot in 0..DEPTH_MAX {
            file.write_all_at(&bytes, (SOURCE_BYTES + slot * LARGE_BYTES) as u64)
                .context("filling the shared memory")?;
        }
        Ok(Self { region, file })
    }

    fn source(&self, offset: usize) -> *const u8 {
        with_exposed_provenance_mut(self.region.addr + offset)
    }

    fn slot(&self, slot: usize) -> *mut u8 {
        with_exposed_provenance_mut(self.region.addr + SOURCE_BYTES + slot * LARGE_BYTES)
    }

    fn slot_equals_source(&self, bytes: usize) -> anyhow::Result<bool> {
        let mut source = vec![0; bytes];
        let mut slot = vec![0; bytes];
        self.file.read_exact_at(&mut source, 0).context("reading the shared memory")?;
        self.file.read_exact_at(&mut slot, SOURCE_BYTES as u64).context("reading the shared memory")?;
        Ok(source == slot)
    }
}

/// Waits for at least one completion and adds the slots of all that came to `done`.
fn wait(queue: &mut Blkioq, done: &mut Vec<usize>, stop: &Stop) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        stop.check()?;
        wait_for(queue, done, WAIT_STEP)?;
        if !done.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= STALL_MAX {
            bail!("no request completed in {} s: did the back end die?", STALL_MAX.as_secs());
        }
    }
}

/// Waits so long for completions and puts the slots of all that came into `done`; it may be none.
fn wait_for(queue: &mut Blkioq, done: &mut Vec<usize>, how_long: Duration) -> anyhow::Result<()> {
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH_MAX];
    let mut time_left = how_long;
    let count = match queue.do_io(&mut completions, 1, Some(&mut time_left), None) {
        Ok(count) => count,
        Err(error) if matches!(error.errno(), Errno::INTR | Errno::TIME) => 0,
        Err(error) => return Err(error).context("waiting for a completion"),
    };
    done.clear();
    for completion in &completions[..count] {
        // SAFETY: `do_io` returned `count`, and its contract is that it then has written the first `count` of them. (The
        // one unsafe block of this crate: the driver's interface offers no other way to a completion.)
        let completion = unsafe { completion.assume_init_ref() };
        if completion.ret != 0 {
            bail!("a request failed: {}", std::io::Error::from_raw_os_error(-completion.ret));
        }
        done.push(completion.user_data);
    }
    Ok(())
}

/// A request in flight, kept at the index of its slot.
#[derive(Clone, Copy)]
struct InFlight {
    is_read: bool,
    submitted: Instant,
}

/// One workload in progress.
struct Run<'a> {
    client: &'a mut Client,
    workload: &'a Workload,
    measure_from: Instant,
    end: Option<Instant>,
    left: u64,
    next_start: u64,
    in_flight: Vec<Option<InFlight>>,
    latencies: Latencies,
}

impl<'a> Run<'a> {
    fn new(client: &'a mut Client, workload: &'a Workload, until: Until) -> anyhow::Result<Self> {
        ensure!(
            workload.depth <= DEPTH_MAX && workload.block_bytes <= LARGE_BYTES,
            "a workload out of bounds"
        );
        let latencies = Latencies::new()?;
        let now = Instant::now();
        let (measure_from, end, left) = match until {
            Until::Time(times) => (now + times.ramp, Some(now + times.ramp + times.measured), u64::MAX),
            Until::Requests(count) => (now, None, count),
        };
        let in_flight = vec![None; workload.depth];
        Ok(Self { client, workload, measure_from, end, left, next_start: 0, in_flight, latencies })
    }

    fn finish(mut self, around: &Surroundings<'_>) -> anyhow::Result<Figures> {
        let mut before = None;
        let mut done = Vec::with_capacity(DEPTH_MAX);
        let mut now = Instant::now();
        for slot in 0..self.workload.depth {
            self.submit(slot, now);
        }
        while self.in_flight.iter().any(Option::is_some) {
            wait(&mut self.client.queue, &mut done, around.stop)?;
            now = Instant::now();
            if before.is_none() && now >= self.measure_from {
                before = Some(usage::sample_all(around.watched)?);
                now = Instant::now();
                // What the sampling took is not measured.
                self.measure_from = now;
            }
            for &slot in &done {
                self.complete(slot, now)?;
                self.submit(slot, now);
            }
        }
        let end = self.end.unwrap_or(now);
        let after = usage::sample_all(around.watched)?;
        let ops = self.latencies.count();
        ensure!(ops > 0, "no request completed in the measured time");
        let measured = end.saturating_duration_since(self.measure_from);
        let mut figures = self.latencies.figures(self.workload.block_bytes, measured);
        for ((process, before), after) in around.watched.iter().zip(before.iter().flatten()).zip(&after) {
            figures.daemons.push(usage::between(&process.name, before, after, ops));
        }
        Ok(figures)
    }

    /// Submits requests when they are due and a slot is free, one after the other `every` so often.
    fn keep_pace(mut self, every: Duration, around: &Surroundings<'_>) -> anyhow::Result<Figures> {
        let mut free: Vec<usize> = (0..self.workload.depth).collect();
        let mut done = Vec::with_capacity(DEPTH_MAX);
        let (mut due, mut answered) = (Instant::now(), Instant::now());
        let end = self.end.context("a pace is kept for a time")?;
        loop {
            around.stop.check()?;
            let now = Instant::now();
            while due <= now
                && due < end
                && let Some(slot) = free.pop()
            {
                self.submit(slot, due);
                due += every;
            }
            if free.len() == self.workload.depth {
                if now >= end {
                    break;
                }
                std::thread::sleep(due.min(end).saturating_duration_since(now));
                answered = Instant::now();
                continue;
            }
            let patience =
                if free.is_empty() { WAIT_STEP } else { due.saturating_duration_since(now).min(WAIT_STEP) };
            wait_for(&mut self.client.queue, &mut done, patience)?;
            let now = Instant::now();
            if !done.is_empty() {
                answered = now;
            }
            ensure!(now - answered < STALL_MAX, "no request completed in {} s", STALL_MAX.as_secs());
            for &slot in &done {
                self.complete(slot, now)?;
                free.push(slot);
            }
        }
        ensure!(self.latencies.count() > 0, "no request completed in the measured time");
        let measured = end.saturating_duration_since(self.measure_from);
        Ok(self.latencies.figures(self.workload.block_bytes, measured))
    }

    fn complete(&mut self, slot: usize, now: Instant) -> anyhow::Result<()> {
        let request = self
            .in_flight
            .get_mut(slot)
            .and_then(Option::take)
            .with_context(|| format!("a completion for slot {slot}, where no request was"))?;
        let in_time = now >= self.measure_from && self.end.is_none_or(|end| now < end);
        if in_time {
            self.latencies.record(request.is_read, now.saturating_duration_since(request.submitted));
        }
        Ok(())
    }

    /// Submits a slot's next request, unless the run is over.
    fn submit(&mut self, slot: usize, now: Instant) {
        if self.left == 0 || self.end.is_some_and(|end| now >= end) {
            return;
        }
        self.left -= 1;
        let Client { queue, memory, random, volume_bytes, .. } = &mut *self.client;
        let bytes = self.workload.block_bytes;
        let mut next = |step: u64, end: u64| {
            let start = self.next_start;
            self.next_start = if start + step < end { start + step } else { 0 };
            start
        };
        let start = match self.workload.access {
            Access::Random => random.random_range(0..VOLUME_BYTES / bytes as u64) * bytes as u64,
            Access::Sequential => next(bytes as u64, VOLUME_BYTES),
            Access::EachMib => next(1 << 20, *volume_bytes),
        };
        let is_read = random.random_range(0..100) < self.workload.read_percent;
        if is_read {
            queue.read(start, memory.slot(slot), bytes, slot, ReqFlags::empty());
        } else {
            let from = random.random_range(0..=(SOURCE_BYTES - bytes) / SMALL_BYTES) * SMALL_BYTES;
            let flags = if self.workload.flush_each { ReqFlags::FUA } else { ReqFlags::empty() };
            queue.write(start, memory.source(from), bytes, slot, flags);
        }
        self.in_flight[slot] = Some(InFlight { is_read, submitted: now });
    }
}
