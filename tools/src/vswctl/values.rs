//! What options can say, read from text: ranges, rates, and words for yes and no.
//!
//! Numbers are only read here. Whether a VLAN or an MTU can be that number is for the daemon to say, with every other fault.

use clap::ValueEnum;
use ferro_protocol::api::switch::spec::{AtLimit, Detection, Direction, PrivateKind, RateSpec, TeamPolicy};

use crate::values::OrNone;

/// Yes or no.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum YesNo {
    Yes,
    No,
}

impl YesNo {
    /// As a truth value.
    pub fn is_yes(self) -> bool {
        self == Self::Yes
    }
}

/// Whether something is let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum Allow {
    Allow,
    Reject,
}

impl Allow {
    /// As a truth value.
    pub fn is_allowed(self) -> bool {
        self == Self::Allow
    }
}

/// To what a port is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum AttachDevice {
    /// A virtual machine, over a vhost-user socket.
    #[default]
    VhostUser,
    /// A TAP interface.
    Tap,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident => $to:ident { $($(#[$word_doc:meta])* $word:ident),* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
        pub enum $name {
            $($(#[$word_doc])* $word),*
        }

        impl From<$name> for $to {
            fn from(word: $name) -> Self {
                match word {
                    $($name::$word => Self::$word),*
                }
            }
        }
    };
}

words!(
    /// Who reaches whom in a private VLAN.
    PrivateWord => PrivateKind {
        /// All
        Promiscuous,
        /// Promiscuous ports only
        Isolated,
        /// Its community and promiscuous ports
        Community
    }
);
words!(
    /// What becomes of frames beyond the learning limit.
    AtLimitWord => AtLimit {
        /// They are dropped
        Drop,
        /// They pass, and what is for them goes to all who learn
        Flood
    }
);
words!(
    /// Which uplink a frame takes.
    PolicyWord => TeamPolicy {
        /// By the port that it comes from
        PortId,
        /// By its source address
        SourceMac,
        /// By source and destination IP address; the physical switch must bundle the links
        IpHash,
        /// The first that works
        Explicit,
        /// By port, and ports move from a busy uplink to an idle one
        Load
    }
);
words!(
    /// How a dead uplink is noticed.
    DetectionWord => Detection {
        /// Its link is down
        Link,
        /// Its link is down, or its beacons don't arrive at the others; needs three uplinks
        Beacon
    }
);
words!(
    /// Which way, as the guest sees it.
    DirectionWord => Direction {
        /// Both ways
        Both,
        /// From the guest
        Ingress,
        /// To the guest
        Egress
    }
);

/// VLANs and ranges of VLANs, as in `10,20-29`. A range that is backwards is left for the daemon to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(pub Vec<(u32, u32)>);

impl std::str::FromStr for Ranges {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of VLANs and ranges: write them as in 10,20-29");
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
            Ok((number(first)?, number(last)?))
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

/// First and last address, as in `10.0.0.10-10.0.0.99`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool(pub String, pub String);

/// A pool of addresses, or `none`.
pub fn pool_or_none(text: &str) -> Result<OrNone<Pool>, String> {
    if text == "none" {
        return Ok(OrNone::None);
    }
    match text.split_once('-') {
        Some((first, last)) => Ok(OrNone::Some(Pool(first.trim().to_owned(), last.trim().to_owned()))),
        None => {
            Err(format!("{text:?} is not a pool: write first and last address, as in 10.0.0.10-10.0.0.99"))
        }
    }
}

/// The least burst, unless one is given: a super-frame.
const BURST_KIB_MIN: u64 = 64;

/// A rate: average, peak and burst, as in `100M`, `100M/1G` or `100M/1G/512K`; or `none`.
pub fn rate_or_none(text: &str) -> Result<OrNone<RateSpec>, String> {
    if text == "none" {
        return Ok(OrNone::None);
    }
    let bad = || {
        format!(
            "{text:?} is not a rate: write bits a second, with a peak and the bytes of a burst if you like, as in 100M, \
             100M/1G or 100M/1G/512K"
        )
    };
    let mut parts = text.split('/');
    let average_kbit_s = kbit(parts.next().unwrap_or_default()).ok_or_else(bad)?;
    let peak_kbit_s = parts.next().map_or(Some(average_kbit_s), kbit).ok_or_else(bad)?;
    // What a tenth of a second brings at the average.
    let usual = (average_kbit_s * 125 / 10 / 1024).max(BURST_KIB_MIN);
    let burst_kib = parts.next().map_or(Some(usual), kib).ok_or_else(bad)?;
    if parts.next().is_some() {
        return Err(bad());
    }
    Ok(OrNone::Some(RateSpec { average_kbit_s, peak_kbit_s, burst_kib }))
}

/// Bits a second, in thousands: `K`, `M`, `G` and `T` are powers of 1000.
fn kbit(text: &str) -> Option<u64> {
    let (number, factor) = match text.strip_suffix(['K', 'k', 'M', 'G', 'T']) {
        Some(number) => (number, &text[number.len()..]),
        None => {
            return text.parse::<u64>().ok().filter(|bits| bits.is_multiple_of(1000)).map(|bits| bits / 1000);
        }
    };
    let factor = match factor {
        "M" => 1000,
        "G" => 1_000_000,
        "T" => 1_000_000_000,
        _ => 1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|kbit| *kbit <= u64::MAX / 1000)
}

/// Bytes, in KiB: `K`, `M` and `G` are powers of 1024.
fn kib(text: &str) -> Option<u64> {
    let bytes = ferro_protocol::api::parse_size(text).ok()?;
    bytes.is_multiple_of(1024).then_some(bytes / 1024)
}

/// A rate for people, as the option takes it.
pub fn rate_text(rate: &RateSpec) -> String {
    let bits = |kbit: u64| match kbit {
        k if k.is_multiple_of(1_000_000) && k > 0 => format!("{}G", k / 1_000_000),
        k if k.is_multiple_of(1000) && k > 0 => format!("{}M", k / 1000),
        k => format!("{k}K"),
    };
    let burst = match rate.burst_kib {
        kib if kib.is_multiple_of(1024) && kib > 0 => format!("{}M", kib / 1024),
        kib => format!("{kib}K"),
    };
    format!("{}/{}/{burst}", bits(rate.average_kbit_s), bits(rate.peak_kbit_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units_and_defaults() {
        let rate = |text: &str| rate_or_none(text).map(|rate| rate.get());
        let of = |average_kbit_s, peak_kbit_s, burst_kib| {
            Ok(Some(RateSpec { average_kbit_s, peak_kbit_s, burst_kib }))
        };
        assert_eq!(rate("100M/1G/512K"), of(100_000, 1_000_000, 512));
        assert_eq!(rate("1G"), of(1_000_000, 1_000_000, 12_207));
        assert_eq!(rate("64K"), of(64, 64, 64));
        assert_eq!(rate("2000"), of(2, 2, 64));
        assert_eq!(rate("none"), Ok(None));
        for bad in ["", "1", "M", "1M/", "1M/2M/3", "1M/2M/3K/4", "-1M", "1.5M", "99999999999999999999T"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        let shown = rate_text(&RateSpec { average_kbit_s: 1500, peak_kbit_s: 2_000_000, burst_kib: 1024 });
        assert_eq!(shown, "1500K/2G/1M");
        assert_eq!(rate(&shown), of(1500, 2_000_000, 1024));
    }

    #[test]
    fn lists_are_read_as_they_are() {
        assert_eq!("10,20-29".parse(), Ok(Ranges(vec![(10, 10), (20, 29)])));
        assert_eq!("20-10,4095".parse(), Ok(Ranges(vec![(20, 10), (4095, 4095)])));
        for bad in ["", "a", "1-", "-1", "1,,2"] {
            assert!(bad.parse::<Ranges>().is_err(), "{bad}");
        }
        assert_eq!(pool_or_none("10.0.0.1-10.0.0.9").unwrap().get().unwrap().1, "10.0.0.9");
        assert!(pool_or_none("10.0.0.1").is_err() && crate::values::number_or_none("x").is_err());
    }
}
