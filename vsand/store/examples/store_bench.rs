//! How fast one store is on this machine: `cargo run --release -p vsand-store --example store_bench -- DIR [SECONDS]`.
//!
//! Makes a disk of 6 GiB in DIR/store-bench, and removes it. One thread is the loop, as in the daemon; it sleeps in the ring.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, ClusterId, DiskId, Epoch, HostId, ObjectId, Seq, Version};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vsand_core::disk::{DiskOp, DiskReply, Ticket};
use vsand_store::{AlignedBuf, Completion, FormatOptions, Ring, Store, StoreConfig, StoreStats};

const CHUNKS: u32 = 2;

struct Bench {
    store: Store,
    ring: Ring,
    start: Instant,
    rng: ChaCha8Rng,
    seq: u64,
    data: Bytes,
    completions: Vec<Completion>,
}

#[derive(Clone, Copy)]
enum Kind {
    Write,
    Read,
}

impl Bench {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn op(&mut self, kind: Kind, range: BlockRange, index: u32) -> DiskOp {
        let chunk = ChunkId { object: ObjectId::from_bytes([9; 16]), index: ChunkIndex(index) };
        self.seq += 1;
        match kind {
            Kind::Read => DiskOp::Read { chunk, range },
            Kind::Write => DiskOp::Write {
                chunk,
                range,
                version: Version { epoch: Epoch(1), seq: Seq(self.seq) },
                watermark: Seq(self.seq.saturating_sub(100)),
                data: self.data.slice(..range.bytes()),
            },
        }
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        self.store.flush_batch(self.now(), &mut self.ring);
        self.ring.wait(Some(Duration::from_millis(100)))?;
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(usize::MAX, &mut completions);
        let now = self.now();
        for completion in completions.drain(..) {
            self.store.handle(now, &mut self.ring, completion);
        }
        self.completions = completions;
        Ok(())
    }

    /// Keeps `depth` operations of `blocks` under way. `next` gives their positions, `None` ends it.
    fn run(
        &mut self,
        name: &str,
        kind: Kind,
        blocks: u32,
        depth: usize,
        mut next: impl FnMut(&mut ChaCha8Rng, Duration) -> Option<(u32, u32)>,
    ) -> anyhow::Result<()> {
        let before = self.store.stats();
        let begin = Instant::now();
        let cpu = cpu_seconds()?;
        let mut started: std::collections::HashMap<u64, u64> = std::collections::HashMap::new();
        let mut latencies = Vec::new();
        let mut ticket = 0;
        let mut over = false;
        loop {
            while !over && started.len() < depth {
                let elapsed = begin.elapsed();
                let Some((index, block)) = next(&mut self.rng, elapsed) else {
                    over = true;
                    break;
                };
                let op = self.op(kind, BlockRange::new(block, blocks)?, index);
                ticket += 1;
                let now = self.now();
                started.insert(ticket, now);
                self.store.submit(now, &mut self.ring, Ticket(ticket), op);
                self.finish(&mut started, &mut latencies)?;
            }
            if over && started.is_empty() {
                break;
            }
            self.turn()?;
            self.finish(&mut started, &mut latencies)?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = cpu_seconds()? - cpu;
        report(name, blocks, &mut latencies, seconds, cpu, &before, &self.store.stats());
        Ok(())
    }

    fn finish(
        &mut self,
        started: &mut std::collections::HashMap<u64, u64>,
        latencies: &mut Vec<u64>,
    ) -> anyhow::Result<()> {
        let now = self.now();
        while let Some((ticket, answer)) = self.store.poll() {
            match answer.context("the disk refuses")? {
                DiskReply::Done | DiskReply::Data(_) => {}
                other => bail!("unexpected {other:?}"),
            }
            if let Some(since) = started.remove(&ticket.0) {
                latencies.push(now - since);
            }
        }
        Ok(())
    }
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn report(
    name: &str,
    blocks: u32,
    latencies: &mut [u64],
    seconds: f64,
    cpu: f64,
    before: &StoreStats,
    after: &StoreStats,
) {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let count = latencies.len() as f64;
    println!(
        "{name:16} {:8.0}/s {:7.0} MB/s  p50 {:6.0} us  p99 {:6.0} us  cpu {:4.0} %  {:4.1} us/op  batches {} of {:.1}  destages {}  reads {}  checkpoints {}",
        count / seconds,
        count * f64::from(blocks) * BLOCK_BYTES as f64 / seconds / 1e6,
        at(0.5),
        at(0.99),
        cpu / seconds * 100.0,
        cpu / count * 1e6,
        after.batches - before.batches,
        (after.records - before.records) as f64 / ((after.batches - before.batches) as f64).max(1.0),
        after.destages - before.destages,
        after.data_reads - before.data_reads,
        after.checkpoints - before.checkpoints,
    );
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().context("usage: store_bench DIR [SECONDS]")?;
    let seconds: u64 = args.next().map_or(Ok(4), |s| s.parse())?;
    let path = Path::new(&dir).join("store-bench");
    let options = FormatOptions {
        disk: DiskId::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        host: HostId::from_bytes([3; 16]),
        capacity_bytes: 6 << 30,
        journal_bytes: Some(256 << 20),
        tiny: false,
    };
    Store::format(&path, &options)?;
    let result = bench(&path, Duration::from_secs(seconds));
    std::fs::remove_dir_all(&path)?;
    result
}

fn bench(path: &Path, time: Duration) -> anyhow::Result<()> {
    let (store, _) = Store::open(path, StoreConfig::default())?;
    let mut data = AlignedBuf::new(1 << 20);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    rng.fill(&mut data[..]);
    let mut bench = Bench {
        store,
        ring: Ring::new(256)?,
        start: Instant::now(),
        rng,
        seq: 0,
        data: data.freeze(),
        completions: Vec::new(),
    };
    let random = |rng: &mut ChaCha8Rng, elapsed: Duration| {
        (elapsed < time).then(|| (rng.random_range(0..CHUNKS), rng.random_range(0..CHUNK_BLOCKS)))
    };
    let mut at = 0;
    let mut fill = |_: &mut ChaCha8Rng, _: Duration| {
        at += 1;
        (at <= CHUNKS * 1024).then(|| ((at - 1) / 1024, (at - 1) % 1024 * 256))
    };
    let mut at = 0;
    let mut again = |_: &mut ChaCha8Rng, _: Duration| {
        at += 1;
        (at <= CHUNKS * 1024).then(|| ((at - 1) / 1024, (at - 1) % 1024 * 256))
    };
    let mut at = 0;
    let mut look = |_: &mut ChaCha8Rng, _: Duration| {
        at += 1;
        (at <= CHUNKS * 1024).then(|| ((at - 1) / 1024, (at - 1) % 1024 * 256))
    };
    bench.run("write_1m_qd8", Kind::Write, 256, 8, &mut fill)?;
    bench.run("rewrite_1m_qd8", Kind::Write, 256, 8, &mut again)?;
    bench.run("randwrite_4k_qd1", Kind::Write, 1, 1, random)?;
    bench.run("randwrite_4k_qd32", Kind::Write, 1, 32, random)?;
    bench.run("randread_4k_qd1", Kind::Read, 1, 1, random)?;
    bench.run("randread_4k_qd32", Kind::Read, 1, 32, random)?;
    bench.run("read_1m_qd8", Kind::Read, 256, 8, &mut look)?;
    Ok(())
}
