//! What the daemons of all hosts keep together in a document of the cluster directory: read from a state, changed by
//! compare-and-set, so that of two changes at once none is lost.

use ferro_protocol::document::DocumentName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vsand_core::directory::{Command, Refused, State};
use vsand_directory::DirectoryError;

use super::Member;

/// A change that somebody else was quicker with is made anew so often.
const TRIES: u32 = 8;

/// Such a document.
pub trait Kept: Serialize + DeserializeOwned + Default {
    /// What it is to people.
    const WHAT: &'static str;
    /// Its name in the directory.
    const DOCUMENT: &'static str;
    /// The format that this version writes; a document of a later one is left alone.
    const FORMAT: u8;

    /// The format that the document says it has.
    fn format(&self) -> u8;

    /// Its name.
    fn document() -> DocumentName {
        // A constant, and a test of each parses it.
        Self::DOCUMENT.parse().unwrap_or_else(|_| unreachable!("{} is a document's name", Self::DOCUMENT))
    }

    /// What the directory says; nothing if a later version wrote it, which then sees to it.
    fn of(state: &State) -> Option<Self> {
        let Some(document) = state.documents.get(&Self::document()) else { return Some(Self::default()) };
        let read = serde_json::from_str::<Self>(&document.content).ok();
        read.filter(|kept| kept.format() == Self::FORMAT)
    }
}

/// Why a document could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The directory did not answer.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The directory said no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It does not become text.
    #[error("{0} can't be written: {1}")]
    Encode(&'static str, serde_json::Error),
    /// A later version wrote it.
    #[error("{0} was written by a later version of vsand")]
    Later(&'static str),
    /// Others change it all the time.
    #[error("others change {0} all the time")]
    Busy(&'static str),
}

/// Changes the document; `edit` says whether anything has changed.
pub async fn change<K: Kept + Send>(
    member: &Member,
    edit: impl Fn(&mut K, &State) -> bool + Send + Sync,
) -> Result<(), KeptError> {
    let name = K::document();
    for _ in 0..TRIES {
        let state = member.directory.linearizable_state().await?;
        let basis = state.documents.get(&name).map_or(0, |document| document.revision);
        let mut kept = K::of(&state).ok_or(KeptError::Later(K::WHAT))?;
        if !edit(&mut kept, &state) {
            return Ok(());
        }
        let content = serde_json::to_string(&kept).map_err(|error| KeptError::Encode(K::WHAT, error))?;
        let command = Command::PutDocument { name: name.clone(), basis, content };
        match member.propose(&command).await? {
            Ok(_) => return Ok(()),
            Err(Refused::WrongRevision(_)) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(KeptError::Busy(K::WHAT))
}
