//! Writes pcapng (draft-ietf-opsawg-pcapng): one section, an interface for each port, times in nanoseconds.
//!
//! ```text
//!   section header ─ interface 0 ─ packet ─ packet ─ interface 1 ─ packet ─ … ─ statistics of each interface
//! ```
//!
//! Each block is `type, length, body, length`, padded to four bytes; numbers are little-endian, as the section header's
//! magic says. Interfaces may come when they are needed: before the first packet that names them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferro_protocol::net::NetName;

use super::comment;
use crate::data::capture::{Captured, Direction};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Ethernet, in the registry of link types.
const LINK_ETHERNET: u16 = 1;

const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_APPLICATION: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TIME_RESOLUTION: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_RECEIVED: u16 = 4;
const ISB_DROPPED: u16 = 5;

/// The longest option: its length has 16 bits, and it is padded.
const OPTION_BYTES_MAX: usize = 0xfffc;

/// Writes blocks to a buffer.
#[derive(Debug)]
pub struct Writer {
    snap_bytes: u32,
    interfaces: BTreeMap<NetName, u32>,
}

impl Writer {
    /// Begins a file that has so many bytes of each frame.
    pub fn new(snap_bytes: u32, out: &mut Vec<u8>) -> Self {
        block(out, SECTION_HEADER, |out| {
            out.extend_from_slice(&BYTE_ORDER.to_le_bytes());
            // Version 1.0; the length of the section is not known.
            out.extend_from_slice(&1_u16.to_le_bytes());
            out.extend_from_slice(&0_u16.to_le_bytes());
            out.extend_from_slice(&u64::MAX.to_le_bytes());
            option(out, SHB_APPLICATION, concat!("vswitchd ", env!("CARGO_PKG_VERSION")).as_bytes());
            option(out, OPT_END, &[]);
        });
        Self { snap_bytes, interfaces: BTreeMap::new() }
    }

    /// The number of an interface; a new one is written first.
    fn interface(&mut self, name: &NetName, out: &mut Vec<u8>) -> u32 {
        if let Some(number) = self.interfaces.get(name) {
            return *number;
        }
        block(out, INTERFACE, |out| {
            out.extend_from_slice(&LINK_ETHERNET.to_le_bytes());
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&self.snap_bytes.to_le_bytes());
            option(out, IF_NAME, name.as_str().as_bytes());
            // 10 to the power of minus this.
            option(out, IF_TIME_RESOLUTION, &[9]);
            option(out, OPT_END, &[]);
        });
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(name.clone(), number);
        number
    }

    /// A frame.
    pub fn frame(&mut self, frame: &Captured, out: &mut Vec<u8>) {
        let interface = self.interface(&frame.at, out);
        block(out, ENHANCED_PACKET, |out| {
            out.extend_from_slice(&interface.to_le_bytes());
            time(out, frame.time);
            out.extend_from_slice(&(frame.bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(&(frame.len as u32).to_le_bytes());
            padded(out, &frame.bytes);
            // Bits 0 and 1: inbound is what the switch receives.
            let direction: u32 = match frame.direction {
                Direction::In => 1,
                Direction::Out => 2,
            };
            option(out, EPB_FLAGS, &direction.to_le_bytes());
            if let Some(comment) = comment(frame.offload) {
                option(out, OPT_COMMENT, comment.as_bytes());
            }
            option(out, OPT_END, &[]);
        });
    }

    /// How many frames there were, and how many of them are not in the file. They are counted for the capture as a whole and
    /// stand at its first interface; a capture that has seen no frame has none, and nothing is written.
    pub fn statistics(&mut self, seen: u64, dropped: u64, out: &mut Vec<u8>) {
        if self.interfaces.is_empty() {
            return;
        }
        block(out, STATISTICS, |out| {
            out.extend_from_slice(&0_u32.to_le_bytes());
            time(out, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
            option(out, ISB_RECEIVED, &seen.to_le_bytes());
            option(out, ISB_DROPPED, &dropped.to_le_bytes());
            option(out, OPT_END, &[]);
        });
    }
}

/// Nanoseconds since 1970, the upper half first.
fn time(out: &mut Vec<u8>, since: Duration) {
    let ns = since.as_nanos() as u64;
    out.extend_from_slice(&((ns >> 32) as u32).to_le_bytes());
    out.extend_from_slice(&(ns as u32).to_le_bytes());
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = ((out.len() - begin + 4) as u32).to_le_bytes();
    out[begin + 4..begin + 8].copy_from_slice(&length);
    out.extend_from_slice(&length);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(OPTION_BYTES_MAX)];
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    padded(out, value);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len() + bytes.len().wrapping_neg() % 4, 0);
}
