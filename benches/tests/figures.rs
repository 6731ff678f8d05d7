//! What is computed from what was measured: by the peer script's definitions, and to the targets' letter.

// The figures compared are short decimals that pass through unchanged.
#![allow(clippy::float_cmp)]

use std::time::Duration;

use ferro_bench::cluster::Policy;
use ferro_bench::measure::{ClientMode, Figures, Latencies, Peer, Table};
use ferro_bench::report::{Machine, Report};
use ferro_bench::usage;
use ferro_bench::workload::{LARGE_BYTES, SMALL_BYTES, WORKLOADS};

fn figures(iops: f64) -> Figures {
    Figures { iops, p50_us: 100.0, p99_us: 200.0, mb_s: 1.0, daemons: Vec::new() }
}

#[test]
fn throughput_is_counted_as_fio_and_the_script_count_it() {
    let mut latencies = Latencies::new().unwrap();
    for _ in 0..265 {
        latencies.record(false, Duration::from_millis(30));
    }
    // fio: 265 MiB/s is bw=271360 KiB/s; the script divides by 1000.
    let figures = latencies.figures(LARGE_BYTES, Duration::from_secs(1));
    assert_eq!((figures.iops, figures.mb_s), (265.0, 271.4));
}

#[test]
fn a_mix_counts_both_directions_and_shows_the_latency_of_the_larger() {
    let mut latencies = Latencies::new().unwrap();
    for _ in 0..70 {
        latencies.record(true, Duration::from_micros(100));
    }
    for _ in 0..30 {
        latencies.record(false, Duration::from_millis(5));
    }
    let figures = latencies.figures(SMALL_BYTES, Duration::from_secs(2));
    assert_eq!(figures.iops, 50.0);
    assert!((figures.p50_us - 100.0).abs() < 1.0, "{figures:?}");
    assert!((figures.p99_us - 100.0).abs() < 1.0, "{figures:?}");
}

#[test]
fn latencies_keep_three_digits_and_none_is_lost() {
    let mut latencies = Latencies::new().unwrap();
    latencies.record(false, Duration::ZERO);
    latencies.record(false, Duration::from_micros(1234));
    latencies.record(false, Duration::from_secs(3600));
    assert_eq!(latencies.count(), 3);
    let figures = latencies.figures(SMALL_BYTES, Duration::from_secs(1));
    assert!((figures.p50_us - 1234.0).abs() < 2.0, "{figures:?}");
}

#[test]
fn the_json_has_the_promised_shape_and_targets_are_judged() {
    let ours: Table =
        [("randwrite_4k_qd1".to_owned(), figures(1999.0)), ("randread_4k_qd1".to_owned(), figures(900.0))]
            .into();
    let peer: Table =
        [("randwrite_4k_qd1".to_owned(), figures(500.0)), ("randread_4k_qd1".to_owned(), figures(500.0))]
            .into();
    let report =
        Report::new("test".to_owned(), ClientMode::Sleeping, Machine::read(), ours, Some((Peer::Ceph, peer)));
    assert!(!report.all_passed());
    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(
        json["ours"]["randwrite_4k_qd1"],
        serde_json::json!({"iops": 1999.0, "p50_us": 100.0, "p99_us": 200.0, "mb_s": 1.0})
    );
    assert_eq!(json["peer"]["randread_4k_qd1"]["iops"], 500.0);
    assert_eq!(json["ratio"], serde_json::json!({"randwrite_4k_qd1": 3.998, "randread_4k_qd1": 1.8}));
    assert_eq!(json["pass"], serde_json::json!({"randwrite_4k_qd1": false, "randread_4k_qd1": true}));
    let text = report.text();
    assert!(text.contains("FAIL") && text.contains("pass"), "{text}");
}

#[test]
fn a_polling_client_is_not_held_to_the_targets() {
    let table: Table = [("randwrite_4k_qd1".to_owned(), figures(1.0))].into();
    let report = Report::new(
        "test".to_owned(),
        ClientMode::Polling,
        Machine::read(),
        table.clone(),
        Some((Peer::Ceph, table)),
    );
    assert!(report.all_passed() && report.target.is_empty());
}

#[test]
fn a_peer_that_did_nothing_has_no_ratio() {
    let ours: Table = [("randwrite_4k_qd1".to_owned(), figures(1.0))].into();
    let peer: Table = [("randwrite_4k_qd1".to_owned(), figures(0.0))].into();
    let report =
        Report::new("test".to_owned(), ClientMode::Sleeping, Machine::read(), ours, Some((Peer::Ceph, peer)));
    assert!(report.ratio.is_empty());
}

#[test]
fn the_workloads_are_the_scripts() {
    let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
    assert_eq!(
        names,
        [
            "randwrite_4k_qd1",
            "randwrite_4k_qd32",
            "randread_4k_qd1",
            "randread_4k_qd32",
            "randrw70_4k_qd32",
            "write_1m_qd8",
            "read_1m_qd8"
        ]
    );
}

#[test]
fn proc_stat_is_read_past_a_hostile_name() {
    let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0 100 1000000 256 18446744073709551615";
    assert_eq!(usage::parse_stat(stat).unwrap(), (200, 256));
    assert!(usage::parse_stat("42 (short) S 1").is_err());
    assert!(usage::parse_stat("").is_err());
}

#[test]
fn our_own_use_can_be_sampled() {
    let before = usage::sample(std::process::id()).unwrap();
    let after = usage::sample(std::process::id()).unwrap();
    assert!(after.cpu_s >= before.cpu_s && after.rss_bytes > 0);
    assert!(usage::sample(u32::MAX).is_err());
}

#[test]
fn policies_say_how_many_hosts_they_need() {
    assert_eq!("mirror:1".parse::<Policy>().unwrap().hosts(), 1);
    assert_eq!("mirror:3".parse::<Policy>().unwrap().hosts(), 3);
    assert!("mirror:4".parse::<Policy>().is_err());
}
