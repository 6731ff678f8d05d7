//! Hosts, links and disks fail under a client that writes: no request fails, none waits long, nothing is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferro_blackbox::endure::{HEAL_MAX, begin, form_with_loop_disk, read_everywhere, survive};
use ferro_blackbox::held::HeldFile;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, Lab, LabOptions, eventually, with_lab};
use ferro_protocol::api::{ComponentState, DiskList, DiskState, ObjectDetails};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions, Op};

const POLICY: &str = "mirror:3";
/// What a fault may cost at most: the aim is 2 s. A busy test machine gets twice that.
const STALL_MAX: Duration = Duration::from_secs(4);
/// What a request may cost at most that a disk never answers while all copies of it are in sync: a large write is waited for
/// longest, because only this disk owes it and load may be why (`owner/stuck.rs`).
const STUCK_MAX: Duration = Duration::from_secs(12);

/// Reads everything on every host, and looks whether every copy counts.
fn every_copy_is_right(lab: &Lab, owner: &Host, load: Workload) -> Result<()> {
    read_everywhere(lab, owner, load)?;
    let object: ObjectDetails = owner.ctl(&["object", "show", "data"])?;
    let components: Vec<_> = object.chunks.iter().flat_map(|c| &c.components).collect();
    ensure!(components.len() == 6, "two chunks, three copies each: {components:?}");
    ensure!(components.iter().all(|c| c.state == ComponentState::InSync), "{components:?}");
    Ok(())
}

#[test]
fn hosts_that_die_or_freeze_cost_no_request() {
    with_lab(LabOptions::default(), |lab| {
        let (leader, owner, other) = (lab.host(1), lab.host(2), lab.host(3));
        let mut load = begin(owner, POLICY, 1)?;
        survive(
            lab,
            &mut load,
            "kill -9 of a replica's host",
            STALL_MAX,
            || other.kill9(),
            || other.start(),
        )?;
        survive(
            lab,
            &mut load,
            "kill -9 of the directory's first host",
            STALL_MAX,
            || leader.kill9(),
            || leader.start(),
        )?;
        survive(lab, &mut load, "SIGSTOP of a replica's host", STALL_MAX, || other.stop(), || other.cont())?;
        every_copy_is_right(lab, owner, load)
    });
}

#[test]
fn links_that_are_cut_cost_no_request() {
    with_lab(LabOptions::default(), |lab| {
        let (first, owner, other) = (lab.host(1), lab.host(2), lab.host(3));
        let mut load = begin(owner, POLICY, 2)?;
        survive(lab, &mut load, "a pulled cable", STALL_MAX, || other.cut_cable(), || other.mend())?;
        survive(lab, &mut load, "nothing reaches a host", STALL_MAX, || first.cut_in(), || first.mend())?;
        survive(lab, &mut load, "nothing leaves a host", STALL_MAX, || other.cut_out(), || other.mend())?;
        survive(
            lab,
            &mut load,
            "from the owner to one host only",
            STALL_MAX,
            || owner.cut_to(other),
            || owner.mend(),
        )?;
        every_copy_is_right(lab, owner, load)
    });
}

#[test]
fn a_disk_that_freezes_and_one_that_fails_cost_no_request() {
    ferro_blackbox::lab::with_hosts(LabOptions::default(), |lab| {
        let disk = form_with_loop_disk(lab)?;
        let (owner, host) = (lab.host(2), lab.host(3));

        let mut load = begin(owner, POLICY, 3)?;
        survive(
            lab,
            &mut load,
            "a frozen disk in another host",
            STALL_MAX,
            || disk.freeze(),
            || disk.thaw(),
        )?;
        let checker = load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])?;

        let owner = host;
        let mut load = Workload::start(&owner.open("data")?, checker, WorkloadOptions::new(4))?;
        load.progress(300, Duration::from_secs(30))?;
        survive(
            lab,
            &mut load,
            "a frozen disk in the owner's host",
            STALL_MAX,
            || disk.freeze(),
            || disk.thaw(),
        )?;
        let replace = || {
            let failed = eventually("the failed disk is known", Duration::from_secs(20), || {
                let disks: DiskList = lab.host(1).ctl(&["disk", "list"])?;
                let failed = disks.disks.into_iter().find(|d| d.state == DiskState::Failed);
                failed.context("no disk is said to have failed")
            })?;
            owner.add_disk(&owner.disks_dir().join("new"), "2G")?;
            owner.ctl_ok(&["--yes", "disk", "remove", &failed.id.to_string()])
        };
        survive(
            lab,
            &mut load,
            "EIO from a disk in the owner's host, replaced",
            STALL_MAX,
            || disk.fail(),
            replace,
        )?;
        every_copy_is_right(lab, owner, load)
    });
}

#[test]
fn the_owner_restarts_under_its_client() {
    with_lab(LabOptions::default(), |lab| {
        let owner = lab.host(1);
        let mut load = begin(owner, POLICY, 5)?;
        for round in 0..4 {
            let restarts = load.stats().reconnects;
            let began = Instant::now();
            if round == 3 {
                owner.term()?;
            } else {
                owner.kill9()?;
            }
            owner.start()?;
            load.progress(1, Duration::from_secs(45))?;
            println!("restart of the owner: answers again {} ms after its end", began.elapsed().as_millis());
            load.progress(200, Duration::from_secs(20))?;
            ensure!(load.stats().reconnects > restarts, "the client did not notice");
            load.verify()?;
        }
        lab.wait_healthy(HEAL_MAX)?;
        every_copy_is_right(lab, owner, load)
    });
}

