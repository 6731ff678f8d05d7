//! Bytes as a source of choices, so that a mutated input is still a meaningful script.

/// Reads choices from bytes. Past the end everything is zero, so each input is a whole script.
#[derive(Debug)]
pub struct Source<'a> {
    rest: &'a [u8],
}

/// Numbers at which code breaks.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    4095,
    4096,
    1 << 18,
    (1 << 18) - 1,
    u32::MAX as u64,
    1 << 32,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

impl<'a> Source<'a> {
    /// A script of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// Up to so many of the next bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// One of so many, which must not be none.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// A yes about once in `one_in`.
    pub fn rarely(&mut self, one_in: u8) -> bool {
        self.byte() % one_in == one_in - 1
    }

    /// A number: small ones and those at which code breaks come often, all others can come.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            edge @ 0xc0..=0xef => EDGES[usize::from(edge) % EDGES.len()],
            0xf0.. => {
                let mut bytes = [0; 8];
                let taken = self.take(8);
                bytes[..taken.len()].copy_from_slice(taken);
                u64::from_le_bytes(bytes)
            }
            small => u64::from(small),
        }
    }
}
