//! Seeded mutations of a corpus: the same ones at every run.

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

/// What an input is made longer with, at the most.
const LONGEST: usize = 1 << 16;
/// Mutations of one input.
const AT_ONCE: usize = 4;
/// What parsers stumble over.
const TOKENS: [&[u8]; 20] = [
    b"9223372036854775807",
    b"-9223372036854775808",
    b"170141183460469231731687303715884105727",
    b"99999999999999999999999999999999999999999999",
    b"0.000000000000000000000000000001",
    b"1e400",
    b"NaN",
    b"-Infinity",
    b"null",
    b"[]",
    b"{}",
    b"\"\"",
    b"\\ud800",
    b"\xef\xbf\xbd",
    b"\xff",
    b"\0",
    b"\n",
    b"-",
    b"\r\n\r\n",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

/// Makes new inputs of old ones.
pub struct Mutator<'a> {
    corpus: &'a [Vec<u8>],
    random: Pcg64Mcg,
}

impl<'a> Mutator<'a> {
    /// Of these inputs.
    pub fn new(corpus: &'a [Vec<u8>]) -> Self {
        Self {
            corpus,
            random: Pcg64Mcg::seed_from_u64(7),
        }
    }

    /// A new input.
    pub fn mutate(&mut self, input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.random.random_range(1..=AT_ONCE) {
            self.change(&mut bytes);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let (from, to) = self.span(bytes.len());
        match self.random.random_range(0..8) {
            0 => {
                if let Some(byte) = bytes.get_mut(from) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
            1 => bytes.truncate(from),
            2 => drop(bytes.drain(from..to)),
            3 => {
                let chunk = bytes[from..to].to_vec();
                bytes.splice(to..to, chunk);
            }
            4 => {
                let other = &self.corpus[self.random.random_range(0..self.corpus.len())];
                let (start, end) = self.span(other.len());
                bytes.splice(from..to, other[start..end].iter().copied());
            }
            5 => {
                let token = TOKENS[self.random.random_range(0..TOKENS.len())];
                bytes.splice(from..from, token.iter().copied());
            }
            6 => {
                // In place of the number, word or sign that stands there.
                let kind = bytes.get(from).map(u8::is_ascii_alphanumeric);
                let alike = bytes[from..]
                    .iter()
                    .take_while(|b| Some(b.is_ascii_alphanumeric()) == kind);
                let end = from + alike.count();
                let token = TOKENS[self.random.random_range(0..TOKENS.len())];
                bytes.splice(from..end, token.iter().copied());
            }
            _ => {
                let mut noise = [0; 4];
                self.random.fill_bytes(&mut noise);
                bytes.splice(from..from, noise);
            }
        }
    }

    /// A part of so many bytes.
    fn span(&mut self, length: usize) -> (usize, usize) {
        let from = self.random.random_range(0..=length);
        (from, self.random.random_range(from..=length.min(from + 64)))
    }
}
