//! Volumes with parity: as many hosts die as the policy stands, under a client that writes, and the owner itself; nothing is lost, and
//! what is lost of a shard is made anew.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferro_blackbox::endure::{HEAL_MAX, begin, form_with_loop_disk, read_everywhere, survive};
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::mebibytes::{MIB, connect, content, fill, sector, verify, write};
use ferro_blackbox::{Host, Lab, LabOptions, eventually, with_lab};
use ferro_vhost::frontend::{BlkClient, Op};

/// What a fault may cost at most: the aim is 2 s. A busy test machine gets more.
const STALL_MAX: Duration = Duration::from_secs(6);

/// Does something to each of some hosts, at once.
fn each(hosts: &[&Host], act: impl Fn(&Host) -> Result<()>) -> Result<()> {
    hosts.iter().try_for_each(|host| act(host))
}

#[test]
fn one_host_of_raid5_may_die_whichever_it_is() {
    with_lab(LabOptions::default(), |lab| {
        let (first, owner, other) = (lab.host(1), lab.host(2), lab.host(3));
        let mut load = begin(owner, "raid5", 1)?;
        let what = "kill -9 of a shard's host";
        survive(lab, &mut load, what, STALL_MAX, || other.kill9(), || other.start())?;
        survive(lab, &mut load, "SIGSTOP of another one", STALL_MAX, || first.stop(), || first.cont())?;
        survive(lab, &mut load, "a pulled cable", STALL_MAX, || other.cut_cable(), || other.mend())?;
        // The owner: its client waits, and goes on when it is there again.
        load.take_longest();
        owner.kill9()?;
        owner.start()?;
        load.progress(300, Duration::from_secs(40)).context("the owner was killed")?;
        println!("kill -9 of the owner and a start: {} ms", load.take_longest().as_millis());
        load.verify()?;
        read_everywhere(lab, owner, load)
    });
}

#[test]
fn two_hosts_of_raid6_may_die_at_once() {
    with_lab(LabOptions { hosts: 6, ..LabOptions::default() }, |lab| {
        let owner = lab.host(6);
        let mut load = begin(owner, "raid6", 2)?;
        for pair in [[4, 5], [1, 3]] {
            let hosts = pair.map(|host| lab.host(host));
            let what = format!("kill -9 of hosts {pair:?} at once");
            let (fault, mend) = (|| each(&hosts, |h| h.kill9()), || each(&hosts, |h| h.start()));
            survive(lab, &mut load, &what, STALL_MAX, fault, mend)?;
        }
        // Everything loses power, the owner and the log's copies too.
        lab.hosts().iter().for_each(|host| host.kill9_if_running());
        for host in lab.hosts() {
            host.start()?;
        }
        load.progress(300, Duration::from_secs(60)).context("after all of them lost power")?;
        lab.wait_healthy(HEAL_MAX)?;
        load.verify()?;
        read_everywhere(lab, owner, load)
    });
}

#[test]
fn a_disk_that_answers_after_half_a_minute_costs_no_request() {
    with_hosts(LabOptions::default(), |lab| {
        let disk = form_with_loop_disk(lab)?;
        let owner = lab.host(2);
        let mut load = begin(owner, "raid5", 3)?;
        load.take_longest();
        let began = Instant::now();
        disk.freeze()?;
        load.progress(200, Duration::from_secs(40))?;
        load.verify().context("while it does not answer")?;
        std::thread::sleep(Duration::from_secs(30).saturating_sub(began.elapsed()));
        disk.thaw()?;
        // What it was asked for half a minute ago it does now.
        load.progress(200, Duration::from_secs(40))?;
        lab.wait_healthy(HEAL_MAX)?;
        load.verify()?;
        let stall = load.take_longest();
        println!("a disk that answers after 30 s: the longest request took {} ms", stall.as_millis());
        ensure!(stall < STALL_MAX, "a request took {stall:?}");
        read_everywhere(lab, owner, load)
    });
}

