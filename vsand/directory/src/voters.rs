//! Which hosts vote. A pure rule, so that its promises can be tested on every input.
//!
//! Few voters commit fast, more voters survive more failures: one voter with one or two hosts (two would only double the
//! ways to lose the quorum), three with three or more, five where five fault domains exist. The rule moves nothing
//! without need, because each move is a membership change.
//!
//! What it must not know: Raft, time, who leads.

use std::collections::BTreeSet;

use ferro_protocol::fault_domain::site;
use ferro_protocol::ids::HostId;

/// One host that may vote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The host.
    pub host: HostId,
    /// Where its control channel listens.
    pub address: String,
    /// What fails together with it.
    pub fault_domain: String,
    /// It answers, and its log is not far behind.
    pub alive: bool,
    /// It has been away for so long that another host should take its place (an hour, say). Implies not `alive`.
    pub long_absent: bool,
    /// It votes at present.
    pub voter: bool,
}

/// The hosts that should vote.
///
/// - 1, 3 or 5 of them, the most that the hosts allow; spread over as many fault domains as possible, and these over sites.
/// - A present voter stays unless it is long absent and a live host can take over, unless its fault domain or its site has another
///   voter and a live host could bring a new domain or a site with fewer, or unless there are too few hosts for the larger number.
/// - A host that is not alive is never added, and an absence alone never shrinks the set.
/// - A set that differs from the present one has a majority that is alive; otherwise the present one stays.
/// - Doing it twice changes nothing.
///
/// Present voters that are not among the candidates (removed hosts) drop out. Empty only if nobody can vote.
pub fn choose_voters(candidates: &[Candidate]) -> BTreeSet<HostId> {
    let present: BTreeSet<HostId> = candidates.iter().filter(|c| c.voter).map(|c| c.host).collect();
    let chosen = [5, 3, 1].into_iter().find_map(|size| pick(candidates, size)).unwrap_or_default();
    let live = candidates.iter().filter(|c| is_live(c) && chosen.contains(&c.host)).count();
    if chosen != present && !present.is_empty() && live * 2 <= chosen.len() {
        return present;
    }
    chosen
}

/// The best `size` voters; `None` if there are too few hosts, or for five voters too few fault domains.
fn pick(candidates: &[Candidate], size: usize) -> Option<BTreeSet<HostId>> {
    let mut pool: Vec<&Candidate> = candidates.iter().filter(|c| c.voter || is_live(c)).collect();
    let mut domains = BTreeSet::new();
    let mut chosen = BTreeSet::new();
    while chosen.len() < size {
        let rank = |c: &Candidate| {
            let in_site =
                domains.iter().filter(|other: &&&String| site(other) == site(&c.fault_domain)).count();
            let shared = domains.contains(&c.fault_domain);
            (c.long_absent, shared, in_site, !c.voter, !is_live(c), c.host)
        };
        let best = pool.swap_remove((0..pool.len()).min_by_key(|&at| rank(pool[at]))?);
        domains.insert(&best.fault_domain);
        chosen.insert(best.host);
    }
    (size < 5 || domains.len() == size).then_some(chosen)
}

