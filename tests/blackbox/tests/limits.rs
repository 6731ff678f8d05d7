//! A guest is kept to its volume's limits by whatever host it runs on; changes of them take effect under it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ferro_blackbox::{LabOptions, eventually, with_lab};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions, Op};

/// So long a guest asks for as much as it gets.
const FOR: Duration = Duration::from_secs(3);
/// A command's change is seen by the volume's owner within this time.
const SETTLE_MAX: Duration = Duration::from_secs(20);
const DEPTH: usize = 16;
/// How long requests waited because of limits, in seconds.
const HELD: &str = "vsand_volume_limited_seconds_total";

/// How many reads of so many bytes a client gets through a second that has [`DEPTH`] of them under way all the time.
fn rate(client: &mut BlkClient, bytes: u32) -> Result<f64> {
    let (began, mut under_way, mut done) = (Instant::now(), 0, 0_u32);
    loop {
        while under_way < DEPTH && began.elapsed() < FOR {
            client.submit(0, &Op::Read(Sector(u64::from(done % 64) * 2_048), bytes))?;
            under_way += 1;
        }
        if under_way == 0 {
            return Ok(f64::from(done) / began.elapsed().as_secs_f64());
        }
        let completion = client.wait(0, Duration::from_secs(60))?;
        ensure!(completion.status == 0, "a read failed with status {}", completion.status);
        under_way -= 1;
        done += 1;
    }
}

/// The client gets at most so much, and not much less: a sleeping loop must wake up when the next is due.
fn is_kept_to(client: &mut BlkClient, bytes: u32, limit: f64) -> Result<()> {
    eventually("the limit holds", SETTLE_MAX, || {
        let rate = rate(client, bytes)?;
        // What is under way at the beginning and at the end may be let through together.
        ensure!(
            rate <= limit * 1.05 + DEPTH as f64 / FOR.as_secs_f64(),
            "{rate:.1} a second, limited to {limit}"
        );
        ensure!(rate >= limit / 4.0, "{rate:.1} a second are far fewer than {limit}");
        Ok(())
    })
}

#[test]
fn a_guest_is_kept_to_what_it_may() {
    with_lab(LabOptions::default(), |lab| {
        let (first, second) = (lab.host(1), lab.host(2));
        first.create("data", "256M", "mirror:2")?;
        let mut client = BlkClient::connect(&first.open("data")?, ClientOptions::default())?;
        for n in 0..64_u64 {
            client.write(Sector(n * 2_048), &vec![n as u8 + 1; 65_536])?;
        }
        let free = rate(&mut client, 4_096)?;
        ensure!(free > 400.0, "{free:.1} a second without a limit: too few to see one");
        ensure!(first.metric(HELD)? == 0.0, "it was held back without a limit");

        // On any host.
        second.ctl_ok(&["volume", "limit", "data", "--iops", "100"])?;
        is_kept_to(&mut client, 4_096, 100.0)?;
        let held = first.metric(HELD)?;
        ensure!(held > 1.0, "held back for {held} s, which is too little for {FOR:?} of greed");
        first.ctl_ok(&["volume", "limit", "data", "--bandwidth", "2M"])?;
        is_kept_to(&mut client, 65_536, 32.0)?;
        // What takes no limit is not held up by it: a flush, and the work of the cluster.
        let completion = client.run(&Op::Flush)?;
        ensure!(completion.status == 0, "a flush failed");

        // It goes with the volume, outlives the daemon, and ends when somebody says so.
        drop(client);
        first.ctl_ok(&["volume", "close", "data"])?;
        second.ctl_ok(&["volume", "limit", "data", "--iops", "50"])?;
        second.kill9()?;
        second.start()?;
        let mut client = BlkClient::connect(&second.open("data")?, ClientOptions::default())?;
        is_kept_to(&mut client, 4_096, 50.0)?;
        ensure!(first.volume("data")?.limits.iops == Some(50), "{:?}", first.volume("data")?);
        second.ctl_ok(&["volume", "limit", "data", "--none"])?;
        eventually("the limit is gone", SETTLE_MAX, || {
            let rate = rate(&mut client, 4_096)?;
            ensure!(rate > 200.0, "{rate:.1} a second");
            Ok(())
        })?;
        let mut read = [0; 4_096];
        client.read(Sector(5 * 2_048), &mut read)?;
        ensure!(read == [6; 4_096], "wrong bytes");
        Ok(())
    });
}
