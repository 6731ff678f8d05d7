//! Tables, durations and rates, as people read them.

use std::fmt::Write as _;

use ferro_protocol::api::{Health, HealthLevel, format_size};

/// How a piece of text stands out, where colour is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Style {
    /// It does not.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Worth acting.
    Bad,
    /// Beside the point.
    Dim,
    /// A heading.
    Bold,
}

/// Paints, or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paint {
    /// Whether colour is on.
    pub on: bool,
}

impl Paint {
    /// The text in this style.
    pub fn text(self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Good => "32",
            Style::Warn => "33",
            Style::Bad => "31",
            Style::Dim => "2",
            Style::Bold => "1",
        };
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A cell of a table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in a style. What came over the wire may hold anything: control characters don't reach the terminal.
    pub fn styled(style: Style, text: impl AsRef<str>) -> Self {
        Self { text: printable(text.as_ref()), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(Style::Plain, text)
    }
}

/// The text without control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A table: a head and aligned columns, two spaces apart. A column whose name begins with `>` is aligned to the right.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the head are not shown.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines, each indented by so many spaces.
    pub fn render(&self, paint: Paint, indent: usize) -> String {
        let names: Vec<&str> = self.head.iter().map(|name| name.trim_start_matches('>')).collect();
        let widths: Vec<usize> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let cells =
                    self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.text.chars().count());
                cells.chain([name.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let head: Vec<Cell> = names.iter().map(|name| Cell::styled(Style::Bold, name)).collect();
        let mut out = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            for (i, cell) in row.iter().take(widths.len()).enumerate() {
                let gap = " ".repeat(widths[i] - cell.text.chars().count());
                let text = paint.text(cell.style, &cell.text);
                if self.head[i].starts_with('>') {
                    line += &gap;
                    line += &text;
                } else {
                    line += &text;
                    line += &gap;
                }
                line += "  ";
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

/// A duration for people: `45s`, `12m 5s`, `3h 20m`, `2d 4h`.
pub fn duration(seconds: u64) -> String {
    let (large, small) = match seconds {
        0..60 => return format!("{seconds}s"),
        60..3600 => ((seconds / 60, "m"), (seconds % 60, "s")),
        3600..86400 => ((seconds / 3600, "h"), (seconds / 60 % 60, "m")),
        _ => ((seconds / 86400, "d"), (seconds / 3600 % 24, "h")),
    };
    if small.0 == 0 {
        format!("{}{}", large.0, large.1)
    } else {
        format!("{}{} {}{}", large.0, large.1, small.0, small.1)
    }
}

/// A time in UTC, as ISO 8601 has it, to the second: `2026-11-21 20:15:03Z`.
pub fn utc(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1_000 % 86_400);
    // Days since 0000-03-01, so that a leap day is the last of its year; an era has 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

/// A rate for people.
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", format_size(bytes_per_second))
}

/// A part of a whole in whole percent, rounded down so that only what is done says 100.
pub fn percent(part: u64, whole: u64) -> String {
    let value = if whole == 0 { 100 } else { u128::from(part.min(whole)) * 100 / u128::from(whole) };
    format!("{value}%")
}

/// `1 host`, `2 hosts`.
pub fn count(number: u64, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}

/// How well something is, and why.
pub fn health_lines(health: &Health, paint: Paint) -> String {
    let mut out = String::new();
    let (style, word) = match health.level {
        HealthLevel::Ok => (Style::Good, "OK"),
        HealthLevel::Warning => (Style::Warn, "WARNING"),
        HealthLevel::Critical => (Style::Bad, "CRITICAL"),
    };
    let _ = writeln!(out, "health    {}", paint.text(style, word));
    for reason in &health.reasons {
        let style = match reason.level {
            HealthLevel::Critical => Style::Bad,
            HealthLevel::Warning => Style::Warn,
            HealthLevel::Ok => Style::Plain,
        };
        let _ = writeln!(out, "          {} {}", paint.text(style, "-"), printable(&reason.message));
        if !reason.next_step.is_empty() {
            let _ = writeln!(out, "            next: {}", printable(&reason.next_step));
        }
    }
    out
}

/// Facts, one a line. The values may be painted, so the caller has seen to control characters.
pub fn facts(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "{name:width$}  {value}");
        out
    })
}

/// A word that a shell takes as it is.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(vec!["a".into(), "10 GiB".into(), Cell::styled(Style::Good, "healthy")]);
        table.row(vec!["longer".into(), "1 B".into(), "".into()]);
        let plain = table.render(Paint { on: false }, 0);
        assert_eq!(plain, "NAME      SIZE  STATE\na       10 GiB  healthy\nlonger     1 B\n");
        assert!(table.render(Paint { on: true }, 2).contains("\x1b[32mhealthy\x1b[0m"));
    }

    #[test]
    fn nothing_from_the_wire_drives_the_terminal() {
        assert_eq!(Cell::from("a\x1b[2Jb\n"), Cell::from("a\u{fffd}[2Jb\u{fffd}"));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // By `date -u -d @N`.
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_709_251_199, "2024-02-29 23:59:59Z"),
            (1_795_291_200, "2026-11-21 20:00:00Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(unix_s * 1_000), text);
        }
    }

    #[test]
    fn durations_and_parts_read_well() {
        let shown: Vec<String> = [0, 59, 60, 725, 3600, 12000, 86400, 187_200].map(duration).to_vec();
        assert_eq!(shown, ["0s", "59s", "1m", "12m 5s", "1h", "3h 20m", "1d", "2d 4h"]);
        assert_eq!(percent(999, 1000), "99%");
        assert_eq!(percent(0, 0), "100%");
        assert_eq!((count(1, "host"), count(0, "host")), ("1 host".to_owned(), "0 hosts".to_owned()));
    }
}
