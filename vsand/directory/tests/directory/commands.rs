//! Proposing and reading while the network misbehaves.

use std::time::{Duration, Instant};

use vsand_directory::{DirectoryError, Role};

use crate::harness::{Command, Hosts, add, host, run};

#[test]
fn one_host_is_a_cluster() {
    run(async {
        let mut hosts = Hosts::new();
        hosts.start(1).await;
        assert_eq!(hosts.directory(1).status().role, Role::Outside);
        hosts.directory(1).bootstrap().await.unwrap();
        assert!(matches!(hosts.directory(1).bootstrap().await, Err(DirectoryError::AlreadyBootstrapped)));
        let mut watch = hosts.directory(1).watch();
        for n in 1..=20 {
            assert_eq!(hosts.add(1, "a").await, n);
        }
        watch.wait_for(|index| *index >= 21).await.unwrap();
        assert_eq!(hosts.directory(1).linearizable_state().await.unwrap().values["a"], 20);
        let status = hosts.directory(1).status();
        assert_eq!((status.role, status.leader, status.without_quorum), (Role::Leader, Some(host(1)), false));
    });
}

#[test]
fn every_host_proposes_and_watches() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        let leader = hosts.leader().await;
        assert_eq!(hosts.directory(leader).status().voters().len(), 3);
        for n in 1..=3 {
            let mut watch = hosts.directory(n).watch();
            watch.mark_unchanged();
            assert_eq!(hosts.add(n, "a").await, u64::from(n));
            tokio::time::timeout(Duration::from_secs(5), watch.changed())
                .await
                .expect("the watch fires")
                .unwrap();
            for reader in 1..=3 {
                let state = hosts.directory(reader).linearizable_state().await.unwrap();
                assert_eq!(state.values["a"], u64::from(n), "host {reader} reads what host {n} wrote");
            }
        }
    });
}

#[test]
fn of_two_that_race_one_wins() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        for round in 0..20 {
            let swap = |new| Command::Swap { key: "lock".into(), expected: round, new };
            let (one, two) = (swap(round + 1), swap(round + 1));
            let (a, b) = tokio::join!(hosts.directory(1).propose(&one), hosts.directory(2).propose(&two));
            let wins = [a.unwrap(), b.unwrap()].iter().filter(|answer| answer.is_ok()).count();
            assert_eq!(wins, 1, "round {round}");
        }
    });
}

#[test]
fn a_dead_leader_is_replaced() {
    run(async {
        let mut hosts = Hosts::cluster(3).await;
        hosts.add(1, "a").await;
        let old = hosts.leader().await;
        let killed = Instant::now();
        hosts.kill(old);
        let new = hosts.leader().await;
        assert_ne!(new, old);
        println!("a new leader after {:?}", killed.elapsed());
        for n in hosts.up.keys() {
            hosts.add(*n, "a").await;
        }
        hosts.restart(old).await;
        hosts.all_show("a", 3).await;
    });
}

#[test]
fn a_minority_changes_nothing_and_says_so() {
    run(async {
        let mut hosts = Hosts::cluster(5).await;
        let leader = hosts.leader().await;
        assert_eq!(hosts.directory(leader).status().voters().len(), 5);
        hosts.add(leader, "a").await;
        let others: Vec<u8> = (1..=5).filter(|n| *n != leader).collect();
        hosts.kill(others[0]);
        hosts.kill(others[1]);
        assert_eq!(hosts.add(leader, "a").await, 2, "three of five go on");
        hosts.kill(others[2]);
        // Until it has missed enough answers the leader takes commands, whose outcome is then unknown.
        let status = || hosts.directory(leader).status().without_quorum.then_some(());
        hosts.eventually("the leader to notice", status).await;
        let within = Duration::from_millis(500);
        for n in [leader, others[3]] {
            let refused = hosts.directory(n).propose_within(&add("b", 1), within).await;
            let sure =
                matches!(refused, Err(DirectoryError::NoLeader { .. } | DirectoryError::NoQuorum { .. }));
            assert!(sure, "host {n}: {refused:?}");
        }
        assert!(hosts.directory(leader).linearizable_state_within(within).await.is_err());
        hosts.restart(others[0]).await;
        assert_eq!(hosts.add(others[3], "a").await, 3);
        hosts.all_show("a", 3).await;
        assert!(
            !hosts.directory(leader).state().values.contains_key("b"),
            "what was refused was not applied"
        );
    });
}

