//! `volume import` and `volume export`.
//!
//! The data goes in requests of at most [`TRANSFER_BYTES_MAX`], several at once. Zeros don't travel: an import discards them
//! (or leaves them out, where the volume is known to be empty), an export leaves holes. Whatever ends an import half-way, Ctrl-C included,
//! is told to the daemon; a volume that was made for it goes away again, any other is marked incomplete.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferro_protocol::api::{
    BeginTransferRequest, DiscardRequest, TRANSFER_BYTES_MAX, Transfer, TransferDirection, TransferEnded,
    VolumeInfo, format_size,
};
use ferro_protocol::ids::VolumeName;
use ferro_protocol::units::BLOCK_BYTES;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use hyper::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::args::{ExportOptions, ImageFormat, ImportOptions};
use super::image::{Source, Target};
use super::{Context, policy, volume};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::Terminal;
use crate::text::duration;

/// How many requests are under way at once.
const IN_FLIGHT: usize = 8;
/// The shortest run of zeros that is left out: below it a request of its own costs more than the bytes.
const ZERO_RUN_BYTES: usize = 64 << 10;
/// The longest stretch of one discard request: so that each is answered within the time-out.
const DISCARD_BYTES_MAX: u64 = 16 << 30;

/// What was done.
#[derive(Serialize)]
struct Summary<'a> {
    volume: &'a VolumeName,
    file: &'a Path,
    image_bytes: u64,
    data_bytes: u64,
    seconds: f64,
}

impl Summary<'_> {
    fn sentence(&self, what: &str) -> String {
        let rate = (self.data_bytes as f64 / self.seconds.max(0.001)) as u64;
        format!(
            "{what}: {} with {} of data in {} ({}/s)",
            format_size(self.image_bytes),
            format_size(self.data_bytes),
            if self.seconds < 1.0 { "under 1s".to_owned() } else { duration(self.seconds as u64) },
            format_size(rate)
        )
    }
}

pub(super) async fn import(context: &Context, options: ImportOptions) -> Result<()> {
    let source = Source::open(&options.file, options.format).await?;
    let image_bytes = source.size();
    let name = &options.name;
    let (info, created) = if let (true, Some(policy)) = (options.create, &options.policy) {
        let meant = policy::resolve(context, policy).await?;
        let size_bytes = options.size.unwrap_or_else(|| image_bytes.next_multiple_of(BLOCK_BYTES as u64));
        fits(name, size_bytes, &options, image_bytes)?;
        (volume::create(context, name, size_bytes, meant).await?, true)
    } else {
        let info = volume::show(context, name).await?;
        fits(name, info.size_bytes, &options, image_bytes)?;
        confirm_overwrite(context, &info)?;
        (info, false)
    };
    let empty = created || info.epoch.0 == 0;
    let start = Instant::now();
    let data_bytes = match import_data(context, name, &source, empty).await {
        Ok(data_bytes) => data_bytes,
        Err(stop) if created => return Err(remove_created(context, name, stop.failure).await),
        Err(stop) => return Err(stop.with_leftovers()),
    };
    let seconds = start.elapsed().as_secs_f64();
    let summary = Summary { volume: name, file: &options.file, image_bytes, data_bytes, seconds };
    let what = format!("imported {} into volume {name}", options.file.display());
    context.terminal.done(&summary, |summary| summary.sentence(&what))
}

/// Asked before anything changes; the daemon asks again.
fn fits(name: &VolumeName, size_bytes: u64, options: &ImportOptions, image_bytes: u64) -> Result<()> {
    if image_bytes <= size_bytes {
        return Ok(());
    }
    let message = format!(
        "the image {} holds a disk of {} ({image_bytes} bytes) and volume {name} has {} ({size_bytes} bytes): nothing was changed",
        options.file.display(),
        format_size(image_bytes),
        format_size(size_bytes)
    );
    let next = if options.create {
        "leave --size out, or make it larger".to_owned()
    } else {
        format!("grow it first: `vsanctl volume resize {name} --size {image_bytes}`, rounded up to whole KiB")
    };
    Err(Failure::new(Exit::Refused, "image_too_large", message, next))
}