#[test]
fn all_hosts_lose_power_at_once() {
    with_lab(LabOptions::default(), |lab| {
        let owner = lab.host(3);
        let mut load = begin(owner, POLICY, 6)?;
        for _ in 0..2 {
            let began = Instant::now();
            for host in lab.hosts() {
                host.kill9()?;
            }
            for host in lab.hosts() {
                host.start()?;
            }
            load.progress(1, Duration::from_secs(60))?;
            println!("all hosts at once: answers again {} ms after their end", began.elapsed().as_millis());
            load.progress(200, Duration::from_secs(20))?;
            load.verify()?;
        }
        lab.wait_healthy(HEAL_MAX)?;
        every_copy_is_right(lab, owner, load)
    });
}

/// Status of a daemon that stopped while a disk did not answer.
const LEFT: i32 = 71;

#[test]
fn a_daemon_stops_although_a_disk_hangs() {
    ferro_blackbox::lab::with_hosts(LabOptions::default(), |lab| {
        let disk = form_with_loop_disk(lab)?;
        let (owner, host) = (lab.host(2), lab.host(3));
        let mut load = begin(owner, POLICY, 7)?;
        disk.freeze()?;
        load.progress(50, Duration::from_secs(20))?;
        host.begin_term()?;
        // No process can end while the kernel waits for its disk: it says before that it is done.
        let left = eventually("the daemon leaves the disk", Duration::from_secs(25), || {
            ensure!(host.log()?.contains("stopped without what does not answer"), "it does not say so");
            Ok(())
        });
        disk.thaw()?;
        left?;
        let status = host.await_end(Duration::from_secs(10))?;
        ensure!(status.code() == Some(LEFT), "it ended with {status}");
        host.logs(&["does not answer and is left", &disk.mount().display().to_string()])?;
        ensure!(!host.log()?.contains("panicked"), "a panic");
        host.start()?;
        lab.wait_healthy(HEAL_MAX)?;
        load.verify()?;
        every_copy_is_right(lab, owner, load)
    });
}

const MIB: usize = 1 << 20;
const SECTORS_A_MIB: u64 = (MIB / 512) as u64;

/// Does a request while small writes to the same volume come and go, so that its disk is not silent; says how long the
/// longest of all took.
fn amid_writes(client: &mut BlkClient, op: &Op<'_>) -> Result<Duration> {
    let spare = Sector(40 * SECTORS_A_MIB);
    let (began, asked) = (Instant::now(), client.submit(0, op)?);
    let mut longest = Duration::ZERO;
    loop {
        let (write_began, write) = (Instant::now(), client.submit(0, &Op::Write(spare, &[9; 4096]))?);
        let mut ended = None;
        loop {
            let completion = client.wait(0, Duration::from_secs(30))?;
            ensure!(completion.status == 0, "a request failed with status {}", completion.status);
            if completion.ticket == asked {
                ended = Some(began.elapsed());
            } else if completion.ticket == write {
                break;
            }
        }
        longest = longest.max(write_began.elapsed());
        if let Some(ended) = ended {
            return Ok(longest.max(ended));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The disk in the owner's host answers what goes to its journal and never what goes to its data file: it is not silent, and
/// each of these requests would wait for good.
#[test]
fn requests_that_a_disk_never_answers_while_it_answers_others_cost_none() {
    ferro_blackbox::lab::with_hosts(LabOptions::default(), |lab| {
        let disk = form_with_loop_disk(lab)?;
        let owner = lab.host(3);
        owner.create("data", "64M", "mirror:3")?;
        let mut client = BlkClient::connect(&owner.open("data")?, ClientOptions::default())?;
        // Large writes go straight to their place, so reads of them ask the data file.
        for n in 0..4_u8 {
            client.write(Sector(u64::from(n) * SECTORS_A_MIB), &vec![n + 1; MIB])?;
        }
        let held = HeldFile::hold(&disk.mount().join("data"))?;
        let mut longest = Duration::ZERO;
        for n in 0..4_u64 {
            let op = Op::Read(Sector(n * SECTORS_A_MIB), MIB as u32);
            longest = longest.max(amid_writes(&mut client, &op)?);
        }
        println!("reads that are never answered: the longest request took {} ms", longest.as_millis());
        eventually("the disk is said to be stuck", Duration::from_secs(10), || {
            let health = owner.status()?.health;
            ensure!(health.reasons.iter().any(|r| r.code == "disk_stuck"), "{health:?}");
            Ok(())
        })?;
        // A large write waits for the data file on this disk, and for nothing on the others.
        let written = vec![77; MIB];
        let op = Op::Write(Sector(9 * SECTORS_A_MIB), &written);
        longest = longest.max(amid_writes(&mut client, &op)?);
        println!("and with a write: {} ms", longest.as_millis());
        drop(held);
        lab.wait_healthy(HEAL_MAX)?;
        let mut read = vec![0; MIB];
        for n in 0..4_u8 {
            client.read(Sector(u64::from(n) * SECTORS_A_MIB), &mut read)?;
            ensure!(read == vec![n + 1; MIB], "MiB {n} is something else");
        }
        client.read(Sector(9 * SECTORS_A_MIB), &mut read)?;
        ensure!(read == written, "the large write is lost");
        ensure!(longest < STUCK_MAX, "a request took {longest:?}");
        Ok(())
    });
}
