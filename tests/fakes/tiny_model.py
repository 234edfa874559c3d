"""A tiny Qwen2 with random weights, made in a moment: the real `mlx_lm server` loads it and answers nonsense.

``python -m tests.fakes.tiny_model DIRECTORY`` makes one by hand.
"""

import json
import sys
from pathlib import Path

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDE = 64, 2, 4, 2, 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(directory: Path) -> Path:
    """Writes the files of a model as a hub has them; needs mlx and tokenizers."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = _tokenizer(directory)
    _weights(directory / "model.safetensors", vocabulary)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": WIDE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _tokenizer(directory: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())


def _weights(path: Path, vocabulary: int) -> None:
    import mlx.core as mx

    mx.random.seed(7)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, wide in (("q", HIDDEN), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (wide, HIDDEN)
            shapes[f"{at}self_attn.{name}_proj.bias"] = (wide,)
        shapes[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (WIDE, HIDDEN)
        shapes[f"{at}mlp.down_proj.weight"] = (HIDDEN, WIDE)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (HIDDEN,)
    weights = {name: mx.random.normal(shape).astype(mx.float16) * 0.1 for name, shape in shapes.items()}
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
