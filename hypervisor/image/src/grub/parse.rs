//! From a script's text to its commands.

use std::rc::Rc;

use super::{DEPTH_MAX, NODES_MAX, ParseError, Problem};

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// As it stands.
    Text(String),
    /// A variable. Quoted, its value stays one word.
    Variable { name: String, quoted: bool },
}

/// A word before its variables are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// Some of it was quoted, so it is a word even if it is empty, and never a keyword.
    pub(super) quoted: bool,
}

impl Word {
    /// The text of a word that may be a keyword.
    fn bare(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

/// Commands in their order.
pub(super) type Block = Rc<Vec<Node>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Words, and the block of a menuentry or submenu.
    Command { words: Vec<Word>, block: Option<Block> },
    /// Conditions with what each leads to, and what is left.
    If { arms: Vec<(Block, Block)>, otherwise: Block },
    /// For each word.
    For { name: String, words: Vec<Word>, body: Block },
    /// While, or until.
    While { until: bool, condition: Block, body: Block },
    /// What a function does.
    Function { name: String, body: Block },
}

/// A script that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub(super) nodes: Block,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A newline or a semicolon.
    End,
    Eof,
}

struct Lexer<'t> {
    rest: std::iter::Peekable<std::str::Chars<'t>>,
    line: u32,
}

impl Lexer<'_> {
    fn fail<T>(&self, what: Problem) -> Result<T, ParseError> {
        Err(ParseError { line: self.line, what })
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    fn token(&mut self) -> Result<Token, ParseError> {
        loop {
            match self.rest.peek() {
                None => return Ok(Token::Eof),
                Some('\n' | ';') => {
                    self.next();
                    return Ok(Token::End);
                }
                Some(' ' | '\t' | '\r') => {
                    self.next();
                }
                Some('#') => while self.rest.next_if(|c| *c != '\n').is_some() {},
                Some('\\') => {
                    let mut ahead = self.rest.clone();
                    ahead.next();
                    if ahead.next() != Some('\n') {
                        return Ok(Token::Word(self.word()?));
                    }
                    // The line goes on.
                    self.next();
                    self.next();
                }
                Some(_) => return Ok(Token::Word(self.word()?)),
            }
        }
    }

    fn word(&mut self) -> Result<Word, ParseError> {
        let mut word = Word::default();
        let mut text = String::new();
        while let Some(c) = self.rest.peek().copied() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' => break,
                '\'' => {
                    self.next();
                    word.quoted = true;
                    loop {
                        match self.next() {
                            None => return self.fail(Problem::Quote),
                            Some('\'') => break,
                            Some(c) => text.push(c),
                        }
                    }
                }
                '"' => {
                    self.next();
                    word.quoted = true;
                    self.quoted(&mut word, &mut text)?;
                }
                '\\' => {
                    self.next();
                    word.quoted = true;
                    match self.next() {
                        Some('\n') | None => {}
                        Some(c) => text.push(c),
                    }
                }
                '$' => {
                    self.next();
                    self.variable(&mut word, &mut text, false)?;
                }
                c => {
                    self.next();
                    text.push(c);
                }
            }
        }
        flush(&mut word, &mut text);
        Ok(word)
    }

    /// Within double quotes, up to their end.
    fn quoted(&mut self, word: &mut Word, text: &mut String) -> Result<(), ParseError> {
        loop {
            match self.next() {
                None => return self.fail(Problem::Quote),
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    None => return self.fail(Problem::Quote),
                    Some(c @ ('"' | '$' | '\\')) => text.push(c),
                    Some('\n') => {}
                    Some(c) => text.extend(['\\', c]),
                },
                Some('$') => self.variable(word, text, true)?,
                Some(c) => text.push(c),
            }
        }
    }

    /// After a dollar sign, which stands for itself if no name follows.
    fn variable(&mut self, word: &mut Word, text: &mut String, quoted: bool) -> Result<(), ParseError> {
        let mut name = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            loop {
                match self.next() {
                    None | Some('\n') => return self.fail(Problem::End("}")),
                    Some('}') => break,
                    Some(c) => name.push(c),
                }
            }
        } else if let Some(c) = self.rest.next_if(|c| matches!(c, '?' | '#' | '@' | '*')) {
            name.push(c);
        } else if self.rest.peek().is_some_and(char::is_ascii_digit) {
            while let Some(c) = self.rest.next_if(char::is_ascii_digit) {
                name.push(c);
            }
        } else {
            while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                name.push(c);
            }
        }
        if name.is_empty() {
            text.push('$');
        } else {
            flush(word, text);
            word.pieces.push(Piece::Variable { name, quoted });
        }
        Ok(())
    }
}

