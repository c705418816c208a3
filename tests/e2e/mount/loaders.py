"""Makes a tiny model as Hugging Face lays one out, or loads one the way serving software does.

`make DIR` and `load DIR COPY`: what is loaded from DIR must be what is in COPY.
"""

import sys
from pathlib import Path

HIDDEN, HEADS, LAYERS, VOCABULARY = 256, 32, 2, 8192
WEIGHTS = "model.safetensors"


def make(at):
    import json

    import numpy
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    random = numpy.random.default_rng(7)

    def tensor(*shape):
        return (random.standard_normal(shape) / 10).astype(numpy.float32)

    at.mkdir()
    tensors = {
        "model.embed_tokens.weight": tensor(VOCABULARY, HIDDEN),
        "model.norm.weight": tensor(HIDDEN),
        "lm_head.weight": tensor(VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        for projection in "qkvo":
            tensors[f"{name}self_attn.{projection}_proj.weight"] = tensor(HIDDEN, HIDDEN)
        tensors[f"{name}mlp.gate_proj.weight"] = tensor(4 * HIDDEN, HIDDEN)
        tensors[f"{name}mlp.up_proj.weight"] = tensor(4 * HIDDEN, HIDDEN)
        tensors[f"{name}mlp.down_proj.weight"] = tensor(HIDDEN, 4 * HIDDEN)
        tensors[f"{name}input_layernorm.weight"] = tensor(HIDDEN)
        tensors[f"{name}post_attention_layernorm.weight"] = tensor(HIDDEN)
    save_file(tensors, at / WEIGHTS, metadata={"format": "pt"})
    # It is for others to read, too.
    (at / WEIGHTS).chmod(0o644)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "torch_dtype": "float32",
    }
    (at / "config.json").write_text(json.dumps(config))
    words = {"<unk>": 0, "larder": 1, "keeps": 2, "weights": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(at / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (at / "tokenizer_config.json").write_text(json.dumps(told))


def load(at, copy):
    import os

    import numpy
    from safetensors import safe_open
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoTokenizer, FlaxAutoModelForCausalLM

    here, there = load_file(at / WEIGHTS), load_file(copy / WEIGHTS)
    assert here.keys() == there.keys()
    with safe_open(at / WEIGHTS, framework="numpy") as opened:
        for key, value in there.items():
            assert numpy.array_equal(here[key], value), f"load_file: {key}"
            assert numpy.array_equal(opened.get_tensor(key), value), f"safe_open: {key}"
            half = len(value) // 2
            assert numpy.array_equal(opened.get_slice(key)[half:], value[half:]), f"a slice of {key}"
    count = len(there)
    assert AutoConfig.from_pretrained(at).num_hidden_layers == LAYERS
    tokens = AutoTokenizer.from_pretrained(at)("larder keeps weights", return_tensors="np")["input_ids"]
    assert tokens.tolist() == [[1, 2, 3]], tokens
    # Flax and not torch: PyPI's torch comes with gigabytes of code for GPUs.
    here, there = (FlaxAutoModelForCausalLM.from_pretrained(of)(tokens).logits for of in (at, copy))
    assert here.shape == (1, 3, VOCABULARY) and numpy.array_equal(here, there)
    print(f"{count} tensors and the model's answer are right, for user {os.getuid()}")


if __name__ == "__main__":
    {"make": make, "load": load}[sys.argv[1]](*map(Path, sys.argv[2:]))
