//! `capture`: a pcapng file from the daemon, as it grows.
//!
//! The blocks of the file are counted as they pass: so the file ends with a whole block when it is interrupted, and the number of
//! frames that the daemon had to drop is known also then.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use ferro_protocol::api::switch::NetworkConfig;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::args::CaptureArgs;
use crate::failure::{Exit, Failure, Result};
use crate::text::{count, printable};

/// A block is longer than this in no file of ours.
const BLOCK_BYTES_MAX: usize = 1 << 20;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const ISB_DROPPED: u16 = 5;

/// What `-o json` prints at the end, to the standard error: the file may be the standard output.
#[derive(Serialize)]
struct Total {
    frames: u64,
    dropped: u64,
}

pub(super) async fn capture(context: &Context, options: CaptureArgs) -> Result<()> {
    let place = place(context, &options.place).await?;
    let mut path = format!("/v1/capture?{place}");
    for (name, value) in [
        ("snap", options.snap.map(u64::from)),
        ("frames", options.count),
        ("seconds", options.seconds.map(u64::from)),
    ] {
        if let Some(value) = value {
            let _ = write!(path, "&{name}={value}");
        }
    }
    // First the daemon, then the file: a refused capture leaves no file behind.
    let mut stream = context.client.stream(&path).await?;
    let to_stdout = options.write.as_os_str() == "-";
    let mut out: Box<dyn Write + Send> =
        if to_stdout { Box::new(io::stdout()) } else { create(&options.write)? };
    let mut ends = Ends::new()?;
    let mut blocks = Blocks::default();
    context.terminal.hint(&format!("capturing at {}; end it with Ctrl-C", printable(&options.place)));
    let ended = loop {
        let piece = tokio::select! {
            piece = stream.next() => piece,
            () = ends.wait() => break Ok(()),
        };
        match piece {
            Ok(None) => break Ok(()),
            Ok(Some(piece)) => {
                blocks.take(&piece, &mut out).map_err(|error| written(&options.write, &error))?
            }
            // What came before it is whole.
            Err(error) => break Err(context.client.failed(&error)),
        }
    };
    out.flush().map_err(|error| written(&options.write, &error))?;
    let total = Total { frames: blocks.frames, dropped: blocks.dropped };
    context.terminal.aside(&total, |total| {
        let dropped = match total.dropped {
            0 => "none was dropped".to_owned(),
            some => format!("{some} more were dropped, because they were not taken fast enough"),
        };
        format!("captured {}, {dropped}", count(total.frames, "frame"))
    });
    ended
}

/// Which place a name means, as the query says it.
async fn place(context: &Context, text: &str) -> Result<String> {
    for (prefix, kind) in [("port:", "port"), ("group:", "group"), ("uplink:", "uplink")] {
        if let Some(name) = text.strip_prefix(prefix) {
            return Ok(format!("{kind}={}", super::trace::path_word(name)?));
        }
    }
    super::trace::path_word(text)?;
    let NetworkConfig { spec, .. } = context.client.get("/v1/config").await?;
    let kinds = [
        ("port", spec.ports.iter().any(|it| it.name == text)),
        ("group", spec.groups.iter().any(|it| it.name == text)),
        ("uplink", spec.switches.iter().any(|it| it.uplinks.iter().any(|name| name == text))),
    ];
    let found: Vec<&str> = kinds.iter().filter(|(_, there)| *there).map(|(kind, _)| *kind).collect();
    match found.as_slice() {
        [kind] => Ok(format!("{kind}={text}")),
        [] => {
            let message = format!("there is no port, port group or uplink {text:?}");
            let next = "see `vswctl port list`, `vswctl portgroup list` and `vswctl uplink list`";
            Err(Failure::new(Exit::NotFound, "port_not_found", message, next))
        }
        several => {
            let message = format!("{text:?} can mean {}", several.join(" and "));
            Err(Failure::new(Exit::Usage, "ambiguous", message, format!("write {}:{text}", several[0])))
        }
    }
}

fn create(path: &Path) -> Result<Box<dyn Write + Send>> {
    let file = File::create(path).map_err(|error| Failure::file("writing", path, &error))?;
    Ok(Box::new(file))
}

fn written(path: &Path, error: &io::Error) -> Failure {
    if path.as_os_str() == "-" { Failure::output(error) } else { Failure::file("writing", path, error) }
}

/// What a person or systemd ends a capture with.
struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> Result<Self> {
        let signal = |kind| {
            signal(kind).map_err(|error| {
                let message = format!("signals can't be taken: {error}");
                Failure::new(Exit::Failure, "internal", message, "this is worth a bug report")
            })
        };
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Passes whole blocks on and counts them.
#[derive(Default)]
struct Blocks {
    rest: Vec<u8>,
    frames: u64,
    dropped: u64,
}

impl Blocks {
    fn take(&mut self, piece: &[u8], out: &mut dyn Write) -> io::Result<()> {
        self.rest.extend_from_slice(piece);
        let mut done = 0;
        while let Some(block) = whole_block(&self.rest[done..])? {
            match word(block, 0) {
                Some(ENHANCED_PACKET) => self.frames += 1,
                Some(INTERFACE_STATISTICS) => self.dropped = dropped(block).unwrap_or(self.dropped),
                _ => {}
            }
            done += block.len();
        }
        out.write_all(&self.rest[..done])?;
        self.rest.drain(..done);
        // Whoever reads a pipe sees each frame at once.
        out.flush()
    }
}

fn word(block: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?))
}

/// The first block, if all of it is there.
fn whole_block(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some(length) = word(bytes, 4) else { return Ok(None) };
    let length = length as usize;
    if !(12..=BLOCK_BYTES_MAX).contains(&length) || !length.is_multiple_of(4) {
        let text =
            "what the daemon sent is not pcapng: use the versions of tool and daemon that belong together";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(bytes.get(..length))
}

/// The number of dropped frames in a statistics block: an option behind the interface and the time.
fn dropped(block: &[u8]) -> Option<u64> {
    let mut options = block.get(20..block.len() - 4)?;
    loop {
        let code = u16::from_le_bytes(options.get(..2)?.try_into().ok()?);
        let length = usize::from(u16::from_le_bytes(options.get(2..4)?.try_into().ok()?));
        if code == ISB_DROPPED {
            return Some(u64::from_le_bytes(options.get(4..12)?.try_into().ok()?));
        }
        options = options.get(4 + length.next_multiple_of(4)..)?;
        if code == 0 {
            return None;
        }
    }
}
