//! Where a volume is rather kept: as options, and `volume place`.

use ferro_protocol::api::{VolumeInfo, VolumePlacement};
use ferro_protocol::ids::VolumeName;

use super::Context;
use crate::failure::{Failure, Result};
use crate::text::{count, printable};

/// Where data is rather kept.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct PlaceOptions {
    /// Rather keep it in this site or fault domain, as in lyon or lyon/rack3; may be given several times, up to 8
    #[arg(long, value_name = "PLACE")]
    pub prefer: Vec<String>,
    /// Have as few of its copies or shards as possible in the same site: the first part of a fault domain, up to a slash
    #[arg(long)]
    pub across_sites: bool,
}

impl PlaceOptions {
    /// The placement that was asked for, of `what`; nothing if none of the options was given.
    pub(super) fn asked(self, what: &str) -> Result<Option<VolumePlacement>> {
        let placement = VolumePlacement { prefer: self.prefer, across_sites: self.across_sites };
        placement.check().map_err(|bad| {
            Failure::usage(
                format!("{what} can't be placed like this: {bad}"),
                "name sites or fault domains as `vsanctl host list` shows them",
            )
        })?;
        Ok(Some(placement).filter(|placement| !placement.is_none()))
    }
}

/// Has a volume rather kept there.
pub(super) async fn put(
    context: &Context,
    name: &VolumeName,
    placement: &VolumePlacement,
) -> Result<VolumeInfo> {
    context.client.put(&format!("/v1/volumes/{name}/placement"), placement).await
}

pub(super) async fn place(
    context: &Context,
    name: &VolumeName,
    options: PlaceOptions,
    anywhere: bool,
) -> Result<()> {
    let asked = options.asked(&format!("volume {name}"))?;
    if asked.is_none() && !anywhere {
        return Err(Failure::usage(
            format!("it is not said where volume {name} is to be"),
            "give --prefer, --across-sites or both; --anywhere takes back what was said before",
        ));
    }
    let placed = put(context, name, &asked.unwrap_or_default()).await?;
    context.terminal.done(&placed, |volume| match volume.misplaced {
        0 => format!("volume {}: {}", volume.name, placement_text(&volume.placement)),
        n => format!(
            "volume {}: {}; {} there by and by (`vsanctl volume show {name}` says how many are left)",
            volume.name,
            placement_text(&volume.placement),
            if n == 1 { "1 part moves".to_owned() } else { format!("{} move", count(u64::from(n), "part")) },
        ),
    })
}

/// Where a volume is rather kept, to people.
pub(super) fn placement_text(placement: &VolumePlacement) -> String {
    printable(&placement.to_string())
}
