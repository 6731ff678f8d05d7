//! `support-bundle`: what the API says and what each host says of itself, in one file.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ferro_protocol::api::{EVENTS_MAX, HostList, HostSupport, MissingPart, Status};
use serde::Serialize;
use serde_json::Value;

use super::Context;
use crate::archive::Archive;
use crate::failure::{Exit, Failure, Result};
use crate::text::{count, utc};

/// What is asked of the API, and what the file with the answer is called.
const ANSWERS: [(&str, &str); 10] = [
    ("/v1/capacity", "capacity.json"),
    ("/v1/health", "health.json"),
    ("/v1/cluster", "cluster.json"),
    ("/v1/hosts", "hosts.json"),
    ("/v1/disks", "disks.json"),
    ("/v1/volumes", "volumes.json"),
    ("/v1/objects", "objects.json"),
    ("/v1/locks", "locks.json"),
    ("/v1/resyncs", "resyncs.json"),
    // Their names and sizes: what they say is other daemons' business.
    ("/v1/documents", "documents.json"),
];

/// What was written.
#[derive(Serialize)]
struct Written {
    file: String,
    bytes: u64,
    hosts: Vec<String>,
    missing: Vec<MissingPart>,
}

pub(super) async fn bundle(context: &Context, file: &Path) -> Result<()> {
    let named = file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(".tar.gz"));
    if !named {
        let message = format!("a support bundle can't be called {}", file.display());
        return Err(Failure::usage(message, "give it a name that ends in .tar.gz"));
    }
    if file.exists() {
        let message = format!("{} is there already", file.display());
        return Err(Failure::new(
            Exit::Conflict,
            "file",
            message,
            "choose another name, or remove that file",
        ));
    }
    // Without this one there is nothing to tell.
    let status: Status = context.client.get("/v1/status").await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let folder = format!("vsand-support-{}", utc(now * 1_000).replace([' ', ':'], "-"));
    let mut archive = Archive::new(now);
    let mut missing: Vec<MissingPart> = Vec::new();
    let json = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    archive.file(
        &format!("{folder}/status.json"),
        json(&serde_json::to_value(&status).unwrap_or_default()).as_bytes(),
    );
    let events = format!("/v1/events?limit={EVENTS_MAX}");
    for (path, name) in ANSWERS.into_iter().chain([(events.as_str(), "events.json")]) {
        match context.client.get::<Value>(path).await {
            Ok(value) => archive.file(&format!("{folder}/{name}"), json(&value).as_bytes()),
            Err(failure) => missing.push(MissingPart { what: name.to_owned(), why: failure.message }),
        }
    }
    let mut hosts = Vec::new();
    let known = context.client.get::<HostList>("/v1/hosts").await.map(|list| list.hosts).unwrap_or_default();
    for host in known {
        match context.client.get::<HostSupport>(&format!("/v1/hosts/{}/support", host.id)).await {
            Ok(part) => {
                let under = format!("{folder}/hosts/{}", plain(&host.name));
                for one in &part.files {
                    archive.file(&format!("{under}/{}", plain(&one.name)), one.text.as_bytes());
                }
                let what = |what: &str| format!("{} of host {}", what, host.name);
                missing.extend(
                    part.missing.iter().map(|m| MissingPart { what: what(&m.what), why: m.why.clone() }),
                );
                hosts.push(host.name);
            }
            Err(failure) => {
                missing.push(MissingPart { what: format!("host {}", host.name), why: failure.message });
            }
        }
    }
    let lines: Vec<String> = missing.iter().map(|m| format!("{}: {}", m.what, m.why)).collect();
    let list = if lines.is_empty() { "nothing\n".to_owned() } else { lines.join("\n") + "\n" };
    archive.file(&format!("{folder}/MISSING.txt"), list.as_bytes());
    let bytes = archive.finish();
    write(file, &bytes)?;
    let written = Written { file: file.display().to_string(), bytes: bytes.len() as u64, hosts, missing };
    for part in &written.missing {
        context.terminal.hint(&format!("missing: {}: {}", part.what, part.why));
    }
    context.terminal.done(&written, |written| {
        format!(
            "wrote {}, from {}; {} missing (MISSING.txt). It has names and addresses in it: look before you give it away",
            written.file,
            count(written.hosts.len() as u64, "host"),
            count(written.missing.len() as u64, "part")
        )
    })
}

/// A name that is a file's and not a path.
fn plain(name: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = name.chars().take(64).map(good).collect();
    if name.trim_matches('.').is_empty() { "unnamed".to_owned() } else { name }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| {
        // Half a bundle is of no use; one that was there was not touched.
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            let _gone = std::fs::remove_file(path);
        }
        Failure::file("writing", path, &error)
    })
}