/// A volume that was opened before may hold something that somebody wants.
fn confirm_overwrite(context: &Context, info: &VolumeInfo) -> Result<()> {
    if info.epoch.0 == 0 || info.used_bytes == Some(0) || info.incomplete {
        return Ok(());
    }
    let warning = format!("Volume {} is not new: what it holds is overwritten.", info.name);
    context.terminal.confirm(&warning, &format!("importing into volume {}", info.name))
}

/// The volume was made for an import that failed: nothing half-made stays behind.
async fn remove_created(context: &Context, name: &VolumeName, failure: Failure) -> Failure {
    match volume::delete_now(context, name).await {
        Ok(()) => Failure {
            message: format!(
                "{}; volume {name}, which was made for the import, was removed again",
                failure.message
            ),
            ..failure
        },
        Err(second) => Failure {
            message: format!(
                "{}; and volume {name}, which was made for the import, could not be removed: {}",
                failure.message, second.message
            ),
            next_step: format!("delete it with `vsanctl volume delete {name}`; then: {}", failure.next_step),
            ..failure
        },
    }
}

/// Begins a transfer, does the work and ends it, whatever comes.
async fn import_data(
    context: &Context,
    name: &VolumeName,
    source: &Source,
    empty: bool,
) -> std::result::Result<u64, Stop> {
    let request =
        BeginTransferRequest { direction: TransferDirection::Import, image_bytes: Some(source.size()) };
    let transfer = Open::begin(context, name, &request).await.map_err(Stop::clean)?;
    let bar = progress(context.terminal, source.size(), "importing");
    let outcome = tokio::select! {
        // Listen before anything is sent.
        biased;
        () = interrupted() => Err(stopped(&format!("importing into volume {name}"))),
        outcome = upload(&transfer, source, empty, &bar) => outcome,
    };
    bar.finish_and_clear();
    match outcome {
        Ok(data_bytes) => transfer.complete().await.map(|()| data_bytes),
        Err(failure) => Err(transfer.abort(failure).await),
    }
}

/// Why a transfer stopped, and what that leaves behind.
struct Stop {
    failure: Failure,
    leftovers: Option<String>,
}

impl Stop {
    fn clean(failure: Failure) -> Self {
        Self { failure, leftovers: None }
    }

    fn with_leftovers(self) -> Failure {
        match self.leftovers {
            None => self.failure,
            Some(left) => Failure { message: format!("{}; {left}", self.failure.message), ..self.failure },
        }
    }
}

/// A transfer that the daemon has open.
struct Open<'a> {
    context: &'a Context,
    path: String,
    transfer: Transfer,
}

impl<'a> Open<'a> {
    async fn begin(context: &'a Context, name: &VolumeName, request: &BeginTransferRequest) -> Result<Self> {
        let transfer: Transfer =
            context.client.post(&format!("/v1/volumes/{name}/transfers"), request).await?;
        let path = format!("/v1/volumes/{name}/transfers/{}", transfer.id);
        Ok(Self { context, path, transfer })
    }

    async fn end(&self, outcome: &str) -> Result<TransferEnded> {
        self.context.client.delete(&format!("{}?outcome={outcome}", self.path)).await
    }

    async fn complete(self) -> std::result::Result<(), Stop> {
        match self.end("complete").await {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.abort(failure).await),
        }
    }

    /// Gives it up because of `failure`.
    async fn abort(self, failure: Failure) -> Stop {
        let name = &self.transfer.volume;
        let import = self.transfer.direction == TransferDirection::Import;
        let idle = duration(self.transfer.idle_seconds_max);
        let leftovers = match self.end("abort").await {
            Ok(ended) if ended.incomplete => {
                Some(format!("volume {name} is marked incomplete: it holds a part of the image"))
            }
            Ok(_) => None,
            Err(_) if import => {
                Some(format!("volume {name} is incomplete, and may stay locked for up to {idle}"))
            }
            Err(_) => Some(format!("volume {name} may stay locked for up to {idle}")),
        };
        Stop { failure, leftovers }
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<u64> {
        let length = data.len() as u64;
        let path = format!("{}/data?offset={offset}", self.path);
        self.context.client.bytes(Method::PUT, &path, Some((data, "application/octet-stream"))).await?;
        Ok(length)
    }

    async fn discard(&self, offset: u64, length: u64) -> Result<u64> {
        let path = format!("{}/discard", self.path);
        self.context.client.empty(Method::POST, &path, Some(&DiscardRequest { offset, length })).await?;
        Ok(0)
    }

    /// `None` if all of it is zeros.
    async fn read(&self, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let path = format!("{}/data?offset={offset}&length={length}", self.path);
        let data = self.context.client.bytes(Method::GET, &path, None).await?;
        match data {
            Some(data) if data.len() as u64 != length => Err(Failure::new(
                Exit::Failure,
                "bad_answer",
                format!(
                    "volume {}: {} bytes instead of {length} at {offset}",
                    self.transfer.volume,
                    data.len()
                ),
                "use the versions of the tool and the daemon that belong together",
            )),
            other => Ok(other),
        }
    }
}