#[test]
fn an_isolated_leader_neither_writes_nor_reads() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        hosts.add(1, "a").await;
        let old = hosts.leader().await;
        hosts.isolate(old);
        let lost = hosts.directory(old).propose_within(&add("lost", 1), Duration::from_millis(300)).await;
        assert!(lost.is_err(), "{lost:?}");
        let other = hosts.up.keys().copied().find(|n| *n != old).unwrap();
        hosts.add(other, "a").await;
        let stale = hosts.directory(old).linearizable_state_within(Duration::from_millis(500)).await;
        assert!(stale.is_err(), "an old leader must not read: {stale:?}");
        hosts.heal();
        hosts.all_show("a", 2).await;
        hosts.add(old, "a").await;
        hosts.all_show("a", 3).await;
        assert!(!hosts.directory(other).state().values.contains_key("lost"));
    });
}

#[test]
fn one_way_cuts_do_not_stop_the_group() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        let leader = hosts.leader().await;
        let others: Vec<u8> = (1..=3).filter(|n| *n != leader).collect();
        // The leader is heard by nobody, but hears: the others elect one, and it follows.
        hosts.cut(leader, others[0]);
        hosts.cut(leader, others[1]);
        hosts
            .eventually("another leader", || {
                let status = hosts.directory(others[0]).status();
                (status.leader.is_some_and(|l| l != host(leader)) && !status.without_quorum).then_some(())
            })
            .await;
        assert_eq!(hosts.add(others[0], "a").await, 1);
        hosts.heal();
        // A follower that hears nothing but is heard: the majority goes on.
        let leader = hosts.leader().await;
        let deaf = (1..=3).find(|n| *n != leader).unwrap();
        for n in (1..=3).filter(|n| *n != deaf) {
            hosts.cut(n, deaf);
        }
        let third = (1..=3).find(|n| *n != leader && *n != deaf).unwrap();
        for n in 2..=10 {
            assert_eq!(hosts.add(third, "a").await, n);
        }
        hosts.heal();
        hosts.all_show("a", 10).await;
    });
}

#[test]
fn a_command_whose_answer_is_lost_is_applied_once() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        let leader = hosts.leader().await;
        let follower = (1..=3).find(|n| *n != leader).unwrap();
        let logged = || hosts.directory(leader).status().last_log_index;
        let before = logged();
        hosts.lose_answers(true);
        let within = Duration::from_millis(500);
        let unknown = hosts.directory(follower).propose_within(&add("a", 1), within).await;
        assert!(matches!(unknown, Err(DirectoryError::Timeout)), "{unknown:?}");
        let command = add("a", 1);
        let patient = hosts.directory(follower).propose(&command);
        let later = async {
            // Two commands, and a copy at least: how fast they are repeated is the machine's matter.
            let copied = || (logged() > before + 2).then_some(());
            hosts.eventually("a command that is in the log twice", copied).await;
            hosts.lose_answers(false);
        };
        let (answer, ()) = tokio::join!(patient, later);
        assert_eq!(answer.unwrap(), Ok(2), "both were applied once");
        assert_eq!(hosts.directory(leader).state().values["a"], 2);
    });
}

#[test]
fn commands_survive_the_death_of_leaders() {
    run(async {
        let mut hosts = Hosts::cluster(3).await;
        for round in 1..=2 {
            let leader = hosts.leader().await;
            let follower = (1..=3).find(|n| *n != leader).unwrap();
            let directory = hosts.directory(follower).clone();
            let proposing = tokio::spawn(async move {
                for n in 1..=200 {
                    let value = directory.propose(&add("a", 1)).await.unwrap().unwrap();
                    assert_eq!(value, (round - 1) * 200 + n);
                }
            });
            tokio::time::sleep(Duration::from_millis(30)).await;
            // Frozen first: questions vanish instead of being refused.
            hosts.isolate(leader);
            tokio::time::sleep(Duration::from_millis(200)).await;
            hosts.kill(leader);
            proposing.await.unwrap();
            hosts.heal();
            hosts.restart(leader).await;
            hosts.all_show("a", round * 200).await;
        }
    });
}
