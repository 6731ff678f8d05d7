//! Changes: a transaction, then waiting until every host that can be reached has taken it over.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use ferro_protocol::api::switch::{
    Applied, Change, HostApplied, HostProgress, NetworkConfig, SwitchStatus, TRANSACTION_CHANGES_MAX,
    Transacted, Transaction, WAIT_SECONDS_MAX,
};
use hyper::Method;
use serde::Serialize;

use super::args::TransactionArgs;
use super::draft::{Draft, Edit};
use super::{Context, script};
use crate::failure::{Exit, Failure, Result};
use crate::text::{count, printable};

/// How often a change is made anew on what somebody else has changed meanwhile.
const ATTEMPTS: u32 = 5;
/// How long hosts are waited for unless --wait says otherwise.
const WAIT_SECONDS: u64 = 30;
/// The largest file of commands, or of a configuration.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What `-o json` prints of a change.
#[derive(Serialize)]
struct Outcome<'a> {
    revision: u64,
    changed: bool,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm_within_s: Option<u32>,
    hosts: &'a [HostApplied],
}

/// One verb.
pub(super) async fn one(context: &Context, edit: Edit<'_>) -> Result<()> {
    make(context, &edit.sentence(), |draft| draft.edit(edit), edit.host().is_some()).await
}

/// A transaction of several.
pub(super) async fn several(context: &Context, options: &TransactionArgs) -> Result<()> {
    let text = match (&options.commands, &options.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => String::new(),
    };
    let commands = script::parse(&text)?;
    if commands.is_empty() {
        let message = "the transaction has no commands";
        return Err(Failure::usage(message, "write verbs as after `vswctl`, apart by `;` or on lines"));
    }
    if commands.len() > TRANSACTION_CHANGES_MAX {
        let message = format!("a transaction has at most {TRANSACTION_CHANGES_MAX} commands");
        return Err(Failure::usage(message, "make several of it"));
    }
    let edits: Vec<Edit<'_>> = commands.iter().filter_map(|command| Edit::of(&command.noun)).collect();
    let sentence = match edits.as_slice() {
        [one] => one.sentence(),
        many => format!("made {}", count(many.len() as u64, "change")),
    };
    let names_host = edits.iter().any(|edit| edit.host().is_some());
    make(context, &sentence, |draft| edits.iter().try_for_each(|edit| draft.edit(*edit)), names_host).await
}

/// Makes what `edit` does to the configuration as it is, and again if somebody else was quicker.
async fn make(
    context: &Context,
    sentence: &str,
    edit: impl Fn(&mut Draft) -> Result<()>,
    names_host: bool,
) -> Result<()> {
    let hosts = if names_host { hosts(context).await? } else { Vec::new() };
    let mut attempt = 1;
    loop {
        let NetworkConfig { revision, spec, .. } = context.client.get("/v1/config").await?;
        let mut draft = Draft { spec, changes: Vec::new(), hosts: hosts.clone() };
        edit(&mut draft)?;
        match transact(context, revision, draft.changes).await {
            Err(failure)
                if failure.exit == Exit::Conflict && failure.code == "conflict" && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(failure) => return Err(failure),
            Ok(done) => return finish(context, done, sentence).await,
        }
    }
}

async fn hosts(context: &Context) -> Result<Vec<(ferro_protocol::ids::HostId, String)>> {
    let status: SwitchStatus = context.client.get("/v1/status").await?;
    let mut hosts: Vec<_> = status.hosts.into_iter().map(|it| (it.host, it.name)).collect();
    hosts.push((status.host, status.host_name));
    Ok(hosts)
}

pub(super) async fn transact(context: &Context, basis: u64, changes: Vec<Change>) -> Result<Transacted> {
    let request = Transaction {
        basis: Some(basis),
        changes,
        dry_run: context.change.dry_run,
        confirm_within_s: context.change.confirm_within,
    };
    context.client.post("/v1/transactions", &request).await
}

/// Waits for the hosts and says what was done.
pub(super) async fn finish(context: &Context, done: Transacted, sentence: &str) -> Result<()> {
    let terminal = context.terminal;
    let waits = done.changed && !done.dry_run && !context.change.no_wait;
    let applied = if waits { Some(wait(context, done.revision).await?) } else { None };
    let hosts = applied.map_or(Vec::new(), |applied| applied.hosts);
    let outcome = Outcome {
        revision: done.revision,
        changed: done.changed,
        dry_run: done.dry_run,
        confirm_within_s: done.confirm_within_s,
        hosts: &hosts,
    };
    terminal.done(&outcome, |outcome| tell(outcome, sentence, waits))?;
    for host in hosts.iter().filter(|host| host.progress == HostProgress::Unreachable) {
        terminal.warn(&not_applied(host, done.revision));
    }
    let left: Vec<&HostApplied> = hosts
        .iter()
        .filter(|host| !matches!(host.progress, HostProgress::Applied | HostProgress::Unreachable))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = left.iter().map(|host| not_applied(host, done.revision)).collect();
    let pending = left.iter().all(|host| host.progress == HostProgress::Pending);
    let (exit, next) = if pending {
        (Exit::TimedOut, "they take it over when they get to it: `vswctl status` shows how far they are")
    } else {
        (
            Exit::Failure,
            "see `vswctl status` there, put it right, and make the change again where it was undone",
        )
    };
    let message = format!(
        "revision {} is durable, but not in force on {}: {}",
        done.revision,
        count(left.len() as u64, "host"),
        lines.join("; ")
    );
    let mut failure = Failure::new(exit, "not_applied", message, next);
    failure
        .details
        .insert("hosts".to_owned(), left.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(","));
    Err(failure)
}

