//! Who belongs to the group, and who votes.

use std::collections::BTreeSet;

use vsand_directory::{DirectoryError, MembershipError, Role};

use crate::harness::{Hosts, add, address_of, host, run};

#[test]
fn two_hosts_one_voter_three_hosts_three() {
    run(async {
        let mut hosts = Hosts::cluster(2).await;
        let status = hosts.directory(1).status();
        assert_eq!((status.voters(), status.learners()), ([host(1)].into(), [host(2)].into()));
        assert_eq!(hosts.add(2, "a").await, 1, "a learner proposes, too");
        hosts.kill(2);
        assert_eq!(hosts.add(1, "a").await, 2, "the voter needs no learner");
        hosts.restart(2).await;
        hosts.start(3).await;
        hosts.settle().await;
        assert_eq!(hosts.directory(1).status().voters().len(), 3);
        hosts.all_show("a", 2).await;
    });
}

#[test]
fn voters_spread_over_fault_domains() {
    run(async {
        let mut hosts = Hosts::new();
        for (n, domain) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")] {
            hosts.domains.insert(n, domain.into());
        }
        hosts.grow(3).await;
        assert_eq!(hosts.directory(1).status().voters().len(), 3);
        hosts.start(4).await;
        hosts.start(5).await;
        hosts.settle().await;
        let leader = hosts.leader().await;
        let voters = hosts.directory(leader).status().voters();
        assert!(voters.len() == 3 && voters.contains(&host(4)) && voters.contains(&host(5)), "{voters:?}");
    });
}

#[test]
fn a_voter_that_is_gone_for_long_is_replaced() {
    run(async {
        let mut hosts = Hosts::new();
        for n in 1..=4 {
            hosts.domains.insert(n, format!("rack {}", n % 3));
        }
        hosts.grow(4).await;
        let leader = hosts.leader().await;
        let gone =
            (1..=4).find(|n| *n != leader && hosts.directory(leader).status().voters().contains(&host(*n)));
        let gone = gone.unwrap();
        hosts.kill(gone);
        let mut candidates = hosts.candidates(1..=4);
        hosts.settle_with(&candidates).await;
        assert!(
            hosts.directory(leader).status().voters().contains(&host(gone)),
            "a short absence moves nothing"
        );
        for candidate in &mut candidates {
            candidate.long_absent = candidate.host == host(gone);
        }
        hosts.settle_with(&candidates).await;
        let voters = hosts.directory(hosts.leader().await).status().voters();
        assert!(voters.len() == 3 && !voters.contains(&host(gone)), "{voters:?}");
        hosts.add(leader, "a").await;
        hosts.restart(gone).await;
        hosts.all_show("a", 1).await;
    });
}

#[test]
fn a_removed_host_learns_it_and_may_come_back() {
    run(async {
        let mut hosts = Hosts::cluster(4).await;
        hosts.add(1, "a").await;
        let leader = hosts.leader().await;
        let out = (1..=4).find(|n| *n != leader).unwrap();
        // Away while it is removed, so that nobody can tell it.
        hosts.kill(out);
        hosts.directory(leader).remove_host(host(out)).await.unwrap();
        hosts.directory(leader).remove_host(host(out)).await.expect("again is no error");
        hosts.settle().await;
        hosts.restart(out).await;
        hosts.directory(out).removed().await;
        assert_eq!(hosts.directory(out).status().role, Role::Removed);
        let refused = hosts.directory(out).linearizable_state().await;
        assert!(matches!(refused, Err(DirectoryError::Removed)), "{refused:?}");
        hosts.add(leader, "a").await;
        // The mark survives a restart.
        hosts.kill(out);
        hosts.restart(out).await;
        assert_eq!(hosts.directory(out).status().role, Role::Removed);
        hosts.settle().await;
        hosts.all_show("a", 2).await;
        let back = || (hosts.directory(out).status().role != Role::Removed).then_some(());
        hosts.eventually("the host to be a member again", back).await;
    });
}

#[test]
fn the_leader_can_be_removed_and_the_last_host_not() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        hosts.add(1, "a").await;
        let mut members: BTreeSet<u8> = (1..=3).collect();
        for left in [2, 1] {
            let leader = hosts.leader().await;
            let asker = *members.iter().find(|n| **n != leader).unwrap();
            hosts.directory(asker).remove_host(host(leader)).await.unwrap();
            members.remove(&leader);
            hosts.directory(leader).removed().await;
            assert_eq!(hosts.add(asker, "b").await, 3 - left);
        }
        let last = *members.first().unwrap();
        let refused = hosts.directory(last).remove_host(host(last)).await;
        let last_host = MembershipError::LastHost(host(last));
        assert!(
            matches!(&refused, Err(DirectoryError::Membership(error)) if *error == last_host),
            "{refused:?}"
        );
    });
}

#[test]
fn a_removal_that_would_lose_the_quorum_is_refused() {
    run(async {
        let mut hosts = Hosts::cluster(3).await;
        let leader = hosts.leader().await;
        let others: Vec<u8> = (1..=3).filter(|n| *n != leader).collect();
        hosts.kill(others[0]);
        let silent = || {
            let status = hosts.directory(leader).status();
            status.members[&host(others[0])].silence.is_some_and(|s| s.as_millis() > 1200).then_some(())
        };
        hosts.eventually("the dead host to be noticed", silent).await;
        let refused = hosts.directory(leader).remove_host(host(others[1])).await;
        let why =
            matches!(&refused, Err(DirectoryError::Membership(MembershipError::WouldLoseQuorum { .. })));
        assert!(why, "{refused:?}");
        hosts.directory(leader).remove_host(host(others[0])).await.expect("the dead one may go");
        hosts.add(leader, "a").await;
    });
}

#[test]
fn a_host_that_does_not_answer_is_not_admitted() {
    run(async {
        let hosts = Hosts::cluster(1).await;
        let refused = hosts.directory(1).add_learner(host(7), &address_of(host(7)), "x").await;
        let why = matches!(&refused, Err(DirectoryError::Membership(MembershipError::Unreachable { .. })));
        assert!(why, "{refused:?}");
        assert_eq!(hosts.directory(1).status().members.len(), 1, "nothing half made is left");
    });
}

#[test]
fn a_removed_host_has_no_say() {
    run(async {
        let hosts = Hosts::cluster(3).await;
        let leader = hosts.leader().await;
        let out = (1..=3).find(|n| *n != leader).unwrap();
        hosts.directory(leader).remove_host(host(out)).await.unwrap();
        let within = std::time::Duration::from_millis(300);
        let refused = hosts.directory(out).propose_within(&add("a", 1), within).await;
        let sure = matches!(refused, Err(DirectoryError::Removed | DirectoryError::NoLeader { .. }));
        assert!(sure, "{refused:?}");
        assert!(!hosts.directory(leader).linearizable_state().await.unwrap().values.contains_key("a"));
        hosts.directory(out).removed().await;
    });
}
