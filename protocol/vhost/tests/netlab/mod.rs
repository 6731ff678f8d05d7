//! A switch for tests: a hub of vhost-user ports, served by a poll(2) loop in a thread that tests can hold up and kill.

#![allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferro_vhost::Notifier;
use ferro_vhost::net::{
    NetDevice, NetEvent, NetSettings, QueuePair, RxRefusal, TxBatch, TxOutcome, VirtioNetHdr, serve,
};
use ferro_vhost::server::{Rendezvous, Server, ServerSettings};
use rustix::event::{PollFd, PollFlags, poll};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a port meets its front end.
#[derive(Clone)]
pub enum Meet {
    Listen(PathBuf),
    Connect(PathBuf),
}

/// What tests and loop share.
#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    /// Nothing is fetched from guests.
    pub hold: AtomicBool,
    /// Frames go back to where they came from.
    pub echo: AtomicBool,
    pub frames: AtomicU64,
    pub events: Mutex<Vec<(usize, NetEvent)>>,
    pub refused: Mutex<Vec<RxRefusal>>,
    pub outcome: Mutex<TxOutcome>,
    pub receiving: Mutex<Vec<Vec<QueuePair>>>,
    /// To be done by the loop to the first port.
    pub errand: Mutex<Option<fn(&mut NetDevice)>>,
}

pub struct Switch {
    pub shared: Arc<Shared>,
    pub servers: Vec<Server>,
    wake: Notifier,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    pub fn listening(paths: &[PathBuf], settings: &NetSettings) -> Self {
        Self::start(&paths.iter().cloned().map(Meet::Listen).collect::<Vec<_>>(), settings)
    }

    pub fn start(ports: &[Meet], settings: &NetSettings) -> Self {
        let (mut servers, mut devices) = (Vec::new(), Vec::new());
        for port in ports {
            let rendezvous = match port {
                Meet::Listen(path) => {
                    let _ = std::fs::remove_file(path);
                    Rendezvous::Listen(UnixListener::bind(path).unwrap())
                }
                Meet::Connect(path) => Rendezvous::Connect(path.clone()),
            };
            let (server, device) = serve(rendezvous, settings.clone(), ServerSettings::new("port")).unwrap();
            servers.push(server);
            devices.push(device);
        }
        let shared = Arc::new(Shared::default());
        let wake = Notifier::new().unwrap();
        let thread = std::thread::spawn({
            let (shared, wake) = (Arc::clone(&shared), wake.clone());
            move || Loop { devices, shared, batch: TxBatch::new(64, 1 << 20) }.run(&wake)
        });
        Self { shared, servers, wake, thread: Some(thread) }
    }

    /// Has the loop look at what the test changed.
    pub fn nudge(&self) {
        self.wake.signal();
    }

    pub fn run(&self, errand: fn(&mut NetDevice)) {
        *self.shared.errand.lock().unwrap() = Some(errand);
        self.nudge();
        eventually("the errand", || self.shared.errand.lock().unwrap().is_none());
    }

    pub fn hold(&self, hold: bool) {
        self.shared.hold.store(hold, Ordering::SeqCst);
        self.nudge();
    }

    pub fn saw(&self, port: usize, event: &NetEvent) -> bool {
        self.shared.events.lock().unwrap().contains(&(port, event.clone()))
    }

    /// Ends as kill -9 does.
    pub fn kill(mut self) {
        self.end();
        for server in &self.servers {
            server.stop();
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake.signal();
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.end();
    }
}

struct Loop {
    devices: Vec<NetDevice>,
    shared: Arc<Shared>,
    batch: TxBatch,
}

impl Loop {
    fn run(mut self, wake: &Notifier) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            for device in &mut self.devices {
                device.disarm();
                device.control();
            }
            self.events();
            let errand = *self.shared.errand.lock().unwrap();
            if let Some(errand) = errand {
                errand(&mut self.devices[0]);
                *self.shared.errand.lock().unwrap() = None;
            }
            let receiving = self.devices.iter().map(|device| device.receiving().to_vec()).collect();
            *self.shared.receiving.lock().unwrap() = receiving;
            let held = self.shared.hold.load(Ordering::SeqCst);
            let mut more = false;
            for port in 0..self.devices.len() {
                more |= !held && self.forward(port);
            }
            self.devices.iter_mut().for_each(NetDevice::flush_notifications);
            self.events();
            if !more && (held || !self.arm()) {
                self.sleep(wake);
            }
        }
    }

    fn events(&mut self) {
        for (port, device) in self.devices.iter_mut().enumerate() {
            while let Some(event) = device.poll_event() {
                self.shared.events.lock().unwrap().push((port, event));
            }
        }
    }

    fn forward(&mut self, port: usize) -> bool {
        let pairs: Vec<QueuePair> = self.devices[port].sending().collect();
        let mut more = false;
        for pair in pairs {
            self.batch.clear();
            let outcome = self.devices[port].poll_tx(pair, 64, &mut self.batch);
            more |= outcome.more;
            {
                let mut sum = self.shared.outcome.lock().unwrap();
                sum.bad_length += outcome.bad_length;
                sum.bad_header += outcome.bad_header;
                sum.disabled += outcome.disabled;
            }
            for (header, frame) in self.batch.iter() {
                let echo = self.shared.echo.load(Ordering::SeqCst);
                for (to, device) in self.devices.iter_mut().enumerate() {
                    if (to == port) != echo {
                        continue;
                    }
                    let (first, rest) = frame.split_at(frame.len() / 4);
                    let receiver = device.receiver_of(u32::from(pair.0)).unwrap_or(QueuePair(0));
                    if let Err(refusal) = device.push_rx(receiver, header, &[first, rest]) {
                        self.shared.refused.lock().unwrap().push(refusal);
                    }
                }
            }
            // Counted when all is done with them.
            self.shared.frames.fetch_add(outcome.frames as u64, Ordering::SeqCst);
        }
        more
    }

    fn arm(&mut self) -> bool {
        // All of them, whatever the first says.
        self.devices.iter_mut().filter_map(|device| device.arm().then_some(())).count() > 0
    }

    fn sleep(&self, wake: &Notifier) {
        let kicks: Vec<_> = self.devices.iter().flat_map(NetDevice::kicks).collect();
        let controls: Vec<_> = self.devices.iter().map(|device| device.control_notifier().unwrap()).collect();
        let mut fds = vec![PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
        fds.extend(controls.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        fds.extend(kicks.iter().map(|kick| PollFd::from_borrowed_fd(kick.fd.as_fd(), PollFlags::IN)));
        poll(&mut fds, None).unwrap();
        wake.drain();
        for kick in &kicks {
            kick.fd.drain();
        }
    }
}

pub fn sockets<const N: usize>() -> (tempfile::TempDir, [PathBuf; N]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = std::array::from_fn(|port| dir.path().join(format!("port{port}.sock")));
    (dir, paths)
}

pub fn path_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

pub fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seed.wrapping_mul(31).wrapping_add(at * 7) >> 2) as u8).collect()
}

pub const PLAIN: VirtioNetHdr = VirtioNetHdr {
    flags: 0,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};

/// Waits for something that another thread does.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
