//! Who owns a volume: of several that want it one gets it; one that was thought dead and wakes up does no harm.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions, FrontendError, Op};

/// A lease, the margin after it, and a slow machine.
const BREAK_MAX: Duration = Duration::from_secs(30);
const SECTOR: u64 = 8 << 11;

/// Breaks the lock and opens the volume, as often as it takes, unless somebody else was quicker.
fn steal(thief: &Host) -> Result<bool> {
    eventually(&format!("{} or the other has the volume", thief.name()), BREAK_MAX, || {
        // Refused while the lease may run, and when there is nothing to break any more.
        let broken = thief.ctl_ok(&["--yes", "lock", "break", "data"]);
        match thief.open("data") {
            Ok(_) => Ok(true),
            Err(error) => {
                let owner = thief.volume("data")?.owner.map(|o| o.host_name);
                match owner.as_deref() {
                    Some("host1") | None => Err(error.context(format!("{broken:?}"))),
                    Some(other) => {
                        ensure!(other != thief.name(), "it could not open what it owns: {error:#}");
                        Ok(false)
                    }
                }
            }
        }
    })
}

/// Both at the same time; true for each that got it.
fn race(first: &Host, second: &Host, attempt: impl Fn(&Host) -> Result<bool> + Sync) -> Result<(bool, bool)> {
    std::thread::scope(|scope| {
        let one = scope.spawn(|| attempt(first));
        let two = attempt(second);
        let one = one.join().map_err(|_| anyhow::anyhow!("a thief has panicked"))?;
        Ok((one?, two?))
    })
}

fn connect(socket: &Path) -> Result<BlkClient> {
    Ok(BlkClient::connect(socket, ClientOptions { data_bytes_max: 4096, ..ClientOptions::default() })?)
}

#[test]
fn of_two_that_open_at_once_one_gets_it() {
    with_lab(LabOptions::default(), |lab| {
        for round in 0..4 {
            let name = format!("v{round}");
            lab.host(1).create(&name, "64M", "mirror:2")?;
            let open = |host: &Host| {
                if host.open(&name).is_ok() {
                    return Ok(true);
                }
                let refusal = host.ctl_refused(&["volume", "open", &name], "object_in_use", 4)?;
                ensure!(refusal.message.contains("host"), "it does not say who has it: {refusal:?}");
                Ok(false)
            };
            let won = race(lab.host(2), lab.host(3), open)?;
            ensure!(won.0 != won.1, "round {round}: {won:?}");
            let owner = lab.host(1).volume(&name)?.owner.context("nobody has it")?.host_name;
            ensure!(owner == if won.0 { "host2" } else { "host3" }, "{owner} has it: {won:?}");
        }
        Ok(())
    });
}

#[test]
fn a_stale_owner_that_wakes_up_does_no_harm() {
    with_lab(LabOptions::default(), |lab| {
        let holder = lab.host(1);
        holder.create("data", "2G", "mirror:3")?;
        let stale_socket = holder.open("data")?;
        let mut load = Workload::start(&stale_socket, Checker::new(), WorkloadOptions::new(11))?;
        load.progress(500, Duration::from_secs(30))?;
        let mut checker = load.finish()?;

        // A virtual machine with writes under way when its host freezes, and more that it asks afterwards.
        let mut stale = connect(&stale_socket)?;
        let mut data = vec![0x11; 4096];
        stale.write(Sector(SECTOR), &data)?;
        for block in 0..8 {
            let (_, data) = checker.begin_write(block * 8..block * 8 + 8);
            stale.submit(0, &Op::Write(Sector(block * 8), &data))?;
        }
        holder.stop()?;
        while stale.try_reap(0)?.is_some() {}
        let late_read = stale.submit(0, &Op::Read(Sector(SECTOR), 4096))?;
        let late_write = stale.submit(0, &Op::Write(Sector(SECTOR), &[0x22; 4096]))?;

        let refusal = lab.host(2).ctl_refused(&["--yes", "lock", "break", "data"], "lease_running", 4)?;
        ensure!(refusal.next_step.contains("repeat") || refusal.next_step.contains("close"), "{refusal:?}");
        lab.host(3).ctl_refused(&["volume", "open", "data"], "object_in_use", 4)?;

        let won = race(lab.host(2), lab.host(3), steal)?;
        ensure!(won.0 != won.1, "two stole it, or none: {won:?}");
        let thief = lab.host(if won.0 { 2 } else { 3 });
        println!("{} has it now", thief.name());
        checker.give_up();
        let socket = thief.open("data")?;
        let mut new = connect(&socket)?;
        new.read(Sector(SECTOR), &mut data)?;
        ensure!(
            data == [0x11; 4096],
            "an acknowledged write was lost with its owner: {:#04x} is read",
            data[0]
        );
        new.write(Sector(SECTOR), &[0x33; 4096])?;
        drop(new);
        let mut load = eventually("the next client is let in", Duration::from_secs(10), || {
            Workload::start(&socket, checker.clone(), WorkloadOptions::new(12))
        })?;
        load.progress(500, Duration::from_secs(30))?;
        load.verify()?;

        holder.cont()?;
        let gone = eventually("the stale owner's socket is closed", Duration::from_secs(20), || {
            while let Some(done) = stale.try_reap(0)? {
                let late = done.ticket == late_read || done.ticket == late_write;
                if late && done.status == 0 {
                    return Ok(Err(anyhow::anyhow!(
                        "a stale owner answered a request of after it was fenced"
                    )));
                }
            }
            ensure!(!stale_socket.exists(), "{} is still there", stale_socket.display());
            Ok(Ok(()))
        })?;
        gone?;
        match stale.wait(0, Duration::from_secs(2)) {
            Err(FrontendError::Timeout(_)) => {}
            Ok(done) if done.status != 0 => {}
            Ok(done) => {
                ensure!(done.ticket != late_read && done.ticket != late_write, "answered after the fence");
            }
            Err(error) => return Err(error.into()),
        }
        if connect(&stale_socket).is_ok() {
            bail!("the stale owner lets a client in");
        }
        load.progress(300, Duration::from_secs(30))?;
        lab.wait_healthy(Duration::from_secs(60))?;
        load.finish()?;
        let mut new = eventually("the next client is let in", Duration::from_secs(10), || connect(&socket))?;
        new.read(Sector(SECTOR), &mut data)?;
        ensure!(data == [0x33; 4096], "a write of the stale owner landed");
        let owner = holder.volume("data")?.owner.context("nobody has it")?.host_name;
        ensure!(owner == thief.name(), "the stale owner thinks that {owner} has it");
        holder.ctl_refused(&["volume", "open", "data"], "object_in_use", 4)?;
        Ok(())
    });
}

