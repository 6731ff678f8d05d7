//! Each rule of the keeper with a clock that jumps.

use std::time::Duration;

use ferro_protocol::api::switch::Spec;
use ferro_protocol::api::switch::spec::SwitchSpec;
use ferro_protocol::time::Instant;

use super::documents::{NetworkDocument, Undo};
use super::keeper::{BLAME, Effect, Keeper, Kept, TRIAL, Version};

fn spec(name: &str) -> Spec {
    let switch = SwitchSpec { name: name.to_owned(), mtu: 1500, uplinks: Vec::new(), team: None };
    Spec { switches: vec![switch], ..Spec::default() }
}

fn document(name: &str) -> NetworkDocument {
    NetworkDocument::new(spec(name), false, None)
}

fn at(seconds: u64) -> Instant {
    Instant(0) + Duration::from_secs(seconds)
}

/// Connected, with revision 5 in force.
fn settled() -> Keeper {
    let current = Version { revision: 5, spec: spec("old") };
    let (mut keeper, effects) = Keeper::new(at(0), Kept { current, ..Kept::default() });
    assert!(matches!(effects[..], [Effect::Apply(_)]));
    keeper.handle_connected(at(0), true);
    keeper
}

fn in_force(keeper: &Keeper) -> &str {
    &keeper.kept().current.spec.switches[0].name
}

#[test]
fn a_revision_is_taken_over_once_and_never_an_older_one() {
    let mut keeper = settled();
    assert_eq!(keeper.handle_document(at(1), 5, &document("x")), []);
    let effects = keeper.handle_document(at(1), 7, &document("new"));
    assert!(matches!(effects[..], [Effect::Apply(_), Effect::Keep]), "{effects:?}");
    for old in [3, 6, 7] {
        assert_eq!(keeper.handle_document(at(2), old, &document("older")), []);
    }
    assert_eq!(in_force(&keeper), "new");
    assert_eq!(keeper.handle_time(at(1) + TRIAL), [Effect::Keep], "the trial is over");
    assert_eq!((keeper.next_at(), keeper.kept().previous.as_ref()), (None, None));
}

#[test]
fn what_can_not_be_changes_nothing() {
    let mut keeper = settled();
    assert_eq!(keeper.handle_document(at(1), 7, &document("no name")), [Effect::Keep]);
    assert_eq!(keeper.refuse(8, "format 2".to_owned()), [Effect::Keep]);
    assert_eq!((in_force(&keeper), keeper.kept().current.revision), ("old", 5));
    assert_eq!((keeper.newest(), keeper.failed().unwrap().0), (8, 8));
    keeper.handle_document(at(2), 9, &document("good"));
    assert_eq!((keeper.failed(), in_force(&keeper)), (None, "good"));
}

#[test]
fn a_change_that_cuts_this_host_off_is_gone_back_on() {
    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &document("bad"));
    keeper.handle_connected(at(2), false);
    assert_eq!((keeper.open().unwrap().revision, keeper.open().unwrap().asked), (7, false));
    assert_eq!(keeper.handle_time(at(30)), []);
    let effects = keeper.handle_time(at(31));
    assert!(
        matches!(&effects[..], [Effect::Apply(_), Effect::Keep, Effect::Undo { revision: 7, spec: back }] if **back == spec("old")),
        "{effects:?}"
    );
    assert_eq!((in_force(&keeper), keeper.kept().rolled_back), ("old", Some(7)));
    // It is not taken over again, however often it comes; the next one is.
    assert_eq!(keeper.handle_document(at(40), 7, &document("bad")), []);
    assert_eq!(keeper.handle_document(at(41), 8, &document("mended")).len(), 2);
    assert_eq!(keeper.kept().rolled_back, None);
}

#[test]
fn peers_that_come_back_or_go_for_another_reason_are_no_cause() {
    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &document("new"));
    keeper.handle_connected(at(2), false);
    keeper.handle_connected(at(20), true);
    assert_eq!(keeper.handle_time(at(31)), [Effect::Keep]);
    assert_eq!(in_force(&keeper), "new");

    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &document("new"));
    keeper.handle_connected(at(2) + BLAME, false);
    assert_eq!(keeper.handle_time(at(31)), [Effect::Keep]);

    // Who was cut off before has nothing to lose.
    let mut keeper = settled();
    keeper.handle_connected(at(0), false);
    keeper.handle_document(at(1), 7, &document("new"));
    assert_eq!((keeper.next_at(), in_force(&keeper)), (None, "new"));
}

#[test]
fn a_confirmed_change_stays() {
    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &document("new"));
    keeper.handle_connected(at(2), false);
    assert_eq!(keeper.confirm(6), None);
    assert_eq!(keeper.confirm(7), Some(vec![Effect::Keep]));
    assert_eq!((keeper.handle_time(at(60)), keeper.confirm(7)), (vec![], None));

    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &NetworkDocument::new(spec("new"), true, None));
    keeper.handle_connected(at(2), false);
    assert_eq!(keeper.handle_time(at(60)), []);
    assert_eq!(in_force(&keeper), "new");
}

#[test]
fn a_second_change_does_not_hide_what_the_first_one_broke() {
    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &document("bad"));
    keeper.handle_connected(at(2), false);
    keeper.handle_document(at(20), 8, &document("worse"));
    let effects = keeper.handle_time(at(50));
    assert!(matches!(&effects[..], [.., Effect::Undo { revision: 8, .. }]), "{effects:?}");
    assert_eq!(in_force(&keeper), "old");
}

#[test]
fn a_change_that_asks_to_be_confirmed_is_undone_in_the_directory() {
    let undo = Undo { within_s: 20, spec: spec("old") };
    let asked = NetworkDocument::new(spec("new"), false, Some(undo));
    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &asked);
    assert!(keeper.open().unwrap().asked);
    let undo = Effect::Undo { revision: 7, spec: Box::new(spec("old")) };
    assert_eq!(keeper.handle_time(at(21)), std::slice::from_ref(&undo));
    assert_eq!(in_force(&keeper), "new", "until the directory says otherwise");
    assert_eq!(keeper.handle_time(at(26)), std::slice::from_ref(&undo), "and it is asked again");
    keeper.handle_document(at(27), 8, &NetworkDocument::new(spec("old"), true, None));
    assert_eq!((in_force(&keeper), keeper.open(), keeper.next_at()), ("old", None, None));

    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &asked);
    assert_eq!(keeper.undo(at(2), 6), None);
    assert_eq!(keeper.undo(at(2), 7), Some(vec![undo]));
}

#[test]
fn a_trial_outlives_a_restart() {
    let mut keeper = settled();
    keeper.handle_document(at(1), 7, &document("bad"));
    keeper.handle_connected(at(2), false);
    let (mut again, _) = Keeper::new(at(100), keeper.kept().clone());
    assert_eq!(in_force(&again), "bad");
    again.handle_connected(at(101), false);
    assert_eq!(again.handle_time(at(130)).len(), 3);
    assert_eq!((in_force(&again), again.kept().rolled_back, again.newest()), ("old", Some(7), 7));
    // Peers that are heard end the suspicion.
    let (mut again, _) = Keeper::new(at(100), keeper.kept().clone());
    again.handle_connected(at(101), true);
    assert_eq!(again.handle_time(at(130)), [Effect::Keep]);
    assert_eq!(in_force(&again), "bad");
}
