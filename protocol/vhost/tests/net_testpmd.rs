//! A front end that nobody here wrote: DPDK's virtio-user, in `dpdk-testpmd` (Debian's package `dpdk-dev`), without huge
//! pages. It generates frames on two ports and forwards what it receives, through the test's switch.

mod netlab;

use std::path::{Path, PathBuf};

use ferro_vhost::frontend::{Testpmd, TestpmdOptions, TestpmdPort};
use ferro_vhost::net::{NetEvent, NetSettings, feature};
use netlab::{Meet, Switch, eventually, sockets};

fn start(dir: &Path, ports: &[TestpmdPort; 2], arguments: &[&str]) -> Testpmd {
    let mut options = TestpmdOptions::new(dir);
    options.arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
    Testpmd::start(&options, ports).unwrap_or_else(|error| panic!("{error}"))
}

fn ports(paths: &[PathBuf; 2], more: &[&str]) -> [TestpmdPort; 2] {
    [0, 1].map(|n| more.iter().fold(TestpmdPort::connecting(&paths[n]), |port, it| port.with(it)))
}

#[track_caller]
fn goes_round(testpmd: &mut Testpmd, frames: u64) {
    testpmd.goes_round(frames).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn frames_of_all_sizes_go_round_between_two_ports() {
    let tries: [(&[&str], &str); 3] =
        [(&[], "64"), (&["mrg_rxbuf=0", "in_order=0"], "1514"), (&["queue_size=1024"], "64,1400,2000,2000")];
    for (more, txpkts) in tries {
        let (dir, paths) = sockets::<2>();
        let switch = Switch::listening(&paths, &NetSettings::default());
        let mut testpmd = start(dir.path(), &ports(&paths, more), &[]);
        testpmd.say(&format!("set txpkts {txpkts}")).unwrap();
        testpmd.say("start tx_first").unwrap();
        goes_round(&mut testpmd, 20_000);
        testpmd.say("stop").unwrap();
        testpmd.quit().unwrap();
        let detached = |port| switch.saw(port, &NetEvent::Detached);
        eventually("the end", || detached(0) && detached(1));
        let events = switch.shared.events.lock().unwrap().clone();
        assert!(!events.iter().any(|(_, event)| matches!(event, NetEvent::Broken(_))), "{events:?}");
        let outcome = *switch.shared.outcome.lock().unwrap();
        assert_eq!((outcome.bad_header, outcome.bad_length), (0, 0));
    }
}

#[test]
fn several_queues_with_checksums_and_segmentation_negotiated() {
    let (dir, paths) = sockets::<2>();
    let switch = Switch::listening(&paths, &NetSettings::default());
    let mut testpmd = start(dir.path(), &ports(&paths, &["queues=2"]), &["--rxq=2", "--txq=2"]);
    testpmd.say("start tx_first").unwrap();
    goes_round(&mut testpmd, 20_000);
    assert_eq!(switch.shared.receiving.lock().unwrap()[0].len(), 2);
    testpmd.say("stop").unwrap();
    testpmd.say("show port 0 tx_offload capabilities").unwrap();
    let capabilities = testpmd.expect("Per Port").unwrap();
    assert!(capabilities.contains("TCP_CKSUM") && capabilities.contains("TCP_TSO"), "{capabilities}");
    testpmd.quit().unwrap();
    let sum = *switch.shared.outcome.lock().unwrap();
    assert_eq!((sum.bad_header, sum.bad_length), (0, 0));
    assert_ne!(NetSettings::default().offered() & feature::HOST_TSO4, 0);
}

#[test]
fn a_switch_restarts_under_front_ends_that_listen() {
    let (dir, paths) = sockets::<2>();
    let meet: Vec<Meet> = paths.iter().cloned().map(Meet::Connect).collect();
    let switch = Switch::start(&meet, &NetSettings::default());
    let ports = [0, 1].map(|n| TestpmdPort::listening(&paths[n]));
    let mut testpmd = start(dir.path(), &ports, &[]);
    testpmd.say("start tx_first").unwrap();
    goes_round(&mut testpmd, 10_000);
    switch.kill();
    let switch = Switch::start(&meet, &NetSettings::default());
    // Its kernel accepts us before it has seen the old connection go: connected is not yet back.
    eventually("the rings", || {
        let receiving = switch.shared.receiving.lock().unwrap();
        receiving.len() == 2 && receiving.iter().all(|pairs| !pairs.is_empty())
    });
    // What was under way is lost, so there is nothing left to forward: begin again.
    testpmd.say("stop").unwrap();
    testpmd.say("start tx_first").unwrap();
    goes_round(&mut testpmd, 10_000);
    testpmd.quit().unwrap();
}
