//! Rust source without its comments and literals, so that a word in them is not taken for code.

/// The text with each comment, string and character literal replaced by a blank; lines stay where they are.
pub fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| string(rest, &out)).or_else(|| character(rest));
        let Some(len) = skipped else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.push(' ');
        out.extend(rest[..len].chars().filter(|c| *c == '\n'));
        rest = &rest[len..];
    }
    out
}

fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(text.len())
}

/// A string that begins here, raw or not. The `b` or `c` before it was code, and stays.
fn string(text: &str, before: &str) -> Option<usize> {
    if text.starts_with('"') {
        return Some(escaped(text, '"'));
    }
    let in_word =
        before.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !before.ends_with(['b', 'c']);
    let hashes = text.strip_prefix('r')?;
    let opening = hashes.trim_start_matches('#');
    if in_word || !opening.starts_with('"') {
        return None;
    }
    let marks = hashes.len() - opening.len();
    let closing = format!("\"{}", "#".repeat(marks));
    let from = 2 + marks;
    Some(text[from..].find(&closing).map_or(text.len(), |at| from + at + closing.len()))
}

/// A character literal, told from a lifetime by its closing quote.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let mut chars = body.chars();
    match (chars.next()?, chars.next()?) {
        ('\\', _) => Some(escaped(text, '\'')),
        (c, '\'') => Some(2 + c.len_utf8()),
        _ => None,
    }
}

/// Bytes up to the closing quote, with what is escaped skipped.
fn escaped(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}
