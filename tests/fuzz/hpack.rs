//! A reader of HPACK (RFC 7541) that shares nothing with the daemon's. Huffman-coded strings stay
//! coded, which is all the same where two readings are compared.

use std::collections::VecDeque;

/// Lengths of name and value in the static table (appendix A), from index 1.
#[rustfmt::skip]
const STATIC: [(usize, usize); 61] = [
    (10, 0), (7, 3), (7, 4), (5, 1), (5, 11), (7, 4), (7, 5), (7, 3), (7, 3), (7, 3), (7, 3), (7, 3), (7, 3), (7, 3),
    (14, 0), (15, 13), (15, 0), (13, 0), (6, 0), (27, 0), (3, 0), (5, 0), (13, 0), (13, 0), (19, 0), (16, 0), (16, 0), (14, 0),
    (16, 0), (13, 0), (12, 0), (6, 0), (4, 0), (4, 0), (6, 0), (7, 0), (4, 0), (4, 0), (8, 0), (17, 0), (13, 0), (8, 0),
    (19, 0), (13, 0), (4, 0), (8, 0), (12, 0), (18, 0), (19, 0), (5, 0), (7, 0), (7, 0), (11, 0), (6, 0), (10, 0), (25, 0),
    (17, 0), (10, 0), (4, 0), (3, 0), (16, 0),
];
/// `SETTINGS_HEADER_TABLE_SIZE` unless somebody says otherwise.
const TABLE_LEN: usize = 4096;

/// A name or a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Of this entry of the static table.
    Static(usize),
    /// Whether it is Huffman-coded, and its bytes.
    Literal(bool, Vec<u8>),
}

impl Word {
    fn len(&self, is_name: bool) -> usize {
        match self {
            Self::Static(at) => {
                if is_name {
                    STATIC[at - 1].0
                } else {
                    STATIC[at - 1].1
                }
            }
            Self::Literal(_, bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len(false) == 0
    }

    /// A string that is not coded.
    pub fn plain(text: &str) -> Self {
        Self::Literal(false, text.as_bytes().to_vec())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: Word,
    pub value: Word,
}

impl Field {
    fn len(&self) -> usize {
        self.name.len(true) + self.value.len(false) + 32
    }

    /// Whether it is an `:authority`: by the static table, or spelt out in either way.
    pub fn is_authority(&self) -> bool {
        let coded = Word::Literal(true, b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f".to_vec());
        [Word::Static(1), Word::plain(":authority"), coded].contains(&self.name)
    }
}

/// What a reader remembers from one block to the next.
pub struct Decoder {
    table: VecDeque<Field>,
    len_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), len_max: TABLE_LEN }
    }
}

impl Decoder {
    /// The fields of a block; `None` if it is none.
    pub fn block(&mut self, mut bytes: &[u8]) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        while let Some(&first) = bytes.first() {
            match first {
                0x80.. => fields.push(self.entry(number(&mut bytes, 7)?)?),
                0x40.. => {
                    let field = self.literal(&mut bytes, 6)?;
                    self.table.push_front(field.clone());
                    self.evict();
                    fields.push(field);
                }
                0x20.. => {
                    let len = number(&mut bytes, 5)?;
                    if len > TABLE_LEN || !fields.is_empty() {
                        return None;
                    }
                    self.len_max = len;
                    self.evict();
                }
                _ => fields.push(self.literal(&mut bytes, 4)?),
            }
        }
        Some(fields)
    }

    fn entry(&self, index: usize) -> Option<Field> {
        match index {
            0 => None,
            1..=61 => Some(Field { name: Word::Static(first_of_that_name(index)), value: Word::Static(index) }),
            _ => self.table.get(index - 62).cloned(),
        }
    }

    fn literal(&self, bytes: &mut &[u8], bits: u32) -> Option<Field> {
        let name = match number(bytes, bits)? {
            0 => string(bytes)?,
            index => self.entry(index)?.name,
        };
        Some(Field { name, value: string(bytes)? })
    }

    fn evict(&mut self) {
        while self.table.iter().map(Field::len).sum::<usize>() > self.len_max {
            self.table.pop_back();
        }
    }
}

/// `:method`, `:path`, `:scheme` and `:status` stand in the table several times.
fn first_of_that_name(index: usize) -> usize {
    match index {
        3 => 2,
        5 => 4,
        7 => 6,
        9..=14 => 8,
        index => index,
    }
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn number(bytes: &mut &[u8], bits: u32) -> Option<usize> {
    let full = (1_usize << bits) - 1;
    let mut number = usize::from(byte(bytes)?) & full;
    if number < full {
        return Some(number);
    }
    for shift in [0, 7, 14, 21] {
        let next = byte(bytes)?;
        number += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn string(bytes: &mut &[u8]) -> Option<Word> {
    let is_coded = bytes.first()? & 0x80 != 0;
    let len = number(bytes, 7)?;
    let (text, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(Word::Literal(is_coded, text.to_vec()))
}
