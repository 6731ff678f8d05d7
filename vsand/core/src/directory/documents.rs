//! Documents: what other daemons keep in the directory. Nothing here looks into one.

use std::sync::Arc;

use ferro_protocol::document::{DOCUMENT_BYTES_MAX, DOCUMENTS_BYTES_MAX, DOCUMENTS_MAX, DocumentName};

use super::apply::Applied;
use super::command::{Outcome, Refused};
use super::{Document, State};

impl State {
    /// The documents whose names begin like this, by name.
    pub fn documents_under<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a DocumentName, &'a Arc<Document>)> {
        self.documents.iter().filter(move |(name, _)| name.as_str().starts_with(prefix))
    }

    pub(super) fn put_document(
        &mut self,
        index: u64,
        name: DocumentName,
        basis: u64,
        content: String,
    ) -> Applied {
        let old = self.documents.get(&name);
        check_basis(old, basis)?;
        if content.len() > DOCUMENT_BYTES_MAX {
            let size = content.len();
            return Err(Refused::TooMuch(format!(
                "document {name} has {size} bytes, at most {DOCUMENT_BYTES_MAX} are possible"
            )));
        }
        if old.is_none() && self.documents.len() >= DOCUMENTS_MAX {
            return Err(Refused::TooMuch(format!("there are {DOCUMENTS_MAX} documents already")));
        }
        let others: usize =
            self.documents.iter().filter(|(n, _)| **n != name).map(|(_, d)| d.content.len()).sum();
        if others + content.len() > DOCUMENTS_BYTES_MAX {
            return Err(Refused::TooMuch(format!(
                "all documents together have at most {DOCUMENTS_BYTES_MAX} bytes"
            )));
        }
        self.documents.insert(name, Arc::new(Document { revision: index, content }));
        self.documents_revision = index;
        Ok(Outcome::Revision(index))
    }

    pub(super) fn delete_document(&mut self, index: u64, name: &DocumentName, basis: u64) -> Applied {
        check_basis(self.documents.get(name), basis)?;
        // Taking away what was never there is no change.
        if self.documents.remove(name).is_some() {
            self.documents_revision = index;
        }
        Ok(Outcome::Done)
    }
}

fn check_basis(now: Option<&Arc<Document>>, basis: u64) -> Result<(), Refused> {
    let now = now.map_or(0, |document| document.revision);
    if now == basis { Ok(()) } else { Err(Refused::WrongRevision(now)) }
}
