"""Run a model whose layers share attention (LiSA) with torch and safetensors alone: the reference of exported folders.

A copy of this file lies in every folder that `gramjax convert --to=hf` writes for such a model:

    python lisa_torch.py FOLDER 1 15043 3186        the three likeliest next tokens after these ids

    weights, config = lisa_torch.load(FOLDER)
    logits = lisa_torch.logits(weights, config, tokens)       # tokens: int64 [batch, length], no padding

It is plain and short, not fast: no cache, every score in memory.
"""

import json
import sys
from pathlib import Path
from typing import Any


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights by name (float32) and the values of `config.json`."""
    from safetensors.torch import load_file

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(file))
    return {name: weight.float() for name, weight in weights.items()}, config


def logits(weights: dict[str, Any], config: dict[str, Any], tokens: Any) -> Any:
    """Logits of the next token, [batch, length, vocabulary]."""
    import torch

    lisa, x, shared = config.get("lisa", {"layers": []}), weights["model.embed_tokens.weight"][tokens], None
    length = tokens.shape[1]
    for i in range(config["num_hidden_layers"]):
        layer = {name.removeprefix(f"model.layers.{i}."): w for name, w in weights.items()
                 if name.startswith(f"model.layers.{i}.")}  # fmt: skip
        h = _norm(x, layer["input_layernorm.weight"], config)
        seen = _visible(length, _window(config, i))
        mixed, shared = _attention(layer, config, lisa, h, seen, shared if i in lisa["layers"] else None, i)
        x = x + mixed @ layer["self_attn.o_proj.weight"].T
        h = _norm(x, layer["post_attention_layernorm.weight"], config)
        gate = torch.nn.functional.silu(h @ layer["mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    x = _norm(x, weights["model.norm.weight"], config)
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def _attention(
    layer: dict[str, Any], config: dict[str, Any], lisa: dict[str, Any], h: Any, seen: Any, shared: Any, index: int
) -> tuple[Any, Any]:
    """Mixed values [batch, length, heads * head_dim], and what the next layer may share."""
    import torch

    sharing = index in lisa["layers"]
    if sharing and lisa["shares"] == "keys":
        q = _project(layer, config, h, "q")
        k, v = shared
        probabilities = _softmax(_scores(q, k, config["head_dim"] ** -0.5), seen)
    elif not sharing:
        q, k, v = (_project(layer, config, h, name) for name in "qkv")
        scores = _scores(q, k, config["head_dim"] ** -0.5)
        probabilities = _softmax(scores, seen)
        pre = lisa["layers"] and lisa["share_point"] == "pre"
        shared = (k, v) if lisa["layers"] and lisa["shares"] == "keys" else scores if pre else probabilities
    else:
        v = _project(layer, config, h, "v")
        scores = torch.zeros_like(shared)
        if lisa["align"] != "off":
            scores = _align(layer, lisa, shared)
        if lisa["rank"]:
            width = lisa["rank"] if lisa["delta_scale"] == "rank" else config["head_dim"]
            q, k = (_low(layer, config, lisa, h, name) for name in "qk")
            scores = scores + _scores(q, k, width**-0.5)
        probabilities = _softmax(scores, seen) if lisa["share_point"] == "pre" else _normalised(scores, seen)
        if lisa["source"] == "chain":
            shared = scores if lisa["share_point"] == "pre" else probabilities
    groups = probabilities.shape[1] // v.shape[2]
    mixed = torch.einsum("bhts,bshe->bthe", probabilities, v.repeat_interleave(groups, dim=2))
    return mixed.flatten(2), shared


def _align(layer: dict[str, Any], lisa: dict[str, Any], shared: Any) -> Any:
    import torch

    if lisa["align"] == "none":
        return shared
    scores = shared.permute(0, 2, 3, 1)  # the heads last, as the published text has them
    out = scores @ layer["self_attn.align_in.weight"].T
    if lisa["align"] == "ffn":
        functions = torch.nn.functional
        if lisa["align_bias"]:
            out = out + layer["self_attn.align_in.bias"]
        out = {"relu": functions.relu, "silu": functions.silu, "linear": lambda x: x,
               "gelu": lambda x: functions.gelu(x, approximate="tanh")}[lisa["align_act"]](out)  # fmt: skip
        out = out @ layer["self_attn.align_out.weight"].T
        if lisa["align_bias"]:
            out = out + layer["self_attn.align_out.bias"]
    out = out + scores if lisa["align_residual"] else out
    return out.permute(0, 3, 1, 2)


def _project(layer: dict[str, Any], config: dict[str, Any], h: Any, name: str) -> Any:
    """Queries, keys or values by heads, normed and rotated where they are: [batch, length, heads, head_dim]."""
    x = h @ layer[f"self_attn.{name}_proj.weight"].T
    if f"self_attn.{name}_proj.bias" in layer:
        x = x + layer[f"self_attn.{name}_proj.bias"]
    x = x.unflatten(-1, (-1, config["head_dim"]))
    if f"self_attn.{name}_norm.weight" in layer:
        x = _norm(x, layer[f"self_attn.{name}_norm.weight"], config)
    return x if name == "v" else _rotate(x, config)


def _low(layer: dict[str, Any], config: dict[str, Any], lisa: dict[str, Any], h: Any, name: str) -> Any:
    x = (h @ layer[f"self_attn.{name}_low_proj.weight"].T).unflatten(-1, (-1, lisa["rank"]))
    return _rotate(x, config) if lisa["delta_rope"] else x


def _scores(q: Any, k: Any, factor: float) -> Any:
    import torch

    return torch.einsum("bthe,bshe->bhts", q, k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)) * factor


def _softmax(scores: Any, seen: Any) -> Any:
    import torch

    return torch.softmax(torch.where(seen, scores, -1e30), dim=-1)


def _normalised(weights: Any, seen: Any) -> Any:
    import torch

    weights = torch.where(seen, weights.clamp(min=0), 0.0)
    total = weights.sum(-1, keepdim=True)
    alike = seen / seen.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), alike)


def _norm(x: Any, scale: Any, config: dict[str, Any]) -> Any:
    return x * (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * scale


def _rotate(x: Any, config: dict[str, Any]) -> Any:
    import torch

    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * _frequencies(x.shape[-1], config)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _frequencies(width: int, config: dict[str, Any]) -> Any:
    import torch

    base = 1.0 / config["rope_theta"] ** (torch.arange(0, width, 2) / width)
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        return base / scaling["factor"]
    if scaling["rope_type"] == "default":
        return base
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * base / (2 * torch.pi)
    mix = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - mix) * base / scaling["factor"] + mix * base


def _window(config: dict[str, Any], index: int) -> int:
    kinds = config.get("layer_types")
    if kinds is not None and kinds[index] != "sliding_attention":
        return 0
    return config.get("sliding_window") or 0


def _visible(length: int, window: int) -> Any:
    import torch

    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window if window else True)


def main(folder: str, *words: str) -> None:
    """Print the three likeliest next tokens after some ids."""
    import torch

    ids = torch.tensor([[int(word) for word in words]])
    with torch.no_grad():
        last = logits(*load(folder), ids)[0, -1]
    for value, token in zip(*last.topk(3)):
        print(f"{int(token):>8}  {float(value):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
