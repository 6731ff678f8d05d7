//! `events`: what happened, once or as it happens.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ferro_protocol::api::{EventInfo, EventKind, EventLevel, EventList, EventWitness};

use super::Context;
use super::args::{EventFloor, EventOptions};
use crate::failure::Result;
use crate::text::{Paint, Style, count, printable, utc};

/// How often it is looked for more.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Hosts write the same thing down at different times, and their clocks differ: so far back it is looked each time.
const LOOK_BACK_MS: u64 = 60_000;

pub(super) async fn events(context: &Context, options: &EventOptions) -> Result<()> {
    let terminal = context.terminal;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let since_ms = options.since.map_or(0, |seconds| now_ms.saturating_sub(seconds.saturating_mul(1_000)));
    let mut list = get(context, options, since_ms).await?;
    list.events.retain(|event| matters(event, options.level));
    if !options.follow {
        return terminal.answer(&list, shown);
    }
    if list.more && !terminal.is_json() {
        terminal.hint("older events are left out; see --limit");
    }
    let began = Instant::now();
    let mut told: HashSet<EventWitness> = HashSet::new();
    loop {
        let newest_ms = list.events.iter().map(|event| event.at_unix_ms).max().unwrap_or(now_ms);
        for event in list.events {
            // One that was told is not told again when one more host turns out to have seen it.
            let is_told = event.seen_by.iter().any(|seen| told.contains(seen));
            told.extend(event.seen_by.iter().cloned());
            if is_told || !matters(&event, options.level) {
                continue;
            }
            if terminal.is_json() {
                terminal.json_line(&event)?;
            } else {
                terminal.print(&line(&event, terminal.paint()))?;
            }
        }
        if options.stop_after.is_some_and(|seconds| began.elapsed() >= Duration::from_secs(seconds)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
        list = get(context, options, since_ms.max(newest_ms.saturating_sub(LOOK_BACK_MS))).await?;
    }
}

async fn get(context: &Context, options: &EventOptions, since_ms: u64) -> Result<EventList> {
    let local = if options.local { "&local=true" } else { "" };
    context.client.get(&format!("/v1/events?since_unix_ms={since_ms}&limit={}{local}", options.limit)).await
}

fn matters(event: &EventInfo, floor: EventFloor) -> bool {
    let least = match floor {
        EventFloor::Info => EventLevel::Info,
        EventFloor::Warning => EventLevel::Warning,
        EventFloor::Critical => EventLevel::Critical,
    };
    event.level >= least
}

fn shown(list: &EventList, paint: Paint) -> String {
    let mut out = String::new();
    if list.more {
        out += &paint.text(Style::Dim, "older events are left out; see --limit\n");
    }
    for event in &list.events {
        out += &line(event, paint);
    }
    if list.events.is_empty() {
        out += "nothing happened\n";
    }
    if !list.silent_hosts.is_empty() {
        let hosts = count(list.silent_hosts.len() as u64, "host");
        let names = printable(&list.silent_hosts.join(", "));
        out += &paint
            .text(Style::Warn, &format!("{hosts} did not answer, what only they saw is missing: {names}\n"));
    }
    out
}

fn line(event: &EventInfo, paint: Paint) -> String {
    let (style, word) = match event.level {
        EventLevel::Info => (Style::Plain, "info"),
        EventLevel::Warning => (Style::Warn, "warning"),
        EventLevel::Critical => (Style::Bad, "critical"),
    };
    let kind = kind_name(event.kind);
    let what =
        event.check.as_deref().map_or_else(|| kind.clone(), |check| format!("{kind} {}", printable(check)));
    let word = paint.text(style, &format!("{word:8}"));
    format!("{}  {word}  {what:19}  {}\n", utc(event.at_unix_ms), printable(&event.message))
}

/// As the API writes it.
fn kind_name(kind: EventKind) -> String {
    serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
