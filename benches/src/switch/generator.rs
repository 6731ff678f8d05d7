//! Our load generator: two vhost-user-net front ends in one thread, for what testpmd can't send: super-frames, and single
//! frames between clients that sleep.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::net::{ETHER_BYTES, QueuePair, VirtioNetHdr, gso_type, header_flag};
use hdrhistogram::Histogram;

use crate::process::Stop;

/// Bytes of a TCP segment's payload in a 1,500-byte packet, with timestamps.
const SEGMENT_BYTES: u16 = 1_448;
/// Bytes of the Ethernet, IPv4 and TCP headers, with timestamps.
const HEADERS_BYTES: usize = ETHER_BYTES + 20 + 32;
/// 45 segments: the most that fit an IPv4 packet.
pub(super) const SUPER_FRAME_BYTES: usize = HEADERS_BYTES + 45 * SEGMENT_BYTES as usize;
/// Receive buffers as Linux gives them: pages, merged.
const RX_BUFFER_BYTES: u32 = 4096;
const PAIR: QueuePair = QueuePair(0);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Meets a switch that listens on a socket.
pub(super) fn client(socket: &Path) -> anyhow::Result<NetClient> {
    let options = NetClientOptions {
        queue_size: 1024,
        rx_buffer_bytes: RX_BUFFER_BYTES,
        ..NetClientOptions::default()
    };
    NetClient::new(NetDestination::Connect(socket.to_owned()), options)
        .with_context(|| format!("meeting the switch on {}", socket.display()))
}

fn addresses(from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    [to, from].concat()
}

/// A super-frame of one TCP stream, its checksum and segmentation still to do.
fn super_frame(from: [u8; 6], to: [u8; 6], port: u16) -> (VirtioNetHdr, Vec<u8>) {
    let mut frame = addresses(from, to);
    let packet_bytes = (SUPER_FRAME_BYTES - ETHER_BYTES) as u16;
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(packet_bytes.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    let sum =
        frame[ETHER_BYTES..].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[ETHER_BYTES + 10..ETHER_BYTES + 12].copy_from_slice(&folded.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]);
    frame.resize(SUPER_FRAME_BYTES, 0x5a);
    let header = VirtioNetHdr {
        flags: header_flag::NEEDS_CSUM,
        gso_type: gso_type::TCPV4,
        hdr_len: HEADERS_BYTES as u16,
        gso_size: SEGMENT_BYTES,
        csum_start: (ETHER_BYTES + 20) as u16,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    (header, frame)
}

/// A frame of an experimental protocol (IEEE 802, local experimental Ethertype 1).
fn plain_frame(from: [u8; 6], to: [u8; 6], bytes: usize) -> Vec<u8> {
    let mut frame = addresses(from, to);
    frame.extend([0x88, 0xb5]);
    frame.resize(bytes, 0);
    frame
}

/// What went from one client to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streamed {
    /// Bytes of frames that arrived.
    pub(super) bytes: u64,
    /// Frames that arrived; of frames in several buffers, about.
    pub(super) frames: u64,
    /// Over how long.
    pub(super) time: Duration,
}

/// What is streamed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    /// Super-frames, of so many TCP connections.
    Super {
        /// How many.
        flows: u16,
    },
    /// Frames of this size.
    Plain(usize),
}

