//! The console of a VM under QEMU: what our own vmm does by itself (the newest client has the console and first sees the last
//! 4 KiB; the log is renamed when it has its size), done beside QEMU, which does neither.
//!
//! ```text
//!   guest ── QEMU's serial port ── serial.sock ── here ── console.sock ── the newest client
//!                   └── console.log, by QEMU itself: nothing is lost while no daemon is here
//! ```
//!
//! What a guest prints is never waited for: of what a client does not read in time, it misses the oldest.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// What a client sees first.
const TAIL_BYTES: usize = 4096;
const PIECE: usize = 4096;
/// Bytes that wait for a client that reads slowly.
const WAITING_MAX: usize = 1 << 20;
/// Pieces of input that wait for the guest.
const TYPED_MAX: usize = 4;
/// How long it is waited when a client can't be let in.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// How often the log's size is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where everything is.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// QEMU's end.
    pub(super) serial: PathBuf,
    /// Our end, for clients.
    pub(super) console: PathBuf,
    /// The log that QEMU writes.
    pub(super) log: PathBuf,
    /// How large that may become.
    pub(super) log_bytes: u64,
    /// The group that may use the console.
    pub(super) group: String,
}

/// A console that is served until this is dropped, or QEMU has gone.
#[derive(Debug)]
pub(super) struct Console(JoinHandle<()>);

impl Drop for Console {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Console {
    /// Serves the console of a QEMU that runs.
    pub(super) async fn serve(places: Places) -> io::Result<Self> {
        let serial = UnixStream::connect(&places.serial).await?;
        let listener = ferro_transport::local::bind_async(&places.console, Some(&places.group));
        let listener = listener.map_err(io::Error::other)?;
        let tail = end_of(&places.log, TAIL_BYTES).unwrap_or_default().into();
        Ok(Self(tokio::spawn(run(places, serial, listener, tail))))
    }
}

/// What waits for a client. It is counted in bytes: QEMU hands over what a guest prints a few bytes at a time.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Mutex<VecDeque<u8>>,
    filled: Notify,
}

impl Backlog {
    fn bytes(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, piece: &[u8]) {
        keep_last(&mut self.bytes(), piece, WAITING_MAX);
        self.filled.notify_one();
    }

    /// What is there next, once there is something.
    async fn next(&self) -> Vec<u8> {
        loop {
            let next: Vec<u8> = {
                let mut bytes = self.bytes();
                let count = bytes.len().min(PIECE);
                bytes.drain(..count).collect()
            };
            if !next.is_empty() {
                return next;
            }
            self.filled.notified().await;
        }
    }
}

/// Somebody who has the console.
struct Client {
    backlog: Arc<Backlog>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

impl Client {
    fn new(stream: UnixStream, typed: mpsc::Sender<Vec<u8>>) -> Self {
        let (read, mut write) = stream.into_split();
        let backlog = Arc::<Backlog>::default();
        let printed = Arc::clone(&backlog);
        let writer =
            tokio::spawn(async move { while write.write_all(&printed.next().await).await.is_ok() {} });
        let reader = tokio::spawn(pump(read, typed));
        Self { backlog, tasks: [writer, reader] }
    }
}

async fn pump(mut from: impl AsyncReadExt + Unpin, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(buffer[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

async fn run(places: Places, serial: UnixStream, listener: UnixListener, mut tail: VecDeque<u8>) {
    let (mut from_guest, mut to_guest): (OwnedReadHalf, _) = serial.into_split();
    let (typed, mut types) = mpsc::channel::<Vec<u8>>(TYPED_MAX);
    // Apart, because a guest that does not read must not hold up what it prints.
    let typing = tokio::spawn(async move {
        while let Some(piece) = types.recv().await {
            if to_guest.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let mut client: Option<Client> = None;
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut buffer = vec![0; PIECE];
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Too many files are open, perhaps: that does not go away by asking at once again.
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                };
                let new = Client::new(stream, typed.clone());
                new.backlog.add(tail.make_contiguous());
                client = Some(new);
            }
            count = from_guest.read(&mut buffer) => {
                let Ok(count @ 1..) = count else { break };
                let piece = &buffer[..count];
                keep_last(&mut tail, piece, TAIL_BYTES);
                if let Some(client) = &client {
                    client.backlog.add(piece);
                }
            }
            _ = look.tick() => {
                if let Err(error) = renew(&places.log, places.log_bytes) {
                    tracing::warn!(log = %places.log.display(), %error, "a console's log can't be begun anew");
                }
            }
        }
    }
    typing.abort();
    if let Err(error) = ferro_transport::local::remove(&places.console) {
        tracing::debug!(%error, "a console's socket is gone already");
    }
}

/// Adds bytes; of more than `most`, the oldest go.
fn keep_last(queue: &mut VecDeque<u8>, bytes: &[u8], most: usize) {
    queue.extend(bytes);
    queue.drain(..queue.len().saturating_sub(most));
}

/// The last bytes of a file.
fn end_of(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes as u64)))?;
    let mut end = Vec::new();
    file.take(bytes as u64).read_to_end(&mut end)?;
    Ok(end)
}

