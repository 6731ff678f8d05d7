//! Documents in the directory: compare-and-set, and bounds.

use ferro_protocol::document::{DOCUMENT_BYTES_MAX, DOCUMENTS_BYTES_MAX, DOCUMENTS_MAX, DocumentName};
use vsand_core::directory::{Command, Outcome, Refused, State};

fn name(text: &str) -> DocumentName {
    text.parse().expect("a name")
}

fn put(state: &mut State, index: u64, at: &str, basis: u64, content: &str) -> Result<Outcome, Refused> {
    state.apply(index, Command::PutDocument { name: name(at), basis, content: content.to_owned() })
}

#[test]
fn a_document_changes_only_for_who_has_seen_its_latest() {
    let mut state = State::default();
    assert_eq!(put(&mut state, 5, "switch/network", 0, "one"), Ok(Outcome::Revision(5)));
    for stale in [0, 4, 6] {
        let before = state.clone();
        assert_eq!(put(&mut state, 7, "switch/network", stale, "x"), Err(Refused::WrongRevision(5)));
        let delete = Command::DeleteDocument { name: name("switch/network"), basis: stale };
        assert_eq!(state.apply(8, delete), Err(Refused::WrongRevision(5)));
        assert_eq!(state, before);
    }
    assert_eq!(put(&mut state, 9, "switch/network", 5, "two"), Ok(Outcome::Revision(9)));
    assert_eq!(state.documents[&name("switch/network")].content, "two");
}

#[test]
fn a_deletion_shows_in_the_revision_of_all() {
    let mut state = State::default();
    put(&mut state, 1, "a/1", 0, "").expect("accepted");
    put(&mut state, 2, "a/2", 0, "").expect("accepted");
    put(&mut state, 3, "b", 0, "").expect("accepted");
    state.apply(4, Command::DeleteDocument { name: name("a/1"), basis: 1 }).expect("accepted");
    assert_eq!(state.documents_revision, 4);
    let under: Vec<_> = state.documents_under("a/").map(|(name, d)| (name.as_str(), d.revision)).collect();
    assert_eq!(under, [("a/2", 2)]);
    // Made again it has another revision than ever before: nobody mistakes it for the old one.
    assert_eq!(put(&mut state, 6, "a/1", 1, ""), Err(Refused::WrongRevision(0)));
    assert_eq!(put(&mut state, 7, "a/1", 0, ""), Ok(Outcome::Revision(7)));
    // What was never there can be said to be gone, and nobody is woken.
    state.apply(8, Command::DeleteDocument { name: name("z"), basis: 0 }).expect("accepted");
    assert_eq!(state.documents_revision, 7);
}

#[test]
fn documents_have_bounds() {
    let mut state = State::default();
    let large = "x".repeat(DOCUMENT_BYTES_MAX);
    assert!(matches!(put(&mut state, 1, "a", 0, &format!("{large}x")), Err(Refused::TooMuch(_))));
    let fit = DOCUMENTS_BYTES_MAX / DOCUMENT_BYTES_MAX;
    for n in 0..fit {
        put(&mut state, n as u64 + 1, &format!("d/{n}"), 0, &large).expect("it fits");
    }
    assert!(matches!(put(&mut state, 1_000, "more", 0, "x"), Err(Refused::TooMuch(_))), "bytes of all");
    // One that is there may be replaced by one of the same size.
    put(&mut state, 1_001, "d/0", 1, &large).expect("it fits");
    for n in fit..DOCUMENTS_MAX {
        put(&mut state, n as u64 + 2_000, &format!("d/{n}"), 0, "").expect("it fits");
    }
    assert!(matches!(put(&mut state, 9_000, "more", 0, ""), Err(Refused::TooMuch(_))), "how many");
    put(&mut state, 9_001, "d/1", 2, "").expect("at the limit they still change");
}
