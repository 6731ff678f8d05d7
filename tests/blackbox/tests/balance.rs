//! Data moves from a disk that is much fuller than others, or has much more to serve, under clients that write, and stays where it is even.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, LabOptions, eventually, while_holding, with_lab};
use ferro_protocol::api::{EventKind, Redundancy};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions};

const VOLUMES: [&str; 3] = ["idle", "busy-1", "busy-2"];
const EVEN_MAX: Duration = Duration::from_secs(240);
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Of each volume is written first, beside what the clients write.
const FILLED: std::ops::Range<u64> = 8..168;

fn mib(volume: usize, n: u64) -> Vec<u8> {
    (0..MIB).map(|at| (at / 7 + n * 31) as u8 ^ volume as u8).collect()
}

fn fill(host: &Host, volume: usize) -> Result<()> {
    let mut client = BlkClient::connect(&host.open(VOLUMES[volume])?, ClientOptions::default())?;
    for n in FILLED {
        client.write(Sector(n * MIB / SECTOR), &mib(volume, n))?;
    }
    Ok(())
}

fn holds(host: &Host, volume: usize) -> Result<()> {
    let mut client = BlkClient::connect(&host.open(VOLUMES[volume])?, ClientOptions::default())?;
    let mut read = vec![0; MIB as usize];
    for n in FILLED {
        client.read(Sector(n * MIB / SECTOR), &mut read)?;
        ensure!(read == mib(volume, n), "MiB {n} of {} is something else", VOLUMES[volume]);
    }
    Ok(())
}

/// Which host has the one copy of each of these volumes.
fn places(host: &Host, volumes: &[&'static str]) -> Result<BTreeMap<&'static str, String>> {
    let place = |volume: &&'static str| {
        let all = host.components(volume)?;
        ensure!(all.len() == 1, "{volume} is being moved: {all:?}");
        Ok((*volume, all.into_iter().next().context("nowhere")?.host_name))
    };
    volumes.iter().map(place).collect()
}

fn healthy(host: &Host, volumes: &[&'static str]) -> Result<()> {
    for volume in volumes {
        let info = host.volume(volume)?;
        ensure!(info.redundancy == Redundancy::Healthy, "moved data is not all there: {info:?}");
    }
    Ok(())
}

#[test]
fn a_full_disk_gives_to_empty_ones_under_clients() {
    let config = "[rebalance]\nspread_percent = 10\n".to_owned();
    with_lab(LabOptions { config, disk: "1G", ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        for (n, volume) in VOLUMES.into_iter().enumerate() {
            owner.create(volume, "256M", "mirror:1")?;
            fill(owner, n)?;
        }
        owner.ctl_ok(&["volume", "close", "idle"])?;
        let options = |seed| {
            let mut options = WorkloadOptions::new(seed);
            options.regions.truncate(1);
            options
        };
        let load = |volume, seed| Workload::start(&owner.open(volume)?, Checker::new(), options(seed));
        let mut loads = [load("busy-1", 5)?, load("busy-2", 6)?];
        let even = while_holding(
            || healthy(owner, &VOLUMES),
            || {
                eventually("each host has one of the volumes", EVEN_MAX, || {
                    let places = places(owner, &VOLUMES)?;
                    let hosts: std::collections::BTreeSet<_> = places.values().collect();
                    ensure!(hosts.len() == 3, "{places:?}");
                    Ok(places)
                })
            },
        )?;
        for load in &mut loads {
            load.progress(100, Duration::from_secs(10))?;
            load.verify()?;
        }
        eventually("it is told, and given back", Duration::from_secs(60), || {
            owner.saw(EventKind::Rebalanced)?;
            ensure!(owner.volume("idle")?.owner.is_none(), "it is still owned");
            Ok(())
        })?;
        // Even is even.
        std::thread::sleep(Duration::from_secs(25));
        ensure!(places(owner, &VOLUMES)? == even, "it was {even:?}");
        for load in loads {
            load.finish()?;
        }
        (0..VOLUMES.len()).try_for_each(|volume| holds(owner, volume))
    });
}

#[test]
fn a_busy_disk_gives_to_idle_ones_under_clients() {
    const HOT: [&str; 2] = ["hot-1", "hot-2"];
    // Averages that follow within seconds, and nothing moves by fullness.
    let config = "[rebalance]\nspread_percent = 0\nload_percent = 20\nload_window_s = 2\n".to_owned();
    with_lab(LabOptions { config, disk: "1G", ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        let load = |volume, seed| {
            owner.create(volume, "256M", "mirror:1")?;
            let mut options = WorkloadOptions::new(seed);
            options.regions.truncate(1);
            // About as much of each.
            options.per_second = 300;
            Workload::start(&owner.open(volume)?, Checker::new(), options)
        };
        let mut loads = [load("hot-1", 7)?, load("hot-2", 8)?];
        for load in &mut loads {
            load.progress(100, Duration::from_secs(10))?;
        }
        let before = places(owner, &HOT)?;
        ensure!(before["hot-1"] == before["hot-2"], "both are where they are written: {before:?}");
        let after = while_holding(
            || healthy(owner, &HOT),
            || {
                eventually("one of them is elsewhere", EVEN_MAX, || {
                    let places = places(owner, &HOT)?;
                    ensure!(places["hot-1"] != places["hot-2"], "{places:?}");
                    Ok(places)
                })
            },
        )?;
        ensure!(after.values().any(|host| *host == before["hot-1"]), "one stays: {before:?}, {after:?}");
        for load in &mut loads {
            load.progress(100, Duration::from_secs(10))?;
            load.verify()?;
        }
        let told = eventually("it is told", Duration::from_secs(60), || owner.saw(EventKind::Rebalanced))?;
        ensure!(told.message.contains("busier"), "{told:?}");
        // Either is all that its disk has to serve by now. Averages settle, and again they are looked at.
        std::thread::sleep(Duration::from_secs(50));
        ensure!(places(owner, &HOT)? == after, "it was {after:?}");
        for load in &mut loads {
            load.verify()?;
        }
        loads.into_iter().try_for_each(|load| load.finish().map(drop))
    });
}
