//! A host goes and does not come back: what it holds is built elsewhere, of volumes that nobody writes to and that nobody has open too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::process::run;
use ferro_blackbox::{Host, Lab, LabOptions, eventually, with_lab};
use ferro_protocol::api::{EventKind, Redundancy};

/// The shortest that there is.
const REPAIR_DELAY: Duration = Duration::from_secs(10);
/// The delay, until a host counts as away at all, and until all is copied.
const BUILT_MAX: Duration = Duration::from_secs(90);
const SETTLE_MAX: Duration = Duration::from_secs(90);
/// Chunks of a volume, each with some data: enough that each of four hosts has something of it.
const CHUNKS: u64 = 6;
/// What nobody writes to: open, and closed with copies and with shards.
const VOLUMES: [(&str, &str); 3] = [("idle", "mirror:3"), ("closed", "mirror:2"), ("shards", "raid5:2+1")];

fn image(lab: &Lab, name: &str, chunks: u64) -> Result<PathBuf> {
    let path = lab.dir().join(name);
    let file = File::create(&path)?;
    file.set_len(chunks << 30)?;
    for chunk in 0..chunks {
        let block: Vec<u8> = (0..1_u32 << 20).map(|n| (u64::from(n % 251) + chunk) as u8).collect();
        file.write_all_at(&block, (chunk << 30) + (5 << 20))?;
    }
    Ok(path)
}

fn import(owner: &Host, name: &str, policy: &str, image: &std::path::Path) -> Result<()> {
    let image = image.display().to_string();
    owner.ctl_ok(&["volume", "import", name, &image, "--create", "--policy", policy])
}

/// Nothing of the volume is on that host, and all of it is elsewhere.
fn is_whole_without(owner: &Host, volume: &str, gone: &str) -> Result<()> {
    let (hosts, info) = (owner.hosts_of(volume)?, owner.volume(volume)?);
    ensure!(!hosts.contains(&gone.to_owned()), "{volume} still counts on {gone}: {hosts:?}");
    ensure!(info.redundancy == Redundancy::Healthy, "{info:?}");
    Ok(())
}

#[test]
fn what_nobody_writes_to_is_built_elsewhere_too() {
    let config = format!("repair_delay_s = {}\n", REPAIR_DELAY.as_secs());
    with_lab(LabOptions { hosts: 4, config, ..LabOptions::default() }, |lab| {
        let (owner, victim) = (lab.host(1), lab.host(3));
        let raw = image(lab, "in.raw", CHUNKS)?;
        for (name, policy) in VOLUMES {
            import(owner, name, policy, &raw)?;
            ensure!(
                owner.hosts_of(name)?.contains(&victim.name()),
                "nothing of {name} is on {}",
                victim.name()
            );
        }
        owner.open("idle")?;
        lab.wait_healthy(SETTLE_MAX)?;

        victim.kill9()?;
        for (name, _) in VOLUMES {
            eventually("it is built elsewhere", BUILT_MAX, || is_whole_without(owner, name, &victim.name()))?;
        }
        let event = eventually("an event tells of it", SETTLE_MAX, || owner.saw(EventKind::HostGivenUp))?;
        ensure!(event.message.contains(&victim.name()), "{event:?}");
        let health = owner.status()?.health;
        let offline = health.reasons.iter().find(|r| r.code == "host_offline").context("it is not missed")?;
        ensure!(offline.next_step.contains("built elsewhere"), "{offline:?}");
        // Closed volumes are closed again; and all is what it was.
        owner.ctl_ok(&["volume", "close", "idle"])?;
        for (name, _) in VOLUMES {
            let out = lab.dir().join(format!("{name}.raw")).display().to_string();
            lab.host(2).ctl_ok(&["volume", "export", name, &out])?;
            run("cmp", &[&raw.display().to_string(), &out])?;
            std::fs::remove_file(out)?;
        }
        // What is new does not count on who is away.
        import(owner, "new", "mirror:3", &image(lab, "new.raw", 2)?)?;
        is_whole_without(owner, "new", &victim.name())?;

        victim.start()?;
        lab.wait_healthy(SETTLE_MAX)?;
        for (name, _) in VOLUMES {
            ensure!(owner.volume(name)?.redundancy == Redundancy::Healthy, "{name}");
        }
        Ok(())
    });
}
