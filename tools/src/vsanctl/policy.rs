//! `policy`: policies with names, and what the hosts at hand can hold.
//!
//! A named policy is a document of the directory, `policies/NAME`. It is looked up when a volume is made and then forgotten:
//! the volume has the policy, not the name. See docs/decisions/0021-policies.md.

mod apply;
mod check;

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use clap::Subcommand;
use ferro_protocol::api::{
    Document, DocumentList, Policy, PolicySpec, PutDocument, VolumeLimits, VolumePlacement, format_size,
};
use ferro_protocol::ids::VolumeName;
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::Context;
use super::limits::LimitOptions;
use super::place::{PlaceOptions, placement_text};
use super::volume::{force_text, reserve_text};
use crate::failure::{Exit, Failure, Result};
use crate::text::{Table, count, facts, printable};

const PREFIX: &str = "policies/";
const VERSION: u32 = 1;
const ABOUT_BYTES_MAX: usize = 1_024;

/// A policy's name: as that of a volume, and not the beginning of a policy's text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PolicyName(String);

impl FromStr for PolicyName {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = text.len() <= 63
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(|c| letter(c) || matches!(c, b'-' | b'_' | b'.'));
        if !good {
            return Err(format!(
                "{text:?} is not a policy's name: use 1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit"
            ));
        }
        if text.starts_with("mirror") || text.starts_with("raid") {
            return Err(format!("{text:?} is not a policy's name: names don't begin with mirror or raid"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A policy as it is given to a verb: spelled out, or by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyChoice {
    /// `mirror:3`.
    Policy(Policy),
    /// That of a policy in the directory.
    Name(PolicyName),
}

impl FromStr for PolicyChoice {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text.parse(), text.parse()) {
            (Ok(policy), _) => Ok(Self::Policy(policy)),
            (Err(_), Ok(name)) => Ok(Self::Name(name)),
            (Err(bad), Err(_)) => Err(format!("{bad}; or the name of one of `vsanctl policy list`")),
        }
    }
}

/// The verbs of `policy`.
#[derive(Subcommand, Debug)]
pub enum PolicyVerb {
    /// Give a policy a name, for `volume create --policy NAME`
    Create(NewPolicy),
    /// List the policies that have names
    List,
    /// Show one of them
    Show {
        /// Its name
        name: PolicyName,
    },
    /// Forget a name; volumes that were made with it stay as they are
    Delete {
        /// Its name
        name: PolicyName,
    },
    /// Have volumes kept in another way while they are in use
    ///
    /// A mirror gets more or fewer copies in place; to or from RAID-5 and RAID-6 all of a volume is copied, and until that is done it is
    /// as it was. It is waited until all is there; an interrupt ends only the waiting. The former policy, applied again, takes it
    /// back.
    Apply {
        /// A policy's name, or a policy, as in mirror:3
        policy: PolicyChoice,
        /// The volumes
        #[arg(required = true)]
        volumes: Vec<VolumeName>,
        /// Do not wait until all is there
        #[arg(long)]
        no_wait: bool,
    },
    /// Say what the hosts at hand can hold, now and without any one of them; ends with 5 if they can't hold it now
    Check {
        /// A policy's name, or a policy, as in raid6:4+2
        policy: PolicyChoice,
    },
}

/// How data is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum PolicyMethod {
    /// Whole copies, one more than failures are survived.
    Mirror,
    /// Shards of data and one of parity: survives one failure.
    Raid5,
    /// Shards of data and two of parity: survives two failures.
    Raid6,
}

/// Options of `policy create`.
#[derive(clap::Args, Debug, Clone)]
pub struct NewPolicy {
    /// Its name: 1 to 63 of a-z, 0-9, '-', '_' and '.', not beginning with mirror or raid
    pub name: PolicyName,
    /// How data is kept
    #[arg(short, long, value_enum)]
    pub method: PolicyMethod,
    /// Failures to survive: 0 to 3 of a mirror [default: 1], 1 of raid5, 2 of raid6
    #[arg(short, long, value_name = "N")]
    pub failures: Option<u8>,
    /// Shards of data: 2 or 4 [default: 2 of raid5, 4 of raid6]
    #[arg(short, long, value_name = "N")]
    pub stripe: Option<u8>,
    /// How much of the volumes that get it is kept for them on the disks, in percent: 0 (thin) to 100 (thick)
    #[arg(short, long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub reserve: Option<u8>,
    /// Volumes that get it are made although there is no place for all copies of a mirror at the time
    #[arg(long)]
    pub force_provisioning: bool,
    /// Limits of the volumes that get it
    #[command(flatten)]
    pub limits: LimitOptions,
    /// Where volumes that get it are rather kept
    #[command(flatten)]
    pub place: PlaceOptions,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub about: Option<String>,
}

/// What the document of a policy says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// 1: as here.
    version: u32,
    policy: PolicySpec,
    /// How much of volumes that get it is kept for them, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reserve_percent: Option<u8>,
    /// Whether they are made although there is no place for all copies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    force_provisioning: bool,
    /// What guests of volumes that get it may ask for at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<VolumeLimits>,
    /// Where volumes that get it are rather kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    placement: Option<VolumePlacement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    about: Option<String>,
}

