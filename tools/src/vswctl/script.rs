//! The commands of a transaction, from their text.
//!
//! Commands are apart by `;` or the end of a line, words by blanks. Quotes, single or double, keep blanks and `;` together; a
//! backslash takes the next character as it is (not within single quotes); `#` at the beginning of a word begins a comment.

use clap::Parser;

use super::args::{Args, ChangeOptions};
use super::draft::Edit;
use crate::failure::{Failure, Result};

/// Reads all of them; each must be a verb that changes the configuration.
pub(super) fn parse(text: &str) -> Result<Vec<Args>> {
    let split = split(text).map_err(|problem| {
        Failure::usage(format!("the commands can't be read: {problem}"), "close the quotes")
    })?;
    split.into_iter().enumerate().map(|(at, words)| command(at + 1, words)).collect()
}

fn command(number: usize, words: Vec<String>) -> Result<Args> {
    let shown = words.join(" ");
    let words = match words.first().map(String::as_str) {
        // As it would be typed, with the tool's name.
        Some("vswctl") => words,
        _ => std::iter::once("vswctl".to_owned()).chain(words).collect(),
    };
    let args = Args::try_parse_from(words).map_err(|error| {
        // The first line says what is wrong; the rest is the help of a shell.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Failure::usage(
            format!("command {number} ({shown}): {line}; nothing was changed"),
            "see the verb's --help",
        )
    })?;
    if Edit::of(&args.noun).is_none() {
        let message =
            format!("command {number} ({shown}) does not change the configuration; nothing was changed");
        return Err(Failure::usage(message, "a transaction has create, set and delete verbs only"));
    }
    if args.common.change != ChangeOptions::default() {
        let message = format!("command {number} ({shown}) has an option of the whole transaction");
        return Err(Failure::usage(message, "give it to `vswctl transaction` itself"));
    }
    Ok(args)
}

fn split(text: &str) -> std::result::Result<Vec<Vec<String>>, &'static str> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ';' | '\n' => {
                end_word(&mut commands, &mut word);
                commands.push(Vec::new());
            }
            c if c.is_whitespace() => end_word(&mut commands, &mut word),
            '#' if word.is_none() => {
                // To the end of the line, which ends the command too.
                if chars.by_ref().any(|c| c == '\n') {
                    commands.push(Vec::new());
                }
            }
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("it ends with a backslash")?),
            c => word.get_or_insert_default().push(c),
        }
    }
    end_word(&mut commands, &mut word);
    commands.retain(|words| !words.is_empty());
    Ok(commands)
}

fn end_word(commands: &mut [Vec<String>], word: &mut Option<String>) {
    if let (Some(last), Some(word)) = (commands.last_mut(), word.take()) {
        last.push(word);
    }
}

fn quoted(
    quote: char,
    chars: &mut std::str::Chars<'_>,
    word: &mut String,
) -> std::result::Result<(), &'static str> {
    loop {
        match chars.next() {
            None => return Err("a quote is not closed"),
            Some(c) if c == quote => return Ok(()),
            Some('\\') if quote == '"' => word.push(chars.next().ok_or("a quote is not closed")?),
            Some(c) => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_into_commands_and_words() {
        let cut = |text| split(text).map(|all| all.iter().map(|words| words.join("|")).collect::<Vec<_>>());
        assert_eq!(cut("a b;c\n\n d\te ; ;"), Ok(vec!["a|b".into(), "c".into(), "d|e".into()]));
        assert_eq!(
            cut("a 'b ;c' \"d\\\" e\"f # no; more\n g\\ h#i"),
            Ok(vec!["a|b ;c|d\" ef".into(), "g h#i".into()])
        );
        assert_eq!(cut("# only this"), Ok(vec![]));
        assert_eq!(cut("a ''"), Ok(vec!["a|".into()]));
        assert!(cut("a 'b").is_err() && cut("a \\").is_err());
    }
}
