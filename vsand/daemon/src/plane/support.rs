//! What a support bundle has of each host: versions, settings, counters, the directory as seen here, and logs where journald keeps
//! them. Nothing of it is a secret: settings are listed one by one, keys and tokens are never read, and what looks like a join
//! token in a log is blotted out.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use ferro_protocol::api::{ApiError, ErrorCode, HostSupport, MissingPart, SupportFile};
use ferro_protocol::ids::HostId;

use super::errors::host_name;
use super::remote;
use crate::api::control::Result;
use crate::api::fail;
use crate::config::{Config, Rebalance, Scrub};
use crate::member::Member;
use crate::member::network::SUPPORT;

/// A host gathers and sends its part within this time.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The end of a log, at most so much: all of a host's part has to fit into one message of 16 MiB.
const LOG_BYTES_MAX: usize = 3 << 20;
/// How a join token begins.
const TOKEN_MARK: &str = "ferro1.";

/// The part of any host.
pub(super) async fn of_host(member: &Member, host: HostId) -> Result<HostSupport> {
    let state = member.state();
    if host == member.host() {
        return Ok(own(member).await);
    }
    let record = state.hosts.get(&host).ok_or_else(|| fail::host_not_found(host))?;
    let unreachable = |why: String| {
        let name = host_name(&state, host);
        ApiError::new(
            ErrorCode::HostUnreachable,
            format!("host {name} does not give its part of a support bundle: {why}"),
            format!("run `vsanctl support-bundle` on {name} itself, if it is up"),
        )
    };
    let call = member.peers.call(host, record.address, SUPPORT, &[], ANSWER_MAX);
    let answer = tokio::time::timeout(ANSWER_MAX, call).await;
    let answer = answer.map_err(|_| unreachable("it does not answer".to_owned()))?;
    let answer = answer.map_err(|error| unreachable(error.to_string()))?;
    serde_json::from_slice(&answer).map_err(|error| unreachable(error.to_string()))
}

/// The answer to another host that gathers.
pub async fn answer(member: &Member) -> Option<Vec<u8>> {
    serde_json::to_vec(&own(member).await).ok()
}

/// What is gathered.
#[derive(Default)]
struct Parts {
    files: Vec<SupportFile>,
    missing: Vec<MissingPart>,
}

impl Parts {
    fn add(&mut self, name: &str, text: std::result::Result<String, String>) {
        match text {
            Ok(text) => self.files.push(SupportFile { name: name.to_owned(), text }),
            Err(why) => self.missing.push(MissingPart { what: name.to_owned(), why }),
        }
    }
}

async fn own(member: &Member) -> HostSupport {
    let mut parts = Parts::default();
    parts.add("version.txt", Ok(format!("vsand {}\n", env!("CARGO_PKG_VERSION"))));
    parts.add("settings.txt", Ok(settings(&member.config)));
    parts.add("directory.txt", Ok(format!("{:#?}\n", member.directory.status())));
    let report = remote::own_report(member).await.ok_or_else(|| "the daemon is stopping".to_owned());
    parts
        .add("report.json", report.and_then(|r| serde_json::to_string_pretty(&r).map_err(|e| e.to_string())));
    parts.add("metrics.txt", crate::metrics::text(Some(member)).await.map_err(|error| error.to_string()));
    let on_this_host = tokio::task::spawn_blocking(system).await;
    if let Ok(system) = on_this_host {
        parts.files.extend(system.files);
        parts.missing.extend(system.missing);
    }
    let host = member.host();
    HostSupport {
        host,
        host_name: host_name(&member.state(), host),
        files: parts.files,
        missing: parts.missing,
    }
}

/// The settings in force.
fn settings(config: &Config) -> String {
    let Config {
        listen,
        advertise,
        state_dir,
        run_dir,
        name,
        fault_domain,
        group,
        repair_delay_s,
        resync_mib_per_s,
        scrub: Scrub { every_days, rate_mib_s, bad_blocks_max },
        rebalance: Rebalance { spread_percent, load_percent, load_window_s },
        debug_faults,
    } = config;
    let mut text = String::new();
    // A `String` takes everything.
    let _ = write!(
        text,
        "listen = {listen:?}\nadvertise = {advertise:?}\nstate_dir = {}\nrun_dir = {}\nname = {name:?}\n\
         fault_domain = {fault_domain:?}\ngroup = {group:?}\nrepair_delay_s = {repair_delay_s}\n\
         resync_mib_per_s = {resync_mib_per_s}\ndebug_faults = {debug_faults}\n\n[scrub]\n\
         every_days = {every_days}\nrate_mib_s = {rate_mib_s}\nbad_blocks_max = {bad_blocks_max}\n\n[rebalance]\nspread_percent = {spread_percent}\n\
         load_percent = {load_percent}\nload_window_s = {load_window_s}\n",
        state_dir.display(),
        run_dir.display()
    );
    text
}

/// What the operating system says. Blocks.
fn system() -> Parts {
    let mut parts = Parts::default();
    for (name, path) in [
        ("os-release.txt", "/etc/os-release"),
        ("kernel.txt", "/proc/version"),
        ("memory.txt", "/proc/meminfo"),
        ("load.txt", "/proc/loadavg"),
        ("mounts.txt", "/proc/self/mounts"),
        ("processors.txt", "/proc/cpuinfo"),
        ("block-devices.txt", "/proc/diskstats"),
    ] {
        parts.add(name, std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}")));
    }
    let common = ["--no-pager", "--quiet", "--output=short-iso"];
    parts.add("journal.txt", journal(&[&common[..], &["--unit=vsand", "--lines=50000"]].concat()));
    parts.add("kernel-journal.txt", journal(&[&common[..], &["--dmesg", "--lines=5000"]].concat()));
    parts
}

/// The end of a log that journald keeps.
fn journal(arguments: &[&str]) -> std::result::Result<String, String> {
    let ran = Command::new("journalctl").args(arguments).stdin(Stdio::null()).output();
    let ran = ran.map_err(|error| format!("journalctl can't be run: {error}"))?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("journalctl ended with {}: {}", ran.status, said.trim()));
    }
    if ran.stdout.is_empty() {
        return Err("journald has nothing of it".to_owned());
    }
    let end = ran.stdout.len().saturating_sub(LOG_BYTES_MAX);
    Ok(blotted(&String::from_utf8_lossy(&ran.stdout[end..])))
}

/// The text with what follows the mark of a join token taken out.
fn blotted(text: &str) -> String {
    let mut parts = text.split(TOKEN_MARK);
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let rest =
            part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '='));
        out += TOKEN_MARK;
        out += if rest.len() < part.len() { "(taken out)" } else { "" };
        out += rest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_a_log_is_blotted_out() {
        let text = "join ferro1.AQNk_x-9z= failed; ferro1. is a mark\nferro1.abc";
        assert_eq!(blotted(text), "join ferro1.(taken out) failed; ferro1. is a mark\nferro1.(taken out)");
        assert_eq!(blotted("nothing"), "nothing");
    }
}