fn is_live(candidate: &Candidate) -> bool {
    candidate.alive && !candidate.long_absent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(n: u8) -> HostId {
        HostId::from_bytes([n; 16])
    }

    /// One character a host: its fault domain. Capital: it votes. A sign after it: `-` short absent, `=` long absent.
    fn hosts(text: &str) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = Vec::new();
        for c in text.chars() {
            match (c, all.last_mut()) {
                ('-', Some(last)) => last.alive = false,
                ('=', Some(last)) => (last.alive, last.long_absent) = (false, true),
                _ => all.push(Candidate {
                    host: host(all.len() as u8),
                    address: String::new(),
                    fault_domain: c.to_ascii_lowercase().to_string(),
                    alive: true,
                    long_absent: false,
                    voter: c.is_ascii_uppercase(),
                }),
            }
        }
        all
    }

    fn after(text: &str) -> String {
        let mut all = hosts(text);
        let chosen = choose_voters(&all);
        for c in &mut all {
            c.voter = chosen.contains(&c.host);
        }
        let show = |c: &Candidate| {
            let domain = if c.voter { c.fault_domain.to_uppercase() } else { c.fault_domain.clone() };
            domain
                + if c.long_absent {
                    "="
                } else if c.alive {
                    ""
                } else {
                    "-"
                }
        };
        all.iter().map(show).collect()
    }

    #[test]
    fn by_hand() {
        for (before, expected) in [
            ("", ""),
            ("a", "A"),
            ("Ab", "Ab"),
            ("aB", "aB"),
            ("Abc", "ABC"),
            ("Abc-", "Abc-"),
            ("AB-C", "AB-C"),
            ("AB=C", "AB=C"),
            ("AB=Cd", "Ab=CD"),
            ("AB-Cd", "AB-Cd"),
            ("AABb", "AABb"),
            ("AABc", "AaBC"),
            ("ABCd", "ABCd"),
            ("ABCde", "ABCDE"),
            ("ABCDE=", "ABCDE="),
            ("ABCDE=f", "ABCDe=F"),
            ("ABCDe-", "ABCde-"),
            ("ABCaa", "ABCaa"),
            ("AB", "Ab"),
            ("A-B", "a-B"),
            ("A-B-C", "A-B-C"),
            ("A-b", "A-b"),
            ("A=b", "a=B"),
        ] {
            assert_eq!(after(before), expected, "from {before}");
        }
    }

    /// Hosts in these fault domains, the first so many of which vote: which do afterwards, by their fault domains.
    fn voting(domains: &[&str], voters: usize) -> Vec<String> {
        let one = |(n, domain): (usize, &&str)| Candidate {
            host: host(n as u8),
            address: String::new(),
            fault_domain: (*domain).to_owned(),
            alive: true,
            long_absent: false,
            voter: n < voters,
        };
        let all: Vec<Candidate> = domains.iter().enumerate().map(one).collect();
        let chosen = choose_voters(&all);
        all.into_iter().filter(|c| chosen.contains(&c.host)).map(|c| c.fault_domain).collect()
    }

    #[test]
    fn no_site_has_more_voters_than_it_must() {
        let sites = ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "c/1"];
        for voters in 0..=5 {
            assert_eq!(voting(&sites, voters), ["a/1", "a/2", "b/1", "b/2", "c/1"], "{voters}");
        }
        // A rack that two hosts share counts once, whatever its site.
        assert_eq!(voting(&["a/1", "a/1", "a/2", "b/1"], 1), ["a/1", "a/2", "b/1"]);
    }

    fn any_hosts() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u8..6, 0u8..3, any::<bool>());
        prop::collection::vec(one, 0..10).prop_map(|all| {
            let each = |(n, (domain, absence, voter)): (usize, (u8, u8, bool))| Candidate {
                host: host(n as u8),
                address: String::new(),
                fault_domain: ["a/0", "a/1", "b/2", "b/3", "4", "5"][usize::from(domain)].to_owned(),
                alive: absence == 0,
                long_absent: absence == 2,
                voter,
            };
            all.into_iter().enumerate().map(each).collect()
        })
    }

    proptest! {
        #[test]
        fn promises(mut all in any_hosts()) {
            let present: BTreeSet<HostId> = all.iter().filter(|c| c.voter).map(|c| c.host).collect();
            let chosen = choose_voters(&all);
            let by_host = |h: &HostId| all.iter().find(|c| c.host == *h).unwrap();
            if chosen != present {
                prop_assert!(matches!(chosen.len(), 0 | 1 | 3 | 5));
                for added in chosen.difference(&present) {
                    prop_assert!(is_live(by_host(added)), "only a live host is added");
                }
                let live = chosen.iter().filter(|h| is_live(by_host(h))).count();
                prop_assert!(present.is_empty() || live * 2 > chosen.len(), "a change leaves a live majority");
                for lost in present.difference(&chosen).filter(|h| is_live(by_host(h))) {
                    let of = |h: &HostId| site(&by_host(h).fault_domain);
                    let twin = chosen.iter().any(|h| of(h) == of(lost));
                    prop_assert!(twin || chosen.len() < present.len(), "a live voter gives way only for a better spread");
                }
            }
            prop_assert_eq!(chosen.is_empty(), present.is_empty() && !all.iter().any(is_live));
            for c in &mut all {
                c.voter = chosen.contains(&c.host);
            }
            prop_assert_eq!(choose_voters(&all), chosen, "twice is once");
        }

        #[test]
        fn an_absence_never_shrinks(mut all in any_hosts(), which in any::<prop::sample::Index>()) {
            let first = choose_voters(&all);
            prop_assume!(!all.is_empty());
            for c in &mut all {
                c.voter = first.contains(&c.host);
            }
            let at = which.index(all.len());
            prop_assume!(all[at].alive && !all[at].long_absent && matches!(first.len(), 1 | 3 | 5));
            (all[at].alive, all[at].long_absent) = (false, false);
            let second = choose_voters(&all);
            prop_assert!(second.len() >= first.len());
        }
    }
}
