//! A source of random numbers (virtio 1.2, 5.4): the host kernel's `getrandom`, at a bounded rate.
//!
//! A guest needs some hundred bytes at its start and little later. One that asks for more gets it as the bucket fills, so
//! that it can't keep a host's processor busy with it. What waits meanwhile stays in the ring: nothing is half taken.

use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use tracing::warn;
use vm_memory::GuestMemoryMmap;

use super::ring::{Ring, RingFault};
use super::worker::{Service, Worker};
use super::{Active, ConfigChange, Device, DeviceKind, IN_PROCESS_FEATURES};
use crate::state::{DeviceState, RestoreError};
use crate::threads::Threads;
use crate::virtio::vhost_user::QUEUE_SIZE;

/// Bytes a second that a guest gets in the long run.
pub const BYTES_PER_SECOND: u64 = 1 << 20;
/// Bytes that it gets at once.
pub const BURST_BYTES: u64 = 64 << 10;
/// Most bytes that one request gets; a driver asks again for more.
pub const REQUEST_MAX: usize = 4096;
/// What a request costs at least, so that many small ones are bounded too.
const COST_MIN: u64 = 64;

/// How much may be given now: a bucket that fills with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    bytes: u64,
    at: Option<Instant>,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let more = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).saturating_mul(BYTES_PER_SECOND)
            / 1_000_000;
        // A time too short to bring a byte is not forgotten.
        if more > 0 || self.at.is_none() {
            self.bytes = self.bytes.saturating_add(more).min(BURST_BYTES);
            self.at = Some(now);
        }
    }

    /// When there is enough for a whole request.
    fn enough_at(&self, now: Instant) -> Option<Instant> {
        let missing = (REQUEST_MAX as u64).saturating_sub(self.bytes);
        (missing > 0).then(|| now + Duration::from_micros(missing * 1_000_000 / BYTES_PER_SECOND))
    }
}

struct Source {
    bucket: Bucket,
}

impl Source {
    fn serve_ring(&mut self, ring: &mut Ring, now: Instant) -> Result<Option<Instant>, RingFault> {
        let bucket = &mut self.bucket;
        bucket.fill(now);
        for _ in 0..ring.size() {
            if let Some(later) = bucket.enough_at(now) {
                ring.tell()?;
                return Ok(Some(later));
            }
            let Some(chain) = ring.take()? else {
                ring.tell()?;
                let more = ring.listen()?;
                return Ok(more.then_some(now));
            };
            let mut bytes = [0; REQUEST_MAX];
            let wanted = chain.writable_bytes().min(REQUEST_MAX as u64) as usize;
            let got = random(&mut bytes[..wanted]);
            let written = ring.write(&chain, &bytes[..got])?;
            bucket.bytes = bucket.bytes.saturating_sub(u64::from(written).max(COST_MIN));
            ring.give_back(chain.head(), written)?;
        }
        ring.tell()?;
        Ok(Some(now))
    }
}

/// What serves the ring, with a full bucket.
pub(super) fn source() -> impl Service {
    Source { bucket: Bucket { bytes: BURST_BYTES, at: None } }
}

/// Fills the buffer, as far as the host has something; how far.
fn random(buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match getrandom(&mut buffer[done..], GetRandomFlags::NONBLOCK) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            // A host whose own generator is not seeded yet. The guest gets an empty answer, and asks again.
            Err(error) => {
                warn!("random numbers for the guest: {error}");
                break;
            }
        }
    }
    done
}

impl Service for Source {
    fn begin(&mut self, _: u64) {}

    fn serve(&mut self, rings: &mut [Ring], now: Instant) -> Result<Option<Instant>, RingFault> {
        match rings.first_mut() {
            Some(ring) => self.serve_ring(ring, now),
            None => Ok(None),
        }
    }
}

/// The device.
#[derive(Debug)]
pub struct Rng {
    worker: Worker,
    change: ConfigChange,
}

impl Rng {
    /// A device for a VM with this memory, and its thread.
    pub fn new(memory: GuestMemoryMmap, threads: &Threads) -> std::io::Result<Self> {
        let change = ConfigChange::default();
        let worker = Worker::start("virtio-rng", source(), memory, change.clone(), threads)?;
        Ok(Self { worker, change })
    }
}

impl Device for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        IN_PROCESS_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_read(&self, _: usize, _: &mut [u8]) {}

    fn config_change(&self) -> ConfigChange {
        self.change.clone()
    }

    fn activate(&mut self, active: Active) {
        self.worker.activate(active);
    }

    fn reset(&mut self) {
        self.worker.reset();
    }

    /// The bucket is full again afterwards: that is a matter of the host.
    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn check(&self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Rng => Ok(()),
            _ => Err(RestoreError::Damaged("a source of random numbers with another device's state")),
        }
    }

    fn restore(&mut self, _: &DeviceState) -> Result<(), RestoreError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket { bytes: BURST_BYTES, at: None };
        bucket.fill(start);
        assert_eq!((bucket.bytes, bucket.enough_at(start)), (BURST_BYTES, None));
        bucket.bytes = 0;
        let later = bucket.enough_at(start).expect("it is empty");
        assert_eq!(later - start, Duration::from_micros(4096 * 1_000_000 / BYTES_PER_SECOND));
        // A thousand looks do not bring more than the time that has passed.
        for micros in 1..=1000 {
            bucket.fill(start + Duration::from_micros(micros));
        }
        assert!((1000..=1049).contains(&bucket.bytes), "{}", bucket.bytes);
        bucket.fill(start + Duration::from_secs(3600));
        assert_eq!(bucket.bytes, BURST_BYTES);
        bucket.fill(start);
        assert_eq!(bucket.bytes, BURST_BYTES, "a clock that goes back changes nothing");
    }
}