/// A policy that has a name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Named {
    name: String,
    policy: Policy,
    /// Failures that it survives.
    failures: u8,
    /// Fault domains that it needs.
    fault_domains: u8,
    /// How much of volumes that get it is kept for them, in percent, if it says.
    reserve_percent: Option<u8>,
    /// Whether they are made although there is no place for all copies.
    force_provisioning: bool,
    /// What guests of volumes that get it may ask for at most.
    limits: Option<VolumeLimits>,
    /// Where volumes that get it are rather kept, if it says.
    placement: Option<VolumePlacement>,
    about: Option<String>,
    revision: u64,
}

impl Named {
    fn read(document: &Document) -> Result<Self> {
        let name = document.name.as_str().trim_start_matches(PREFIX).to_owned();
        let bad = |why: String| {
            let message = format!("policy {} can't be read: {why}", printable(&name));
            let next = format!(
                "it was written by another version of vsanctl: use that one, or delete it with `vsanctl policy delete {name}`"
            );
            Failure::new(Exit::Failure, "bad_document", message, next)
        };
        let stored: Stored =
            serde_json::from_str(&document.content).map_err(|error| bad(error.to_string()))?;
        if stored.version != VERSION {
            return Err(bad(format!("it has version {}, not {VERSION}", stored.version)));
        }
        let policy = Policy::try_from(stored.policy).map_err(|error| bad(error.to_string()))?;
        let (failures, fault_domains) = (policy.failures_to_tolerate(), policy.domains());
        let Stored { reserve_percent, force_provisioning, limits, placement, about, .. } = stored;
        if reserve_percent.is_some_and(|percent| percent > 100) {
            return Err(bad("it keeps more than 100 % of a volume".to_owned()));
        }
        if let Some(Err(why)) = placement.as_ref().map(VolumePlacement::check) {
            return Err(bad(why.to_string()));
        }
        let revision = document.revision;
        Ok(Self {
            name,
            policy,
            failures,
            fault_domains,
            reserve_percent,
            force_provisioning,
            limits,
            placement,
            about,
            revision,
        })
    }
}

pub(super) async fn policy(context: &Context, verb: PolicyVerb) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        PolicyVerb::Create(new) => create(context, new).await,
        PolicyVerb::List => {
            let policies = all(context).await?;
            terminal.answer(&serde_json::json!({ "policies": policies }), |_, paint| {
                table(&policies).render(paint, 0)
            })
        }
        PolicyVerb::Show { name } => terminal.answer(&named(context, &name).await?, |policy, _| one(policy)),
        PolicyVerb::Delete { name } => delete(context, &name).await,
        PolicyVerb::Apply { policy, volumes, no_wait } => {
            apply::apply(context, &policy, &volumes, no_wait).await
        }
        PolicyVerb::Check { policy } => check::check(context, &policy).await,
    }
}

/// What a choice stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meant {
    pub policy: Policy,
    /// How much is kept, in percent: only of a policy with a name, if it says.
    pub reserve: Option<u8>,
    /// Whether it is made although there is no place for all copies: only of a policy with a name that says so.
    pub force: bool,
    /// Only of a policy with a name, if it says any.
    pub limits: Option<VolumeLimits>,
    /// The same.
    pub placement: Option<VolumePlacement>,
}

/// The policy that was meant.
pub(super) async fn resolve(context: &Context, choice: &PolicyChoice) -> Result<Meant> {
    match choice {
        PolicyChoice::Policy(policy) => {
            Ok(Meant { policy: *policy, reserve: None, force: false, limits: None, placement: None })
        }
        PolicyChoice::Name(name) => {
            let named = named(context, name).await?;
            let Named { policy, reserve_percent: reserve, force_provisioning: force, .. } = named;
            let Named { limits, placement, .. } = named;
            Ok(Meant { policy, reserve, force, limits, placement })
        }
    }
}

async fn document(context: &Context, name: &PolicyName) -> Result<Document> {
    let found: Result<Document> = context.client.get(&format!("/v1/documents/{PREFIX}{name}")).await;
    found.map_err(|failure| match failure.exit {
        Exit::NotFound => Failure::new(
            Exit::NotFound,
            "policy_not_found",
            format!("there is no policy {name}"),
            "see `vsanctl policy list`, or spell one out, as in mirror:3 or raid6:4+2",
        ),
        _ => failure,
    })
}

