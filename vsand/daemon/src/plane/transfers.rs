//! Imports and exports: sessions in which this host owns a volume and moves its data for a client.
//!
//! ```text
//!   begin: lock, an import marks the volume ──▶ open ──▶ end, or nobody used it for a while: abort ──▶ lock given back
//! ```
//!
//! A session that is open holds the volume's lock; the daemon's death gives it back (at the next start), and an import leaves
//! its mark. Reads and writes are cut into the data loop's requests, a bounded number at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ferro_protocol::api::{ApiError, ErrorCode, Transfer, TransferDirection, TransferEnded, TransferOutcome};
use ferro_protocol::ids::{Epoch, ObjectId, TransferId, VolumeName};
use ferro_protocol::units::{BLOCK_BYTES, CHUNK_BYTES, IO_BLOCKS_MAX};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use uuid::Uuid;
use vsand_core::directory::{Command, Content, LockKind};
use vsand_core::owner::Trouble;
use vsand_core::owner::guest::{GuestError, GuestRequest, GuestResult};

use super::errors;
use crate::api::control::{ByteSpan, Result};
use crate::api::fail;
use crate::data::port::Command as DataCommand;
use crate::member::Member;

/// A session that nobody used for so long is aborted.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// A request that the cluster can't answer for so long fails; it waits for hosts to come back until then.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// A request that is not answered is looked after so often: perhaps there is no space for it.
const FULL_LOOK: Duration = Duration::from_secs(1);
/// Seen so often in a row, the lack of space is not about to end by itself.
const FULL_LOOKS: u32 = 4;
/// Pieces of one request under way at once.
const PIECES_AT_ONCE: usize = 4;
/// Bytes in a piece.
const PIECE_BYTES: u64 = IO_BLOCKS_MAX as u64 * BLOCK_BYTES as u64;
/// Sessions of this host at once.
const SESSIONS_MAX: usize = 64;

/// The sessions of this host.
#[derive(Default)]
pub(super) struct Transfers {
    open: Mutex<HashMap<TransferId, Arc<Session>>>,
}

struct Session {
    id: TransferId,
    member: Arc<Member>,
    name: VolumeName,
    object: ObjectId,
    epoch: Epoch,
    size_bytes: u64,
    direction: TransferDirection,
    use_of: Mutex<Use>,
}

struct Use {
    last: Instant,
    under_way: u32,
}

/// A request of a session that is under way: as long as one is, the session is not idle.
struct Busy<'a>(&'a Session);

impl<'a> Busy<'a> {
    fn new(session: &'a Session) -> Self {
        session.use_of().under_way += 1;
        Self(session)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut of = self.0.use_of();
        of.under_way -= 1;
        of.last = Instant::now();
    }
}

/// Takes the volume and opens a session.
pub(super) async fn begin(
    transfers: &Arc<Transfers>,
    member: &Arc<Member>,
    name: &VolumeName,
    direction: TransferDirection,
    image_bytes: Option<u64>,
) -> Result<Transfer> {
    let (verb, import) = match direction {
        TransferDirection::Import => ("importing into", true),
        TransferDirection::Export => ("exporting", false),
    };
    let what = format!("{verb} volume {name}");
    if transfers.open().len() >= SESSIONS_MAX {
        return Err(ApiError::new(
            ErrorCode::LimitReached,
            format!("{what}: {SESSIONS_MAX} imports and exports are under way on this host already"),
            "wait until some have ended",
        ));
    }
    let own = |error: &_| errors::own(&member.state(), member.host(), &what, error);
    let record = member.volume(name).map_err(|e| own(&e))?;
    if let Some(image) = image_bytes.filter(|bytes| *bytes > record.size_bytes) {
        return Err(fail::image_too_large(name, record.size_bytes, image));
    }
    if !import && record.content == Content::Importing {
        return Err(fail::volume_incomplete(name));
    }
    let record = member.own_for_transfer(name).await.map_err(|e| own(&e))?;
    let session = Arc::new(Session {
        id: TransferId(Uuid::new_v4()),
        member: Arc::clone(member),
        name: name.clone(),
        object: record.id,
        epoch: record.epoch,
        size_bytes: record.size_bytes,
        direction,
        use_of: Mutex::new(Use { last: Instant::now(), under_way: 0 }),
    });
    if import && let Err(error) = session.set_content(&what, Content::Importing).await {
        session.release_at_any_time().await;
        return Err(error);
    }
    transfers.open().insert(session.id, Arc::clone(&session));
    tokio::spawn(end_when_idle(Arc::clone(transfers), Arc::clone(&session)));
    tracing::info!(volume = %name, transfer = %session.id, ?direction, "an import or export has begun");
    Ok(Transfer {
        id: session.id,
        volume: name.clone(),
        direction,
        size_bytes: session.size_bytes,
        idle_seconds_max: IDLE_MAX.as_secs(),
    })
}

