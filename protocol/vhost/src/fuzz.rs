//! Entry points for fuzzers: bytes in, a verdict out. No thread, no clock, no file but anonymous ones.

mod net;

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vhost::vhost_user::BackendReqHandler;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub use net::{NetImageOptions, NetVerdict, RX_RING, net_image};

use crate::blk::{BlkDevice, BlkSettings, Request, RequestKind, Sector, Status};
use crate::error::SessionError;
use crate::event::{Command, Link, Notifier, Reply, ReplySlot, RingSetup};
use crate::inflight::{InflightRegion, InflightShape};
use crate::memory::GuestMap;
use crate::server::{ServerSettings, Session, SharedConfig, handle_one};
use crate::{DeviceBroken, QueueIndex};

/// Bytes of the guest memory of [`ring_image`].
pub const IMAGE_BYTES: usize = 256 << 10;
/// Descriptors of its ring.
pub const IMAGE_RING_SIZE: u16 = 64;
/// Its descriptor table.
pub const IMAGE_TABLE: u64 = 0;
/// Its available ring.
pub const IMAGE_AVAIL: u64 = 0x1000;
/// Its used ring.
pub const IMAGE_USED: u64 = 0x2000;
/// Sectors of its disk.
pub const IMAGE_SECTORS: u64 = 4096;
/// Most requests that are carried out: a ring image can't grow, but it may wrap round.
const REQUESTS_MAX: usize = 1024;

/// What became of a ring image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests that were handed out, in order.
    pub requests: Vec<RequestKind>,
    /// Chains that were taken, those answered at once included.
    pub taken: usize,
    /// Why the device stopped, if it did.
    pub broken: Option<DeviceBroken>,
}

/// How the ring of an image is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageOptions {
    /// `EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Indirect descriptors were not negotiated.
    pub no_indirect: bool,
    /// Use these bytes as the in-flight region's first ones.
    pub inflight: bool,
}

fn device() -> Result<BlkDevice, SessionError> {
    let mut settings = BlkSettings::new(Sector(IMAGE_SECTORS), "fuzz");
    settings.queues = 2;
    let config = Arc::new(SharedConfig::new(settings.config_space())?);
    Ok(BlkDevice::new(settings, None, config))
}

fn apply(device: &mut BlkDevice, command: Command) -> Result<Reply, SessionError> {
    let (tx, rx) = sync_channel(1);
    device.rings_mut().apply(command, ReplySlot::new(tx));
    match rx.try_recv() {
        Ok(Reply::Refused(error)) => Err(error),
        Ok(reply) => Ok(reply),
        Err(_) => Err(SessionError::LoopTimeout(Duration::ZERO)),
    }
}

/// Takes and carries out all that the rings hold; data go to and come from nowhere.
fn run(device: &mut BlkDevice) -> (Vec<RequestKind>, usize) {
    let (mut kinds, mut taken) = (Vec::new(), 0);
    device.disarm();
    while taken < REQUESTS_MAX {
        let mut requests = Vec::new();
        let outcome = device.poll(16, &mut |request| requests.push(request));
        taken += outcome.taken;
        for request in requests {
            kinds.push(request.kind.clone());
            carry_out(device, &request);
        }
        device.flush_notifications();
        if outcome.taken == 0 && !device.arm() {
            break;
        }
    }
    (kinds, taken)
}

fn carry_out(device: &mut BlkDevice, request: &Request) {
    let mut buffer = vec![0u8; request.data_bytes() as usize];
    let status = match request.kind {
        RequestKind::Read { .. } => {
            // The outcome is in the ring, which is what matters here.
            let _ = device.complete_read(request.tag, [&buffer[..]]);
            return;
        }
        RequestKind::Write { .. } if device.copy_out(request.tag, &mut buffer).is_err() => Status::IoErr,
        _ => Status::Ok,
    };
    device.complete(request.tag, status);
}