/// A request that is on its way; says how many bytes of data it carried.
type Pending<'a> = futures_util::future::BoxFuture<'a, Result<u64>>;

/// Sends pieces while keeping no more than [`IN_FLIGHT`] of them on their way.
struct Uploads<'a> {
    open: &'a Open<'a>,
    pending: FuturesUnordered<Pending<'a>>,
    /// Zeros not yet discarded: their first byte and the one after the last.
    zeros: Option<(u64, u64)>,
    /// The volume is empty: zeros need not be discarded.
    empty: bool,
    data_bytes: u64,
}

impl<'a> Uploads<'a> {
    async fn push(&mut self, request: Pending<'a>) -> Result<()> {
        while self.pending.len() >= IN_FLIGHT {
            self.settle_one().await?;
        }
        self.pending.push(request);
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<()> {
        if let Some(done) = self.pending.next().await {
            self.data_bytes += done?;
        }
        Ok(())
    }

    async fn data(&mut self, offset: u64, data: Bytes) -> Result<()> {
        self.flush_zeros().await?;
        let open = self.open;
        self.push(Box::pin(open.write(offset, data))).await
    }

    /// Neighbours become one request.
    async fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        match &mut self.zeros {
            Some((_, end)) if *end == offset => *end += length,
            _ => {
                self.flush_zeros().await?;
                self.zeros = Some((offset, offset + length));
            }
        }
        Ok(())
    }

