//! `host maintenance` and `safe-to-remove`.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Subcommand;
use ferro_protocol::api::{
    HostInfo, HostList, MaintenanceInfo, MaintenanceMode, MaintenanceRequest, Safety, format_size,
};

use super::{Context, resolve};
use crate::failure::{Exit, Failure, Result};
use crate::text::{Cell, Paint, Style, Table, count, facts, printable};

/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The verbs of `host maintenance`.
#[derive(Subcommand, Debug)]
pub enum MaintenanceVerb {
    /// Prepare a host for being switched off, and wait until it may be
    ///
    /// While it is in maintenance nothing is rebuilt because it is away. Refused at once if something could not be read without
    /// it, or if the others have no room for what is moved; except with --mode none also while a volume is open there.
    Enter {
        /// Its name, its id or the beginning of its id
        host: String,
        /// What is moved first: ensure-access what has no second copy, full everything, none nothing
        #[arg(long, value_name = "MODE", default_value = "ensure-access")]
        mode: MaintenanceMode,
        /// Return when it has begun to enter, not when it may be switched off
        #[arg(long)]
        no_wait: bool,
    },
    /// End a host's maintenance
    Exit {
        /// Its name, its id or the beginning of its id
        host: String,
    },
}

/// What might go.
#[derive(Subcommand, Debug)]
pub enum SafetyOf {
    /// A host with all its disks
    Host {
        /// Its name, its id or the beginning of its id
        host: String,
    },
    /// A disk
    Disk {
        /// Its id, the beginning of its id, or its path on this host
        disk: String,
    },
}

/// How a host in maintenance is.
pub(super) fn words(maintenance: &MaintenanceInfo) -> String {
    let how = match (maintenance.ready, maintenance.remaining_bytes) {
        (true, _) => "it may be switched off".to_owned(),
        (false, 0) => "not ready: something could not be read without it".to_owned(),
        (false, bytes) => format!("not ready: {} to move", format_size(bytes)),
    };
    format!("{}, {how}", maintenance.mode)
}

pub(super) async fn maintenance(context: &Context, verb: MaintenanceVerb) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        MaintenanceVerb::Enter { host, mode, no_wait } => {
            let info = resolve::host(context, &host).await?;
            let path = format!("/v1/hosts/{}/maintenance", info.id);
            let mut info: HostInfo = context.client.put(&path, &MaintenanceRequest { mode }).await?;
            if !no_wait {
                info = wait(context, info).await?;
            }
            terminal.done(&info, |info| {
                let how = info.maintenance.as_ref().map_or("not in maintenance".to_owned(), words);
                format!("host {} is in maintenance: {how}", info.name)
            })?;
            terminal.hint(&format!("when the work is done: `vsanctl host maintenance exit {}`", info.name));
            Ok(())
        }
        MaintenanceVerb::Exit { host } => {
            let info = resolve::host(context, &host).await?;
            let path = format!("/v1/hosts/{}/maintenance", info.id);
            let info: HostInfo = context.client.delete(&path).await?;
            terminal.done(&info, |info| format!("host {} is no longer in maintenance", info.name))
        }
    }
}

/// Waits until the host may be switched off.
async fn wait(context: &Context, mut info: HostInfo) -> Result<HostInfo> {
    let name = info.name.clone();
    let watched = async {
        loop {
            match &info.maintenance {
                Some(maintenance) if maintenance.ready => return Ok(info),
                Some(_) => {}
                None => {
                    return Err(Failure::aborted(
                        format!("host {name}: somebody has ended its maintenance"),
                        "see `vsanctl events`; repeat it if it is to enter after all",
                    ));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let list: HostList = context.client.get("/v1/hosts").await?;
            let found = list.hosts.into_iter().find(|host| host.id == info.id);
            info = found.ok_or_else(|| {
                Failure::new(
                    Exit::NotFound,
                    "host_not_found",
                    format!("host {name} is gone"),
                    "see `vsanctl events`",
                )
            })?;
        }
    };
    tokio::select! {
        outcome = watched => outcome,
        () = super::transfer::interrupted() => Err(Failure::aborted(
            format!("host {name} goes on entering maintenance; only the waiting has ended"),
            format!("`vsanctl host maintenance exit {name}` ends it"),
        )),
    }
}

pub(super) async fn safety(context: &Context, what: SafetyOf) -> Result<()> {
    let path = match what {
        SafetyOf::Host { host } => format!("/v1/hosts/{}/safety", resolve::host(context, &host).await?.id),
        SafetyOf::Disk { disk } => format!("/v1/disks/{}/safety", resolve::disk(context, &disk).await?.id),
    };
    let safety: Safety = context.client.get(&path).await?;
    context.terminal.answer(&safety, shown)?;
    if safety.safe {
        return Ok(());
    }
    let next = match safety.actions.iter().find(|action| action.possible) {
        Some(action) => format!("prepare for it, for example with `{}`", action.command),
        None => "see the list of what can be done, and what would make it possible".to_owned(),
    };
    Err(Failure::new(Exit::Refused, "not_safe", format!("{} can't go now", safety.name), next))
}

fn shown(safety: &Safety, paint: Paint) -> String {
    let list = |names: &[ferro_protocol::ids::VolumeName]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        if names.is_empty() { "none".to_owned() } else { printable(&names.join(", ")) }
    };
    let verdict = if safety.safe { paint.text(Style::Good, "yes") } else { paint.text(Style::Bad, "no") };
    let quorum = if safety.keeps_quorum { "yes" } else { "no: nothing could be changed" };
    let mut out = facts(&[
        ("what", printable(&safety.name)),
        ("could go now", verdict),
        (
            "holds",
            format!("{} of {}", format_size(safety.used_bytes), count(u64::from(safety.volumes), "volume")),
        ),
        ("to rebuild", format_size(safety.rebuild_bytes)),
        ("not readable", list(&safety.unavailable_volumes)),
        ("no place for", list(&safety.unplaced_volumes)),
        ("open there", list(&safety.open_volumes)),
        ("quorum", quorum.to_owned()),
    ]);
    out.push('\n');
    let mut table = Table::new(&["WHAT CAN BE DONE", "POSSIBLE", ">MOVES"]);
    for action in &safety.actions {
        let (style, word) = if action.possible { (Style::Good, "yes") } else { (Style::Warn, "no") };
        table.row(vec![
            (&action.command).into(),
            Cell::styled(style, word),
            format_size(action.moved_bytes).into(),
        ]);
    }
    out += &table.render(paint, 0);
    for action in safety.actions.iter().filter(|action| !action.possible) {
        let why = action.refusal.as_deref().unwrap_or("unknown");
        let _ = writeln!(out, "\n`{}` is not possible: {}", printable(&action.command), printable(why));
        if let Some(next) = &action.next_step {
            let _ = writeln!(out, "  next: {}", printable(next));
        }
    }
    out
}
