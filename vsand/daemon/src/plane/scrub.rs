//! Scrubs: shown, started and stopped. Doing them is [`crate::member::scrub`]'s.

use ferro_protocol::api::{ScrubAction, ScrubList, ScrubRequest};
use ferro_protocol::ids::VolumeName;
use vsand_core::directory::{ObjectRecord, State};

use super::cluster::{latest, settle};
use super::errors;
use crate::api::control::Result;
use crate::api::fail;
use crate::data::clock;
use crate::member::Member;
use crate::member::kept::{Kept, KeptError, change};
use crate::member::scrub::book::Book;

/// The latest scrub of each volume, by name.
pub(super) fn list(member: &Member) -> Result<ScrubList> {
    shown(member, |_| true)
}

fn shown(member: &Member, wanted: impl Fn(&ObjectRecord) -> bool) -> Result<ScrubList> {
    let state = member.state();
    let book = Book::of(&state)
        .ok_or_else(|| errors::kept(&state, "showing scrubs", &KeptError::Later(Book::WHAT)))?;
    let every_days = member.config.scrub.every_days;
    let records = state.volumes().filter(|record| wanted(record));
    let mut scrubs: Vec<_> = records.map(|r| book.entry(r.id).info(r, every_days)).collect();
    scrubs.sort_by(|a, b| a.volume.cmp(&b.volume));
    Ok(ScrubList { scrubs })
}

/// Starts or stops them.
pub(super) async fn act(member: &Member, request: &ScrubRequest) -> Result<ScrubList> {
    let what = match request.action {
        ScrubAction::Start => "starting a scrub",
        ScrubAction::Stop => "stopping a scrub",
    };
    let is_meant = |name: &VolumeName| request.volume.as_ref().is_none_or(|volume| volume == name);
    let state = latest(member, what).await?;
    if let Some(name) = request.volume.as_ref().filter(|name| state.by_name(name).is_none()) {
        return Err(fail::volume_not_found(name));
    }
    let now = clock::unix_s();
    let edit = |book: &mut Book, state: &State| {
        let mut news = false;
        for record in state.volumes().filter(|record| is_meant(&record.name)) {
            news |= match request.action {
                ScrubAction::Start => {
                    book.edit(state, record.id).start();
                    true
                }
                ScrubAction::Stop => book.edit(state, record.id).stop(now),
            };
        }
        news
    };
    change(member, edit).await.map_err(|error| errors::kept(&state, what, &error))?;
    settle(member).await;
    shown(member, |record| is_meant(&record.name))
}
