//! Room that is kept for a volume: its guest writes all of it although another has filled the disks, also after a daemon's death.

use std::time::Duration;

use anyhow::{Context, ensure};
use ferro_blackbox::mebibytes::{connect, fill, verify, write};
use ferro_blackbox::{LabOptions, eventually, with_lab};
use ferro_protocol::api::{CapacityReport, Redundancy};

/// Of the volume for which all is kept, and of the other one.
const KEPT_MIB: u64 = 200;
const SPARE_MIB: u64 = 100;
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// Makes a volume of which all is kept.
fn thick<'a>(name: &'a str, size: &'a str) -> [&'a str; 9] {
    ["volume", "create", name, "--size", size, "--policy", "mirror:3", "--reserve", "100"]
}

#[test]
fn a_guest_gets_what_is_kept_for_it_on_full_disks() {
    with_lab(LabOptions { disk: "1G", ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        owner.ctl_ok(&thick("kept", "200M"))?;
        owner.ctl_ok(&thick("spare", "100M"))?;
        // More than there is, of a new volume and of one that is there: refused before anything changes.
        let refusal = owner.ctl_refused(&thick("huge", "700M"), "cluster_full", 5)?;
        ensure!(refusal.message.contains("2 GiB can't be kept for volume huge"), "{refusal:?}");
        owner.ctl_refused(&["volume", "show", "huge"], "volume_not_found", 3)?;
        owner.create("greedy", "4G", "mirror:3")?;
        owner.ctl_refused(&["volume", "reserve", "greedy", "100"], "cluster_full", 5)?;
        ensure!(owner.volume("greedy")?.reserve_percent == 0 && owner.volume("kept")?.reserve_percent == 100);

        eventually("all hosts say what they keep", SETTLE_MAX, || {
            let report: CapacityReport = owner.ctl(&["capacity"])?;
            let mib = report.totals.kept_bytes >> 20;
            ensure!(mib == 3 * (KEPT_MIB + SPARE_MIB), "{mib} MiB");
            Ok(())
        })?;
        let mut greedy = connect(owner, "greedy")?;
        let (last, waiting) = fill(&mut greedy, 4 << 10)?;
        println!("{last} MiB fit beside what is kept");
        ensure!((300..=864 - KEPT_MIB - SPARE_MIB).contains(&last), "{last} MiB fit");
        eventually("it is said that writes wait, and why", SETTLE_MAX, || {
            let health = owner.status()?.health;
            let says = |code: &str| health.reasons.iter().any(|r| r.code == code);
            ensure!(says("volume_waits_for_space") && says("disk_full"), "{health:?}");
            ensure!(!says("reserve_uncovered"), "{health:?}");
            Ok(())
        })?;

        // On whatever host, also where the disks' daemon has just begun.
        let second = lab.host(2);
        let mut client = connect(second, "kept")?;
        write(&mut client, 0..KEPT_MIB / 2)?;
        let third = lab.host(3);
        third.kill9()?;
        third.start()?;
        write(&mut client, KEPT_MIB / 2..KEPT_MIB)?;
        verify(&mut client, 0..KEPT_MIB)?;
        eventually("all copies are there", Duration::from_secs(120), || {
            let info = second.volume("kept")?;
            ensure!(info.redundancy == Redundancy::Healthy, "{info:?}");
            Ok(())
        })?;

        // What is kept no longer is anybody's.
        owner.ctl_ok(&["volume", "reserve", "spare", "0"])?;
        let done = greedy.wait(0, Duration::from_secs(60)).context("there is room again")?;
        ensure!(done.ticket == waiting && done.status == 0, "status {}", done.status);
        verify(&mut greedy, 0..last + 1)
    });
}
