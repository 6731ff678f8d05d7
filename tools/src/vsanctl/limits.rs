//! What a guest may ask of a volume at most: as options, and `volume limit`.

use ferro_protocol::api::{LIMIT_BURST_MAX, VolumeInfo, VolumeLimits};
use ferro_protocol::ids::VolumeName;

use super::Context;
use super::args::{parse_bytes, parse_time};
use crate::failure::{Failure, Result};

/// What a guest may ask for at most.
#[derive(clap::Args, Debug, Clone, Copy, Default)]
pub struct LimitOptions {
    /// Its guest makes at most so many requests a second, 10 or more
    #[arg(long, value_name = "N")]
    pub iops: Option<u32>,
    /// Its guest reads and writes at most so much a second, 1M or more
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bandwidth: Option<u64>,
    /// What its guest did not use for a while it may use at once: of so long a time, up to 1h
    #[arg(long, value_name = "TIME", value_parser = parse_burst)]
    pub burst: Option<u32>,
}

fn parse_burst(text: &str) -> std::result::Result<u32, String> {
    parse_time(text, 1..=LIMIT_BURST_MAX.into())
        .and_then(|seconds| u32::try_from(seconds).ok())
        .ok_or_else(|| format!("{text:?} is not a time from 1s to 1h; write 10s or 5m"))
}

impl LimitOptions {
    /// The limits that were asked for, of `what`; nothing if none of the options was given.
    pub(super) fn asked(self, what: &str) -> Result<Option<VolumeLimits>> {
        let Self { iops, bandwidth, burst } = self;
        let limits =
            VolumeLimits { iops, bytes_per_second: bandwidth, burst_seconds: burst.unwrap_or_default() };
        limits.check().map_err(|bad| {
            Failure::usage(
                format!("{what} can't have these limits: {bad}"),
                "choose others, or leave them out",
            )
        })?;
        Ok(Some(limits).filter(|limits| !limits.is_none()))
    }
}

/// Gives a volume limits.
pub(super) async fn put(context: &Context, name: &VolumeName, limits: VolumeLimits) -> Result<VolumeInfo> {
    context.client.put(&format!("/v1/volumes/{name}/limits"), &limits).await
}

pub(super) async fn limit(
    context: &Context,
    name: &VolumeName,
    options: LimitOptions,
    none: bool,
) -> Result<()> {
    let asked = options.asked(&format!("volume {name}"))?;
    if asked.is_none() && !none {
        return Err(Failure::usage(
            format!("it is not said what volume {name} is limited to"),
            "give --iops, --bandwidth or both; --none takes all limits away",
        ));
    }
    let limited = put(context, name, asked.unwrap_or_default()).await?;
    context.terminal.done(&limited, |volume| {
        if volume.limits.is_none() {
            return format!("volume {} has no limits now", volume.name);
        }
        format!("volume {} is limited to {} now", volume.name, volume.limits)
    })
}
