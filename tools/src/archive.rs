//! A tar archive, compressed with gzip, in memory: POSIX.1-1988 headers (ustar) and RFC 1952.

use miniz_oxide::deflate::compress_to_vec;

/// The unit of a tar archive.
const BLOCK_BYTES: usize = 512;
/// How much work compression is, 0 to 10.
const LEVEL: u8 = 6;

/// An archive that is being made.
#[derive(Debug)]
pub struct Archive {
    tar: Vec<u8>,
    unix_s: u64,
}

impl Archive {
    /// An empty one, whose files are of this time.
    pub fn new(unix_s: u64) -> Self {
        Self { tar: Vec::new(), unix_s }
    }

    /// Adds a file. A path that is longer than the 255 bytes that a header has room for loses its beginning.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.tar.extend_from_slice(&header(path, content.len() as u64, self.unix_s));
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(BLOCK_BYTES), 0);
    }

    /// The archive, compressed.
    pub fn finish(mut self) -> Vec<u8> {
        // Its end is two empty blocks.
        self.tar.resize(self.tar.len() + 2 * BLOCK_BYTES, 0);
        // Deflate; no flags, no time, no hint of the method's effort; Unix.
        let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        out.extend(compress_to_vec(&self.tar, LEVEL));
        out.extend(crc32fast::hash(&self.tar).to_le_bytes());
        out.extend((self.tar.len() as u32).to_le_bytes());
        out
    }
}

fn header(path: &str, bytes: u64, unix_s: u64) -> [u8; BLOCK_BYTES] {
    let (prefix, name) = split(path);
    let mut header = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    // Eleven octal digits hold 8 GiB, and a time beyond the year 2200.
    put(124, format!("{:011o}\0", bytes & 0o77_777_777_777).as_bytes());
    put(136, format!("{:011o}\0", unix_s & 0o77_777_777_777).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The path as a prefix of at most 155 and a name of at most 100 bytes, cut at a slash.
fn split(path: &str) -> (&str, &str) {
    if path.len() <= 100 {
        return ("", path);
    }
    let fits = |at: &usize| *at <= 155 && path.len() - at - 1 <= 100;
    if let Some(at) = path.match_indices('/').map(|(at, _)| at).find(fits) {
        return (&path[..at], &path[at + 1..]);
    }
    let from = (path.len() - 100..path.len()).find(|at| path.is_char_boundary(*at));
    ("", from.map_or("", |from| &path[from..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_cut_at_a_slash() {
        let long = format!("{}/{}", "a".repeat(120), "b".repeat(90));
        assert_eq!(split(&long), ("a".repeat(120).as_str(), "b".repeat(90).as_str()));
        assert_eq!(split("a/b"), ("", "a/b"));
        assert_eq!(split(&"c".repeat(300)).1.len(), 100);
    }

    #[test]
    fn a_header_has_its_own_sum() {
        let mut header = header("a/b.txt", 5, 1_795_291_200);
        let said = std::str::from_utf8(&header[148..154]).unwrap().to_owned();
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        assert_eq!(u32::from_str_radix(&said, 8), Ok(sum));
    }
}
