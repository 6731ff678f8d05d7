//! `disk remove` and `host remove`: a thing leaves once its data is elsewhere, and who asked for it may watch.

use std::time::Duration;

use ferro_protocol::api::{DiskList, Removal, ResyncTotals, Status, format_size};
use ferro_protocol::ids::{DiskId, HostId};
use hyper::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::args::RemoveOptions;
use crate::failure::{Failure, Result};
use crate::terminal::Terminal;
use crate::text::{duration, rate};

/// How often it is looked how far it is.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What leaves.
pub(super) enum Thing {
    /// A disk.
    Disk(DiskId),
    /// A host.
    Host(HostId),
}

/// A thing that leaves, in words.
pub(super) struct Leaver {
    pub(super) thing: Thing,
    /// As in "host b".
    pub(super) name: String,
    /// The command that this is, without options.
    pub(super) command: String,
    /// What is on it.
    pub(super) used_bytes: u64,
    /// What goes with it, for the question.
    pub(super) with: String,
}

/// How it is with it now.
enum Now {
    Leaving { left_bytes: u64, resync: ResyncTotals },
    Gone,
    Stays,
}

impl Leaver {
    fn path(&self) -> String {
        match self.thing {
            Thing::Disk(id) => format!("/v1/disks/{id}"),
            Thing::Host(id) => format!("/v1/hosts/{id}"),
        }
    }

    /// Asks, begins, and waits until it is gone, unless told otherwise.
    pub(super) async fn remove(&self, context: &Context, options: &RemoveOptions) -> Result<()> {
        let terminal = context.terminal;
        let name = &self.name;
        if options.cancel {
            let path = format!("{}/removal", self.path());
            context.client.empty(Method::DELETE, &path, None::<&()>).await?;
            let kept = Removal { removed: false, remaining_bytes: 0 };
            return terminal.done(&kept, |_| format!("{name} stays in the cluster"));
        }
        let used = format_size(self.used_bytes);
        let warning = if options.force {
            format!(
                "The {name}{} leaves the cluster at once. The {used} on it are dropped: volumes have fewer copies than they \
                 should until they are repaired from the others.",
                self.with
            )
        } else {
            format!("The {name}{} leaves the cluster; {used} on it are copied elsewhere first.", self.with)
        };
        terminal.confirm(&warning, &format!("removing the {name}"))?;
        let force = if options.force { "?force=true" } else { "" };
        let mut removal: Removal = context.client.delete(&format!("{}{force}", self.path())).await?;
        if !removal.removed && !options.no_wait {
            self.wait(context, removal.remaining_bytes).await?;
            removal = Removal { removed: true, remaining_bytes: 0 };
        }
        let cancel = format!("`{} --cancel` keeps it", self.command);
        terminal.done(&removal, |removal| {
            if removal.removed {
                return format!("the {name} was removed");
            }
            format!(
                "the {name} is leaving: {} are copied elsewhere first, then it goes by itself (`vsanctl resync list` says how \
                 far that is; {cancel})",
                format_size(removal.remaining_bytes)
            )
        })
    }

    async fn wait(&self, context: &Context, total_bytes: u64) -> Result<()> {
        let bar = progress(context.terminal, "moving", total_bytes);
        let watched = async {
            loop {
                match self.look(context).await? {
                    Now::Gone => return Ok(()),
                    Now::Stays => {
                        return Err(Failure::aborted(
                            format!("removing the {}: somebody has decided that it stays", self.name),
                            "see `vsanctl status`; repeat it if it is to go after all",
                        ));
                    }
                    Now::Leaving { left_bytes, resync } => {
                        bar.set_length(total_bytes.max(left_bytes));
                        bar.set_position(bar.position().max(total_bytes.saturating_sub(left_bytes)));
                        bar.set_message(speed(&resync));
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let outcome = tokio::select! {
            outcome = watched => outcome,
            () = super::transfer::interrupted() => Err(Failure::aborted(
                format!("the {} goes on leaving; only the waiting has ended", self.name),
                format!("`{}` waits again, with --cancel it stays", self.command),
            )),
        };
        bar.finish_and_clear();
        outcome
    }

    async fn look(&self, context: &Context) -> Result<Now> {
        let status: Status = context.client.get("/v1/status").await?;
        let resync = status.resync;
        let leaving = match self.thing {
            Thing::Disk(id) => {
                let list: DiskList = context.client.get("/v1/disks").await?;
                list.disks.into_iter().find(|disk| disk.id == id).map(|disk| disk.leaving_bytes)
            }
            Thing::Host(id) => {
                // A host that has removed itself hears nothing of the others any more.
                if status.health.reasons.iter().any(|reason| reason.code == "host_removed") {
                    return Ok(Now::Gone);
                }
                status.hosts.into_iter().find(|host| host.id == id).map(|host| host.leaving_bytes)
            }
        };
        Ok(match leaving {
            None => Now::Gone,
            Some(None) => Now::Stays,
            Some(Some(left_bytes)) => Now::Leaving { left_bytes, resync },
        })
    }
}

pub(super) fn speed(resync: &ResyncTotals) -> String {
    if resync.running == 0 {
        return "waiting for its turn".to_owned();
    }
    let left = resync.eta_seconds.map_or(String::new(), |left| format!(", {} left", duration(left)));
    format!("{}{left}", rate(resync.bytes_per_second))
}

pub(super) fn progress(terminal: Terminal, what: &str, bytes: u64) -> ProgressBar {
    if !terminal.shows_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr_with_hz(5));
    let template = format!("{what} [{{bar:30}}] {{binary_bytes}} of {{binary_total_bytes}}  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(LOOK_EVERY);
    bar
}
