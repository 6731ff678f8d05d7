//! A client that has to live through faults: what the tests of that have in common.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::checker::Checker;
use crate::disk::LoopDisk;
use crate::host::Host;
use crate::lab::Lab;
use crate::workload::{Workload, WorkloadOptions};

/// A fault lasts at least so long: longer than any time-out for silence and than a lease is renewed.
const FAULT: Duration = Duration::from_secs(6);
/// How long all may take to be whole again.
pub const HEAL_MAX: Duration = Duration::from_secs(90);

/// A cluster of three whose third host has a disk that can freeze and fail.
pub fn form_with_loop_disk(lab: &Lab) -> Result<Arc<LoopDisk>> {
    lab.form_without_disks()?;
    for host in [lab.host(1), lab.host(2)] {
        host.add_disk(&host.disks_dir().join("a"), "2G")?;
    }
    let disk = lab.loop_disk(lab.host(3), "xfs", 3 << 30)?;
    lab.host(3).add_disk(disk.mount(), "2G")?;
    lab.wait_healthy(HEAL_MAX)?;
    Ok(disk)
}

/// The volume `data` of two chunks, open on `owner`, with a client.
pub fn begin(owner: &Host, policy: &str, seed: u64) -> Result<Workload> {
    owner.create("data", "2G", policy)?;
    let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(seed))?;
    load.progress(300, Duration::from_secs(30))?;
    Ok(load)
}

/// Brings a fault about, lets the client go on, reads during it all that was written, ends the fault, waits until all is whole
/// again, and reads it again. No request of the client's may take longer than `stall_max`.
pub fn survive(
    lab: &Lab,
    load: &mut Workload,
    what: &str,
    stall_max: Duration,
    fault: impl FnOnce() -> Result<()>,
    mend: impl FnOnce() -> Result<()>,
) -> Result<()> {
    load.take_longest();
    let began = Instant::now();
    fault().context(what.to_owned())?;
    load.progress(200, Duration::from_secs(40)).context(what.to_owned())?;
    std::thread::sleep(FAULT.saturating_sub(began.elapsed()));
    load.progress(50, Duration::from_secs(10)).context(what.to_owned())?;
    let stall = load.take_longest();
    println!("{what}: the longest request took {} ms", stall.as_millis());
    load.verify().with_context(|| format!("during: {what}"))?;
    mend()?;
    lab.wait_healthy(HEAL_MAX).with_context(|| format!("after: {what}"))?;
    load.verify().with_context(|| format!("after: {what}"))?;
    ensure!(stall < stall_max, "{what}: a request took {stall:?}");
    Ok(())
}

/// Closes the volume `data`, and has each host take it over and read all of it: each copy is read where it is local.
pub fn read_everywhere(lab: &Lab, owner: &Host, load: Workload) -> Result<()> {
    let mut checker = load.finish()?;
    owner.ctl_ok(&["volume", "close", "data"])?;
    for host in lab.hosts() {
        checker = Workload::start(&host.open("data")?, checker, WorkloadOptions::new(1))?.finish()?;
        host.ctl_ok(&["volume", "close", "data"])?;
    }
    println!("{} writes checked on every host", checker.writes());
    Ok(())
}
