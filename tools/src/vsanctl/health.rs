//! `health`: each check with what it finds, and muting those that are known.

use std::fmt::Write as _;

use ferro_protocol::api::{HealthCheck, HealthLevel, HealthMute, HealthReport, MuteRequest};
use hyper::Method;

use super::Context;
use super::args::HealthVerb;
use crate::failure::{Exit, Failure, Result};
use crate::text::{Cell, Paint, Style, Table, count, duration, printable};

pub(super) async fn health(context: &Context, verb: Option<HealthVerb>) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        None => {
            let report: HealthReport = context.client.get("/v1/health").await?;
            terminal.answer(&report, |report, paint| shown(report, paint, terminal.is_wide()))
        }
        Some(HealthVerb::Mute { code, seconds, reason }) => {
            let request = MuteRequest { seconds, reason };
            let path = format!("/v1/health/mutes/{}", checked(&code)?);
            let muted: HealthCheck = context.client.put(&path, &request).await?;
            terminal.done(&muted, |check| {
                let found = count(check.reasons.len() as u64, "finding");
                format!("{} is muted for {}: {found}", check.code, duration(seconds))
            })
        }
        Some(HealthVerb::Unmute { code }) => {
            let path = format!("/v1/health/mutes/{}", checked(&code)?);
            context.client.empty(Method::DELETE, &path, None::<&()>).await?;
            terminal.done(&serde_json::json!({ "unmuted": code }), |_| format!("{code} is shown again"))
        }
        Some(HealthVerb::Explain { code }) => {
            let report: HealthReport = context.client.get("/v1/health").await?;
            let check = report.checks.into_iter().find(|check| check.code == code);
            let check = check.ok_or_else(|| no_check(&code))?;
            terminal.answer(&check, |check, paint| {
                format!("{}\n{}", one(check, paint), wrapped(&printable(&check.explanation)))
            })
        }
    }
}

fn no_check(code: &str) -> Failure {
    let message = format!("there is no health check {code:?}");
    Failure::new(
        Exit::NotFound,
        "check_not_found",
        message,
        "see `vsanctl health -o wide` for those there are",
    )
}

/// The code, if it can be part of a path.
fn checked(code: &str) -> Result<&str> {
    let plain = !code.is_empty() && code.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-');
    if plain { Ok(code) } else { Err(no_check(code)) }
}

fn level(level: HealthLevel) -> (Style, &'static str) {
    match level {
        HealthLevel::Ok => (Style::Good, "OK"),
        HealthLevel::Warning => (Style::Warn, "WARNING"),
        HealthLevel::Critical => (Style::Bad, "CRITICAL"),
    }
}

fn is_muted(check: &HealthCheck) -> bool {
    check.mute.as_ref().is_some_and(|mute| mute.in_force)
}

fn shown(report: &HealthReport, paint: Paint, wide: bool) -> String {
    let found: Vec<&HealthCheck> = report.checks.iter().filter(|check| !check.reasons.is_empty()).collect();
    let (muted, open): (Vec<&HealthCheck>, Vec<&HealthCheck>) =
        found.iter().partition(|check| is_muted(check));
    let (style, word) = level(report.level);
    let passed = report.checks.len() - found.len();
    let mut out = format!(
        "health    {}: {} with findings, {} muted, {passed} passed\n",
        paint.text(style, word),
        count(open.len() as u64, "check"),
        muted.len()
    );
    for check in open.iter().chain(&muted) {
        let _ = write!(out, "\n{}", one(check, paint));
    }
    if wide && passed > 0 {
        out.push('\n');
        let mut table = Table::new(&["PASSED", "WHAT IT LOOKS AT"]);
        for check in report.checks.iter().filter(|check| check.reasons.is_empty()) {
            table.row(vec![Cell::styled(Style::Good, &check.code), (&check.title).into()]);
        }
        out += &table.render(paint, 0);
    }
    out
}

fn one(check: &HealthCheck, paint: Paint) -> String {
    let (style, word) = level(check.level);
    let mut out = String::new();
    let head = paint.text(if is_muted(check) { Style::Dim } else { style }, word);
    let _ = writeln!(out, "{head}  {}: {}", printable(&check.code), printable(&check.title));
    if let Some(mute) = &check.mute {
        let _ = writeln!(out, "  {}", paint.text(Style::Dim, &mute_words(mute)));
    }
    for reason in &check.reasons {
        let (style, _) = level(reason.level);
        let style = if is_muted(check) { Style::Dim } else { style };
        let _ = writeln!(out, "  {} {}", paint.text(style, "-"), printable(&reason.message));
        let _ = writeln!(out, "    next: {}", printable(&reason.next_step));
    }
    out
}

fn mute_words(mute: &HealthMute) -> String {
    let left = duration(mute.seconds_left);
    let why = mute.reason.as_ref().map_or(String::new(), |reason| format!(": {}", printable(reason)));
    let by = printable(&mute.by);
    if mute.in_force {
        format!("muted on {by} for another {left}{why}")
    } else {
        format!("muted on {by} for another {left}{why}, and shown because it has become worse since")
    }
}

/// Text in lines that fit a terminal.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 100 {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out += word;
        width += length;
    }
    out.push('\n');
    out
}
