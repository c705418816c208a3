//! Things to pull: bytes that look random and are the same every time, and a small model.

use std::collections::BTreeMap;

use serde_json::json;

/// Random-looking bytes from a seed (xorshift64*): they neither compress nor repeat.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    #[must_use]
    pub fn bytes(mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// A file in the safetensors format: length, JSON header, tensors.
#[must_use]
pub fn safetensors(name: &str, seed: u64, len: usize) -> Vec<u8> {
    let data = Noise::new(seed).bytes(len / 2 * 2);
    let header =
        json!({ name: {"dtype": "BF16", "shape": [data.len() / 2], "data_offsets": [0, data.len()]} }).to_string();
    // The header is padded with spaces so that tensors start at a multiple of eight.
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut file = (padded.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(padded.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// A sharded model as Hugging Face lays one out.
#[derive(Debug, Clone)]
pub struct SampleModel {
    /// Path within the model and bytes.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl SampleModel {
    /// `shards` files of `shard_len` bytes, an index, and what lies around weights.
    #[must_use]
    pub fn new(seed: u64, shards: usize, shard_len: usize) -> Self {
        let mut files = BTreeMap::new();
        let mut weights = BTreeMap::new();
        for shard in 1..=shards {
            let name = format!("model-{shard:05}-of-{shards:05}.safetensors");
            let tensor = format!("model.layers.{shard}.mlp.weight");
            files.insert(name.clone(), safetensors(&tensor, seed * 1000 + shard as u64, shard_len));
            weights.insert(tensor, name);
        }
        let index = json!({"metadata": {"total_size": shards * shard_len}, "weight_map": weights});
        files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
        files.insert(
            "config.json".into(),
            br#"{"architectures":["SampleForCausalLM"],"torch_dtype":"bfloat16"}"#.to_vec(),
        );
        files.insert("tokenizer.json".into(), Noise::new(seed + 7).bytes(200_000));
        files.insert("special_tokens_map.json".into(), b"{}".to_vec());
        files.insert("original/params.json".into(), br#"{"dim":4096}"#.to_vec());
        files.insert(".gitattributes".into(), Vec::new());
        Self { files }
    }

    /// Bytes of all files.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}
