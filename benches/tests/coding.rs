//! The coding benchmark, run for no time: that all sides do the same work, which it checks itself, and say how fast.

use std::path::PathBuf;

use ferro_bench::coding::{CodingArgs, CodingPeer, coding};
use ferro_bench::process::Stop;

fn args(only: &str, json: Option<PathBuf>) -> CodingArgs {
    CodingArgs { peer: Some(CodingPeer::IsaL), seconds: 0.001, rounds: 1, only: only.to_owned(), json }
}

#[test]
fn ours_and_isa_l_make_the_same_parities_and_find_the_same_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("coding.json");
    // Whether the target is reached in a millisecond is no matter.
    coding(&args("_4k", Some(json.clone())), &Stop::default()).unwrap();
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    for table in ["ours", "reed_solomon_erasure", "peer", "ratio"] {
        let figures = report[table].as_object().unwrap();
        assert_eq!(figures.len(), 10, "{table}: {figures:?}");
        assert!(figures.values().all(|speed| speed.as_f64().unwrap() > 0.0), "{table}: {figures:?}");
    }
    assert_eq!(report["target"].as_object().unwrap().keys().collect::<Vec<_>>(), ["encode_4+2_4k"]);
    assert_eq!(report["peer_ways"]["pq_gen"].as_object().unwrap().len(), 2);
    let name = report["peer_name"].as_str().unwrap();
    assert!(name.starts_with("isa-l ") && !name.contains('?'), "{name}");
}

#[test]
fn what_can_not_be_measured_is_refused() {
    let refused = |args: CodingArgs| coding(&args, &Stop::default()).unwrap_err().to_string();
    assert!(refused(args("raid7", None)).contains("raid7"));
    assert!(refused(CodingArgs { rounds: 0, ..args("", None) }).contains("--rounds"));
    assert!(refused(CodingArgs { seconds: 0.0, ..args("", None) }).contains("--seconds"));
}