/// Sends from the first client to the second as fast as the switch takes it, for `time` after a warm-up. `at` is called when
/// the time begins and when it ends.
pub(super) fn stream(
    clients: &mut [NetClient; 2],
    macs: [[u8; 6]; 2],
    what: Stream,
    time: Duration,
    stop: &Stop,
    mut at: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Streamed> {
    let [from, to] = clients;
    let bytes = match what {
        Stream::Super { .. } => SUPER_FRAME_BYTES,
        Stream::Plain(bytes) => bytes,
    };
    // Fills the slots once; afterwards they are only sent again.
    let mut slots = 0_u16;
    loop {
        let (header, frame) = match what {
            Stream::Super { flows } => super_frame(macs[0], macs[1], 40_000 + slots % flows.max(1)),
            Stream::Plain(bytes) => (VirtioNetHdr::default(), plain_frame(macs[0], macs[1], bytes)),
        };
        if !from.send_quietly(PAIR, header, &frame)? {
            break;
        }
        slots += 1;
        ensure!(slots < 4096, "the ring has no end");
    }
    from.kick(PAIR)?;
    let buffers_a_frame = (bytes as u64 + 12).div_ceil(u64::from(RX_BUFFER_BYTES));
    let mut run = |time: Duration| -> anyhow::Result<(u64, Duration)> {
        let (mut buffers, began, mut turns) = (0_u64, Instant::now(), 0_u32);
        loop {
            let sent = from.resend(PAIR, bytes, 64);
            if sent > 0 {
                from.kick(PAIR)?;
            }
            let taken = to.discard_rx(PAIR, 512);
            buffers += taken as u64;
            if sent == 0 && taken == 0 {
                std::hint::spin_loop();
            }
            turns += 1;
            if turns % 64 == 0 && began.elapsed() >= time {
                stop.check()?;
                return Ok((buffers, began.elapsed()));
            }
        }
    };
    run(Duration::from_millis(500))?;
    at()?;
    let (buffers, took) = run(time)?;
    at()?;
    ensure!(buffers > 0, "no frame came through the switch");
    let frames = buffers / buffers_a_frame;
    Ok(Streamed { bytes: frames * bytes as u64, frames, time: took })
}

/// How long small frames took, nanoseconds.
pub(super) struct Times {
    /// There and back.
    pub(super) round: Histogram<u64>,
    /// There.
    pub(super) way: Histogram<u64>,
}

impl Times {
    pub(super) fn new() -> anyhow::Result<Self> {
        let empty = Histogram::new_with_bounds(1, 1_000_000_000, 3)?;
        Ok(Self { round: empty.clone(), way: empty })
    }
}

/// Frames from one client to another that sleep, each after a pause, for `time`. With `answers` each is waited for and
/// answered.
pub(super) fn ping_pong(
    clients: [NetClient; 2],
    macs: [[u8; 6]; 2],
    (time, pause, answers): (Duration, Duration, bool),
    stop: &Stop,
) -> anyhow::Result<Times> {
    const SENT_AT: std::ops::Range<usize> = ETHER_BYTES..ETHER_BYTES + 8;
    let [mut here, mut there] = clients;
    let (mut ping, pong) = (plain_frame(macs[0], macs[1], 64), plain_frame(macs[1], macs[0], 64));
    let origin = Instant::now();
    let since = move || origin.elapsed().as_nanos() as u64;
    let done = std::sync::atomic::AtomicBool::new(false);
    let over = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| -> anyhow::Result<Histogram<u64>> {
            let (mut frame, mut way) = (Vec::new(), Times::new()?.way);
            while !over() {
                if there.recv(PAIR, &mut frame, Duration::from_millis(100)).is_ok() {
                    let arrived = since();
                    if answers {
                        there.send(PAIR, VirtioNetHdr::default(), &pong)?;
                    }
                    let sent = frame.get(SENT_AT).and_then(|bytes| bytes.try_into().ok());
                    let sent = u64::from_le_bytes(sent.context("a short frame")?);
                    way.saturating_record(arrived.saturating_sub(sent));
                }
            }
            Ok(way)
        });
        let mut asked = || -> anyhow::Result<Histogram<u64>> {
            let mut round = Times::new()?.round;
            let mut frame = Vec::new();
            while origin.elapsed() < time {
                stop.sleep(pause)?;
                let sent = since();
                ping[SENT_AT].copy_from_slice(&sent.to_le_bytes());
                here.send(PAIR, VirtioNetHdr::default(), &ping)?;
                if answers {
                    here.recv(PAIR, &mut frame, ANSWER_TIMEOUT).context("no answer through the switch")?;
                    round.saturating_record(since() - sent);
                }
            }
            Ok(round)
        };
        let result = asked();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let answered = answering.join().map_err(|_| anyhow::anyhow!("the answering client panicked"))?;
        result.and_then(|round| answered.map(|way| Times { round, way }))
    })
}