async fn end_when_idle(transfers: Arc<Transfers>, session: Arc<Session>) {
    loop {
        tokio::time::sleep(IDLE_LOOK).await;
        if !transfers.open().contains_key(&session.id) {
            return;
        }
        let idle = {
            let of = session.use_of();
            of.under_way == 0 && of.last.elapsed() >= IDLE_MAX
        };
        if !idle {
            continue;
        }
        let volume = &session.name;
        match transfers.end(volume, session.id, TransferOutcome::Abort).await {
            Ok(_) => tracing::warn!(%volume, "an import or export that nobody used any more was aborted"),
            Err(error) => {
                tracing::warn!(%volume, %error, "an import or export could not be aborted; trying again");
            }
        }
    }
}

impl Transfers {
    fn open(&self) -> MutexGuard<'_, HashMap<TransferId, Arc<Session>>> {
        // Each change is one call, so what a panic left behind is whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, name: &VolumeName, id: TransferId) -> Result<Arc<Session>> {
        let found = self.open().get(&id).filter(|s| s.name == *name).cloned();
        found.ok_or_else(|| fail::transfer_not_found(name, id))
    }

    /// Reads the span.
    pub(super) async fn read(&self, name: &VolumeName, id: TransferId, span: ByteSpan) -> Result<Bytes> {
        let session = self.session(name, id)?;
        let _busy = Busy::new(&session);
        let what = format!("reading volume {name} at {}", span.offset);
        let asks = pieces(session.within(span)?, PIECE_BYTES)
            .map(|p| session.ask(&what, GuestRequest::Read { offset: p.offset, bytes: p.length }));
        let mut answers = stream::iter(asks).buffered(PIECES_AT_ONCE);
        let mut data = BytesMut::with_capacity(span.length as usize);
        while let Some(answer) = answers.next().await {
            match answer? {
                GuestResult::Data(parts) => parts.iter().for_each(|part| data.extend_from_slice(part)),
                other => return Err(fail::internal(&what, format!("a read was answered {other:?}"))),
            }
        }
        Ok(data.freeze())
    }

    /// Writes at `offset`.
    pub(super) async fn write(
        &self,
        name: &VolumeName,
        id: TransferId,
        offset: u64,
        data: Bytes,
    ) -> Result<()> {
        let session = self.session(name, id)?;
        let _busy = Busy::new(&session);
        session.writable()?;
        let what = format!("writing volume {name} at {offset}");
        let span = session.within(ByteSpan { offset, length: data.len() as u64 })?;
        let asks = pieces(span, PIECE_BYTES).map(|p| {
            let at = (p.offset - offset) as usize;
            let data = data.slice(at..at + p.length as usize);
            session.ask(&what, GuestRequest::Write { offset: p.offset, data })
        });
        all_done(asks).await
    }

    /// Makes the span read as zeros.
    pub(super) async fn discard(&self, name: &VolumeName, id: TransferId, span: ByteSpan) -> Result<()> {
        let session = self.session(name, id)?;
        let _busy = Busy::new(&session);
        session.writable()?;
        let what = format!("discarding a part of volume {name} at {}", span.offset);
        let asks = pieces(session.within(span)?, CHUNK_BYTES)
            .map(|p| session.ask(&what, GuestRequest::Zero { offset: p.offset, bytes: p.length }));
        all_done(asks).await
    }

    /// Ends the session. If that fails it stays open, so that it can be repeated.
    pub(super) async fn end(
        &self,
        name: &VolumeName,
        id: TransferId,
        outcome: TransferOutcome,
    ) -> Result<TransferEnded> {
        let session = self.session(name, id)?;
        let _busy = Busy::new(&session);
        let what = format!("ending the transfer of volume {name}");
        let import = session.direction == TransferDirection::Import;
        let complete = outcome == TransferOutcome::Complete;
        if import && complete {
            session.set_content(&what, Content::Whole).await?;
        }
        let released = session.member.release(session.object, name, LockKind::Transfer).await;
        released
            .map_err(|error| errors::own(&session.member.state(), session.member.host(), &what, &error))?;
        self.open().remove(&id);
        tracing::info!(volume = %name, transfer = %id, ?outcome, "an import or export has ended");
        Ok(TransferEnded { incomplete: import && !complete })
    }
}

async fn all_done(asks: impl Iterator<Item = impl Future<Output = Result<GuestResult>>>) -> Result<()> {
    let mut answers = stream::iter(asks).buffer_unordered(PIECES_AT_ONCE);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(())
}

/// A span in pieces that don't cross a multiple of `at_most`.
fn pieces(span: ByteSpan, at_most: u64) -> impl Iterator<Item = ByteSpan> {
    let end = span.offset + span.length;
    let mut at = span.offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = (at / at_most * at_most).saturating_add(at_most).min(end);
        let piece = ByteSpan { offset: at, length: next - at };
        at = next;
        Some(piece)
    })
}

impl Session {
    fn use_of(&self) -> MutexGuard<'_, Use> {
        self.use_of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> Result<()> {
        match self.direction {
            TransferDirection::Import => Ok(()),
            TransferDirection::Export => Err(ApiError::new(
                ErrorCode::ReadOnly,
                format!("the transfer of volume {} is an export and can't write", self.name),
                "begin an import instead",
            )),
        }
    }

