"""`config.json` of Hugging Face folders: in the forms of transformers 4 and 5; what is written both read right."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.checkpoint import json_file, tables
from gramjax.core.config import section
from gramjax.core.errors import DataError, UserError
from gramjax.models import rotary
from gramjax.models.decoder import FAMILIES, Config, check
from gramjax.models.lisa import LisaSection

SLIDING, FULL = "sliding_attention", "full_attention"

SHARING = "gramjax_lisa"
"""`model_type` of a folder whose layers share attention: transformers has no such class and must not take it for the
family that it was made of, which stands in `base_model_type`. The settings are in `lisa`."""

KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
"""What transformers takes for `num_key_value_heads` when the key is absent (llama: as many as heads)."""

REFUSED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "hidden_act": (None, "silu", "swish"),
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
}
"""Settings that change the network, and the values that the decoder has; any other value is refused by name."""


def read_config(folder: str | Path) -> Config:
    """The decoder config of a Hugging Face folder.

    Raises UserError for a model type, activation, rope type or other setting that the decoder does not have, and
    DataError for missing or unusable fields; each names the file and the field.
    """
    path = Path(folder) / "config.json"
    return from_hf(json_file.read(path, lambda: UserError(f"{folder}: no config.json there")), str(path))


def from_hf(values: Mapping[str, Any], where: str) -> Config:
    """The decoder config of the values of a `config.json`; `where` names the file in messages."""
    family, sharing = values.get("model_type"), LisaSection()
    if family == SHARING:
        family, sharing = values.get("base_model_type"), section(_lisa(values, where), LisaSection, "model.arch.lisa")
    if family not in FAMILIES:
        raise UserError(f"{where}: model_type {family!r} is not supported (there are: {', '.join(FAMILIES)})")
    for name, known in REFUSED.items():
        if values.get(name) not in known:
            raise UserError(f"{where}: {name} is {_short(values[name])}, which the {family} decoder here does not have")
    num_heads = _integer(values, "num_attention_heads", where)
    hidden_size = _integer(values, "hidden_size", where)
    num_layers = _integer(values, "num_hidden_layers", where)
    head_dim = _integer(values, "head_dim", where, 128 if family == "qwen3" else hidden_size // max(num_heads, 1))
    theta, scaling = _rope(values, where)
    window, full_layers = _window(values, family, num_layers, where)
    config = Config(
        family=family,
        vocab_size=_integer(values, "vocab_size", where),
        hidden_size=hidden_size,
        intermediate_size=_integer(values, "intermediate_size", where),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_integer(values, "num_key_value_heads", where, _kv_heads(values, family, num_heads)),
        head_dim=head_dim,
        max_position_embeddings=_integer(values, "max_position_embeddings", where, 2048),
        norm_eps=_number(values, "rms_norm_eps", where, 1e-6),
        tie_word_embeddings=_switch(values, "tie_word_embeddings", where),  # False in all four families
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=window,
        full_layers=full_layers,
        rope_theta=theta,
        rope_scaling=scaling,
        heads=("tokens",) if sharing.layers else (_head(values, family, where),),
        init_scale=_number(values, "initializer_range", where, 0.02),
        lisa=sharing,
    )
    try:
        check(config)
    except UserError as error:
        raise DataError(f"{where}: {error}") from None
    return config


def _lisa(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    given = values.get("lisa")
    if not isinstance(given, Mapping) or not given.get("layers"):
        raise DataError(f"{where}: model_type {SHARING} without the layers that share attention (lisa.layers)")
    return given


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _integer(values: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = values.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise DataError(f"{where}: {name} is {_short(value)}; expected a positive whole number")
    return value


def _switch(values: Mapping[str, Any], name: str, where: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{where}: {name} is {_short(value)}; expected true or false")
    return bool(value)


def _number(values: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    value = values.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value <= 0:
        raise DataError(f"{where}: {name} is {_short(value)}; expected a positive number")
    return float(value)


def _kv_heads(values: Mapping[str, Any], family: str, num_heads: int) -> int:
    # An explicit null means "as many as heads" everywhere; an absent key means the default of the class.
    return num_heads if "num_key_value_heads" in values else KV_HEADS.get(family, num_heads)


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, rotary.Scaling]:
    """Base and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
    new, old = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    for given in (new, old):
        if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
            raise UserError(f"{where}: rotary settings per kind of layer are not supported ({_short(given)})")
    kinds = [given.get("rope_type", given.get("type", "default")) for given in (new, old) if given]
    thetas = [source["rope_theta"] for source in (new, old, values) if source.get("rope_theta") is not None]
    if not all(isinstance(kind, str | None) for kind in kinds) or any(isinstance(t, list | Mapping) for t in thetas):
        raise DataError(f"{where}: the rotary settings {_short(new or old)} are of a wrong type")
    if len(set(kinds)) > 1 or len(set(thetas)) > 1:
        raise DataError(
            f"{where}: rope_parameters, rope_scaling and rope_theta contradict each other ({_short(new)}, "
            f"{_short(old)}, {values.get('rope_theta')}); readers would disagree, correct one"
        )
    given = new or old
    theta = _number({"rope_theta": thetas[0] if thetas else None}, "rope_theta", where, 10000.0)
    if given.get("partial_rotary_factor") not in (None, 1.0):
        raise UserError(f"{where}: partial_rotary_factor is {given['partial_rotary_factor']}; here whole heads rotate")
    kind = kinds[0] if kinds else "default"
    if kind in ("default", None):
        return theta, rotary.Scaling()
    if kind == "linear":
        return theta, rotary.Scaling("linear", _number(given, "factor", where))
    if kind != "llama3":
        raise UserError(f"{where}: rope type {kind!r} is not supported (there are: default, linear, llama3)")
    trained = values.get("max_position_embeddings")  # what transformers takes in its place
    length = _integer(given, "original_max_position_embeddings", where, trained)
    factor, low, high = (_number(given, name, where) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return theta, rotary.Scaling("llama3", factor, low, high, length)


def _window(values: Mapping[str, Any], family: str, num_layers: int, where: str) -> tuple[int, tuple[int, ...]]:
    """The sliding window (0: none) and the layers that ignore it."""
    if family == "llama":
        return 0, ()
    if family != "mistral" and not values.get("use_sliding_window", False):
        return 0, ()
    if values.get("sliding_window", 4096) is None:  # an absent key is 4096 in transformers
        return 0, ()
    window = _integer(values, "sliding_window", where, 4096)
    kinds = values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers or set(kinds) - {SLIDING, FULL}:
            raise DataError(f"{where}: layer_types {_short(kinds)} must name {SLIDING} or {FULL} {num_layers} times")
        full = tuple(i for i, kind in enumerate(kinds) if kind == FULL)
        if family == "mistral" and full and len(full) < num_layers:
            raise UserError(f"{where}: transformers ignores layer_types of a mistral folder; use qwen2 or qwen3")
    elif family == "mistral":
        full = ()
    else:
        first = values.get("max_window_layers", 28)  # 0 is a good value: every layer has the window
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise DataError(f"{where}: max_window_layers is {_short(first)}; expected a whole number, 0 or more")
        full = tuple(range(min(first, num_layers)))
    return (0, ()) if len(full) == num_layers else (window, full)


def _head(values: Mapping[str, Any], family: str, where: str) -> str:
    names = values.get("architectures") or [tables.CLASSES[family] + "ForCausalLM"]
    known = {tables.CLASSES[family] + ending: head for head, ending in tables.ARCHITECTURES.items()}
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str) or names[0] not in known:
        raise UserError(f"{where}: architectures {_short(names)} is not supported (there are: {', '.join(known)})")
    head = known[names[0]]
    labels = values.get("id2label")
    count = values.get("num_labels", len(labels) if isinstance(labels, Mapping) else 1)
    if head != "tokens" and count != 1:
        raise UserError(f"{where}: {names[0]} with {count} labels; a reward model has one (num_labels 1)")
    return head


