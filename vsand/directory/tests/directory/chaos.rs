//! Everything at once: clients count while hosts die, links break in one direction and messages come late.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vsand_directory::DirectoryError;

use crate::harness::{Hosts, Net, add, run};

/// What one client saw.
#[derive(Default)]
struct Seen {
    values: Vec<u64>,
    unknown: u64,
    refused: u64,
}

async fn count(net: Arc<Net>, own: u8, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let Some(directory) = net.node(own) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        match directory.propose_within(&add("n", 1), Duration::from_millis(1500)).await {
            Ok(answer) => seen.values.push(answer.unwrap()),
            // A host that is killed under its client says that it stopped, unless the command was under way.
            Err(
                DirectoryError::NoLeader { .. } | DirectoryError::NoQuorum { .. } | DirectoryError::Fatal(_),
            ) => {
                seen.refused += 1;
            }
            Err(DirectoryError::Timeout) => seen.unknown += 1,
            Err(other) => panic!("{other}"),
        }
    }
    seen
}

async fn torment(hosts: &mut Hosts, seed: u64, length: Duration) {
    let mut noise = seed;
    let mut pick = |below: u64| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 33) % below
    };
    let end = Instant::now() + length;
    while Instant::now() < end {
        let (one, other) = (pick(3) as u8 + 1, pick(3) as u8 + 1);
        match pick(4) {
            0 if hosts.up.len() == 3 => hosts.kill(one),
            1 => hosts.cut(one, other),
            2 => hosts.isolate(one),
            _ => {
                hosts.heal();
                for n in 1..=3 {
                    if !hosts.up.contains_key(&n) {
                        hosts.restart(n).await;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100 + pick(700))).await;
    }
    hosts.heal();
    for n in 1..=3 {
        if !hosts.up.contains_key(&n) {
            hosts.restart(n).await;
        }
    }
}

#[test]
fn nothing_is_counted_twice_or_lost() {
    run(async {
        let mut hosts = Hosts::new();
        hosts.snapshot_every = 60;
        hosts.grow(3).await;
        hosts.add(1, "n").await;
        hosts.all_show("n", 1).await;
        *hosts.net.delay_ms_max.lock().unwrap() = 20;
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> =
            (1..=3).map(|n| tokio::spawn(count(Arc::clone(&hosts.net), n, Arc::clone(&stop)))).collect();
        torment(&mut hosts, 7, Duration::from_millis(3500)).await;
        stop.store(true, Ordering::Relaxed);
        let mut all = BTreeSet::from([1]);
        let (mut acknowledged, mut unknown, mut refused) = (1, 0, 0);
        for client in clients {
            let seen = client.await.unwrap();
            assert!(seen.values.windows(2).all(|pair| pair[0] < pair[1]), "a client's own values ascend");
            acknowledged += seen.values.len() as u64;
            unknown += seen.unknown;
            refused += seen.refused;
            all.extend(seen.values);
        }
        hosts.leader().await;
        let counted = hosts.directory(1).linearizable_state().await.unwrap().values["n"];
        println!("{acknowledged} acknowledged, {unknown} unknown, {refused} refused, {counted} counted");
        assert_eq!(all.len() as u64, acknowledged, "no two got the same answer");
        assert!(
            acknowledged <= counted && counted <= acknowledged + unknown,
            "{acknowledged} {counted} {unknown}"
        );
        hosts.all_show("n", counted).await;
    });
}
