//! A client that nobody here wrote: DPDK's virtio-user, in one `dpdk-testpmd` with two ports, on a switch that is alone. It
//! sends back out of each port what comes in by the other, so that frames go round through the switch in both directions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::network::{self, SWITCH_MAX};
use ferro_blackbox::{Host, Lab, LabOptions, eventually};
use ferro_protocol::api::switch::{LinkState, PortInfo};
use ferro_protocol::net::Mac;
use ferro_vhost::frontend::{Testpmd, TestpmdCounters, TestpmdOptions, TestpmdPort};

const PORTS: [&str; 2] = ["one", "two"];
/// Frames that go round in each direction.
const IN_FLIGHT: u64 = 64;
/// Each frame goes round more than a thousand times.
const FRAMES: u64 = 100_000;

fn network() -> String {
    let group = "[[switch]]\nname = \"s0\"\n[[portgroup]]\nname = \"pair\"\nswitch = \"s0\"\nvlan = { access = 10 }\n";
    let port = |(name, mac): (&str, Mac)| {
        format!("[[port]]\nname = \"{name}\"\ngroup = \"pair\"\nmac = \"{mac}\"\n")
    };
    let ports: Vec<String> = PORTS.into_iter().zip(Testpmd::MACS).map(port).collect();
    group.to_owned() + &ports.concat()
}

fn with_switch(test: impl FnOnce(&Lab, &Host) -> Result<()>) {
    with_hosts(LabOptions { hosts: 1, ..LabOptions::default() }, |lab| {
        network::start_alone(lab.host(1), &network())?;
        test(lab, lab.host(1))
    });
}

fn start(lab: &Lab, ports: &[TestpmdPort; 2]) -> Result<Testpmd> {
    let mut testpmd = Testpmd::start(&TestpmdOptions::new(lab.dir()), ports)?;
    testpmd.say(&format!("set burst {IN_FLIGHT}"))?;
    Ok(testpmd)
}

fn ports(host: &Host) -> Result<Vec<PortInfo>> {
    PORTS.iter().map(|name| host.vswitchd().ctl(&["port", "show", name])).collect()
}

fn wait_up(host: &Host) -> Result<()> {
    eventually("both ports are up", SWITCH_MAX, || {
        let ports = ports(host)?;
        ensure!(ports.iter().all(|port| port.link == Some(LinkState::Up)), "{ports:?}");
        Ok(())
    })
}

/// What the switch counted since it began is what testpmd counted: each frame that was sent came from its port, and went to
/// the other, where at most those that are under way were not taken yet.
fn agrees(host: &Host, testpmd: [TestpmdCounters; 2]) -> Result<()> {
    let ports = ports(host)?;
    let mut dropped = 0;
    for (port, said) in ports.iter().zip(testpmd) {
        let counted = port.counters.as_ref().context("it counts nothing")?;
        dropped += counted.drops();
        ensure!(counted.from.frames == said.sent, "{}: {counted:?}, testpmd {said:?}", port.name);
        let left = counted.to.frames.checked_sub(said.received);
        ensure!(left.is_some_and(|left| left <= IN_FLIGHT), "{}: {counted:?}, testpmd {said:?}", port.name);
    }
    ensure!(dropped == 0, "{ports:?}");
    let counted = |port: &PortInfo| port.counters.clone().unwrap_or_default();
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (counted(&ports[from]).from, counted(&ports[to]).to);
        ensure!(from == to, "of {from:?} only {to:?} went to the other port");
    }
    Ok(())
}

#[test]
fn frames_of_all_sizes_go_round_and_are_counted() {
    with_switch(|lab, host| {
        let mut sockets = Vec::new();
        for name in PORTS {
            sockets.push(TestpmdPort::connecting(network::attach_socket(host, name)?));
        }
        let ports: [TestpmdPort; 2] = sockets.try_into().ok().context("two ports")?;
        let mut testpmd = start(lab, &ports)?;
        wait_up(host)?;
        for size in [64, 594, 1514] {
            testpmd.say(&format!("set txpkts {size}"))?;
            testpmd.say("start tx_first")?;
            testpmd.goes_round(FRAMES)?;
            testpmd.say("stop")?;
            testpmd.expect("Done.")?;
        }
        let said = testpmd.counters()?;
        eventually("the switch counts the same", Duration::from_secs(5), || agrees(host, said))?;
        Ok(testpmd.quit()?)
    });
}

#[test]
fn a_killed_switch_finds_its_clients_again() {
    with_switch(|lab, host| {
        // testpmd listens, and the switch looks for it: who is restarted is the one who connects.
        let paths = PORTS.map(|name| host.switch_run_dir().join(format!("testpmd-{name}.sock")));
        for (name, path) in PORTS.iter().zip(&paths) {
            let path = path.to_str().context("a path that is not UTF-8")?;
            host.vswitchd().ctl_ok(&["port", "attach", name, "--vhost-socket", path, "--connect"])?;
        }
        // It goes on when somebody has connected to each of its ports.
        let mut testpmd =
            start(lab, &[TestpmdPort::listening(&paths[0]), TestpmdPort::listening(&paths[1])])?;
        wait_up(host)?;
        testpmd.say("start tx_first")?;
        testpmd.goes_round(FRAMES)?;
        for _ in 0..2 {
            host.vswitchd().kill9()?;
            host.vswitchd().start()?;
            wait_up(host)?;
            // What was under way is lost with the switch, and testpmd sends only what it received: it begins anew.
            testpmd.say("stop")?;
            testpmd.expect("Done.")?;
            testpmd.say("clear port stats all")?;
            testpmd.say("start tx_first")?;
            testpmd.goes_round(FRAMES)?;
        }
        Ok(testpmd.quit()?)
    });
}
