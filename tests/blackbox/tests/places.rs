//! Volumes that are rather kept in some sites, and go there under a client; and the loss of a site.

use std::time::Duration;

use anyhow::{Result, ensure};
use ferro_blackbox::endure::{HEAL_MAX, begin};
use ferro_blackbox::{Host, LabOptions, eventually, while_holding, with_lab};
use ferro_protocol::api::Redundancy;

/// Two sites with two hosts each, and a host apart.
const DOMAINS: [&str; 5] = ["lyon/a", "lyon/b", "brest/a", "brest/b", "nice/a"];
const MOVED_MAX: Duration = Duration::from_secs(120);

/// The volume `data` is whole all the time, and at last on these hosts.
fn goes_to(owner: &Host, hosts: &[&str]) -> Result<()> {
    while_holding(
        || {
            let info = owner.volume("data")?;
            ensure!(matches!(info.redundancy, Redundancy::Healthy | Redundancy::Resyncing), "{info:?}");
            ensure!(info.failures_left == 1, "a copy is missing: {info:?}");
            Ok(())
        },
        || {
            eventually("everything is where it is rather to be", MOVED_MAX, || {
                let mut there = owner.hosts_of("data")?;
                there.dedup();
                ensure!(there == hosts, "it is on {there:?}");
                let info = owner.volume("data")?;
                ensure!(info.misplaced == 0 && info.redundancy == Redundancy::Healthy, "{info:?}");
                Ok(())
            })
        },
    )
}

#[test]
fn volumes_go_to_their_sites_and_outlive_one() {
    with_lab(LabOptions { hosts: 5, ..LabOptions::default() }, |lab| {
        let (owner, other) = (lab.host(5), lab.host(3));
        owner.ctl_refused(
            &["volume", "create", "x", "--size", "64M", "--policy", "mirror:2", "--prefer", "lyon"],
            "policy_unsatisfiable",
            5,
        )?;
        for (n, domain) in (1..).zip(DOMAINS) {
            owner.ctl_ok(&["host", "set", &format!("host{n}"), "--fault-domain", domain])?;
        }
        let mut load = begin(owner, "mirror:2", 61)?;
        // What is new goes there at once, thick or thin.
        let thick =
            ["volume", "create", "thick", "--size", "64M", "--policy", "mirror:2", "--reserve", "100"];
        other.ctl_ok(&[&thick[..], &["--prefer", "brest"]].concat())?;
        ensure!(owner.hosts_of("thick")? == ["host3", "host4"], "{:?}", owner.hosts_of("thick")?);

        // What is there moves, under its client, from any host, and moves back.
        other.ctl_ok(&["volume", "place", "data", "--prefer", "brest"])?;
        goes_to(owner, &["host3", "host4"])?;
        load.progress(100, Duration::from_secs(30))?;
        load.verify()?;
        let across = ["--method", "mirror", "--failures", "1", "--across-sites"];
        let policy =
            [&["policy", "create", "stretched"], &across[..], &["--prefer", "lyon", "--prefer", "brest"]];
        owner.ctl_ok(&policy.concat())?;
        let check: serde_json::Value = owner.ctl(&["policy", "check", "stretched"])?;
        let sites = check["without_sites"].as_array().map(Vec::len);
        ensure!(check["survives_a_site"] == true && sites == Some(3), "{check}");
        owner.ctl_ok(&["policy", "apply", "stretched", "data"])?;
        eventually("it is spread over both", MOVED_MAX, || {
            let info = owner.volume("data")?;
            ensure!(info.misplaced == 0 && info.redundancy == Redundancy::Healthy, "{info:?}");
            Ok(())
        })?;
        let components = owner.components("data")?;
        let in_lyon =
            components.iter().filter(|c| ["host1", "host2"].contains(&c.host_name.as_str())).count();
        ensure!(in_lyon * 2 == components.len(), "{components:?}");
        load.progress(100, Duration::from_secs(30))?;

        owner.ctl_refused(&["volume", "place", "data", "--prefer", "paris"], "policy_unsatisfiable", 5)?;
        ensure!(owner.volume("data")?.placement.across_sites, "a refusal changed something");

        // A whole site goes at once: the guest goes on, and what it writes comes back with the site.
        let lyon = [lab.host(1), lab.host(2)];
        lyon.iter().try_for_each(|host| host.kill9())?;
        load.progress(200, Duration::from_secs(40))?;
        load.verify()?;
        lyon.iter().try_for_each(|host| host.start())?;
        lab.wait_healthy(HEAL_MAX)?;
        load.verify()?;
        load.finish()?;
        Ok(())
    });
}
