//! Where a volume's data is rather kept: on the wire `{"prefer":["lyon","brest/rack3"],"across_sites":false}`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::fault_domain::{PLACE_BYTES_MAX, PLACES_MAX};

/// Where a volume's data is rather kept; by default anywhere. It is no condition: where there is no room, data is elsewhere until there is.
///
/// Fault domains are paths: `lyon/rack3` is in the site `lyon`. One without a slash is a site of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumePlacement {
    /// Sites or fault domains whose hosts come before others, all of them alike; at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["lyon", "brest/rack3"]))]
    pub prefer: Vec<String>,
    /// As few copies or shards as possible in the same site.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub across_sites: bool,
}

/// Why a placement is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPlacement {
    /// Too many places.
    #[error("it names {0} places, and {PLACES_MAX} are the most")]
    TooMany(usize),
    /// The name of a place is empty, too long or not printable, or the path has an empty part.
    #[error("{0:?} is no site and no fault domain")]
    Place(String),
}

impl VolumePlacement {
    /// Whether anywhere is as good as anywhere else.
    pub fn is_none(&self) -> bool {
        self.prefer.is_empty() && !self.across_sites
    }

    /// Whether it can be kept to, as far as that can be said without knowing the hosts.
    pub fn check(&self) -> Result<(), BadPlacement> {
        if self.prefer.len() > PLACES_MAX {
            return Err(BadPlacement::TooMany(self.prefer.len()));
        }
        let good = |place: &str| {
            place.len() <= PLACE_BYTES_MAX
                && !place.chars().any(char::is_control)
                && place.split('/').all(|part| !part.is_empty())
        };
        match self.prefer.iter().find(|place| !good(place)) {
            Some(place) => Err(BadPlacement::Place(place.clone())),
            None => Ok(()),
        }
    }
}

impl fmt::Display for VolumePlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("anywhere");
        }
        if self.across_sites {
            f.write_str("spread over sites")?;
        }
        if !self.prefer.is_empty() {
            let and = if self.across_sites { ", " } else { "" };
            write!(f, "{and}rather in {}", self.prefer.join(" or "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rather(places: &[&str], across_sites: bool) -> VolumePlacement {
        VolumePlacement { prefer: places.iter().map(|p| (*p).to_owned()).collect(), across_sites }
    }

    #[test]
    fn placements_are_said_in_words() {
        assert_eq!(VolumePlacement::default().to_string(), "anywhere");
        assert_eq!(rather(&["lyon", "brest/r3"], false).to_string(), "rather in lyon or brest/r3");
        assert_eq!(rather(&["lyon"], true).to_string(), "spread over sites, rather in lyon");
        assert_eq!(rather(&[], true).to_string(), "spread over sites");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for bad in ["", "/", "lyon/", "/lyon", "a//b", "a\nb"] {
            assert_eq!(rather(&["x", bad], false).check(), Err(BadPlacement::Place(bad.to_owned())));
        }
        assert_eq!(rather(&["x"; 9], false).check(), Err(BadPlacement::TooMany(9)));
        assert_eq!(rather(&["Lyon 3/Räcke 4"; 8], true).check(), Ok(()));
    }
}
