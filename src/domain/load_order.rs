//! In which order a framework opens the files: what it reads first should arrive first.

use std::collections::HashMap;

use super::ModelPath;

/// Index files that name shards in load order, at the root of a model.
pub const INDEX_FILE_NAMES: [&str; 2] = ["model.safetensors.index.json", "pytorch_model.bin.index.json"];

/// Where files that no index names go: small descriptions first, other weights after the shards.
const WEIGHT_SUFFIXES: [&str; 8] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"];

/// Sorts `paths` into load order: first everything that is no weight file, by path; then shards
/// in the order in which the index first names them; then the remaining weight files, by path.
///
/// `index` is the text of an index file, if the model has one; a malformed one counts as none.
/// Returns positions into `paths`.
#[must_use]
pub fn load_order(paths: &[&ModelPath], index: Option<&[u8]>) -> Vec<usize> {
    let shards = index.map(shard_ranks).unwrap_or_default();
    let mut order: Vec<usize> = (0..paths.len()).collect();
    order.sort_by_key(|&at| {
        let path = paths[at].as_str();
        let shard = shards.get(path).copied();
        let group = match shard {
            Some(_) => 1,
            None if WEIGHT_SUFFIXES.iter().any(|suffix| path.ends_with(suffix)) => 2,
            None => 0,
        };
        (group, shard.unwrap_or(0), path)
    });
    order
}

/// File name -> rank of its first mention in `weight_map`. `serde_json` keeps the map's order only
/// through a visitor, hence the hand-written one.
fn shard_ranks(index: &[u8]) -> HashMap<String, usize> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Ranks,
    }
    serde_json::from_slice::<Index>(index).map(|index| index.weight_map.0).unwrap_or_default()
}

struct Ranks(HashMap<String, usize>);

impl<'de> serde::Deserialize<'de> for Ranks {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Ranks;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensor name to file name")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Ranks, A::Error> {
                let mut ranks = HashMap::new();
                while let Some((_tensor, file)) = map.next_entry::<serde::de::IgnoredAny, String>()? {
                    let next = ranks.len();
                    ranks.entry(file).or_insert(next);
                }
                Ok(Ranks(ranks))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(paths: &[&str], index: Option<&str>) -> Vec<String> {
        let paths: Vec<ModelPath> = paths.iter().map(|p| ModelPath::new(p).expect("valid")).collect();
        let refs: Vec<&ModelPath> = paths.iter().collect();
        load_order(&refs, index.map(str::as_bytes)).into_iter().map(|at| paths[at].to_string()).collect()
    }

    #[test]
    fn shards_follow_the_index_not_the_alphabet() {
        let index = r#"{"metadata":{},"weight_map":{"z":"b.safetensors","a":"a.safetensors","y":"b.safetensors"}}"#;
        let files = ["a.safetensors", "b.safetensors", "extra.bin", "tokenizer.json", "config.json"];
        assert_eq!(
            ordered(&files, Some(index)),
            ["config.json", "tokenizer.json", "b.safetensors", "a.safetensors", "extra.bin"]
        );
    }

    #[test]
    fn without_a_usable_index_the_path_decides() {
        let files = ["b.safetensors", "a.safetensors", "config.json"];
        for index in [None, Some("not json"), Some(r#"{"weight_map":[1]}"#)] {
            assert_eq!(ordered(&files, index), ["config.json", "a.safetensors", "b.safetensors"]);
        }
    }
}
