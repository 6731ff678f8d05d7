//! Documents of other daemons: read as this host knows them, so that they can be read without a quorum too; changed by
//! compare-and-set in the directory.

use std::time::Duration;

use ferro_protocol::api::{Document, DocumentInfo, DocumentList, PutDocument};
use ferro_protocol::document::DocumentName;
use vsand_core::directory::{Command, Outcome, State};

use super::{cluster, errors};
use crate::api::control::Result;
use crate::api::fail;
use crate::member::Member;

/// What there is under a prefix, after a change later than `after` or when the time is up.
pub(super) async fn list(
    member: &Member,
    prefix: &str,
    after: Option<u64>,
    wait: Duration,
) -> Result<DocumentList> {
    // Before the first look: what is applied in between is not missed.
    let mut applied = member.directory.watch();
    let changed = async {
        while after.is_some_and(|after| member.state().documents_revision <= after) {
            if applied.changed().await.is_err() {
                return;
            }
        }
    };
    // Either way the answer is what there is now.
    let _in_time = tokio::time::timeout(wait, changed).await;
    Ok(under(&member.state(), prefix))
}

fn under(state: &State, prefix: &str) -> DocumentList {
    let documents = state.documents_under(prefix).map(|(name, document)| DocumentInfo {
        name: name.clone(),
        revision: document.revision,
        bytes: document.content.len() as u64,
    });
    DocumentList { revision: state.documents_revision, documents: documents.collect() }
}

/// One of them.
pub(super) fn show(member: &Member, name: &DocumentName) -> Result<Document> {
    let state = member.state();
    let document = state.documents.get(name).ok_or_else(|| fail::document_not_found(name))?;
    Ok(Document { name: name.clone(), revision: document.revision, content: document.content.clone() })
}

/// Makes or replaces one.
pub(super) async fn put(
    member: &Member,
    name: &DocumentName,
    basis: u64,
    content: String,
) -> Result<PutDocument> {
    let what = format!("changing document {name}");
    let command = Command::PutDocument { name: name.clone(), basis, content };
    match propose(member, &what, &command).await? {
        Outcome::Revision(revision) => Ok(PutDocument { revision }),
        other => Err(fail::internal(what, format!("the directory answered {other:?}"))),
    }
}

/// Deletes one.
pub(super) async fn delete(member: &Member, name: &DocumentName, basis: u64) -> Result<()> {
    let command = Command::DeleteDocument { name: name.clone(), basis };
    if basis == 0 {
        return Err(fail::document_not_found(name));
    }
    propose(member, &format!("deleting document {name}"), &command).await.map(drop)
}

async fn propose(member: &Member, what: &str, command: &Command) -> Result<Outcome> {
    cluster::propose(member, what, command).await?.map_err(|refused| {
        let mut error = errors::refused(&member.state(), &refused);
        error.message = format!("{what}: {}", error.message);
        error
    })
}
