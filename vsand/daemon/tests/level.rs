//! What a host writes down of its cluster's feature level, and a release that comes back too late.

use ferro_protocol::ids::{ClusterId, HostId};
use vsand::member::{Membership, StartError};
use vsand_core::directory::FeatureLevel;

fn membership(feature_level: FeatureLevel) -> Membership {
    Membership {
        version: 1,
        cluster: ClusterId::from_bytes([1; 16]),
        host: HostId::from_bytes([2; 16]),
        name: "one".to_owned(),
        fault_domain: "rack".to_owned(),
        founder: false,
        took_part: true,
        announced: true,
        feature_level,
    }
}

#[test]
fn the_first_level_is_not_written_down_so_that_the_former_release_can_read_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for (level, written) in [(FeatureLevel(1), false), (FeatureLevel::NEWEST, true)] {
        membership(level).store(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("member.json")).unwrap();
        assert_eq!(text.contains("feature_level"), written, "{text}");
        assert_eq!(Membership::load(dir.path()).unwrap(), Some(membership(level)));
    }
}

#[test]
fn a_release_that_does_not_know_the_level_starts_nothing_and_says_what_would_help() {
    let dir = tempfile::tempdir().unwrap();
    let later = FeatureLevel(FeatureLevel::NEWEST.0 + 1);
    membership(later).store(dir.path()).unwrap();
    let before = std::fs::read(dir.path().join("member.json")).unwrap();
    let Err(error @ StartError::Level { cluster }) = Membership::load(dir.path()) else {
        panic!("it was taken")
    };
    assert_eq!(cluster, later);
    let said = error.to_string();
    assert!(
        said.contains(&format!("feature level {later}")) && said.contains("install the release"),
        "{said}"
    );
    assert_eq!(std::fs::read(dir.path().join("member.json")).unwrap(), before, "nothing was changed");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
