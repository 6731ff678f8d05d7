//! `top`: rates out of the differences between samples.

use std::time::Duration;

use ferro_protocol::api::{OperationCounters, TopSample};
use serde::Serialize;

use super::Context;
use super::args::TopOptions;
use crate::failure::Result;
use crate::terminal::between_rounds;
use crate::text::{Cell, Paint, Table};

/// What happened between two samples, a second.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Rates {
    read_iops: f64,
    write_iops: f64,
    read_mb_s: f64,
    write_mb_s: f64,
    /// Means over the interval; 0 if there was none.
    read_latency_us: f64,
    write_latency_us: f64,
    in_flight: u32,
}

#[derive(Serialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    rates: Rates,
}

#[derive(Serialize)]
struct Picture {
    host: String,
    interval_seconds: f64,
    volumes: Vec<Line>,
    disks: Vec<Line>,
}

pub(super) async fn top(context: &Context, options: TopOptions) -> Result<()> {
    let terminal = context.terminal;
    let mut before: TopSample = context.client.get("/v1/top").await?;
    let mut round = 0_u64;
    while options.count.is_none_or(|count| round < count) {
        tokio::time::sleep(Duration::from_secs(options.interval)).await;
        let after: TopSample = context.client.get("/v1/top").await?;
        let picture = compare(&before, &after);
        if terminal.is_json() {
            terminal.json_line(&picture)?;
        } else {
            let text = show(&picture, terminal.paint());
            terminal.print(&format!("{}{text}", between_rounds(true, round)))?;
        }
        before = after;
        round += 1;
    }
    Ok(())
}

fn compare(before: &TopSample, after: &TopSample) -> Picture {
    let seconds = after.at_us.saturating_sub(before.at_us) as f64 / 1e6;
    let volumes = after.volumes.iter().map(|now| {
        let then = before.volumes.iter().find(|volume| volume.name == now.name).map(|volume| volume.counters);
        Line { name: now.name.to_string(), rates: rates(then, now.counters, seconds) }
    });
    let disks = after.disks.iter().map(|now| {
        let then = before.disks.iter().find(|disk| disk.id == now.id).map(|disk| disk.counters);
        Line { name: now.path.clone(), rates: rates(then, now.counters, seconds) }
    });
    Picture {
        host: after.host_name.clone(),
        interval_seconds: seconds,
        volumes: volumes.collect(),
        disks: disks.collect(),
    }
}

/// A volume that was not there before, or whose daemon was started anew, counts from zero.
fn rates(then: Option<OperationCounters>, now: OperationCounters, seconds: f64) -> Rates {
    if seconds <= 0.0 {
        return Rates { in_flight: now.in_flight, ..Rates::default() };
    }
    let then = then.filter(|then| then.reads <= now.reads && then.writes <= now.writes).unwrap_or_default();
    let since = |now: u64, then: u64| now.saturating_sub(then) as f64;
    let reads = since(now.reads, then.reads);
    let writes = since(now.writes, then.writes);
    let mean = |sum: f64, number: f64| if number > 0.0 { sum / number } else { 0.0 };
    Rates {
        read_iops: reads / seconds,
        write_iops: writes / seconds,
        read_mb_s: since(now.read_bytes, then.read_bytes) / seconds / 1e6,
        write_mb_s: since(now.write_bytes, then.write_bytes) / seconds / 1e6,
        read_latency_us: mean(since(now.read_us_sum, then.read_us_sum), reads),
        write_latency_us: mean(since(now.write_us_sum, then.write_us_sum), writes),
        in_flight: now.in_flight,
    }
}

fn show(picture: &Picture, paint: Paint) -> String {
    let mut out = table("VOLUME", &picture.volumes).render(paint, 0);
    out.push('\n');
    out += &table("DISK", &picture.disks).render(paint, 0);
    out
}

fn table(what: &'static str, lines: &[Line]) -> Table {
    let mut table =
        Table::new(&[what, ">READ/S", ">MB/S", ">LATENCY", ">WRITE/S", ">MB/S", ">LATENCY", ">IN FLIGHT"]);
    for line in lines {
        let rates = line.rates;
        let cells: Vec<Cell> = vec![
            (&line.name).into(),
            format!("{:.0}", rates.read_iops).into(),
            format!("{:.1}", rates.read_mb_s).into(),
            latency(rates.read_latency_us).into(),
            format!("{:.0}", rates.write_iops).into(),
            format!("{:.1}", rates.write_mb_s).into(),
            latency(rates.write_latency_us).into(),
            rates.in_flight.to_string().into(),
        ];
        table.row(cells);
    }
    table
}

fn latency(us: f64) -> String {
    match us {
        0.0 => "-".to_owned(),
        ..1000.0 => format!("{us:.0} us"),
        ..1_000_000.0 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.1} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_a_restart_counts_from_zero() {
        let then = OperationCounters { reads: 100, read_bytes: 0, read_us_sum: 5_000, ..Default::default() };
        let now = OperationCounters {
            reads: 300,
            read_bytes: 4_000_000,
            read_us_sum: 45_000,
            in_flight: 3,
            ..then
        };
        let seen = rates(Some(then), now, 2.0);
        assert_eq!((seen.read_iops, seen.read_mb_s, seen.read_latency_us), (100.0, 2.0, 200.0));
        assert_eq!((seen.write_iops, seen.write_latency_us, seen.in_flight), (0.0, 0.0, 3));
        let restarted = rates(Some(now), then, 1.0);
        let timeless = rates(None, now, 0.0);
        assert_eq!((restarted.read_iops, timeless.read_iops), (100.0, 0.0));
    }

    #[test]
    fn latencies_read_well() {
        assert_eq!([0.0, 180.4, 1800.0, 2_500_000.0].map(latency), ["-", "180 us", "1.8 ms", "2.5 s"]);
    }
}
