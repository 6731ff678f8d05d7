//! Writes what this host says of itself into the directory: whenever that changes, for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use super::{Shared, documents};
use ferro_transport::directory::PutError;

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends with the plane.
pub(super) async fn run(shared: Arc<Shared>) {
    let Some(directory) = &shared.directory else { return };
    let mut wanted = shared.published.subscribe();
    let mut changed = shared.changed.subscribe();
    loop {
        let document = wanted.borrow_and_update().clone();
        // Only where the directory was seen is it known who this host is there, and what it said before.
        let (name, before) = {
            let state = shared.state();
            let name = documents::host_name(state.host);
            let seen = state.view.as_ref().filter(|view| state.lost.is_none() && view.host == state.host);
            (name.clone(), seen.map(|view| view.documents.get(&name).cloned()))
        };
        let said = match (document.as_ref().map(documents::write), before) {
            (Some(Ok(text)), Some(before)) if before.as_ref().is_none_or(|old| *old.content != *text) => {
                let basis = before.map_or(0, |old| old.revision);
                directory.put(&name, basis, text).await.map(drop)
            }
            (Some(Err(error)), _) => {
                tracing::error!(%error, "this host's document can't be written");
                Ok(())
            }
            _ => Ok(()),
        };
        match said {
            // Of one that was overtaken, the next view says what it is based on.
            Ok(()) | Err(PutError::Overtaken(_)) => {}
            Err(PutError::Unavailable(why) | PutError::Unknown(why)) => {
                tracing::debug!(why, "this host's document waits for the directory");
                tokio::time::sleep(PAUSE).await;
            }
            Err(PutError::Refused(error)) => {
                tracing::warn!(error = %error.message, "the directory does not take this host's document");
                tokio::time::sleep(PAUSE).await;
            }
        }
        // Either what is to be said changed, or what is known of the directory.
        tokio::select! {
            it = wanted.changed() => if it.is_err() { return },
            it = changed.changed() => if it.is_err() { return },
        }
    }
}