fn tell(outcome: &Outcome<'_>, sentence: &str, waited: bool) -> String {
    if outcome.dry_run {
        return if outcome.changed {
            format!("this can be done ({sentence}); nothing was changed")
        } else {
            "nothing would change".to_owned()
        };
    }
    if !outcome.changed {
        return format!("nothing to do: it is like that already (revision {})", outcome.revision);
    }
    let mut text = format!("{sentence} (revision {}", outcome.revision);
    if waited {
        let applied = outcome.hosts.iter().filter(|host| host.progress == HostProgress::Applied).count();
        let all = outcome.hosts.len();
        match (applied, all) {
            (_, 0 | 1) if applied == all => {}
            (applied, all) if applied == all => {
                let _ = write!(text, ", applied on all {all} hosts");
            }
            (applied, all) => {
                let _ = write!(text, ", applied on {applied} of {all} hosts");
            }
        }
    }
    text.push(')');
    if let Some(left) = outcome.confirm_within_s {
        let _ = write!(text, "; undone in {left} s unless `vswctl confirm {}` is run", outcome.revision);
    }
    text
}

fn not_applied(host: &HostApplied, revision: u64) -> String {
    let what = match host.progress {
        HostProgress::Applied => return format!("{} has revision {revision}", host.name),
        HostProgress::Pending => "has not taken it over yet",
        HostProgress::Unreachable => "can't be reached: it takes the change over when it is back",
        HostProgress::Failed => "can't take it over",
        HostProgress::RolledBack => "went back to what it had before",
    };
    let old = match host.revision {
        Some(old) if old != revision => format!(" (it has revision {old})"),
        _ => String::new(),
    };
    let detail = host.detail.as_ref().map_or(String::new(), |detail| format!(": {detail}"));
    format!("host {} {what}{old}{detail}", host.name)
}

/// Waits until every host that can be reached has the revision, or the time is over.
async fn wait(context: &Context, revision: u64) -> Result<Applied> {
    let until = Instant::now() + Duration::from_secs(context.change.wait.unwrap_or(WAIT_SECONDS));
    loop {
        let left = until.saturating_duration_since(Instant::now()).as_secs_f64().ceil() as u64;
        let wait_s = left.min(u64::from(WAIT_SECONDS_MAX));
        let applied: Applied =
            context.client.get(&format!("/v1/revisions/{revision}?wait_s={wait_s}")).await?;
        if applied.is_settled() || left == 0 {
            return Ok(applied);
        }
    }
}

/// What waits to be confirmed, unless a person says it.
async fn waiting(context: &Context, revision: Option<u64>) -> Result<u64> {
    if let Some(revision) = revision {
        return Ok(revision);
    }
    let status: SwitchStatus = context.client.get("/v1/status").await?;
    status.unconfirmed.map(|it| it.revision).ok_or_else(|| {
        let message = "no change waits to be confirmed";
        let next = "it holds already, or it was undone: `vswctl status` shows what is in force";
        Failure::new(Exit::NotFound, "revision_not_found", message, next)
    })
}

/// What `-o json` prints of a revision that was kept or undone.
#[derive(Serialize)]
struct Decided {
    revision: u64,
}

pub(super) async fn confirm(context: &Context, revision: Option<u64>) -> Result<()> {
    let revision = waiting(context, revision).await?;
    context.client.empty(Method::POST, &format!("/v1/revisions/{revision}/confirm"), None::<&()>).await?;
    context.terminal.done(&Decided { revision }, |it| format!("revision {} stays", it.revision))
}

pub(super) async fn undo(context: &Context, revision: Option<u64>) -> Result<()> {
    let revision = waiting(context, revision).await?;
    context.client.empty(Method::POST, &format!("/v1/revisions/{revision}/undo"), None::<&()>).await?;
    context.terminal.done(&Decided { revision }, |it| format!("revision {} was undone", it.revision))
}

/// A file, or the standard input for `-`.
pub(super) fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let fail = |error: std::io::Error| Failure::file("reading", path, &error);
    let taken = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    };
    if taken.map_err(fail)? as u64 > FILE_BYTES_MAX {
        let message =
            format!("{} is larger than {} MiB", printable(&path.display().to_string()), FILE_BYTES_MAX >> 20);
        return Err(Failure::usage(message, "check that it is the right file"));
    }
    Ok(text)
}
