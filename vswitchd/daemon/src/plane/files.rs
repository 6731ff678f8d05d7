//! What this host writes down: the copy of the network, what is attached, and, when it is alone, leases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferro_protocol::api::switch::Attachment;
use ferro_protocol::net::NetName;
use serde::{Deserialize, Serialize};

use super::keeper::Kept;
use super::state::Port;
use crate::endpoint::Book;
use ferro_transport::directory::View;
use ferro_transport::stored::{self, Kind, StoredError};

/// In the first line of each file.
const PROGRAM: &str = "vswitchd";
const COPY: Kind = Kind { program: PROGRAM, name: "copy", version: 1 };
const BOOKS: Kind = Kind { program: PROGRAM, name: "leases", version: 1 };
/// What the names of lease books begin and end with.
const BOOK: (&str, &str) = ("leases-", ".book");
const ATTACHMENTS: Kind = Kind { program: PROGRAM, name: "attachments", version: 1 };
const TAPS: Kind = Kind { program: PROGRAM, name: "taps", version: 1 };

/// What is written down of the network: enough to go on without the directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Copy {
    /// In force, and before.
    pub(super) kept: Kept,
    /// What the directory last said; none of a host that is alone.
    pub(super) view: Option<Arc<View>>,
}

/// Where the files of the state are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    dir: PathBuf,
    copy: PathBuf,
    attachments: PathBuf,
    taps: PathBuf,
}

impl Files {
    /// In this directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.to_owned(),
            copy: state_dir.join("network.copy"),
            attachments: state_dir.join("attachments"),
            taps: state_dir.join("taps"),
        }
    }

    /// The copy, or what is wrong with it.
    pub(super) fn load_copy(&self) -> Result<Option<Copy>, StoredError> {
        stored::load(&self.copy, COPY)
    }

    /// Writes the copy.
    pub(super) fn save_copy(&self, copy: &Copy) -> Result<(), StoredError> {
        stored::save(&self.copy, COPY, copy)
    }

    /// The attachments, or what is wrong with them.
    pub(super) fn load_attachments(&self) -> Result<BTreeMap<NetName, Attachment>, StoredError> {
        Ok(stored::load(&self.attachments, ATTACHMENTS)?.unwrap_or_default())
    }

    /// The ports whose interfaces were made here, or what is wrong with them.
    pub(super) fn load_taps(&self) -> Result<BTreeSet<NetName>, StoredError> {
        Ok(stored::load(&self.taps, TAPS)?.unwrap_or_default())
    }

    /// The lease books of a host that is alone.
    #[expect(clippy::type_complexity, reason = "one damaged book does not hide the others")]
    pub(super) fn load_books(&self) -> Result<Vec<(NetName, Result<Book, StoredError>)>, StoredError> {
        let io = |source| StoredError::Io { path: self.dir.clone(), source };
        let mut books = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            let file = entry.map_err(io)?.file_name();
            let group = file
                .to_str()
                .and_then(|name| name.strip_prefix(BOOK.0)?.strip_suffix(BOOK.1)?.parse::<NetName>().ok());
            let Some(group) = group else { continue };
            let path = self.dir.join(&file);
            let book = stored::load_checked(&path, BOOKS, |text: String| {
                Book::decode(text.as_bytes()).map_err(|error| error.to_string())
            });
            match book {
                Ok(Some(book)) => books.push((group, Ok(book))),
                Ok(None) => {}
                Err(error) => books.push((group, Err(error))),
            }
        }
        Ok(books)
    }

    /// Writes down a lease book of a host that is alone.
    pub(super) fn save_book(&self, group: &NetName, book: &Book) -> Result<(), StoredError> {
        let path = self.dir.join(format!("{}{group}{}", BOOK.0, BOOK.1));
        let encode = |why: String| StoredError::Encode { path: path.clone(), why };
        let bytes = book.encode().map_err(|error| encode(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|error| encode(error.to_string()))?;
        stored::save(&path, BOOKS, &text)
    }

    /// Writes down what is attached, and to which interfaces that were made here.
    pub(super) fn save_attachments(
        &self,
        ports: &BTreeMap<NetName, Attachment>,
        taps: &BTreeSet<NetName>,
    ) -> Result<(), StoredError> {
        // In this order: an interface that is taken for somebody else's stays, and the other way round would remove it.
        stored::save(&self.attachments, ATTACHMENTS, ports)?;
        stored::save(&self.taps, TAPS, taps)
    }
}

/// Attached as it was left, with nothing plugged in yet.
pub(super) fn restored(
    attachments: BTreeMap<NetName, Attachment>,
    taps: &BTreeSet<NetName>,
) -> BTreeMap<NetName, Port> {
    let port = |to, made| Port { to, made, plugged: false, link: None, trouble: None };
    let all = attachments.into_iter().map(|(name, to)| {
        let made = taps.contains(&name);
        (name, port(to, made))
    });
    all.collect()
}
