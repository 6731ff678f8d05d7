//! `apply`: the configuration becomes what a file says.

use ferro_protocol::api::switch::{Change, NetworkConfig, Spec};

use super::args::ApplyArgs;
use super::{Context, change};
use crate::failure::{Failure, Result};
use crate::text::{count, printable};

pub(super) async fn apply(context: &Context, options: &ApplyArgs) -> Result<()> {
    let text = change::read(&options.file)?;
    let new = parse(&text).map_err(|error| {
        let message =
            format!("{} is no configuration: {error}", printable(&options.file.display().to_string()));
        Failure::usage(message, "begin with what `vswctl config` prints; nothing was changed")
    })?;
    let NetworkConfig { revision, spec, .. } = context.client.get("/v1/config").await?;
    let changes = differences(&spec, &new);
    let removed: Vec<String> = changes.iter().filter_map(removal).collect();
    if !removed.is_empty() && !context.change.dry_run {
        let warning = format!("This removes what the file does not have: {}.", removed.join(", "));
        context.terminal.confirm(&warning, "applying the file")?;
    }
    let sentence = format!("applied the file, {}", count(changes.len() as u64, "change"));
    // What a person has looked at is what is changed: if somebody else was quicker, they look again.
    let done = change::transact(context, revision, changes).await?;
    change::finish(context, done, &sentence).await
}

fn parse(text: &str) -> std::result::Result<Spec, String> {
    if text.trim_start().starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        // `config -o json` prints the configuration with its revision around it.
        let spec = value.get("spec").cloned().unwrap_or(value);
        return serde_json::from_value(spec).map_err(|error| error.to_string());
    }
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        format!("line {line}: {}", error.message())
    })
}

/// What has to change, in an order that reads well; it is checked as a whole.
fn differences(old: &Spec, new: &Spec) -> Vec<Change> {
    let mut changes = Vec::new();
    macro_rules! compare {
        ($list:ident, $add:ident, $set:ident, $remove:ident) => {
            for it in &old.$list {
                if !new.$list.iter().any(|other| other.name == it.name) {
                    changes.push(Change::$remove(it.name.clone()));
                }
            }
            for (at, it) in new.$list.iter().enumerate() {
                // Of two with one name the second is added, and named as a fault.
                let first = !new.$list[..at].iter().any(|other| other.name == it.name);
                match old.$list.iter().find(|other| other.name == it.name) {
                    Some(other) if first && other == it => {}
                    Some(_) if first => changes.push(Change::$set(it.clone())),
                    _ => changes.push(Change::$add(it.clone())),
                }
            }
        };
    }
    compare!(mirrors, AddMirror, SetMirror, RemoveMirror);
    compare!(ports, AddPort, SetPort, RemovePort);
    compare!(groups, AddGroup, SetGroup, RemoveGroup);
    compare!(switches, AddSwitch, SetSwitch, RemoveSwitch);
    changes
}

fn removal(change: &Change) -> Option<String> {
    match change {
        Change::RemoveSwitch(name) => Some(format!("switch {name}")),
        Change::RemoveGroup(name) => Some(format!("port group {name}")),
        Change::RemovePort(name) => Some(format!("port {name}")),
        Change::RemoveMirror(name) => Some(format!("mirror {name}")),
        _ => None,
    }
}
