//! Blocks that rot on a disk under a running cluster: a scrub finds and counts them, mends them from other copies or shards,
//! and a disk with too many of them leaves by itself.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_protocol::api::{
    ChunkPart, DiskList, EventKind, HealthReport, ObjectDetails, Redundancy, ScrubInfo, ScrubList, ScrubState,
};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions};

const SCRUB_MAX: Duration = Duration::from_secs(120);
const LEAVE_MAX: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// Of each volume.
const MIBS: u64 = 8;
/// Data lies in the first part of the file: extents are given out from its beginning.
const LOOKED_AT: u64 = 512 << 20;

/// What a block of a volume holds: a mark to find it by, and something else in each.
fn block(mark: &str, number: u64) -> Vec<u8> {
    let mut bytes = format!("{mark} {number:08} ").into_bytes();
    bytes.extend((bytes.len()..BLOCK).map(|at| (at as u64).wrapping_mul(number + 7) as u8));
    bytes
}

fn mib(mark: &str, n: u64) -> Vec<u8> {
    let blocks = (MIB / BLOCK) as u64;
    (n * blocks..(n + 1) * blocks).flat_map(|number| block(mark, number)).collect()
}

fn fill(socket: &std::path::Path, mark: &str) -> Result<BlkClient> {
    let mut client = BlkClient::connect(socket, ClientOptions::default())?;
    for n in 0..MIBS {
        client.write(Sector(n * (MIB / 512) as u64), &mib(mark, n))?;
    }
    Ok(client)
}

fn holds(client: &mut BlkClient, mark: &str) -> Result<()> {
    let mut read = vec![0; MIB];
    for n in 0..MIBS {
        client.read(Sector(n * (MIB / 512) as u64), &mut read)?;
        ensure!(read == mib(mark, n), "MiB {n} of {mark} is something else");
    }
    Ok(())
}

fn data_file(host: &Host) -> PathBuf {
    host.disks_dir().join("a").join("data")
}

/// Where blocks with this mark lie in a host's disk.
fn find(host: &Host, mark: &str) -> Result<Vec<u64>> {
    let file = File::open(data_file(host))?;
    let bytes = file.metadata()?.len().min(LOOKED_AT);
    let (mut found, mut buf) = (Vec::new(), vec![0; MIB]);
    for at in (0..bytes).step_by(MIB) {
        let read = file.read_at(&mut buf, at)?;
        let blocks = buf[..read].chunks(BLOCK).enumerate();
        found.extend(
            blocks.filter(|(_, b)| b.starts_with(mark.as_bytes())).map(|(n, _)| at + (n * BLOCK) as u64),
        );
    }
    Ok(found)
}

/// Spoils so many of the blocks with this mark, once so many are in their place.
fn rot(host: &Host, mark: &str, count: usize, there_min: usize) -> Result<()> {
    let places = eventually("the blocks are in their place", Duration::from_secs(60), || {
        let places = find(host, mark)?;
        ensure!(places.len() >= there_min, "{} of them", places.len());
        Ok(places)
    })?;
    let file = OpenOptions::new().read(true).write(true).open(data_file(host))?;
    for place in places.iter().step_by(places.len() / count).take(count) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place + 1_000)?;
        file.write_all_at(&[byte[0] ^ 0x10], place + 1_000)?;
    }
    file.sync_all()?;
    Ok(())
}

/// A host with a component of this part of a volume, the last that has one.
fn host_of<'a>(hosts: &'a [Host], asked: &Host, volume: &str, part: ChunkPart) -> Result<&'a Host> {
    let object: ObjectDetails = asked.ctl(&["object", "show", volume])?;
    let chunks = object.chunks.into_iter().filter(|chunk| chunk.part == part);
    let names: Vec<String> = chunks.flat_map(|chunk| chunk.components).map(|c| c.host_name).collect();
    hosts.iter().rev().find(|host| names.contains(&host.name())).context("no host has that part")
}

fn scrubs(host: &Host) -> Result<Vec<ScrubInfo>> {
    let list: ScrubList = host.ctl(&["scrub", "status"])?;
    Ok(list.scrubs)
}

/// Scrubs all volumes and waits for the end: mirror, then parity.
fn scrub(host: &Host) -> Result<Vec<ScrubInfo>> {
    host.ctl_ok(&["scrub", "start"])?;
    eventually("all volumes are scrubbed", SCRUB_MAX, || {
        let all = scrubs(host)?;
        ensure!(all.iter().all(|s| s.state == ScrubState::Done), "{all:?}");
        Ok(all)
    })
}

