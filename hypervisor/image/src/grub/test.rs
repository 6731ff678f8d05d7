//! The command `test`, which is also called `[`.

/// Looks at files for a condition.
pub(super) trait Look {
    fn exists(&mut self, path: &str) -> bool;
    fn is_file(&mut self, path: &str) -> bool;
    fn is_folder(&mut self, path: &str) -> bool;
    fn has_bytes(&mut self, path: &str) -> bool;
}

/// Parentheses and negations within each other.
const DEPTH_MAX: u32 = 16;

/// Whether the condition holds. What is no condition does not.
pub(super) fn holds(words: &[String], look: &mut impl Look) -> bool {
    let mut test = Test { words, at: 0, depth: 0, look };
    let value = test.either();
    value && test.at == words.len()
}

struct Test<'w, L> {
    words: &'w [String],
    at: usize,
    depth: u32,
    look: &'w mut L,
}

impl<L: Look> Test<'_, L> {
    fn peek(&self, ahead: usize) -> Option<&str> {
        self.words.get(self.at + ahead).map(String::as_str)
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.peek(0) == Some(word);
        self.at += usize::from(is);
        is
    }

    fn either(&mut self) -> bool {
        let mut value = self.both();
        while self.next_is("-o") {
            value |= self.both();
        }
        value
    }

    fn both(&mut self) -> bool {
        let mut value = self.single();
        while self.next_is("-a") {
            value &= self.single();
        }
        value
    }

    fn single(&mut self) -> bool {
        self.depth += 1;
        let value = self.depth <= DEPTH_MAX && self.term();
        self.depth -= 1;
        value
    }

    fn term(&mut self) -> bool {
        let (Some(first), second, third) = (self.peek(0), self.peek(1), self.peek(2)) else { return false };
        if let (Some(operator), Some(right)) = (second, third)
            && let Some(value) = compare(first, operator, right)
        {
            self.at += 3;
            return value;
        }
        if first == "!" {
            self.at += 1;
            return !self.single();
        }
        if first == "(" {
            self.at += 1;
            let value = self.either();
            return self.next_is(")") && value;
        }
        let first = first.to_owned();
        if let Some(second) = second.map(str::to_owned)
            && let Some(value) = self.unary(&first, &second)
        {
            self.at += 2;
            return value;
        }
        self.at += 1;
        !first.is_empty()
    }

    fn unary(&mut self, operator: &str, word: &str) -> Option<bool> {
        Some(match operator {
            "-n" => !word.is_empty(),
            "-z" => word.is_empty(),
            "-e" => self.look.exists(word),
            "-f" => self.look.is_file(word),
            "-d" => self.look.is_folder(word),
            "-s" => self.look.has_bytes(word),
            _ => return None,
        })
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    let (a, b) = (number(left), number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "<=" => left <= right,
        ">=" => left >= right,
        "-eq" => a == b,
        "-ne" => a != b,
        "-lt" => a < b,
        "-le" => a <= b,
        "-gt" => a > b,
        "-ge" => a >= b,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk;

    impl Look for Disk {
        fn exists(&mut self, path: &str) -> bool {
            path != "gone"
        }
        fn is_file(&mut self, path: &str) -> bool {
            path == "file"
        }
        fn is_folder(&mut self, path: &str) -> bool {
            path == "folder"
        }
        fn has_bytes(&mut self, path: &str) -> bool {
            path == "file"
        }
    }

    #[test]
    fn conditions_hold_or_do_not() {
        for (text, value) in [
            ("a = a", true),
            ("a = b", false),
            ("a != b", true),
            ("xy = x$", false),
            ("! a = b", true),
            ("a = a -a b = c", false),
            ("a = b -o b = b", true),
            ("a = b -o b = b -a c = d", false),
            ("( a = b -o b = b ) -a c = c", true),
            ("-n x", true),
            ("-z x", false),
            ("-f file", true),
            ("! -f folder", true),
            ("-d folder -a -e x -a -s file", true),
            ("-e gone", false),
            ("2 -lt 10", true),
            ("2 < 10", false),
            ("x", true),
            ("", false),
            ("a = a b", false),
            ("( a = a", false),
            ("-a", true),
        ] {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            assert_eq!(holds(&words, &mut Disk), value, "{text}");
        }
        let deep: Vec<String> = std::iter::repeat_n("!".to_owned(), 100_000).collect();
        let _ = holds(&deep, &mut Disk);
        let deep: Vec<String> = std::iter::repeat_n("(".to_owned(), 100_000).collect();
        assert!(!holds(&deep, &mut Disk));
        assert!(!holds(&[String::new()], &mut Disk), "an empty word is no");
    }
}
