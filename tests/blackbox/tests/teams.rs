//! Teams of real uplinks: a switch that is alone, network cards that lead through switches of their own to one core, and cables that
//! are pulled near and far.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::cabling::Cabling;
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::network::{Echo, Probe, Tap};
use ferro_blackbox::{Host, LabOptions, eventually};
use serde_json::Value;

/// DESIGN.md, Network, rule 6.
const FAILOVER_MAX: Duration = Duration::from_secs(1);
/// Beacons are silent for 0.7 s before their uplink counts as dead; then the others take over.
const BEACON_FAILOVER_MAX: Duration = Duration::from_secs(2);
const SETTLE_MAX: Duration = Duration::from_secs(20);

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0x14, 0, n]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A machine's address; 1 is its own, what is above is the other side's in its subnet.
fn ip(n: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, n, last)
}

/// A host with three cables and a switch of one port group, whose team is this.
fn with_team(team: &str, ports: u8, test: impl FnOnce(&Host, &Cabling<'_>, &[Tap<'_>]) -> Result<()>) {
    with_hosts(LabOptions { hosts: 2, ..LabOptions::default() }, |lab| {
        let host = lab.host(1);
        let cabling = Cabling::new(lab, host, 3, lab.host(2))?;
        let config = format!(
            "[host]\nname = \"host1\"\nalone = true\ngroup = \"root\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\n\
             identity_dir = \"{}\"\n\
             [[switch]]\nname = \"main\"\nuplinks = [\"eth1\", \"eth2\", \"eth3\"]\n\
             [[portgroup]]\nname = \"lan\"\nswitch = \"main\"\nteam = {{ {team} }}\n",
            host.switch_state_dir().display(),
            host.switch_run_dir().display(),
            host.state_dir().join("none").display(),
        );
        let of_port =
            |n| format!("[[port]]\nname = \"vm{n}\"\ngroup = \"lan\"\nmac = \"{}\"\n", text(mac(n)));
        let ports_text: String = (1..=ports).map(of_port).collect();
        std::fs::write(host.vswitchd().config(), config + &ports_text)?;
        host.vswitchd().start()?;
        let taps = (1..=ports).map(|n| Tap::attach(host, &format!("vm{n}"), &text(mac(n)), ip(n, 1)));
        let taps = taps.collect::<Result<Vec<_>>>()?;
        test(host, &cabling, &taps)
    });
}

/// What an uplink says of itself.
fn uplink(host: &Host, n: u8) -> Result<Value> {
    let all: Value = host.vswitchd().ctl(&["uplink", "list"])?;
    let name = format!("eth{n}");
    let found = all["uplinks"].as_array().and_then(|all| all.iter().find(|it| it["name"] == name.as_str()));
    found.cloned().with_context(|| format!("no uplink {name}: {all}"))
}

/// Whether the group uses these uplinks and no others.
fn uses(host: &Host, wanted: &[u8]) -> Result<()> {
    for n in 1..=3 {
        let it = uplink(host, n)?;
        let used = it["used_by"].as_array().is_some_and(|by| !by.is_empty());
        ensure!(used == wanted.contains(&n), "{it}");
    }
    Ok(())
}

fn sent(host: &Host, n: u8) -> Result<u64> {
    uplink(host, n)?["counters"]["to"]["frames"].as_u64().context("no counter")
}

