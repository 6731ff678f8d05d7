//! Deliberate bugs, to prove that a simulator would find them. Off unless the feature `bugs` is on, which only the
//! simulator turns on: in the daemons [`Bugs::has`] is a constant `false`. Which bugs there are, each core says.

/// Which of a core's bugs `B` is on, if any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bugs<B> {
    on: Option<B>,
}

impl<B> Bugs<B> {
    /// None: the product.
    pub const NONE: Self = Self { on: None };

    /// This one.
    #[cfg(feature = "bugs")]
    pub const fn one(bug: B) -> Self {
        Self { on: Some(bug) }
    }
}

impl<B: PartialEq> Bugs<B> {
    /// Whether this bug is on.
    pub fn has(self, bug: B) -> bool {
        cfg!(feature = "bugs") && self.on == Some(bug)
    }
}

impl<B> Default for Bugs<B> {
    fn default() -> Self {
        Self::NONE
    }
}
