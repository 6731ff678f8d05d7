//! What a script comes to: a menu with submenus, and what would be started if nobody touched a key.

/// A file, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// GRUB's name, without parentheses: `hd0,gpt2`.
    pub device: String,
    /// From that file system's root.
    pub path: String,
}

/// An entry that starts Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrubEntry {
    /// For people.
    pub title: String,
    /// Its `--id`; empty if it has none.
    pub id: String,
    /// The kernel.
    pub kernel: Place,
    /// In order.
    pub initrds: Vec<Place>,
    /// With the `BOOT_IMAGE=` that GRUB puts first.
    pub command_line: String,
}

/// A line of a menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Starts Linux.
    Linux(GrubEntry),
    /// Does something else, such as starting another boot loader.
    Other {
        /// For people.
        title: String,
        /// Its `--id`.
        id: String,
    },
    /// Has lines of its own.
    Submenu {
        /// For people.
        title: String,
        /// Its `--id`.
        id: String,
        /// Its lines.
        items: Vec<Item>,
    },
}

impl Item {
    /// For people.
    pub fn title(&self) -> &str {
        match self {
            Self::Linux(entry) => &entry.title,
            Self::Other { title, .. } | Self::Submenu { title, .. } => title,
        }
    }

    /// Its `--id`.
    pub fn id(&self) -> &str {
        match self {
            Self::Linux(entry) => &entry.id,
            Self::Other { id, .. } | Self::Submenu { id, .. } => id,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// The lines of the first page.
    pub items: Vec<Item>,
    /// The default: a place on each page, from the first one down. Empty if there are no lines.
    pub default: Vec<usize>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

impl Menu {
    /// All entries that start Linux, each with its place on every page.
    pub fn entries(&self) -> Vec<(Vec<usize>, &GrubEntry)> {
        fn collect<'m>(items: &'m [Item], above: &[usize], found: &mut Vec<(Vec<usize>, &'m GrubEntry)>) {
            for (at, item) in items.iter().enumerate() {
                let place: Vec<usize> = above.iter().copied().chain([at]).collect();
                match item {
                    Item::Linux(entry) => found.push((place, entry)),
                    Item::Submenu { items, .. } => collect(items, &place, found),
                    Item::Other { .. } => {}
                }
            }
        }
        let mut found = Vec::new();
        collect(&self.items, &[], &mut found);
        found
    }

    /// The line that is at a place.
    pub fn at(&self, place: &[usize]) -> Option<&Item> {
        let (first, rest) = place.split_first()?;
        let mut item = self.items.get(*first)?;
        for at in rest {
            let Item::Submenu { items, .. } = item else { return None };
            item = items.get(*at)?;
        }
        Some(item)
    }
}

/// The place that GRUB's variable `default` means: a number, a title or an identifier, and with `>` the same within a
/// submenu. What is not found means the first line.
pub(super) fn pick(items: &[Item], wanted: &str) -> Vec<usize> {
    let (name, rest) = first_part(wanted);
    let numeric = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let numbered = numeric.then(|| name.parse().ok()).flatten().filter(|at| *at < items.len());
    let called = |item: &Item| !name.is_empty() && (item.title() == name || item.id() == name);
    let named = || items.iter().position(called);
    let Some(at) = numbered.or_else(named).or_else(|| (!items.is_empty()).then_some(0)) else {
        return Vec::new();
    };
    let mut place = vec![at];
    if let Item::Submenu { items, .. } = &items[at] {
        place.extend(pick(items, rest));
    }
    place
}

/// Up to the first `>`; two of them stand for one in a title.
fn first_part(wanted: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = wanted.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '>' && chars.next_if(|(_, next)| *next == '>').is_none() {
            return (name, &wanted[at + 1..]);
        }
        name.push(c);
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(title: &str, id: &str) -> Item {
        Item::Other { title: title.to_owned(), id: id.to_owned() }
    }

    #[test]
    fn the_default_is_found_by_number_title_or_identifier() {
        let below = vec![other("x", "x-id"), other("a>b", "")];
        let sub = Item::Submenu { title: "More".to_owned(), id: "more".to_owned(), items: below };
        let items = [other("First", "one"), sub, other("7", "seven")];
        for (wanted, place) in [
            ("", &[0][..]),
            ("0", &[0]),
            ("seven", &[2]),
            ("7", &[2]),
            ("2", &[2]),
            ("99", &[0]),
            ("gone", &[0]),
            ("1", &[1, 0]),
            ("more>x-id", &[1, 0]),
            ("More>1", &[1, 1]),
            ("1>a>>b", &[1, 1]),
            ("1>gone", &[1, 0]),
            ("one>x", &[0]),
        ] {
            assert_eq!(pick(&items, wanted), place, "{wanted}");
        }
        assert!(pick(&[], "1").is_empty());
    }
}