async fn named(context: &Context, name: &PolicyName) -> Result<Named> {
    Named::read(&document(context, name).await?)
}

async fn all(context: &Context) -> Result<Vec<Named>> {
    let list: DocumentList = context.client.get(&format!("/v1/documents?prefix={PREFIX}")).await?;
    let mut policies = Vec::new();
    for info in list.documents {
        let found: Result<Document> =
            context.client.get(&format!("/v1/documents/{}", info.name.as_str())).await;
        match found {
            // Deleted since.
            Err(failure) if failure.exit == Exit::NotFound => {}
            found => policies.push(Named::read(&found?)?),
        }
    }
    Ok(policies)
}

/// What the options ask for.
fn asked(new: &NewPolicy) -> std::result::Result<Policy, String> {
    let policy = match (new.method, new.failures, new.stripe) {
        (PolicyMethod::Mirror, failures, None) => {
            let copies = failures.unwrap_or(1).saturating_add(1);
            PolicySpec { method: "mirror".to_owned(), copies: Some(copies), ..PolicySpec::default() }
        }
        (PolicyMethod::Mirror, _, Some(_)) => {
            return Err("a mirror has no stripe: leave --stripe out".to_owned());
        }
        (PolicyMethod::Raid5, None | Some(1), stripe) => shards("raid5", stripe.unwrap_or(2), 1),
        (PolicyMethod::Raid6, None | Some(2), stripe) => shards("raid6", stripe.unwrap_or(4), 2),
        (PolicyMethod::Raid5, Some(n), _) => return Err(format!("raid5 survives 1 failure, not {n}")),
        (PolicyMethod::Raid6, Some(n), _) => return Err(format!("raid6 survives 2 failures, not {n}")),
    };
    Policy::try_from(policy).map_err(|bad| bad.to_string())
}

fn shards(method: &str, data: u8, parity: u8) -> PolicySpec {
    PolicySpec { method: method.to_owned(), copies: None, data: Some(data), parity: Some(parity) }
}

async fn create(context: &Context, new: NewPolicy) -> Result<()> {
    let name = &new.name;
    let next = "see `vsanctl policy create --help`";
    let policy =
        asked(&new).map_err(|why| Failure::usage(format!("policy {name} can't be made: {why}"), next))?;
    if new.about.as_ref().is_some_and(|about| about.len() > ABOUT_BYTES_MAX) {
        let message =
            format!("policy {name} can't be made: its description has over {ABOUT_BYTES_MAX} bytes");
        return Err(Failure::usage(message, "say less"));
    }
    let what = format!("policy {name}");
    let (limits, placement) = (new.limits.asked(&what)?, new.place.asked(&what)?);
    let NewPolicy { reserve: reserve_percent, force_provisioning, .. } = new;
    if force_provisioning && !matches!(new.method, PolicyMethod::Mirror) {
        let why = "only a mirror can be made where there is no place for all of it";
        return Err(Failure::usage(format!("policy {name} can't be made: {why}"), next));
    }
    let (version, spec) = (VERSION, policy.into());
    let stored = Stored {
        version,
        policy: spec,
        reserve_percent,
        force_provisioning,
        limits,
        placement,
        about: new.about,
    };
    let content = serde_json::to_vec(&stored)
        .map_err(|error| Failure::usage(format!("policy {name} can't be written: {error}"), next))?;
    let path = format!("/v1/documents/{PREFIX}{name}?basis=0");
    let body = Some((Bytes::from(content), "text/plain"));
    let put = context.client.bytes(Method::PUT, &path, body).await.map_err(|failure| match failure.exit {
        Exit::Conflict => Failure::new(
            Exit::Conflict,
            "name_taken",
            format!("there is a policy {name} already"),
            format!("choose another name, or delete it first: `vsanctl policy delete {name}`"),
        ),
        _ => failure,
    })?;
    let revision =
        put.and_then(|answer| serde_json::from_slice::<PutDocument>(&answer).ok()).map_or(0, |p| p.revision);
    let made = Named {
        name: name.to_string(),
        policy,
        failures: policy.failures_to_tolerate(),
        fault_domains: policy.domains(),
        reserve_percent,
        force_provisioning,
        limits,
        placement: stored.placement,
        about: stored.about,
        revision,
    };
    context.terminal.done(&made, |made| format!("created policy {} ({})", made.name, made.policy))
}

async fn delete(context: &Context, name: &PolicyName) -> Result<()> {
    let document = document(context, name).await?;
    let path = format!("/v1/documents/{PREFIX}{name}?basis={}", document.revision);
    context.client.empty(Method::DELETE, &path, None::<&()>).await?;
    let gone = serde_json::json!({ "name": name });
    context
        .terminal
        .done(&gone, |_| format!("deleted policy {name}; volumes that were made with it stay as they are"))
}

