//! What administrators are told: health checks that are muted, and events of all hosts, across restarts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_protocol::api::{EventInfo, EventKind, EventList, HealthLevel, HealthReport};

const SETTLE_MAX: Duration = Duration::from_secs(60);

fn events(host: &Host) -> Result<EventList> {
    host.ctl(&["events", "-n", "5000"])
}

/// Waits for an event of this kind whose message has this word.
fn wait_for(host: &Host, kind: EventKind, word: &str) -> Result<EventInfo> {
    let mut found = None;
    eventually(&format!("{kind:?} of {word} on {}", host.name()), SETTLE_MAX, || {
        let all = events(host)?.events;
        found = all.iter().rev().find(|e| e.kind == kind && e.message.contains(word)).cloned();
        ensure!(found.is_some(), "{:#?}", all.iter().map(|e| (e.kind, &e.message)).collect::<Vec<_>>());
        Ok(())
    })?;
    found.context("none")
}

#[test]
fn what_happens_is_told_by_every_host_and_what_is_known_is_muted() {
    with_lab(LabOptions::default(), |lab| {
        let (first, second, third) = (lab.host(1), lab.host(2), lab.host(3));
        let raw = lab.dir().join("in.raw");
        std::fs::write(&raw, vec![7; 20 << 20])?;
        first.ctl_ok(&[
            "volume",
            "import",
            "data",
            &raw.display().to_string(),
            "--create",
            "--policy",
            "mirror:3",
        ])?;
        wait_for(second, EventKind::VolumeCreated, "volume data of 20 MiB")?;
        third.kill9()?;
        let down = wait_for(second, EventKind::HostDown, "host3")?;
        eventually("the other host saw it too", SETTLE_MAX, || {
            let all = events(first)?;
            let seen = all.events.iter().find(|e| e.kind == EventKind::HostDown).context("none")?;
            ensure!(
                seen.seen_by.len() == 2 && all.silent_hosts == ["host3"],
                "{seen:?} {:?}",
                all.silent_hosts
            );
            Ok(())
        })?;
        ensure!(down.subject.starts_with("host "), "{down:?}");
        let raised = wait_for(first, EventKind::HealthRaised, "host host3 is offline")?;
        ensure!(raised.check.as_deref() == Some("host_offline"), "{raised:?}");

        // Muted on one host, it is on every host; the volume is another matter.
        first.ctl_refused(&["health", "mute", "disk_full", "--for", "2h"], "conflict", 4)?;
        first.ctl_refused(&["health", "mute", "nonsense", "--for", "2h"], "check_not_found", 3)?;
        for code in ["host_offline", "volume_degraded"] {
            first.ctl_ok(&["health", "mute", code, "--for", "2h", "--reason", "a test"])?;
        }
        let status = second.status()?;
        ensure!(status.health.level == HealthLevel::Ok, "{:?}", status.health);
        ensure!(status.muted == ["host_offline", "volume_degraded"], "{:?}", status.muted);
        let report: HealthReport = second.ctl(&["health"])?;
        let offline = report.checks.iter().find(|c| c.code == "host_offline").context("not listed")?;
        let mute = offline.mute.as_ref().context("not muted")?;
        ensure!(mute.in_force && mute.by == "host1" && !offline.reasons.is_empty(), "{offline:?}");
        first.ctl_ok(&["health", "unmute", "host_offline"])?;
        eventually("it is shown again", SETTLE_MAX, || {
            let health = second.status()?.health;
            ensure!(health.reasons.iter().any(|r| r.code == "host_offline"), "{health:?}");
            Ok(())
        })?;

        // It misses a write, comes back and gets it; all of that is told by a daemon that was started anew.
        first.ctl_ok(&["--yes", "volume", "import", "data", &raw.display().to_string()])?;
        wait_for(second, EventKind::CopiesStale, "of host host3")?;
        third.start()?;
        wait_for(second, EventKind::HostUp, "host3")?;
        wait_for(second, EventKind::ResyncEnded, "are up to date")?;
        wait_for(second, EventKind::HealthCleared, "host_offline")?;
        lab.wait_healthy(SETTLE_MAX)?;
        let before = events(second)?.events.len();
        second.term()?;
        second.start()?;
        let stopped = wait_for(second, EventKind::DaemonStopped, "host2")?;
        wait_for(second, EventKind::HostDown, "host3")?;
        let after = events(second)?;
        ensure!(after.events.len() >= before && after.silent_hosts.is_empty(), "{before}: {after:?}");
        ensure!(after.events.is_sorted_by_key(|e| e.at_unix_ms), "not by time");
        let local: EventList = first.ctl(&["events", "--local"])?;
        ensure!(!local.events.iter().any(|e| e.seen_by == stopped.seen_by), "that one saw only host 2");
        Ok(())
    });
}