    async fn flush_zeros(&mut self) -> Result<()> {
        let Some((mut at, end)) = self.zeros.take() else { return Ok(()) };
        while at < end && !self.empty {
            let length = (end - at).min(DISCARD_BYTES_MAX);
            let open = self.open;
            self.push(Box::pin(open.discard(at, length))).await?;
            at += length;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<u64> {
        self.flush_zeros().await?;
        while !self.pending.is_empty() {
            self.settle_one().await?;
        }
        Ok(self.data_bytes)
    }
}

/// Moves the image; what lies behind it in a larger volume is discarded. Says how much data there was.
async fn upload(open: &Open<'_>, source: &Source, empty: bool, bar: &ProgressBar) -> Result<u64> {
    let block = BLOCK_BYTES as u64;
    let size = source.size();
    let mut uploads = Uploads { open, pending: FuturesUnordered::new(), zeros: None, empty, data_bytes: 0 };
    let mut at = 0;
    while at < size {
        let segment = source.segment(at).await?;
        // Whole blocks of zeros only; the segment's ragged ends are read like data.
        let whole = segment.length - segment.length % block;
        if segment.zero && whole > 0 {
            uploads.zero(at, whole).await?;
            at += whole;
        } else {
            let piece_end = (at / TRANSFER_BYTES_MAX + 1) * TRANSFER_BYTES_MAX;
            let segment_end = (at + segment.length).next_multiple_of(block);
            let end = piece_end.min(segment_end);
            let filled = end.min(size) - at;
            let mut data = vec![0; (end - at) as usize];
            source.read(&mut data[..filled as usize], at).await?;
            send_piece(&mut uploads, at, Bytes::from(data)).await?;
            at = end;
        }
        bar.set_position(at.min(size));
    }
    let tail = open.transfer.size_bytes.saturating_sub(at);
    if tail > 0 {
        uploads.zero(at, tail).await?;
    }
    uploads.finish().await
}

/// Sends one piece without its long runs of zeros.
async fn send_piece(uploads: &mut Uploads<'_>, offset: u64, data: Bytes) -> Result<()> {
    for (range, zero) in runs(&data) {
        let at = offset + range.start as u64;
        if zero {
            uploads.zero(at, range.len() as u64).await?;
        } else {
            uploads.data(at, data.slice(range)).await?;
        }
    }
    Ok(())
}

/// The data as alternating runs of zeros and other bytes, in units of [`ZERO_RUN_BYTES`].
fn runs(data: &[u8]) -> Vec<(std::ops::Range<usize>, bool)> {
    let mut runs: Vec<(std::ops::Range<usize>, bool)> = Vec::new();
    for (i, unit) in data.chunks(ZERO_RUN_BYTES).enumerate() {
        let zero = is_zero(unit);
        let (start, end) = (i * ZERO_RUN_BYTES, i * ZERO_RUN_BYTES + unit.len());
        match runs.last_mut() {
            Some((range, same)) if *same == zero => range.end = end,
            _ => runs.push((start..end, zero)),
        }
    }
    runs
}

/// By the overlap of the slice with itself, which is a `memcmp`.
fn is_zero(data: &[u8]) -> bool {
    match data {
        [] => true,
        [first, ..] => *first == 0 && data[1..] == data[..data.len() - 1],
    }
}

pub(super) async fn export(context: &Context, options: ExportOptions) -> Result<()> {
    let name = &options.name;
    let info = volume::show(context, name).await?;
    if options.file.is_dir() || options.file.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        let message = format!("{} is there and is no ordinary file", options.file.display());
        return Err(Failure::new(Exit::Conflict, "file", message, "give the name of an image to write"));
    }
    if options.file.exists() {
        let warning = format!("{} is there and is overwritten.", options.file.display());
        context.terminal.confirm(&warning, &format!("exporting volume {name}"))?;
    }
    let named_qcow2 = options.file.extension().is_some_and(|end| end.eq_ignore_ascii_case("qcow2"));
    let format = options.format.unwrap_or(if named_qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw });
    let start = Instant::now();
    let request = BeginTransferRequest { direction: TransferDirection::Export, image_bytes: None };
    let transfer = Open::begin(context, name, &request).await?;
    let image_bytes = transfer.transfer.size_bytes;
    let bar = progress(context.terminal, image_bytes, "exporting");
    let outcome = tokio::select! {
        // Listen before anything is sent.
        biased;
        () = interrupted() => Err(stopped(&format!("exporting volume {}", info.name))),
        outcome = download(&transfer, &options.file, format, &bar) => outcome,
    };
    bar.finish_and_clear();
    let data_bytes = match outcome {
        Ok(data_bytes) => data_bytes,
        Err(failure) => return Err(transfer.abort(failure).await.with_leftovers()),
    };
    transfer.complete().await.map_err(Stop::with_leftovers)?;
    let seconds = start.elapsed().as_secs_f64();
    let summary = Summary { volume: name, file: &options.file, image_bytes, data_bytes, seconds };
    let what = format!("exported volume {name} to {}", options.file.display());
    context.terminal.done(&summary, |summary| summary.sentence(&what))
}

async fn download(open: &Open<'_>, file: &Path, format: ImageFormat, bar: &ProgressBar) -> Result<u64> {
    let size = open.transfer.size_bytes;
    let target = Target::create(file, format, size).await?;
    let pieces = (0..size).step_by(TRANSFER_BYTES_MAX as usize).map(|at| async move {
        let length = TRANSFER_BYTES_MAX.min(size - at);
        open.read(at, length).await.map(|data| (at, length, data))
    });
    let mut arriving = stream::iter(pieces).buffered(IN_FLIGHT);
    let mut data_bytes = 0;
    while let Some(piece) = arriving.next().await {
        let (at, length, data) = piece?;
        for (range, zero) in data.as_deref().map(runs).unwrap_or_default() {
            if !zero {
                data_bytes += range.len() as u64;
                let bytes = data.as_deref().unwrap_or_default();
                target.write(&bytes[range.clone()], at + range.start as u64).await?;
            }
        }
        bar.set_position(at + length);
    }
    target.finish().await?;
    Ok(data_bytes)
}

fn progress(terminal: Terminal, bytes: u64, doing: &'static str) -> ProgressBar {
    if !terminal.shows_progress() {
        return ProgressBar::hidden();
    }
    let bar =
        ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr_with_hz(5)).with_message(doing);
    let template =
        "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Done when the user wants no more of it (Ctrl-C), or when we can't hear of it: then never.
pub(super) async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn stopped(what: &str) -> Failure {
    Failure::aborted(format!("{what}: interrupted"), "begin it again")
}
