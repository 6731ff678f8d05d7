//! Which host, disk or object a person means: a name, an id, or the beginning of an id.

use ferro_protocol::api::{DiskInfo, DiskList, HostInfo, HostList, ObjectInfo, ObjectList};

use super::Context;
use crate::failure::{Exit, Failure, Result};

/// The shortest beginning of an id that counts.
const PREFIX_MIN: usize = 4;

pub(super) async fn host(context: &Context, text: &str) -> Result<HostInfo> {
    let list: HostList = context.client.get("/v1/hosts").await?;
    choose(text, "host", list.hosts, |host| host.id.to_string(), |host| host.name == text)
}

pub(super) async fn disk(context: &Context, text: &str) -> Result<DiskInfo> {
    let disks: DiskList = context.client.get("/v1/disks").await?;
    // A path says which disk only together with a host, and that is this one.
    let here = if text.starts_with('/') {
        let hosts: HostList = context.client.get("/v1/hosts").await?;
        hosts.hosts.into_iter().find(|host| host.this_host).map(|host| host.id)
    } else {
        None
    };
    choose(
        text,
        "disk",
        disks.disks,
        |disk| disk.id.to_string(),
        |disk| Some(disk.host) == here && disk.path == text,
    )
}

pub(super) async fn object(context: &Context, text: &str) -> Result<ObjectInfo> {
    let list: ObjectList = context.client.get("/v1/objects").await?;
    choose(
        text,
        "object",
        list.objects,
        |object| object.id.to_string(),
        |object| object.volume.as_ref().is_some_and(|name| name.as_str() == text),
    )
}

/// An exact name or id wins over beginnings of ids, of which there must be one only.
pub(super) fn choose<T>(
    text: &str,
    noun: &str,
    all: Vec<T>,
    id: impl Fn(&T) -> String,
    is_named: impl Fn(&T) -> bool,
) -> Result<T> {
    let lower = text.to_ascii_lowercase();
    let mut exact = Vec::new();
    let mut begun = Vec::new();
    for item in all {
        let id = id(&item);
        if is_named(&item) || id == lower {
            exact.push(item);
        } else if lower.len() >= PREFIX_MIN && id.starts_with(&lower) {
            begun.push(item);
        }
    }
    let mut found = if exact.is_empty() { begun } else { exact };
    match (found.pop(), found.len()) {
        (Some(item), 0) => Ok(item),
        (Some(_), others) => {
            let message = format!("{text:?} can mean {} {noun}s", others + 1);
            Err(Failure::new(Exit::Usage, "ambiguous", message, "give the whole id"))
        }
        (None, _) => {
            let message = format!("there is no {noun} {text:?}");
            let next = format!("see `vsanctl {noun} list` for those there are");
            Err(Failure::new(Exit::NotFound, &format!("{noun}_not_found"), message, next))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(text: &str) -> std::result::Result<(&'static str, &'static str), Exit> {
        let all = vec![
            ("alpha", "11112222"),
            ("beta", "11113333"),
            ("1111", "44445555"),
            ("twin", "6666"),
            ("twin", "7777"),
        ];
        choose(text, "host", all, |(_, id)| (*id).to_owned(), |(name, _)| *name == text)
            .map_err(|failure| failure.exit)
    }

    #[test]
    fn a_name_wins_over_a_beginning_and_a_beginning_must_be_unique() {
        assert_eq!(pick("alpha").unwrap().1, "11112222");
        assert_eq!(pick("1111").unwrap().1, "44445555");
        assert_eq!(pick("11113").unwrap().0, "beta");
        assert_eq!(pick("4444").unwrap().0, "1111");
        assert_eq!(pick("444"), Err(Exit::NotFound));
        assert_eq!(pick("twin"), Err(Exit::Usage));
        assert_eq!(pick(""), Err(Exit::NotFound));
    }
}
