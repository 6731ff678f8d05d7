//! A guest memory image with a network device's two rings.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{IMAGE_AVAIL, IMAGE_BYTES, IMAGE_RING_SIZE, IMAGE_TABLE, IMAGE_USED};
use crate::error::SessionError;
use crate::event::{Command, Reply, ReplySlot, RingSetup};
use crate::memory::GuestMap;
use crate::net::{
    FRAME_BYTES_MAX, NetDevice, NetSettings, QueuePair, RxRefusal, TxBatch, TxOutcome, VirtioNetHdr, feature,
    gso_type, header_flag,
};
use crate::server::SharedConfig;
use crate::{DeviceBroken, QueueIndex};

/// What has to be added to the addresses of an image's ring with the guest's frames for those of the ring with its
/// receive buffers.
pub const RX_RING: u64 = 0x1_0000;

/// How the rings of an image are run.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetImageOptions {
    /// `EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Indirect descriptors were not negotiated.
    pub no_indirect: bool,
    /// `MRG_RXBUF` was negotiated.
    pub mergeable: bool,
    /// No feature but that was: neither version 1 nor an offload.
    pub legacy: bool,
}

/// What became of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetVerdict {
    /// Headers and lengths of the guest's frames, in order.
    pub frames: Vec<(VirtioNetHdr, usize)>,
    /// Chains that were taken, by what became of them.
    pub outcome: TxOutcome,
    /// Bytes of each frame that was given to the guest, and what came of it.
    pub given: Vec<(usize, Result<(), RxRefusal>)>,
    /// Why the device stopped, if it did.
    pub broken: Option<DeviceBroken>,
}

/// Frames that are offered to the guest of an image.
fn offered() -> [(VirtioNetHdr, usize); 6] {
    let plain = VirtioNetHdr::default();
    let tso = VirtioNetHdr {
        flags: header_flag::NEEDS_CSUM,
        gso_type: gso_type::TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    [(plain, 60), (plain, 1514), (tso, 5000), (plain, 60), (tso, FRAME_BYTES_MAX), (plain, 60)]
}

fn apply(device: &mut NetDevice, command: Command) -> Result<Reply, SessionError> {
    let (tx, rx) = sync_channel(1);
    device.apply(command, ReplySlot::new(tx));
    match rx.try_recv() {
        Ok(Reply::Refused(error)) => Err(error),
        Ok(reply) => Ok(reply),
        Err(_) => Err(SessionError::LoopGone),
    }
}

/// Runs a network device over a guest memory image (cut or padded to [`IMAGE_BYTES`]): takes all of its frames, gives it
/// some, and stops it.
pub fn net_image(image: &[u8], options: NetImageOptions) -> Result<NetVerdict, SessionError> {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), IMAGE_BYTES)])
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    mem.write_slice(&image[..image.len().min(IMAGE_BYTES)], GuestAddress(0))
        .map_err(std::io::Error::other)?;
    let settings = NetSettings { pairs: 1, ..NetSettings::default() };
    let config = Arc::new(SharedConfig::new(settings.config_space(true, false))?);
    let mut features = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1 | settings.offered();
    if options.legacy {
        features = 0;
    }
    features &= !feature::MRG_RXBUF;
    if options.mergeable {
        features |= feature::MRG_RXBUF;
    }
    let mut device = NetDevice::new(settings, None, config);
    apply(&mut device, Command::Attach)?;
    apply(&mut device, Command::SetMemory(Arc::new(GuestMap::anonymous(mem))))?;
    for (queue, shift) in [(0, RX_RING), (1, 0)] {
        let setup = RingSetup {
            size: IMAGE_RING_SIZE,
            table: GuestAddress(IMAGE_TABLE + shift),
            avail: GuestAddress(IMAGE_AVAIL + shift),
            used: GuestAddress(IMAGE_USED + shift),
            base: 0,
            kick: None,
            call: None,
            err: None,
            enabled: true,
            event_idx: options.event_idx,
            indirect: !options.no_indirect,
            features,
        };
        apply(&mut device, Command::Start(QueueIndex(queue), Box::new(setup)))?;
    }
    let mut verdict = NetVerdict::default();
    take(&mut device, &mut verdict);
    let frame = vec![0x5a; FRAME_BYTES_MAX];
    for (header, bytes) in offered() {
        let (first, second) = frame[..bytes].split_at(bytes / 3);
        let result = device.push_rx(QueuePair(0), header, &[first, &[], second]);
        verdict.given.push((bytes, result));
        device.flush_notifications();
    }
    verdict.broken = device.broken().cloned();
    // Whatever happened, the rings can be stopped.
    for queue in [0, 1] {
        apply(&mut device, Command::Stop(QueueIndex(queue)))?;
    }
    Ok(verdict)
}

/// Takes all frames; an image can't grow, but what is written may change it, and its ring may wrap round.
fn take(device: &mut NetDevice, verdict: &mut NetVerdict) {
    let mut batch = TxBatch::new(16, 4 * FRAME_BYTES_MAX);
    device.disarm();
    for _ in 0..64 {
        batch.clear();
        let outcome = device.poll_tx(QueuePair(0), 16, &mut batch);
        verdict.frames.extend(batch.iter().map(|(header, frame)| (header, frame.len())));
        let sum = &mut verdict.outcome;
        sum.frames += outcome.frames;
        sum.bad_length += outcome.bad_length;
        sum.bad_header += outcome.bad_header;
        sum.disabled += outcome.disabled;
        device.flush_notifications();
        if !outcome.more && !device.arm() {
            break;
        }
    }
}