def check_vocab(config: Config, tokenizer_size: int, pad: bool = False) -> Config:
    """The config, with more embedding rows where `pad` allows it; raises UserError when the tokenizer has too many ids.

    More rows than ids is common (rows padded to a round number) and fine.
    """
    if tokenizer_size <= config.vocab_size:
        return config
    if not pad:
        raise UserError(
            f"the tokenizer has {tokenizer_size} ids and the model {config.vocab_size} embedding rows: "
            "is it the tokenizer of this model? To add rows for the new ids, ask for padding (pad_vocab)"
        )
    return dataclasses.replace(config, vocab_size=tokenizer_size)


def exported_head(config: Config, head: str = "") -> str:
    """The head that a folder is written with: the given one, or the only one. Raises UserError for a choice to make."""
    asked = (head,) if head else config.heads
    if not set(asked) & set(tables.ARCHITECTURES):
        raise UserError(
            f"transformers has no class for the head {asked[0]!r}, so it is not exported; what it says of rows can be: "
            "gramjax annotate --config=embed_preferences (vectors) or --config=predict_margins (a column)"
        )
    if not head and len(config.heads) > 1:
        raise UserError(f"the model has the heads {', '.join(config.heads)}; a Hugging Face folder has one: choose it")
    head = head or config.heads[0]
    if head not in config.heads:
        raise UserError(f"the model has no {head} head to export (it has: {', '.join(config.heads)})")
    if head == "score" and config.score_hidden:
        raise UserError("transformers has no class for a reward head with a hidden layer "
                        "(config.model.arch.score_hidden): it is not exported")  # fmt: skip
    return head


