//! Makes inputs of inputs.

/// `SplitMix64`: the same inputs for the same seed.
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub const fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// What lengths and counts are wrong with.
const NUMBERS: [u64; 20] = [
    0,
    1,
    7,
    16,
    63,
    127,
    128,
    255,
    256,
    1024,
    4096,
    16_383,
    16_384,
    65_535,
    65_536,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    u64::MAX,
];
/// What texts are wrong with.
const TEXTS: [&str; 24] = [
    "\0",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "/",
    "//",
    "..",
    "/../",
    "%2f",
    "%00",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "\u{e9}",
    "\u{202e}",
    "\u{1F600}",
];
/// One thing many times: depth, length, count.
const REPEATS_MAX: usize = 4096;

pub struct Mutator<'a> {
    pub random: &'a mut Random,
    pub corpus: &'a [Vec<u8>],
    pub words: &'a [&'a str],
    pub len_max: usize,
}

impl Mutator<'_> {
    /// One of the corpus, changed in some ways.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input = self.random.of(self.corpus).clone();
        let changes = 1 << self.random.below(4);
        for _ in 0..changes {
            self.change(&mut input);
        }
        input.truncate(self.len_max);
        input
    }

    /// A range of an input, most often a short one.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.random.below(len + 1);
        let most = if self.random.below(4) == 0 { len - start } else { (len - start).min(8) };
        start..start + self.random.below(most + 1)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let len = input.len();
        match self.random.below(14) {
            0 if len > 0 => input[self.random.below(len)] ^= 1 << self.random.below(8),
            1 if len > 0 => input[self.random.below(len)] = self.random.next() as u8,
            2 => drop(input.drain(self.range(len))),
            3 => input.truncate(self.random.below(len + 1)),
            4 => {
                let copied = input[self.range(len)].to_vec();
                self.insert(input, &copied);
            }
            5 => {
                let bytes: Vec<u8> = (0..=self.random.below(8)).map(|_| self.random.next() as u8).collect();
                self.insert(input, &bytes);
            }
            6 => {
                let other = self.random.of(self.corpus);
                let part = other[self.range(other.len())].to_vec();
                self.insert(input, &part);
            }
            7 => {
                // The head of one and the tail of another.
                let other = self.random.of(self.corpus);
                input.truncate(self.random.below(len + 1));
                input.extend_from_slice(&other[self.random.below(other.len() + 1)..]);
            }
            8 => self.number(input),
            9 | 10 => {
                let word = self.word();
                self.insert(input, word.as_bytes());
            }
            11 => {
                let word = self.word();
                let at = self.range(len);
                input.splice(at, word.into_bytes());
            }
            12 => {
                let mut repeated =
                    if self.random.below(2) == 0 { self.word().into_bytes() } else { input[self.range(len)].to_vec() };
                repeated = repeated.repeat(1 + self.random.below(REPEATS_MAX));
                repeated.truncate(self.len_max);
                self.insert(input, &repeated);
            }
            _ => self.bytes_of_a_number(input),
        }
    }

    fn insert(&mut self, input: &mut Vec<u8>, bytes: &[u8]) {
        let at = self.random.below(input.len() + 1);
        input.splice(at..at, bytes.iter().copied());
        input.truncate(self.len_max);
    }

    fn word(&mut self) -> String {
        match self.random.below(4) {
            0 => (*self.random.of(&TEXTS)).to_owned(),
            1 => self.random.of(&NUMBERS).to_string(),
            _ if self.words.is_empty() => (*self.random.of(&TEXTS)).to_owned(),
            _ => (*self.random.of(self.words)).to_owned(),
        }
    }

    /// Puts another number where digits are.
    fn number(&mut self, input: &mut Vec<u8>) {
        let is_digit = |at: &usize| input[*at].is_ascii_digit();
        let digits: Vec<usize> = (0..input.len()).filter(is_digit).collect();
        if digits.is_empty() {
            return;
        }
        let start = *self.random.of(&digits);
        let end = start + input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = self.random.of(&NUMBERS).to_string();
        input.splice(start..end, number.into_bytes());
    }

    /// Writes a number over bytes, of some width in some order.
    fn bytes_of_a_number(&mut self, input: &mut [u8]) {
        let width = 1 << self.random.below(4);
        if input.len() < width {
            return;
        }
        let at = self.random.below(input.len() - width + 1);
        let number = *self.random.of(&NUMBERS);
        let bytes =
            if self.random.below(2) == 0 { number.to_le_bytes() } else { (number << (64 - 8 * width)).to_be_bytes() };
        input[at..at + width].copy_from_slice(&bytes[..width]);
    }
}