    fn within(&self, span: ByteSpan) -> Result<ByteSpan> {
        if span.offset + span.length <= self.size_bytes {
            return Ok(span);
        }
        Err(ApiError::new(
            ErrorCode::BadRequest,
            format!(
                "{} bytes at {} are beyond the end of volume {}, which has {} bytes",
                span.length, span.offset, self.name, self.size_bytes
            ),
            "stay within the volume, or grow it first",
        ))
    }

    async fn ask(&self, what: &str, request: GuestRequest) -> Result<GuestResult> {
        let asked =
            self.member.data.ask(|answer| DataCommand::Transfer { object: self.object, request, answer });
        tokio::pin!(asked);
        let (until, mut full) = (Instant::now() + REQUEST_MAX, 0);
        let answer = loop {
            match tokio::time::timeout(FULL_LOOK, &mut asked).await {
                Ok(answer) => break answer,
                Err(_) if Instant::now() >= until => {
                    return Err(ApiError::new(
                        ErrorCode::DataUnavailable,
                        format!("{what}: no good copy could be reached for {} s", REQUEST_MAX.as_secs()),
                        "see `vsanctl status` for which hosts are missing; bring one back, then repeat",
                    ));
                }
                Err(_) => full = if self.is_full().await { full + 1 } else { 0 },
            }
            if full >= FULL_LOOKS {
                return Err(ApiError::new(
                    ErrorCode::ClusterFull,
                    format!("{what}: the disks where its policy lets it go are full"),
                    "add disks (`vsanctl disk add`) or delete volumes that nobody needs, then repeat the import; or delete this volume",
                ));
            }
        };
        match answer {
            Ok(GuestResult::Failed(error)) => Err(failed(what, error)),
            Ok(result) => Ok(result),
            Err(gone) => Err(match self.member.open_volumes().get(&self.object) {
                Some(open) if open.epoch == self.epoch => errors::stopping(gone),
                _ => self.lost(),
            }),
        }
    }

    /// Whether the volume's writes wait for space. A guest waits until there is some; whoever imports is told.
    async fn is_full(&self) -> bool {
        let Ok(snapshot) = self.member.data.ask(DataCommand::Snapshot).await else { return false };
        let waits = |trouble: &Trouble| matches!(trouble, Trouble::Full(_) | Trouble::NoPlace(_));
        snapshot.volumes.iter().any(|(view, _)| view.object == self.object && view.troubles.iter().any(waits))
    }

    fn lost(&self) -> ApiError {
        ApiError::new(
            ErrorCode::Conflict,
            format!("this host has lost volume {} to another while it was transferring it", self.name),
            "see `vsanctl volume show` for who has it now; an import must begin again",
        )
    }

    async fn set_content(&self, what: &str, content: Content) -> Result<()> {
        let command = Command::SetContent { object: self.object, epoch: self.epoch, content };
        let answer = self.member.propose(&command).await;
        match answer.map_err(|error| errors::directory(what, &error))? {
            Ok(_) => Ok(()),
            Err(vsand_core::directory::Refused::WrongEpoch { .. }) => Err(self.lost()),
            Err(refused) => Err(errors::refused(&self.member.state(), &refused)),
        }
    }

    /// Gives the lock back; if that can't be done now, keeps trying in the background.
    async fn release_at_any_time(self: &Arc<Self>) {
        let Err(error) = self.member.release(self.object, &self.name, LockKind::Transfer).await else {
            return;
        };
        tracing::warn!(volume = %self.name, %error, "a lock could not be given back; trying again");
        let session = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_LOOK).await;
                let held = session.member.state().objects.get(&session.object).is_some_and(|o| {
                    o.epoch == session.epoch && o.lock.is_some_and(|l| l.host == session.member.host())
                });
                if !held || session.member.give_back(session.object, session.epoch).await.is_ok() {
                    return;
                }
            }
        });
    }
}

fn failed(what: &str, error: GuestError) -> ApiError {
    match error {
        GuestError::BadRange => fail::internal(what, error),
        GuestError::ReadOnly => {
            ApiError::new(ErrorCode::ReadOnly, format!("{what}: {error}"), "open it for writing")
        }
        GuestError::Lost => ApiError::new(
            ErrorCode::DataUnavailable,
            format!("{what}: {error}"),
            "see `vsanctl status`; if a host or a disk that is away has a copy, bring it back",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_span_and_cross_nothing() {
        let all: Vec<_> = pieces(ByteSpan { offset: 4096, length: 3 << 20 }, PIECE_BYTES).collect();
        assert_eq!(all.iter().map(|p| p.length).sum::<u64>(), 3 << 20);
        assert_eq!(all[0], ByteSpan { offset: 4096, length: PIECE_BYTES - 4096 });
        assert!(all.iter().all(|p| p.offset / PIECE_BYTES == (p.offset + p.length - 1) / PIECE_BYTES));
        assert!(all.windows(2).all(|w| w[0].offset + w[0].length == w[1].offset));
        let huge = ByteSpan { offset: u64::MAX / 4096 * 4096 - 4096, length: 4096 };
        assert_eq!(pieces(huge, CHUNK_BYTES).count(), 1);
    }
}