fn flush(word: &mut Word, text: &mut String) {
    if !text.is_empty() {
        word.pieces.push(Piece::Text(std::mem::take(text)));
    }
}

struct Parser<'t> {
    lexer: Lexer<'t>,
    ahead: Token,
    depth: u32,
    nodes: usize,
}

/// Reads a script.
///
/// # Errors
///
/// If something in it has no end, or is where it can't be, or there is too much of it.
pub fn parse(text: &str) -> Result<Script, ParseError> {
    let mut lexer = Lexer { rest: text.chars().peekable(), line: 1 };
    let ahead = lexer.token()?;
    let mut parser = Parser { lexer, ahead, depth: 0, nodes: 0 };
    let nodes = parser.block(&[])?;
    match parser.keyword() {
        Some("}") => parser.lexer.fail(Problem::Unexpected("}")),
        Some(_) => parser.lexer.fail(Problem::Unexpected("keyword")),
        None => Ok(Script { nodes }),
    }
}

/// Words that end a block.
const CLOSING: [&str; 7] = ["then", "elif", "else", "fi", "do", "done", "}"];

impl Parser<'_> {
    fn take(&mut self) -> Result<Token, ParseError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return self.lexer.fail(Problem::Size);
        }
        let next = self.lexer.token()?;
        Ok(std::mem::replace(&mut self.ahead, next))
    }

    fn keyword(&self) -> Option<&str> {
        match &self.ahead {
            Token::Word(word) => word.bare().filter(|text| CLOSING.contains(text)),
            Token::End | Token::Eof => None,
        }
    }

    fn expect(&mut self, word: &'static str) -> Result<(), ParseError> {
        self.ends()?;
        if self.keyword() != Some(word) && !self.is_bare(word) {
            return self.lexer.fail(Problem::End(word));
        }
        self.take().map(drop)
    }

    fn is_bare(&self, text: &str) -> bool {
        matches!(&self.ahead, Token::Word(word) if word.bare() == Some(text))
    }

    fn ends(&mut self) -> Result<(), ParseError> {
        while self.ahead == Token::End {
            self.take()?;
        }
        Ok(())
    }

    /// Commands up to one of these words, which is not taken, or to the end.
    fn block(&mut self, closing: &[&str]) -> Result<Block, ParseError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.lexer.fail(Problem::Depth);
        }
        let mut nodes = Vec::new();
        loop {
            self.ends()?;
            if self.ahead == Token::Eof {
                break;
            }
            if let Some(word) = self.keyword() {
                if closing.contains(&word) || closing.is_empty() {
                    break;
                }
                return self.lexer.fail(Problem::Unexpected("keyword"));
            }
            nodes.push(self.node()?);
        }
        self.depth -= 1;
        Ok(Rc::new(nodes))
    }

    fn node(&mut self) -> Result<Node, ParseError> {
        let first = match &self.ahead {
            Token::Word(word) => word.bare().unwrap_or_default(),
            Token::End | Token::Eof => "",
        };
        match first {
            "if" => self.branch(),
            "for" => self.each(),
            "while" => self.repeat(false),
            "until" => self.repeat(true),
            "function" => self.function(),
            _ => self.command(),
        }
    }

    fn branch(&mut self) -> Result<Node, ParseError> {
        let mut arms = Vec::new();
        loop {
            // `if`, or `elif`.
            self.take()?;
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            let body = self.block(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            if self.keyword() != Some("elif") {
                break;
            }
        }
        let mut otherwise = Block::default();
        if self.keyword() == Some("else") {
            self.take()?;
            otherwise = self.block(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Node::If { arms, otherwise })
    }

    fn each(&mut self) -> Result<Node, ParseError> {
        self.take()?;
        let name = self.name("for")?;
        if !self.is_bare("in") {
            return self.lexer.fail(Problem::End("in"));
        }
        self.take()?;
        let words = self.words()?;
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(Node::For { name, words, body })
    }

    fn repeat(&mut self, until: bool) -> Result<Node, ParseError> {
        self.take()?;
        let condition = self.block(&["do"])?;
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(Node::While { until, condition, body })
    }

    fn function(&mut self) -> Result<Node, ParseError> {
        self.take()?;
        let name = self.name("function")?;
        self.expect("{")?;
        let body = self.block(&["}"])?;
        self.expect("}")?;
        Ok(Node::Function { name, body })
    }

    fn name(&mut self, of: &'static str) -> Result<String, ParseError> {
        match self.take()? {
            Token::Word(word) => match word.bare() {
                Some(name) => Ok(name.to_owned()),
                None => self.lexer.fail(Problem::Unexpected(of)),
            },
            Token::End | Token::Eof => self.lexer.fail(Problem::Unexpected(of)),
        }
    }

    fn words(&mut self) -> Result<Vec<Word>, ParseError> {
        let mut words = Vec::new();
        while matches!(&self.ahead, Token::Word(word) if word.bare() != Some("{") && word.bare() != Some("}"))
        {
            if let Token::Word(word) = self.take()? {
                words.push(word);
            }
        }
        Ok(words)
    }

    fn command(&mut self) -> Result<Node, ParseError> {
        let words = self.words()?;
        if words.is_empty() {
            return self.lexer.fail(Problem::Unexpected("{"));
        }
        if !self.is_bare("{") {
            return Ok(Node::Command { words, block: None });
        }
        self.take()?;
        let block = self.block(&["}"])?;
        self.expect("}")?;
        Ok(Node::Command { words, block: Some(block) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> (u32, Problem) {
        let error = parse(text).expect_err(text);
        (error.line, error.what)
    }

    #[test]
    fn what_has_no_end_is_named_with_its_line() {
        assert_eq!(problem("a\necho 'x\n"), (3, Problem::Quote));
        assert_eq!(problem("echo \"x"), (1, Problem::Quote));
        assert_eq!(problem("echo ${x\n"), (2, Problem::End("}")));
        assert_eq!(problem("if true; then\n"), (2, Problem::End("fi")));
        assert_eq!(problem("if true\nfi"), (2, Problem::Unexpected("keyword")));
        assert_eq!(problem("menuentry x {\n"), (2, Problem::End("}")));
        assert_eq!(problem("}\n").1, Problem::Unexpected("}"));
        assert_eq!(problem("fi\n").1, Problem::Unexpected("keyword"));
        assert_eq!(problem("{ a; }").1, Problem::Unexpected("{"));
        assert_eq!(problem("for x y").1, Problem::End("in"));
        assert_eq!(problem(&"if true; then ".repeat(40)).1, Problem::Depth);
        assert_eq!(problem(&"a ".repeat(NODES_MAX + 1)).1, Problem::Size);
    }

    #[test]
    fn words_are_cut_as_grub_cuts_them() {
        let script = parse("set a='b $c'd\"${e} \\\"f\"g\\ h # i\n").expect("a script");
        let [Node::Command { words, block: None }] = script.nodes.as_slice() else { panic!("{script:?}") };
        let text = |text: &str| Piece::Text(text.to_owned());
        assert_eq!(words.len(), 2);
        assert_eq!(
            words[1].pieces,
            [text("a=b $cd"), Piece::Variable { name: "e".to_owned(), quoted: true }, text(" \"fg h")]
        );
    }

    #[test]
    fn closing_words_are_words_where_they_are_arguments() {
        let script = parse("echo then done fi; if a; then b else; else c; fi").expect("a script");
        assert_eq!(script.nodes.len(), 2);
    }
}
