//! The vmm's own front ends with a test in place of the guest: its devices, its threads, its reconnection and its regions of
//! requests in flight are the product's; only the processor and the kernel are missing.
//!
//! ```text
//!   test ── DriverRing ──▶ memory ◀── vsand, vswitchd        vmm::VhostUser ── socket ──▶ vsand, vswitchd
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferro_vhost::frontend::{DriverRing, GuestRam, RingDescriptor};
use vm_memory::GuestAddress;
use vmm::outside::BackEnd;
use vmm::threads::Threads;
use vmm::virtio::vhost_user::{QUEUE_SIZE, Role, VhostUser};
use vmm::virtio::{Active, ActiveQueue, Device, VERSION_1};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
/// How long a device may take to forget everything.
const RESET_MAX: Duration = Duration::from_secs(20);

struct Queue {
    ring: DriverRing,
    kick: Arc<EventFd>,
    /// Chains that the device has, by their heads.
    given: Vec<bool>,
    /// How many chains were given to the device, and how many it has given back.
    counts: (u64, u64),
}

/// A device whose driver is the test. After the rings its memory has room for buffers.
pub struct FrontEnd {
    device: VhostUser,
    ram: GuestRam,
    queues: Vec<Queue>,
    buffers: u64,
}

impl FrontEnd {
    /// Connects, with so many bytes for buffers, and starts the rings as a driver does.
    pub fn start(socket: &Path, role: Role, queues: u16, buffer_bytes: u64) -> Result<Self> {
        let ring_bytes = DriverRing::bytes(QUEUE_SIZE);
        let buffers = ring_bytes * u64::from(queues);
        let ram = GuestRam::new((buffers + buffer_bytes).next_multiple_of(4096))?;
        let device =
            VhostUser::connect(BackEnd::at(socket.to_owned()), role, ram.mem().clone(), &Threads::default())?;
        let mut made = Vec::new();
        for index in 0..queues {
            let at = GuestAddress(ring_bytes * u64::from(index));
            let ring = DriverRing::new(ram.mem().clone(), at, QUEUE_SIZE, true)?;
            let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
            made.push(Queue { ring, kick, given: vec![false; usize::from(QUEUE_SIZE)], counts: (0, 0) });
        }
        let mut front_end = Self { device, ram, queues: made, buffers };
        ensure!(front_end.device.features() & EVENT_IDX != 0, "the back end has no event index");
        let active = front_end.active();
        front_end.device.activate(active);
        Ok(front_end)
    }

    fn active(&self) -> Active {
        let queue = |(index, queue): (u16, &Queue)| {
            let (descriptors, driver, device) = queue.ring.addrs();
            let kick = Arc::clone(&queue.kick);
            ActiveQueue { index, size: QUEUE_SIZE, descriptors, driver, device, kick, call: None }
        };
        let queues = (0..).zip(&self.queues).map(queue).collect();
        Active { features: VERSION_1 | EVENT_IDX, queues }
    }

    /// The memory, and where in it buffers begin.
    pub fn memory(&self) -> (&GuestRam, u64) {
        (&self.ram, self.buffers)
    }

    /// Gives a chain to the device.
    pub fn give(&mut self, queue: u16, chain: &[RingDescriptor]) -> Result<u16> {
        let queue = &mut self.queues[usize::from(queue)];
        let head = queue.ring.add(chain, None)?.context("the ring is full")?;
        ensure!(!std::mem::replace(&mut queue.given[usize::from(head)], true), "head {head} twice");
        queue.counts.0 += 1;
        if queue.ring.needs_kick()? {
            queue.kick.write(1)?;
        }
        Ok(head)
    }

    /// A chain that has come back, and how many bytes the device says that it wrote. One that the device does not have is
    /// an error.
    pub fn take(&mut self, queue: u16) -> Result<Option<(u16, u32)>> {
        let number = queue;
        let queue = &mut self.queues[usize::from(queue)];
        let Some((head, bytes)) = queue.ring.reap()? else { return Ok(None) };
        ensure!(
            std::mem::replace(&mut queue.given[usize::from(head)], false),
            "queue {number}: chain {head} has come back twice"
        );
        queue.counts.1 += 1;
        Ok(Some((head, bytes)))
    }

    /// How many chains the device has.
    pub fn with_device(&self, queue: u16) -> u64 {
        let (given, taken) = self.queues[usize::from(queue)].counts;
        given - taken
    }

    /// Chains that were given, and have come back, in all.
    pub fn counts(&self, queue: u16) -> (u64, u64) {
        self.queues[usize::from(queue)].counts
    }

    /// The device forgets everything, as when a guest ends, and says when it has.
    pub fn reset(mut self) -> Result<()> {
        self.device.reset();
        let until = Instant::now() + RESET_MAX;
        while !self.device.is_quiet() {
            if Instant::now() > until {
                bail!("a reset is not over after {RESET_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
