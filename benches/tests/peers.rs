//! The peers: the client against a back end that nobody here wrote, and that whatever was started is gone afterwards.

// The figures compared are short decimals that pass through unchanged.
#![allow(clippy::float_cmp)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ferro_bench::client::{Client, Surroundings};
use ferro_bench::measure::ClientMode;
use ferro_bench::peer_ceph;
use ferro_bench::peer_qsd::{Aio, Qsd};
use ferro_bench::process::{self, Daemon, Stop};
use ferro_bench::workload::{BURST, FLUSHED_WRITES, Times, Until, WORKLOADS};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A multiple of no depth, so that the end is uneven.
const REQUESTS: u64 = 67;

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < Duration::from_secs(60), "no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_workload_runs_on_qemu_storage_daemon_with_both_clients() {
    let directory = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    let qsd = Qsd::start(Aio::IoUring, directory.path(), &stop).unwrap();
    let watched = qsd.watched();
    let around = Surroundings { stop: &stop, watched: &watched };
    for mode in [ClientMode::Sleeping, ClientMode::Polling] {
        let mut client = Client::attach(qsd.socket(), mode).unwrap();
        for workload in WORKLOADS.iter().chain([&FLUSHED_WRITES, &BURST]) {
            let figures = client.run(workload, Until::Requests(REQUESTS), &around).unwrap();
            assert!(figures.iops > 0.0 && figures.p50_us > 0.0, "{} {mode:?}: {figures:?}", workload.name);
            assert!(figures.p99_us >= figures.p50_us, "{} {mode:?}: {figures:?}", workload.name);
            assert_eq!(figures.daemons.len(), 1);
        }
    }
    let times = Times { ramp: Duration::from_millis(100), measured: Duration::from_secs(3) };
    let started = Instant::now();
    let mut client = Client::attach(qsd.socket(), ClientMode::Sleeping).unwrap();
    client.run(&WORKLOADS[3], Until::Time(times), &around).unwrap();
    assert!(started.elapsed() >= times.ramp + times.measured);
    drop(client);
    let pid = Pid::from_raw(watched[0].pid.cast_signed()).unwrap();
    drop(qsd);
    assert!(test_kill_process(pid).is_err(), "qemu-storage-daemon is still there");
    assert!(is_empty(directory.path()));
}

#[test]
fn an_interrupted_run_stops_and_a_missing_socket_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    let qsd = Qsd::start(Aio::Native, directory.path(), &stop).unwrap();
    let mut client = Client::attach(qsd.socket(), ClientMode::Sleeping).unwrap();
    stop.set();
    let error = client
        .run(&WORKLOADS[0], Until::Time(Times::PEER), &Surroundings { stop: &stop, watched: &[] })
        .unwrap_err();
    assert!(format!("{error:#}").contains("interrupted"), "{error:#}");
    let missing = directory.path().join("none.sock");
    let error = Client::attach(&missing, ClientMode::Sleeping).err().unwrap();
    assert!(format!("{error:#}").contains("none.sock"), "{error:#}");
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_ferro-bench"))
        .args(["storage", "--peer", "qsd", "--peer-only", "--dir"])
        .arg(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("peer", || !is_empty(directory.path()));
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&bench), Signal::INT).unwrap();
    let status = bench.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(is_empty(directory.path()));
}

/// A stand-in for the Ceph script that notes what it was called for.
fn fake_script(directory: &Path, bench: &str) -> (PathBuf, PathBuf) {
    let (script, calls) = (directory.join("peer.sh"), directory.join("calls"));
    let text = format!(
        "#!/usr/bin/env bash\necho $1 >>{}\ncase $1 in\nbench) {bench} ;;\ndown) rm -rf \"$2\" ;;\nesac\n",
        calls.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    (script, calls)
}

const LINES: &str = "printf '%s 492 1811.5 5013.5 1\\n' prefill randwrite_4k_qd1 randwrite_4k_qd32 \
    randread_4k_qd1 randread_4k_qd32 randrw70_4k_qd32 write_1m_qd8 read_1m_qd8";

#[test]
fn the_ceph_script_is_read_and_always_brought_down() {
    let cases = [
        (LINES, None),
        ("echo randwrite_4k_qd1 492 1811.5 5013.5 1", Some("no figures for randwrite_4k_qd32")),
        ("echo gone wrong >&2; exit 3", Some("gone wrong")),
        ("echo no such workload line", Some("no such workload line")),
        ("echo randwrite_4k_qd1 null null null null", Some("no number")),
    ];
    for (bench, error) in cases {
        let directory = tempfile::tempdir().unwrap();
        let disks = directory.path().join("disks");
        let (script, calls) = fake_script(directory.path(), bench);
        let result = peer_ceph::bench(&script, None, &disks, &Stop::default());
        match error {
            None => assert_eq!(result.unwrap()["randwrite_4k_qd1"].p50_us, 1811.5),
            Some(expected) => {
                let error = format!("{:#}", result.unwrap_err());
                assert!(error.contains(expected), "{bench}: {error}");
            }
        }
        assert_eq!(fs::read_to_string(calls).unwrap(), "up\nbench\ndown\n");
        assert!(is_empty(&disks));
    }
}

#[test]
fn a_line_of_the_script_is_parsed_or_refused() {
    let (name, figures) = peer_ceph::parse_line("write_1m_qd8 265 29753.344 66322.432 271").unwrap();
    assert_eq!(
        (name.as_str(), figures.iops, figures.p99_us, figures.mb_s),
        ("write_1m_qd8", 265.0, 66322.432, 271.0)
    );
    for bad in
        ["", "randwrite_4k_qd1 1 2 3", "other 1 2 3 4", "read_1m_qd8 -1 2 3 4", "read_1m_qd8 NaN 2 3 4"]
    {
        assert!(peer_ceph::parse_line(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_missing_script_is_named() {
    let error = peer_ceph::check(Path::new("/nonexistent/ceph.sh")).unwrap_err();
    assert!(format!("{error:#}").contains("/nonexistent/ceph.sh"));
}

#[test]
fn a_daemon_that_ends_is_noticed_with_its_last_words() {
    let directory = tempfile::tempdir().unwrap();
    let args = ["-c", "echo no such disk >&2; exit 4"];
    let mut daemon = Daemon::start("shell", Path::new("sh"), &args, directory.path().join("log")).unwrap();
    let error = daemon.wait_until("socket", Duration::from_secs(30), &Stop::default(), || false).unwrap_err();
    assert!(format!("{error:#}").contains("no such disk"), "{error:#}");
}

#[test]
fn a_command_that_fails_or_hangs_is_an_error() {
    let stop = Stop::default();
    let error = process::output(
        Command::new("sh").args(["-c", "echo why >&2; exit 5"]),
        Duration::from_secs(30),
        &stop,
    )
    .unwrap_err();
    assert!(format!("{error:#}").contains("why"), "{error:#}");
    let error =
        process::output(Command::new("sleep").arg("600"), Duration::from_millis(100), &stop).unwrap_err();
    assert!(format!("{error:#}").contains("not done"), "{error:#}");
    let text = process::output(Command::new("printf").arg("a\\nb"), Duration::from_secs(30), &stop).unwrap();
    assert_eq!(text, "a\nb\n");
}