/// Runs one ring over a guest memory image (cut or padded to [`IMAGE_BYTES`]).
///
/// With `inflight`, what follows the image is the content of the in-flight region.
pub fn ring_image(image: &[u8], options: ImageOptions) -> Result<Verdict, SessionError> {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), IMAGE_BYTES)])
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let (image, region) = image.split_at(image.len().min(IMAGE_BYTES));
    mem.write_slice(image, GuestAddress(0)).map_err(std::io::Error::other)?;
    let mut device = device()?;
    apply(&mut device, Command::Attach)?;
    apply(&mut device, Command::SetMemory(Arc::new(GuestMap::anonymous(mem))))?;
    if options.inflight {
        let region = inflight_region(region)?;
        apply(&mut device, Command::SetInflight(Arc::new(region)))?;
    }
    let setup = RingSetup {
        size: IMAGE_RING_SIZE,
        table: GuestAddress(IMAGE_TABLE),
        avail: GuestAddress(IMAGE_AVAIL),
        used: GuestAddress(IMAGE_USED),
        base: 0,
        kick: None,
        call: None,
        err: None,
        enabled: true,
        event_idx: options.event_idx,
        indirect: !options.no_indirect,
        features: 0,
    };
    apply(&mut device, Command::Start(QueueIndex(0), Box::new(setup)))?;
    let (requests, taken) = run(&mut device);
    let broken = device.rings().broken().cloned();
    // Whatever happened, the ring can be stopped.
    apply(&mut device, Command::Stop(QueueIndex(0)))?;
    Ok(Verdict { requests, taken, broken })
}

fn inflight_region(content: &[u8]) -> Result<InflightRegion, SessionError> {
    use std::os::unix::fs::FileExt;
    let shape = InflightShape { queues: 1, queue_size: IMAGE_RING_SIZE };
    let file = crate::inflight::create(shape)?;
    let len = content.len().min(shape.bytes() as usize);
    file.write_all_at(&content[..len], 0)?;
    Ok(InflightRegion::map(file, 0, shape.bytes(), shape)?)
}

struct InlineLink(Arc<Mutex<BlkDevice>>);

impl Link for InlineLink {
    fn call(&mut self, command: Command, _timeout: Duration) -> Result<Reply, SessionError> {
        apply(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), command)
    }
}

/// Bytes of a message record's head in [`messages`].
const RECORD_HEAD: usize = 4;
const HEADER_BYTES: usize = 12;

/// Plays vhost-user messages to a session, and runs the rings after each. Returns how many were accepted.
///
/// The input is a list of records: request code, flags (0: the version only), kind of descriptor to attach (0: none, 1:
/// memory, 2: eventfd, 3: socket; of them so many as the high half says, at least one), payload length; then the payload.
/// Flag bit 7 replaces the length field by a wrong one.
pub fn messages(input: &[u8]) -> Result<usize, SessionError> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let device = Arc::new(Mutex::new(device()?));
    let config = Arc::new(SharedConfig::new(BlkSettings::new(Sector(64), "fuzz").config_space())?);
    let mut settings = ServerSettings::new("fuzz");
    settings.queues = 2;
    let session = Session::new(settings, config, InlineLink(Arc::clone(&device)));
    let session = Arc::new(Mutex::new(session));
    let peer = theirs.try_clone()?;
    let mut handler = BackendReqHandler::from_stream(theirs, Arc::clone(&session));
    let mut accepted = 0;
    let mut rest = input;
    while let Some((head, tail)) = rest.split_first_chunk::<RECORD_HEAD>() {
        let (payload, tail) = tail.split_at(tail.len().min(usize::from(head[3])));
        rest = tail;
        send(&ours, *head, payload)?;
        let served = handle_one(&peer, &session, &mut handler);
        run(&mut device.lock().unwrap_or_else(PoisonError::into_inner));
        let mut replies = [0u8; 4096];
        while (&ours).read(&mut replies).is_ok_and(|bytes| bytes > 0) {}
        match served {
            Ok(true) => accepted += 1,
            Ok(false) | Err(_) => break,
        }
    }
    Ok(accepted)
}

fn send(ours: &UnixStream, head: [u8; RECORD_HEAD], payload: &[u8]) -> Result<(), SessionError> {
    let [code, flags, attach, _] = head;
    let size = payload.len() as u32 + if flags & 0x80 != 0 { 4096 } else { 0 };
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend_from_slice(&u32::from(code).to_ne_bytes());
    message.extend_from_slice(&(1 | u32::from(flags & 0x0e)).to_ne_bytes());
    message.extend_from_slice(&size.to_ne_bytes());
    message.extend_from_slice(payload);
    let count = usize::from(attach >> 4).max(1);
    let mut files: Vec<OwnedFd> = Vec::new();
    for _ in 0..count {
        match attach & 0x0f {
            1 => files.push(crate::inflight::create(InflightShape { queues: 4, queue_size: 1024 })?.into()),
            2 => files.push(Notifier::eventfd()?),
            3 => files.push(UnixStream::pair()?.0.into()),
            _ => {}
        }
    }
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    ours.send_with_fds(&[&message[..]], &fds)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
    if flags & 0x80 != 0 {
        // A short message is followed by a hang-up, else the receiver would wait for the rest.
        ours.shutdown(std::net::Shutdown::Write)?;
    }
    Ok(())
}
