//! Leases: what gateways want written down, written down.
//!
//! ```text
//!   worker ──LeaseWanted──► steward ──► here: Book::apply ──► directory (compare-and-set) or, alone, a file
//!                ▲                                                     │ written
//!                └───────────────── Lease, LeaseBook ◄─────────────────┘
//! ```
//!
//! All wishes for a group that wait are applied to its newest book at once and written once. Only then is anybody told. If
//! another host was faster, the same wishes are applied to its book. Without the directory, nobody gets a new address; a
//! machine that the network knows keeps the one that it has, which nobody else can get meanwhile.
//!
//! What it must not know: DHCP; by which rules an address is given ([`crate::endpoint::Book`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ferro_protocol::net::NetName;
use tokio::sync::mpsc;
use vswitch_core::config::GroupIx;

use super::{CATCH_UP, Shared, documents};
use crate::data::port::Command;
use crate::endpoint::{Book, LeaseAnswer, LeaseWanted, Refusal, Rules, WallSeconds, Wish};
use ferro_transport::directory::PutError;

/// Wishes that wait; a machine whose wish is lost asks again.
pub(super) const WISHES_MAX: usize = 4096;
/// So many are written at once.
const BATCH_MAX: usize = 256;
/// Other hosts may be faster so often before a wish is given up.
const OVERTAKEN_MAX: usize = 20;

/// The wall clock.
pub(super) fn wall() -> WallSeconds {
    WallSeconds(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Works until nobody wishes anything any more.
pub(super) async fn run(shared: Arc<Shared>, mut wishes: mpsc::Receiver<LeaseWanted>) {
    while let Some(first) = wishes.recv().await {
        let mut groups: BTreeMap<NetName, Vec<LeaseWanted>> = BTreeMap::new();
        groups.entry(first.group.clone()).or_default().push(first);
        for _ in 1..BATCH_MAX {
            let Ok(wanted) = wishes.try_recv() else { break };
            groups.entry(wanted.group.clone()).or_default().push(wanted);
        }
        for (group, wanted) in groups {
            let answers = answer(&shared, &group, &wanted).await;
            for answer in answers {
                if let Err(error) = shared.data.send(Command::Lease { group: group.clone(), answer }) {
                    tracing::warn!(%group, %error, "a lease's answer was not taken");
                }
            }
        }
    }
}

/// Why a book can't be written.
enum NotWritten {
    Overtaken,
    Never(String),
}

async fn answer(shared: &Shared, group: &NetName, wanted: &[LeaseWanted]) -> Vec<LeaseAnswer> {
    let refuse_all = |why: &str| {
        tracing::warn!(%group, why, "leases can't be written down");
        wanted.iter().map(refused).collect()
    };
    let rules = {
        let network = Arc::clone(&shared.state().network);
        let at = network.groups().iter().position(|it| it.name == *group);
        at.and_then(|at| Rules::of(&network, GroupIx(at as u32)))
    };
    // It left the configuration meanwhile.
    let Some(rules) = rules else { return wanted.iter().map(refused).collect() };
    for _ in 0..OVERTAKEN_MAX {
        let (basis, old) = match shared.book(group) {
            Ok(it) => it,
            Err(why) => return refuse_all(&why),
        };
        let mut new = old.clone();
        let now = wall();
        let answers: Vec<LeaseAnswer> = wanted.iter().map(|it| new.apply(&rules, now, it)).collect();
        if new == old {
            return answers;
        }
        match write(shared, group, basis, &new).await {
            Ok(revision) => {
                shared.keep_book(group, revision, &new);
                let told = Command::LeaseBook { group: group.clone(), wall: now, book: Box::new(new) };
                if let Err(error) = shared.data.send(told) {
                    tracing::warn!(%group, %error, "a lease book was not taken");
                }
                return answers;
            }
            Err(NotWritten::Overtaken) => tokio::time::sleep(CATCH_UP).await,
            Err(NotWritten::Never(why)) => {
                tracing::warn!(%group, why, "leases can't be written down: nobody gets a new one");
                return wanted.iter().map(|it| without_writing(&rules, &old, now, it)).collect();
            }
        }
    }
    refuse_all("other hosts were always faster")
}

fn refused(it: &LeaseWanted) -> LeaseAnswer {
    LeaseAnswer::Refused { mac: it.mac, ip: it.ip, why: Refusal::Unavailable }
}

/// What a machine may be told though nothing can be written: that it keeps what nobody else can get.
fn without_writing(rules: &Rules, book: &Book, now: WallSeconds, wanted: &LeaseWanted) -> LeaseAnswer {
    let has = book.of(wanted.mac).is_some_and(|lease| lease.ip == wanted.ip && lease.port == wanted.port);
    let given = rules.reserved.get(&wanted.ip) == Some(&wanted.mac);
    let keeps = given || (has && rules.known.contains_key(&wanted.mac));
    if wanted.wish == Wish::Lease && keeps { book.clone().apply(rules, now, wanted) } else { refused(wanted) }
}

async fn write(shared: &Shared, group: &NetName, basis: u64, book: &Book) -> Result<u64, NotWritten> {
    let never = |why: &dyn std::fmt::Display| NotWritten::Never(why.to_string());
    let bytes = book.encode().map_err(|error| never(&error))?;
    let Some(directory) = &shared.directory else {
        let (files, group, book) = (shared.files.clone(), group.clone(), book.clone());
        let saved = tokio::task::spawn_blocking(move || files.save_book(&group, &book)).await;
        return match saved {
            Ok(Ok(())) => Ok(basis + 1),
            Ok(Err(error)) => Err(never(&error)),
            Err(error) => Err(never(&error)),
        };
    };
    // No need to wait for what is known not to answer.
    if let Some(why) = shared.state().lost.clone() {
        return Err(NotWritten::Never(why));
    }
    let text = String::from_utf8(bytes).map_err(|error| never(&error))?;
    match directory.put(&documents::leases_name(group), basis, text).await {
        Ok(revision) => Ok(revision),
        Err(PutError::Overtaken(_)) => Err(NotWritten::Overtaken),
        Err(error) => Err(never(&error)),
    }
}
