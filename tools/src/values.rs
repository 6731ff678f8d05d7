//! What options of several tools can say.

/// A value, or that there is to be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrNone<T> {
    /// None.
    None,
    /// This.
    Some(T),
}

impl<T> OrNone<T> {
    /// The value, if there is to be one.
    pub fn get(self) -> Option<T> {
        match self {
            Self::None => None,
            Self::Some(value) => Some(value),
        }
    }
}

/// A number, or `none`.
pub fn number_or_none(text: &str) -> Result<OrNone<u32>, String> {
    if text == "none" {
        return Ok(OrNone::None);
    }
    let bad = || format!("{text:?} is neither a number nor `none`");
    text.parse().map(OrNone::Some).map_err(|_| bad())
}

/// A text, or `none`.
pub fn text_or_none(text: &str) -> Result<OrNone<String>, String> {
    Ok(if text == "none" { OrNone::None } else { OrNone::Some(text.to_owned()) })
}
