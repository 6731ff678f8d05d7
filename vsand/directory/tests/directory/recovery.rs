//! Restarts, power cuts, snapshots, members that were away.

use vsand_directory::{COMMAND_BYTES_MAX, DirectoryError, StoreError};

use crate::harness::{Command, Hosts, add, address_of, host, run};

#[test]
fn a_power_cut_of_all_hosts_loses_nothing() {
    run(async {
        let mut hosts = Hosts::cluster(3).await;
        for round in 1..=3u64 {
            for n in 1..=3 {
                hosts.add(n, "a").await;
            }
            for n in 1..=3 {
                hosts.kill(n);
            }
            for n in 1..=3 {
                hosts.restart(n).await;
            }
            hosts.leader().await;
            assert_eq!(hosts.directory(2).linearizable_state().await.unwrap().values["a"], round * 3);
        }
        hosts.all_show("a", 9).await;
    });
}

#[test]
fn one_host_restarts_from_snapshot_and_log() {
    run(async {
        let mut hosts = Hosts::new();
        hosts.snapshot_every = 40;
        hosts.grow(1).await;
        for n in 1..=150 {
            assert_eq!(hosts.add(1, "a").await, n);
        }
        let status = || (hosts.directory(1).status().snapshot_index > 100).then_some(());
        hosts.eventually("a snapshot", status).await;
        let before = hosts.directory(1).state();
        hosts.kill(1);
        hosts.restart(1).await;
        assert_eq!(hosts.add(1, "b").await, 1);
        let after = hosts.directory(1).state();
        assert_eq!((after.values["a"], after.commands), (150, before.commands + 1));
    });
}

#[test]
fn who_was_away_for_long_catches_up_by_snapshot() {
    run(async {
        let mut hosts = Hosts::new();
        hosts.snapshot_every = 40;
        hosts.grow(3).await;
        let leader = hosts.leader().await;
        let away = (1..=3).find(|n| *n != leader).unwrap();
        hosts.add(away, "a").await;
        hosts.kill(away);
        // More than one piece of a snapshot.
        for _ in 0..3 {
            let ballast = Command::Ballast(vec![7; COMMAND_BYTES_MAX - 100]);
            hosts.directory(leader).propose(&ballast).await.unwrap().unwrap();
        }
        // A snapshot that is being built holds up the next, so only the status tells when there is one.
        let mut value = 1;
        while value < 150 || hosts.directory(leader).status().snapshot_index < 100 {
            value = hosts.add(leader, "a").await;
        }
        *hosts.net.snapshot_pieces.lock().unwrap() = 0;
        hosts.restart(away).await;
        hosts.all_show("a", value).await;
        assert!(*hosts.net.snapshot_pieces.lock().unwrap() >= 3, "it came by snapshot, in pieces");
        assert_eq!(hosts.directory(away).state(), hosts.directory(leader).state());
        // What it was sent is on its disk.
        hosts.kill(away);
        hosts.restart(away).await;
        hosts.all_show("a", value).await;
        // A new host starts with a snapshot, too.
        hosts.start(4).await;
        hosts.settle().await;
        hosts.all_show("a", value).await;
    });
}

#[test]
fn lost_storage_is_not_a_fresh_start() {
    run(async {
        let mut hosts = Hosts::cluster(3).await;
        hosts.add(1, "a").await;
        let leader = hosts.leader().await;
        let lost = (1..=3).find(|n| *n != leader).unwrap();
        hosts.kill(lost);
        hosts.wipe(lost);
        let refused = hosts.try_start(lost, true).await;
        assert!(matches!(refused, Err(DirectoryError::Storage(StoreError::Lost))), "{refused:?}");
        // Even if the identity files forgot it: the group tells the new storage from the old and gives it nothing.
        hosts.wipe(lost);
        hosts.start(lost).await;
        let other = (1..=3).find(|n| *n != leader && *n != lost).unwrap();
        hosts.add(other, "a").await;
        hosts.kill(other);
        let within = std::time::Duration::from_millis(1500);
        let alone = hosts.directory(leader).propose_within(&add("a", 1), within).await;
        assert!(alone.is_err(), "the one that forgot must not count: {alone:?}");
        hosts.restart(other).await;
        let leader = hosts.leader().await;
        let rejoin = hosts.directory(leader).add_learner(host(lost), &address_of(host(lost)), "x").await;
        assert!(rejoin.is_err(), "{rejoin:?}");
        hosts.directory(leader).remove_host(host(lost)).await.unwrap();
        hosts.settle().await;
        let value = hosts.add(leader, "a").await;
        hosts.all_show("a", value).await;
    });
}