/// Alive and cut off, it has a client that goes on asking: it may answer from its own copy only while its lease runs.
#[test]
fn an_owner_that_is_cut_off_answers_nothing_stale() {
    with_lab(LabOptions::default(), |lab| {
        let (holder, thief) = (lab.host(1), lab.host(2));
        holder.create("data", "64M", "mirror:3")?;
        let stale_socket = holder.open("data")?;
        let mut stale = connect(&stale_socket)?;
        stale.write(Sector(0), &[0x11; 4096])?;
        holder.cut_cable()?;

        // What the new owner acknowledged, and when: from then on the old value is gone.
        let overwritten = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_on(&mut stale, &overwritten));
            let taken = eventually("the other host takes the volume over", BREAK_MAX, || {
                thief.ctl_ok(&["--yes", "lock", "break", "data"])?;
                let mut new = connect(&thief.open("data")?)?;
                new.write(Sector(0), &[0x33; 4096])?;
                Ok(())
            });
            overwritten.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_secs(2));
            // Only now can it hear what has happened.
            holder.mend()?;
            let answered = reader.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))??;
            println!("{answered} reads were answered before the lease ended, none afterwards");
            ensure!(answered > 0, "the lease allows reads for a while");
            taken
        })?;
        eventually("the stale owner's socket is closed", Duration::from_secs(20), || {
            ensure!(!stale_socket.exists(), "{} is still there", stale_socket.display());
            Ok(())
        })?;
        holder.ctl_refused(&["volume", "open", "data"], "object_in_use", 4)?;
        lab.wait_healthy(Duration::from_secs(60))
    });
}

/// Reads again and again until nothing is answered any more for a while after the overwriting.
fn read_on(client: &mut BlkClient, overwritten: &AtomicBool) -> Result<u32> {
    let mut answered = 0;
    loop {
        let late = overwritten.load(Ordering::SeqCst);
        let ticket = client.submit(0, &Op::Read(Sector(0), 4096))?;
        let limit = Duration::from_secs(12);
        match client.wait(0, limit) {
            Ok(done) if done.ticket == ticket && done.status == 0 => {
                let mut data = [0; 4096];
                client.data(ticket, &mut data)?;
                ensure!(!late, "a read that began after the overwriting was answered with {:#x}", data[0]);
                ensure!(data == [0x11; 4096], "it reads {:#x}", data[0]);
                answered += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            // Not answered, or failed as it loses its socket: both are right.
            Ok(_) | Err(FrontendError::Timeout(_)) => {
                if overwritten.load(Ordering::SeqCst) {
                    return Ok(answered);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn the_lock_of_a_volume_that_can_not_be_served_after_a_restart_is_given_back() {
    with_lab(LabOptions::default(), |lab| {
        let (host, other) = (lab.host(1), lab.host(2));
        host.create("data", "64M", "mirror:2")?;
        let socket = host.open("data")?;
        host.kill9()?;
        // Something else is where its socket was.
        std::fs::remove_file(&socket)?;
        std::fs::create_dir_all(socket.join("occupied"))?;
        host.start()?;
        // Nobody breaks the lock: it is free as soon as its holder finds that it does not use it.
        eventually("the other opens it", Duration::from_secs(30), || other.open("data").map(drop))?;
        host.logs(&["a lock that this host did not use is released"])
    });
}

/// What is opened and closed again while the host is still taking up, one by one, what it had open before its restart stays closed.
#[test]
fn a_volume_that_is_closed_while_others_are_taken_up_stays_closed() {
    const VOLUMES: usize = 40;
    const CLOSED: usize = 4;
    let name = |n: usize| format!("data{n}");
    with_lab(LabOptions::default(), |lab| {
        let (host, other) = (lab.host(1), lab.host(2));
        for n in 0..VOLUMES {
            host.create(&name(n), "64M", "mirror:2")?;
        }
        for round in 0..3 {
            for n in 0..VOLUMES {
                host.open(&name(n))?;
            }
            host.kill9()?;
            host.start()?;
            let close = |n| {
                eventually("it is open", BREAK_MAX, || host.open(&name(n)))?;
                host.ctl_ok(&["volume", "close", &name(n)])
            };
            std::thread::scope(|scope| {
                let closing: Vec<_> = (0..CLOSED).map(|n| scope.spawn(move || close(n))).collect();
                closing.into_iter().try_for_each(|it| it.join().expect("a thread that closes").map(drop))
            })?;
            // Long enough for all to be taken up.
            std::thread::sleep(Duration::from_secs(3));
            for n in 0..CLOSED {
                other.open(&name(n)).with_context(|| format!("round {round}"))?;
                other.ctl_ok(&["volume", "close", &name(n)])?;
            }
        }
        Ok(())
    });
}