/// More is written than the disks hold: the writer waits, without an error, and goes on when there is room again.
#[test]
fn a_writer_waits_while_the_cluster_is_full() {
    with_lab(LabOptions { disk: "1G", ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        owner.create("spare", "256M", "mirror:3")?;
        write(&mut connect(owner, "spare")?, 0..256)?;
        owner.ctl_ok(&["volume", "close", "spare"])?;

        owner.create("data", "4G", "raid5")?;
        let mut client = connect(owner, "data")?;
        let (last, waiting) = fill(&mut client, 4 << 10)?;
        println!("{last} MiB fit");
        ensure!(last > 400, "only {last} MiB fit");
        eventually("it is said that writes wait", Duration::from_secs(20), || {
            let health = owner.status()?.health;
            ensure!(health.reasons.iter().any(|r| r.code == "volume_waits_for_space"), "{health:?}");
            Ok(())
        })?;
        owner.ctl_ok(&["--yes", "volume", "delete", "spare"])?;
        let done = client.wait(0, Duration::from_secs(60)).context("there is room again")?;
        ensure!(done.ticket == waiting && done.status == 0, "status {}", done.status);
        verify(&mut client, 0..last + 1)
    });
}

/// MiB that are written through, time after time.
const STREAM: u64 = 48;
/// Bytes of a block: of a request that was not answered each is there or not.
const BLOCK: usize = 4096;

/// What the MiB is in this round.
fn round_of(mib: u64, round: u64) -> Vec<u8> {
    content(mib + round * 1_000)
}

/// Extents that the disks of all hosts have put in force since they were started.
fn promoted(lab: &Lab) -> Result<f64> {
    lab.hosts().iter().map(|host| host.metric("vsand_disk_promoted_extents_total")).sum()
}

/// Each MiB is what the round wrote, up to the one where it ended, and what the round before wrote behind those that were under way.
fn verify_round(client: &mut BlkClient, round: u64, written: u64, under_way: u64) -> Result<()> {
    let mut read = vec![0; MIB];
    for mib in 0..STREAM {
        client.read(sector(mib), &mut read).with_context(|| format!("MiB {mib}"))?;
        let (old, new) = (round_of(mib, round - 1), round_of(mib, round));
        for (n, block) in read.chunks(BLOCK).enumerate() {
            let at = n * BLOCK..(n + 1) * BLOCK;
            let (is_old, is_new) = (block == &old[at.clone()], block == &new[at]);
            let right = match mib {
                mib if mib < written => is_new,
                mib if mib < written + under_way => is_old || is_new,
                _ => is_old,
            };
            ensure!(right, "block {n} of MiB {mib} in round {round}: old {is_old}, new {is_new}");
        }
    }
    Ok(())
}

/// What is written in one go is staged by the shards' disks and put in force there; at whatever instant all power is gone, what was
/// acknowledged is there, whole, also without one of the hosts.
#[test]
fn full_stripes_go_straight_and_outlive_power_cuts() {
    with_lab(LabOptions::default(), |lab| {
        let owner = lab.host(2);
        owner.create("data", "1G", "raid5")?;
        let mut client = connect(owner, "data")?;
        write(&mut client, 0..STREAM)?;
        eventually("all extents are in force", Duration::from_secs(20), || {
            let (all, extents) = (promoted(lab)?, STREAM as f64 / 2.0 * 3.0);
            ensure!(all >= extents * 0.75, "{all} extents of {extents}");
            Ok(())
        })?;
        verify(&mut client, 0..STREAM)?;
        // The last one is written to its end: then nothing needs to be told apart any more.
        for (round, written, under_way) in [(1, 21, 3), (2, 30, 2), (3, 8, 4), (4, 33, 1), (5, STREAM, 0)] {
            for mib in 0..written {
                client.write(sector(mib), &round_of(mib, round)).with_context(|| format!("MiB {mib}"))?;
            }
            for mib in written..written + under_way {
                client.submit(0, &Op::Write(sector(mib), &round_of(mib, round)))?;
            }
            std::thread::sleep(Duration::from_millis(3 * round));
            lab.hosts().iter().for_each(|host| host.kill9_if_running());
            drop(client);
            for host in lab.hosts() {
                host.start()?;
            }
            lab.wait_healthy(HEAL_MAX)?;
            client = connect(owner, "data")?;
            verify_round(&mut client, round, written, under_way)?;
            let gone = lab.host(if round % 2 == 0 { 1 } else { 3 });
            gone.kill9()?;
            verify_round(&mut client, round, written, under_way).context("without a host")?;
            gone.start()?;
            lab.wait_healthy(HEAL_MAX)?;
            // The next round begins where every MiB is this one's.
            for mib in written..STREAM {
                client.write(sector(mib), &round_of(mib, round)).with_context(|| format!("MiB {mib}"))?;
            }
        }
        println!("{} extents were put in force since the last start", promoted(lab)?);
        Ok(())
    });
}
