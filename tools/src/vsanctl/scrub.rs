//! `scrub`: starting, stopping and showing the search for blocks that have gone bad.

use clap::Subcommand;
use ferro_protocol::api::{ScrubAction, ScrubInfo, ScrubList, ScrubRequest, ScrubState, format_size};
use ferro_protocol::ids::VolumeName;

use super::Context;
use crate::failure::Result;
use crate::text::{Cell, Paint, Style, Table, count, utc};

/// The verbs of `scrub`.
#[derive(Subcommand, Debug)]
pub enum ScrubVerb {
    /// Scrub a volume, or all, as soon as the turn comes; each host scrubs one volume at a time
    Start {
        /// The volume; all of them, unless given
        volume: Option<VolumeName>,
    },
    /// Stop the scrub of a volume, or of all; the schedule goes on
    Stop {
        /// The volume; all of them, unless given
        volume: Option<VolumeName>,
    },
    /// Show the latest scrub of each volume, what it found, and when the next begins
    #[command(visible_alias = "list")]
    Status,
}

pub(super) async fn scrub(context: &Context, verb: ScrubVerb) -> Result<()> {
    match verb {
        ScrubVerb::Start { volume } => act(context, ScrubAction::Start, volume).await,
        ScrubVerb::Stop { volume } => act(context, ScrubAction::Stop, volume).await,
        ScrubVerb::Status => {
            let list: ScrubList = context.client.get("/v1/scrubs").await?;
            context.terminal.answer(&list, |list, paint| shown(&list.scrubs, paint))
        }
    }
}

async fn act(context: &Context, action: ScrubAction, volume: Option<VolumeName>) -> Result<()> {
    let request = ScrubRequest { action, volume };
    let list: ScrubList = context.client.post("/v1/scrubs", &request).await?;
    context.terminal.done(&list, |list| {
        let volumes = match list.scrubs.as_slice() {
            [one] => format!("volume {}", one.volume),
            all => count(all.len() as u64, "volume"),
        };
        match action {
            ScrubAction::Start => {
                format!("the scrub of {volumes} begins when its turn comes; see `vsanctl scrub status`")
            }
            ScrubAction::Stop => format!("no scrub of {volumes} is under way any more"),
        }
    })
}

fn shown(scrubs: &[ScrubInfo], paint: Paint) -> String {
    if scrubs.is_empty() {
        return "there is no volume to scrub\n".to_owned();
    }
    let mut table =
        Table::new(&["VOLUME", "SCRUB", "DONE", "READ", "BAD", "MENDED", "LEFT OUT", "LAST WHOLE", "NEXT"]);
    for scrub in scrubs {
        let (style, word) = state(scrub.state);
        let done = match scrub.state {
            ScrubState::Running | ScrubState::Stopped => format!("{}/{}", scrub.chunks_done, scrub.chunks),
            _ => String::new(),
        };
        let left = scrub.bad_blocks > scrub.mended_blocks;
        table.row(vec![
            scrub.volume.as_str().into(),
            Cell::styled(style, word),
            done.into(),
            format_size(scrub.bytes).into(),
            Cell::styled(
                if scrub.bad_blocks > 0 { Style::Warn } else { Style::Plain },
                scrub.bad_blocks.to_string(),
            ),
            Cell::styled(if left { Style::Bad } else { Style::Plain }, scrub.mended_blocks.to_string()),
            scrub.skipped.to_string().into(),
            when(scrub.whole_unix_s, "never").into(),
            when(scrub.next_unix_s, "").into(),
        ]);
    }
    table.render(paint, 0)
}

fn state(state: ScrubState) -> (Style, &'static str) {
    match state {
        ScrubState::Never => (Style::Dim, "never"),
        ScrubState::Waiting => (Style::Plain, "waiting"),
        ScrubState::Running => (Style::Warn, "running"),
        ScrubState::Stopped => (Style::Dim, "stopped"),
        ScrubState::Done => (Style::Good, "done"),
    }
}

fn when(unix_s: Option<u64>, never: &str) -> String {
    unix_s.map_or_else(|| never.to_owned(), |s| utc(s.saturating_mul(1_000)))
}
