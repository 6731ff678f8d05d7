//! A volume's guest that writes and reads whole MiB, each with content of its own, until the disks are full.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions, FrontendError, Op, Ticket};

use crate::Host;

/// Bytes of one.
pub const MIB: usize = 1 << 20;
/// A write that takes longer waits for room.
const WRITE_MAX: Duration = Duration::from_secs(15);

/// A client that writes so much at once.
pub fn connect(host: &Host, volume: &str) -> Result<BlkClient> {
    let options = ClientOptions { data_bytes_max: MIB as u32, ..ClientOptions::default() };
    Ok(BlkClient::connect(&host.open(volume)?, options)?)
}

/// What is written to this one.
pub fn content(mib: u64) -> Vec<u8> {
    let words = (0..MIB as u64 / 8).map(|word| (mib << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Where it is.
pub fn sector(mib: u64) -> Sector {
    Sector(mib * (MIB / 512) as u64)
}

/// Writes these.
pub fn write(client: &mut BlkClient, mibs: std::ops::Range<u64>) -> Result<()> {
    for mib in mibs {
        client.write(sector(mib), &content(mib)).with_context(|| format!("MiB {mib}"))?;
    }
    Ok(())
}

/// Reads these: they must be what was written.
pub fn verify(client: &mut BlkClient, mibs: std::ops::Range<u64>) -> Result<()> {
    let mut read = vec![0; MIB];
    for mib in mibs {
        client.read(sector(mib), &mut read)?;
        ensure!(read == content(mib), "MiB {mib} is not what was written");
    }
    Ok(())
}

/// Writes from the beginning until a write waits: its place and itself.
pub fn fill(client: &mut BlkClient, mibs: u64) -> Result<(u64, Ticket)> {
    for mib in 0..mibs {
        let ticket = client.submit(0, &Op::Write(sector(mib), &content(mib)))?;
        match client.wait(0, WRITE_MAX) {
            Ok(done) => ensure!(done.status == 0, "MiB {mib}: status {}", done.status),
            Err(FrontendError::Timeout(_)) => return Ok((mib, ticket)),
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("{mibs} MiB fit")
}
