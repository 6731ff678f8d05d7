//! What fails together: the names of fault domains are paths. `lyon/rack3` is `rack3` in the site `lyon`; a name without a slash is a
//! site of its own.

/// The most bytes of a fault domain's name, and so of a place's.
pub const PLACE_BYTES_MAX: usize = 255;
/// The most places that a volume may prefer.
pub const PLACES_MAX: usize = 8;

/// The site that a fault domain is in: the first part of its path.
pub fn site(fault_domain: &str) -> &str {
    fault_domain.split_once('/').map_or(fault_domain, |(site, _)| site)
}

/// Whether a fault domain is this place or in it.
pub fn is_within(fault_domain: &str, place: &str) -> bool {
    fault_domain.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_domain_is_in_the_places_that_its_path_begins_with() {
        assert_eq!((site("lyon/rack3/shelf"), site("rack3"), site("")), ("lyon", "rack3", ""));
        assert!(is_within("lyon/rack3", "lyon") && is_within("lyon/rack3", "lyon/rack3"));
        assert!(!is_within("lyon/rack3", "lyon/rack") && !is_within("lyon", "lyon/rack3"));
        assert!(!is_within("lyon/rack3", "rack3"));
    }
}