fn survives(policy: Policy) -> String {
    count(u64::from(policy.failures_to_tolerate()), "failure")
}

/// What a GiB of data takes.
fn space(policy: Policy) -> String {
    format_size(policy.raw_bytes(1 << 30))
}

fn table(policies: &[Named]) -> Table {
    let mut table = Table::new(&["NAME", "POLICY", "SURVIVES", ">FAULT DOMAINS", ">1 GIB TAKES", "ABOUT"]);
    for named in policies {
        table.row(vec![
            (&named.name).into(),
            named.policy.to_string().into(),
            survives(named.policy).into(),
            named.fault_domains.to_string().into(),
            space(named.policy).into(),
            named.about.as_deref().unwrap_or("-").into(),
        ]);
    }
    table
}

fn one(named: &Named) -> String {
    facts(&[
        ("name", printable(&named.name)),
        ("policy", named.policy.to_string()),
        ("survives", survives(named.policy)),
        ("fault domains", named.fault_domains.to_string()),
        ("1 GiB takes", space(named.policy)),
        ("kept", named.reserve_percent.map_or("as the volume says".to_owned(), reserve_text)),
        ("forced", force_text(named.force_provisioning).to_owned()),
        ("limits", named.limits.unwrap_or_default().to_string()),
        ("place", placement_text(&named.placement.clone().unwrap_or_default())),
        ("about", printable(named.about.as_deref().unwrap_or("-"))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_told_from_policies() {
        assert_eq!("raid6".parse(), Ok(PolicyChoice::Policy(policy("raid6:4+2"))));
        assert!(matches!("gold".parse(), Ok(PolicyChoice::Name(_))));
        for text in ["", "mirror:5", "mirror:", "raid7", "raid5:3+1", "Gold", "-a", "mirrored", "a:b", "a/b"]
        {
            assert!(text.parse::<PolicyChoice>().is_err(), "{text}");
        }
        let refused = "raid6:8+3".parse::<PolicyChoice>().unwrap_err();
        assert!(refused.contains("raid6:4+2") && refused.contains("policy list"), "{refused}");
    }

    #[test]
    fn options_make_a_policy() {
        let new = |method, failures, stripe| NewPolicy {
            name: "gold".parse().unwrap(),
            method,
            failures,
            stripe,
            reserve: None,
            force_provisioning: false,
            limits: LimitOptions::default(),
            place: PlaceOptions::default(),
            about: None,
        };
        let text = |new: NewPolicy| asked(&new).map(|policy| policy.to_string());
        assert_eq!(text(new(PolicyMethod::Mirror, None, None)).unwrap(), "mirror:2");
        assert_eq!(text(new(PolicyMethod::Mirror, Some(3), None)).unwrap(), "mirror:4");
        assert_eq!(text(new(PolicyMethod::Mirror, Some(0), None)).unwrap(), "mirror:1");
        assert_eq!(text(new(PolicyMethod::Raid5, None, Some(4))).unwrap(), "raid5:4+1");
        assert_eq!(text(new(PolicyMethod::Raid6, Some(2), None)).unwrap(), "raid6:4+2");
        assert_eq!(text(new(PolicyMethod::Raid6, None, Some(2))).unwrap(), "raid6:2+2");
        for bad in [
            new(PolicyMethod::Mirror, Some(4), None),
            new(PolicyMethod::Mirror, Some(255), None),
            new(PolicyMethod::Mirror, None, Some(2)),
            new(PolicyMethod::Raid5, Some(2), None),
            new(PolicyMethod::Raid6, None, Some(8)),
        ] {
            assert!(asked(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_document_of_another_version_is_refused() {
        let document = |content: &str| Document {
            name: "policies/a".parse().unwrap(),
            revision: 3,
            content: content.to_owned(),
        };
        let good = document(r#"{"version":1,"policy":{"method":"raid6","data":4,"parity":2},"about":"x"}"#);
        assert_eq!(Named::read(&good).unwrap().policy, policy("raid6:4+2"));
        for content in [
            r#"{"version":2,"policy":{"method":"raid6"}}"#,
            r#"{"version":1,"policy":{"method":"raid9"}}"#,
            r#"{"version":1,"policy":{"method":"raid6"},"limit":1}"#,
            r#"{"version":1,"policy":{"method":"raid6"},"reserve_percent":101}"#,
            "",
        ] {
            let refused = Named::read(&document(content)).unwrap_err();
            assert!(refused.message.contains("policy a can't be read"), "{refused:?}");
        }
    }
}