def to_hf(config: Config, head: str, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `config.json` that transformers 4 and 5 both read right.

    `token_ids` gives `pad_token_id`, `bos_token_id`, `eos_token_id`. Raises UserError for a config that its family
    cannot express.
    """
    check(config)
    family = config.family
    for switch, needed, is_set in (
        ("attention_bias", family == "qwen2", config.attention_bias),
        ("qk_norm", family == "qwen3", config.qk_norm),
    ):
        if needed != is_set:
            raise UserError(f"a {family} folder has {switch} {needed}, the model {is_set}: choose another model family")
    if config.sliding_window and (family == "llama" or (family == "mistral" and config.full_layers)):
        raise UserError(f"a {family} folder cannot say which layers have a sliding window; use qwen2 or qwen3")
    values: dict[str, Any] = {
        **_class(config, head),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_scale,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_dropout": 0.0,
        "use_cache": True,
        **{name: token_ids.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        # Version 5 reads `dtype`, 4 and several servers `torch_dtype`.
        "dtype": dtype,
        "torch_dtype": dtype,
        **_rope_to_hf(config),
        **_window_to_hf(config),
    }
    if family in ("llama", "qwen3"):
        values["attention_bias"] = False
    if family == "llama":
        values["mlp_bias"] = False
    if head != "tokens":
        values.update(num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, problem_type="regression")
    return values


def _class(config: Config, head: str) -> dict[str, Any]:
    ending = tables.ARCHITECTURES[head]
    if not config.lisa.layers:
        return {"architectures": [tables.CLASSES[config.family] + ending], "model_type": config.family}
    if head != "tokens":
        raise UserError(f"a folder with shared attention (lisa) is written with the head tokens, not {head}")
    return {
        "architectures": ["Lisa" + ending],
        "model_type": SHARING,
        "base_model_type": config.family,
        "lisa": {**dataclasses.asdict(config.lisa), "layers": list(config.lisa.layers)},
    }


def _rope_to_hf(config: Config) -> dict[str, Any]:
    # Version 4 ignores `rope_parameters` and would take 10000 for a base without a word: write both forms.
    scaling = config.rope_scaling
    out: dict[str, Any] = {"rope_type": "default"}
    if scaling.kind != "none":
        out = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        out.update(
            low_freq_factor=scaling.low_freq_factor,
            high_freq_factor=scaling.high_freq_factor,
            original_max_position_embeddings=scaling.original_max_position_embeddings,
        )
    return {
        "rope_parameters": {"rope_theta": config.rope_theta, **out},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling.kind == "none" else out,
    }


def _window_to_hf(config: Config) -> dict[str, Any]:
    if config.family == "llama":
        return {}
    if config.family == "mistral":
        return {"sliding_window": config.sliding_window or None}
    kinds = [SLIDING if kind.startswith("window") else FULL for kind in config.layer_kinds()]
    first = kinds.index(SLIDING) if SLIDING in kinds else config.num_layers
    return {
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": first,
        "layer_types": kinds,
    }