fn finding(host: &Host, code: &str) -> Result<String> {
    let report: HealthReport = host.ctl(&["health"])?;
    let check = report.checks.into_iter().find(|check| check.code == code).context("no such check")?;
    let reason = check.reasons.into_iter().next().with_context(|| format!("{code} finds nothing"))?;
    Ok(reason.message)
}

#[test]
fn rot_is_found_counted_and_mended() {
    let config = "[scrub]\nrate_mib_s = 200\nbad_blocks_max = 5\n".to_owned();
    with_lab(LabOptions { config, disk: "1G", ..LabOptions::default() }, |lab| {
        let (owner, sick) = (lab.host(1), lab.host(2));
        owner.create("a-mirror", "64M", "mirror:3")?;
        owner.create("b-parity", "64M", "raid5:2+1")?;
        let mut mirror = fill(&owner.open("a-mirror")?, "MIRROR")?;
        let mut parity = fill(&owner.open("b-parity")?, "PARITY")?;
        let whole =
            |all: &[ScrubInfo]| all.iter().all(|s| s.bad_blocks == 0 && s.skipped == 0 && s.bytes > 0);
        let clean = scrub(owner)?;
        ensure!(whole(&clean), "{clean:?}");
        drop(parity);
        // A client that pauses lets its log be emptied; a daemon that ends puts everything in its place.
        std::thread::sleep(Duration::from_secs(6));
        owner.ctl_ok(&["volume", "close", "b-parity"])?;
        // One that nobody has open is owned for its scrub only, and looked at from its first chunk on.
        let clean = scrub(owner)?;
        ensure!(whole(&clean), "one of them closed: {clean:?}");
        let shards = [0, 1].map(|number| ChunkPart::Data { number });
        let shards = shards.map(|part| host_of(lab.hosts(), owner, "b-parity", part));
        let others = shards.into_iter().flatten().find(|host| host.name() != owner.name());
        let shard = others.context("both data shards are at the client's host")?;
        shard.term()?;
        // Half of the blocks; what else is found is left over from the log.
        rot(shard, "PARITY", 40, MIBS as usize * MIB / BLOCK / 2)?;
        shard.start()?;
        lab.wait_healthy(Duration::from_secs(60))?;
        // Large writes of a mirror go straight to their place.
        rot(sick, "MIRROR", 5, MIBS as usize * MIB / BLOCK)?;
        let found = scrub(lab.host(3))?;
        println!("{found:?}");
        ensure!(found[0].bad_blocks == 5 && found[0].mended_blocks == 5, "the mirror: {found:?}");
        ensure!(
            found[1].bad_blocks > 0 && found[1].mended_blocks == found[1].bad_blocks,
            "parity: {found:?}"
        );
        let again = scrub(owner)?;
        ensure!(again.iter().all(|s| s.bad_blocks == 0 && s.whole_unix_s.is_some()), "{again:?}");
        holds(&mut mirror, "MIRROR")?;
        parity = BlkClient::connect(&sick.open("b-parity")?, ClientOptions::default())?;
        holds(&mut parity, "PARITY")?;
        eventually("it is told", Duration::from_secs(30), || {
            owner.saw(EventKind::BlocksMended)?;
            owner.saw(EventKind::ScrubEnded)?;
            // The disk should leave, but a mirror on three hosts needs all three.
            let said = finding(owner, "disk_errs")?;
            ensure!(said.contains("can't"), "{said}");
            Ok(())
        })?;
        // What nobody may do, and stopping what does not run.
        owner.ctl_refused(&["scrub", "start", "nothing"], "volume_not_found", 3)?;
        owner.ctl_ok(&["scrub", "stop"])
    });
}

#[test]
fn a_disk_that_errs_too_often_leaves_by_itself() {
    let config = "[scrub]\nbad_blocks_max = 10\n".to_owned();
    with_lab(LabOptions { hosts: 4, config, disk: "1G", ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        owner.create("data", "64M", "mirror:3")?;
        let mut client = fill(&owner.open("data")?, "LEAVES")?;
        let sick = host_of(lab.hosts(), owner, "data", ChunkPart::Whole)?;
        rot(sick, "LEAVES", 12, MIBS as usize * MIB / BLOCK)?;
        owner.ctl_ok(&["scrub", "start", "data"])?;
        eventually("the disk has left", LEAVE_MAX, || {
            let list: DiskList = owner.ctl(&["disk", "list"])?;
            ensure!(list.disks.iter().all(|disk| disk.host_name != sick.name()), "{:?}", list.disks);
            let volume = owner.volume("data")?;
            ensure!(volume.redundancy == Redundancy::Healthy, "{volume:?}");
            Ok(())
        })?;
        owner.saw(EventKind::DiskEvacuated)?;
        holds(&mut client, "LEAVES")
    });
}