/// Begins a log anew that has its size. QEMU has it open and appends to it, so it is copied and emptied where it is; what is
/// printed in that instant is lost to the log.
fn renew(log: &Path, bytes_max: u64) -> io::Result<()> {
    match fs::metadata(log) {
        Ok(meta) if meta.len() <= bytes_max => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let mut old = log.as_os_str().to_owned();
    old.push(".1");
    // Whatever has been printed until no daemon was here: at most the last part is kept.
    fs::write(&old, end_of(log, usize::try_from(bytes_max).unwrap_or(usize::MAX))?)?;
    OpenOptions::new().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than a socket takes in pieces of a byte.
    const LATE_BYTES: usize = 200_000;

    async fn read_until(stream: &mut UnixStream, word: &str) -> String {
        let mut seen = Vec::new();
        let reading = async {
            let mut buffer = [0; 1024];
            while !String::from_utf8_lossy(&seen).contains(word) {
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "it ended before {word:?}: {:?}", String::from_utf8_lossy(&seen));
                seen.extend_from_slice(&buffer[..count]);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reading).await.expect(word);
        String::from_utf8_lossy(&seen).into_owned()
    }

    #[tokio::test]
    async fn the_newest_client_has_the_console_and_sees_its_end_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("console.log"), format!("{}before ", "x".repeat(8000))).unwrap();
        let qemu = UnixListener::bind(path("serial.sock")).unwrap();
        let places = Places {
            serial: path("serial.sock"),
            console: path("console.sock"),
            log: path("console.log"),
            log_bytes: 1 << 20,
            group: "no-such-group-here".to_owned(),
        };
        let console = Console::serve(places).await.unwrap();
        let (mut guest, _) = qemu.accept().await.unwrap();
        let mut first = UnixStream::connect(path("console.sock")).await.unwrap();
        let seen = read_until(&mut first, "before ").await;
        assert_eq!(seen.len(), TAIL_BYTES);
        guest.write_all(b"login: ").await.unwrap();
        read_until(&mut first, "login: ").await;
        first.write_all(b"root\n").await.unwrap();
        read_until(&mut guest, "root\n").await;

        let mut second = UnixStream::connect(path("console.sock")).await.unwrap();
        assert!(read_until(&mut second, "login: ").await.contains("before login: "));
        let mut rest = Vec::new();
        first.read_to_end(&mut rest).await.unwrap();
        second.write_all(b"who\n").await.unwrap();
        read_until(&mut guest, "who\n").await;

        // One that reads late has missed nothing, whatever the size of the pieces.
        for _ in 0..LATE_BYTES {
            guest.write_all(b"z").await.unwrap();
        }
        guest.write_all(b"end").await.unwrap();
        assert_eq!(read_until(&mut second, "end").await.matches('z').count(), LATE_BYTES);

        // One that does not read holds up nobody, and misses the oldest.
        let flood = vec![b'y'; 4 << 20];
        let flooding = async {
            guest.write_all(&flood).await.unwrap();
            guest.write_all(b"last words").await.unwrap();
        };
        tokio::time::timeout(Duration::from_secs(20), flooding).await.unwrap();
        let seen = read_until(&mut second, "last words").await;
        assert!((WAITING_MAX..3 << 20).contains(&seen.len()), "{}", seen.len());
        let mut third = UnixStream::connect(path("console.sock")).await.unwrap();
        read_until(&mut third, "yyy").await;

        drop(guest);
        let ended = async { third.read_to_end(&mut rest).await.unwrap() };
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
        drop(console);
    }

    #[test]
    fn a_log_with_its_size_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        renew(&log, 10).unwrap();
        fs::write(&log, "0123456789").unwrap();
        renew(&log, 10).unwrap();
        assert!(!dir.path().join("console.log.1").exists());
        // As QEMU has it open.
        let mut open = OpenOptions::new().append(true).open(&log).unwrap();
        io::Write::write_all(&mut open, b"abc").unwrap();
        renew(&log, 10).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("console.log.1")).unwrap(), "3456789abc");
        io::Write::write_all(&mut open, b"new").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "new");
    }
}
