//! A back end for tests: a disk in memory, served by a poll(2) loop in a thread that tests can hold up and kill.

#![allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ferro_vhost::Notifier;
use ferro_vhost::blk::{BlkDevice, BlkSettings, Request, RequestKind, Sector, SectorRange, Status, serve};
use ferro_vhost::server::{Server, ServerSettings};
use rustix::event::{PollFd, PollFlags, poll};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the test and the loop share; it outlives a killed back end, as a disk does.
#[derive(Default)]
pub struct Disk {
    pub bytes: Mutex<Vec<u8>>,
    /// Requests in the order in which they were handed out.
    pub log: Mutex<Vec<RequestKind>>,
    /// Requests are taken but not carried out.
    pub hold: AtomicBool,
    /// Only writes of even sectors are held up.
    pub hold_even: AtomicBool,
    pub flushes: AtomicU64,
    pub broken: Mutex<Option<String>>,
    /// Pending resize, sectors.
    pub resize: AtomicU64,
}

impl Disk {
    pub fn new(sectors: u64) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![0; sectors as usize * 512]), ..Self::default() })
    }
}

pub struct Backend {
    pub server: Server,
    disk: Arc<Disk>,
    stop: Arc<AtomicBool>,
    wake: Notifier,
    thread: Option<JoinHandle<()>>,
}

pub fn socket_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vol.sock");
    (dir, path)
}

impl Backend {
    pub fn start(path: &Path, disk: &Arc<Disk>) -> Self {
        let sectors = disk.bytes.lock().unwrap().len() as u64 / 512;
        Self::start_with(path, disk, BlkSettings::new(Sector(sectors), "test-disk"))
    }

    pub fn start_with(path: &Path, disk: &Arc<Disk>, settings: BlkSettings) -> Self {
        let mut server = ServerSettings::new("test");
        server.drain_timeout = Duration::from_secs(2);
        Self::start_full(path, disk, settings, server)
    }

    pub fn start_full(path: &Path, disk: &Arc<Disk>, settings: BlkSettings, server: ServerSettings) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let (server, device) = serve(listener, settings, server).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Notifier::new().unwrap();
        let thread = std::thread::spawn({
            let (disk, stop, wake) = (Arc::clone(disk), Arc::clone(&stop), wake.clone());
            move || data_loop(device, &disk, &stop, &wake)
        });
        Self { server, disk: Arc::clone(disk), stop, wake, thread: Some(thread) }
    }

    /// Has the loop look at what the test changed.
    pub fn nudge(&self) {
        self.wake.signal();
    }

    /// Ends the back end with whatever is in flight left in flight, as kill -9 does.
    pub fn kill(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.signal();
        self.thread.take().unwrap().join().unwrap();
        self.server.stop();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.signal();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}

fn data_loop(mut device: BlkDevice, disk: &Disk, stop: &AtomicBool, wake: &Notifier) {
    let mut held: Vec<Request> = Vec::new();
    loop {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        device.disarm();
        device.control();
        let sectors = disk.resize.swap(0, Ordering::SeqCst);
        if sectors != 0 {
            disk.bytes.lock().unwrap().resize(sectors as usize * 512, 0);
            device.resize(Sector(sectors));
        }
        loop {
            let mut requests = std::mem::take(&mut held);
            let outcome = device.poll(64, &mut |request| {
                disk.log.lock().unwrap().push(request.kind.clone());
                requests.push(request);
            });
            let all = disk.hold.load(Ordering::SeqCst);
            let hold_even = disk.hold_even.load(Ordering::SeqCst);
            for request in requests {
                let even = matches!(request.kind, RequestKind::Write { sector, .. } if sector.0 % 2 == 0);
                if all || hold_even && even {
                    held.push(request);
                } else {
                    carry_out(&mut device, disk, request);
                }
            }
            device.flush_notifications();
            if outcome.taken == 0 {
                break;
            }
        }
        *disk.broken.lock().unwrap() = device.rings().broken().map(ToString::to_string);
        if device.arm() {
            continue;
        }
        let kicks = device.rings().kicks();
        let control = device.rings().control_notifier().unwrap().clone();
        let mut fds = vec![
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN),
        ];
        fds.extend(kicks.iter().map(|kick| PollFd::from_borrowed_fd(kick.fd.as_fd(), PollFlags::IN)));
        poll(&mut fds, None).unwrap();
        wake.drain();
        for kick in &kicks {
            kick.fd.drain();
        }
    }
}

pub fn carry_out(device: &mut BlkDevice, disk: &Disk, request: Request) {
    let mut bytes = disk.bytes.lock().unwrap();
    let zero = |bytes: &mut Vec<u8>, range: SectorRange| {
        let at = range.first.bytes() as usize;
        bytes[at..at + range.count as usize * 512].fill(0);
    };
    match request.kind {
        RequestKind::Read { sector, bytes: len } => {
            let at = sector.bytes() as usize;
            let data = &bytes[at..at + len as usize];
            let (one, two) = data.split_at(data.len() / 3);
            // A failure has been reported to the guest; the tests look at what the guest sees.
            let _ = device.complete_read(request.tag, [one, two]);
            return;
        }
        RequestKind::Write { sector, bytes: len } => {
            let at = sector.bytes() as usize;
            if device.copy_out(request.tag, &mut bytes[at..at + len as usize]).is_err() {
                device.complete(request.tag, Status::IoErr);
                return;
            }
        }
        RequestKind::Flush => {
            disk.flushes.fetch_add(1, Ordering::SeqCst);
        }
        RequestKind::Discard(ranges) => {
            for range in ranges {
                zero(&mut bytes, range);
            }
        }
        RequestKind::WriteZeroes { ranges } => {
            for (range, _) in ranges {
                zero(&mut bytes, range);
            }
        }
    }
    device.complete(request.tag, Status::Ok);
}

pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (seed.wrapping_mul(31).wrapping_add(at * 7) >> 2) as u8).collect()
}

/// Waits for something that another thread does.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