#[test]
fn an_active_uplink_that_is_cut_is_replaced_and_comes_back() {
    with_team("active = [\"eth1\"], standby = [\"eth2\"]", 2, |host, cabling, taps| {
        let far = cabling.far(ip(1, 100))?;
        let _echo = Echo::start(&far)?;
        let wait = |wanted: &[u8]| eventually("the uplinks in use", SETTLE_MAX, || uses(host, wanted));
        wait(&[1])?;
        let probe = Probe::start(&taps[0], far.ip)?;
        std::thread::sleep(Duration::from_millis(300));
        // Its machines, the silent one too, are looked for at the other cable from then on.
        cabling.notified(&[mac(1), mac(2)], || cabling.plug(1, false))?;
        wait(&[2])?;
        std::thread::sleep(Duration::from_secs(1));
        cabling.notified(&[mac(1), mac(2)], || cabling.plug(1, true))?;
        wait(&[1])?;
        std::thread::sleep(Duration::from_secs(1));
        let seen = probe.stop()?;
        ensure!(seen.silence < FAILOVER_MAX, "{seen:?}");
        ensure!(sent(host, 3)? == 0, "an uplink in neither list was used");
        // The last one, too, and back: nothing is left over from before.
        let far = cabling.far(ip(2, 100))?;
        let _echo = Echo::start(&far)?;
        let probe = Probe::start(&taps[1], far.ip)?;
        cabling.plug(1, false)?;
        cabling.plug(2, false)?;
        wait(&[])?;
        let status: Value = host.vswitchd().ctl(&["status"])?;
        ensure!(status["health"].to_string().contains("group_without_uplink"), "{status}");
        cabling.plug(2, true)?;
        wait(&[2])?;
        let seen = probe.stop()?;
        ensure!(seen.answered > 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn an_uplink_that_comes_back_waits_where_failback_is_off() {
    with_team("active = [\"eth1\"], standby = [\"eth2\"], no_failback = true", 1, |host, cabling, taps| {
        let far = cabling.far(ip(1, 100))?;
        let _echo = Echo::start(&far)?;
        let probe = Probe::start(&taps[0], far.ip)?;
        cabling.plug(1, false)?;
        eventually("the other one is used", SETTLE_MAX, || uses(host, &[2]))?;
        cabling.plug(1, true)?;
        eventually("it is up", SETTLE_MAX, || {
            ensure!(uplink(host, 1)?["link"] == "up", "it is not");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(500));
        uses(host, &[2])?;
        let seen = probe.stop()?;
        ensure!(seen.silence < FAILOVER_MAX, "{seen:?}");
        Ok(())
    });
}

#[test]
fn beacons_find_a_link_that_is_dead_further_away() {
    let team = "active = [\"eth1\"], standby = [\"eth2\", \"eth3\"], detection = \"beacon\"";
    with_team(team, 1, |host, cabling, taps| {
        let far = cabling.far(ip(1, 100))?;
        let _echo = Echo::start(&far)?;
        eventually("the uplink in use", SETTLE_MAX, || uses(host, &[1]))?;
        let probe = Probe::start(&taps[0], far.ip)?;
        std::thread::sleep(Duration::from_secs(1));
        cabling.notified(&[mac(1)], || cabling.plug_behind(1, false))?;
        eventually("another is used", SETTLE_MAX, || uses(host, &[2]))?;
        ensure!(uplink(host, 1)?["link"] == "up", "its own link was not cut");
        std::thread::sleep(Duration::from_secs(1));
        cabling.plug_behind(1, true)?;
        eventually("it is used again", SETTLE_MAX, || uses(host, &[1]))?;
        std::thread::sleep(Duration::from_secs(1));
        let seen = probe.stop()?;
        ensure!(seen.silence < BEACON_FAILOVER_MAX, "{seen:?}");
        Ok(())
    });
}

const EACH: u64 = 20;

/// Packets from machines to addresses, so many from each to each, and how many took which uplink.
fn spread(host: &Host, from: &[(&Tap<'_>, Ipv4Addr)]) -> Result<[u64; 2]> {
    let before = [sent(host, 1)?, sent(host, 2)?];
    for (tap, to) in from {
        tap.host.within(|| {
            let socket = UdpSocket::bind((tap.ip, 0))?;
            // Those that come before the neighbour is found wait for it.
            for _ in 0..EACH {
                socket.send_to(&[7; 64], (*to, 9))?;
            }
            Ok(())
        })?;
    }
    let wanted = EACH * from.len() as u64;
    eventually("all are sent", SETTLE_MAX, || {
        let now = [sent(host, 1)? - before[0], sent(host, 2)? - before[1]];
        ensure!(now[0] + now[1] >= wanted / 10 * 9, "{now:?} of {wanted}");
        Ok(now)
    })
}

#[test]
fn routes_spread_machines_and_flows_over_uplinks() {
    // So many that chance does not put all of them on one.
    const MANY: u8 = 20;
    for (policy, one_machine_spreads) in [("port_id", false), ("source_mac", false), ("ip_hash", true)] {
        let team = format!("active = [\"eth1\", \"eth2\"], policy = \"{policy}\"");
        with_team(&team, MANY, |host, cabling, taps| {
            eventually("the uplinks in use", SETTLE_MAX, || uses(host, &[1, 2]))?;
            let machines = (1..=MANY).zip(taps).map(|(n, tap)| Ok((tap, cabling.far(ip(n, 100))?.ip)));
            let both = spread(host, &machines.collect::<Result<Vec<_>>>()?)?;
            ensure!(both.iter().all(|frames| *frames >= EACH), "{policy}: many machines: {both:?}");
            // What a single one sends to many stays on its uplink, unless addresses decide.
            let others = (1..=MANY).map(|n| Ok((&taps[0], cabling.far(ip(1, 100 + n))?.ip)));
            let both = spread(host, &others.collect::<Result<Vec<_>>>()?)?;
            let least = both.iter().min().copied().unwrap_or(0);
            let spreads = least >= EACH;
            ensure!(spreads == one_machine_spreads, "{policy}: one machine: {both:?}");
            Ok(())
        });
    }
}
