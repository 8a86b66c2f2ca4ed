"""Every family against its PyTorch implementation: projections, layers, the whole model, and cached decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

from gramjax.checkpoint import hf_config, huggingface  # noqa: E402
from gramjax.models import block, decoder, heads, rotary, stack  # noqa: E402

SIZES = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
FAMILIES = {
    "llama2": ("Llama", dict(tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "llama3": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen2_window": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "mistral": ("Mistral", dict(head_dim=8, sliding_window=5)),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request, tmp_path_factory):
    """A tiny random torch model with every weight away from its initial value, and its import."""
    prefix, extra = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **extra}, attn_implementation="eager")
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    ours = hf_config.read_config(folder)
    params = huggingface.load_params(folder, decoder.specs(ours), ours).params
    return model, ours, params


def tokens(rows: int = 2, length: int = 23) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (rows, length))


@functools.partial(jax.jit, static_argnames=("config", "implementation"))
def logits(weights, config, batch, cache=None, implementation="auto"):
    out = decoder.forward(weights, config, batch, cache, attention=implementation)
    return heads.logits(weights, out.hidden), out.cache


def torch_logits(model, ids, mask=None):
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return model(torch.tensor(ids), attention_mask=mask).logits.numpy()


def recorded(model, ids) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Input and output of every module of layer 0 in one torch pass."""
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    hooks = []
    for name, module in model.model.layers[0].named_modules():
        if isinstance(module, torch.nn.Linear) or name.endswith("layernorm") or name.endswith("_norm") or name == "":

            def keep(module, args, kwargs, out, name=name):
                given = args[0] if args else kwargs["hidden_states"]
                out = out[0] if isinstance(out, tuple) else out
                seen[name] = (given.numpy(), out.numpy())

            hooks.append(module.register_forward_hook(keep, with_kwargs=True))
    torch_logits(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


def test_each_projection_and_norm_equals_torch(pair):
    model, config, params = pair
    layer = params["layers"]["000"]
    seen = recorded(model, tokens())
    for name in ("q", "k", "v"):
        given, want = seen[f"self_attn.{name}_proj"]
        got = block.project(jnp.asarray(given), layer["attn"][name])
        got = got + layer["attn"].get(f"{name}_bias", 0.0)
        np.testing.assert_allclose(np.asarray(got).reshape(want.shape), want, atol=1e-5)
    given, want = seen["self_attn.o_proj"]
    heads_split = jnp.asarray(given).reshape(*given.shape[:2], config.num_heads, config.head_dim)
    np.testing.assert_allclose(block.project(heads_split, layer["attn"]["o"], 2), want, atol=1e-5)
    for name in ("gate", "up", "down"):
        given, want = seen[f"mlp.{name}_proj"]
        np.testing.assert_allclose(block.project(jnp.asarray(given), layer["mlp"][name]), want, atol=1e-5)
    for name, ours in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm")):
        given, want = seen[name]
        np.testing.assert_allclose(block.rms_norm(jnp.asarray(given), layer[ours], config.norm_eps), want, atol=1e-5)
    if config.qk_norm:
        given, want = seen["self_attn.q_norm"]
        got = block.rms_norm(jnp.asarray(given), layer["attn"]["q_norm"], config.norm_eps)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_one_layer_equals_torch(pair):
    model, config, params = pair
    given, want = recorded(model, tokens())[""]
    B, T = given.shape[:2]
    segments = jnp.ones((B, T), jnp.int32)
    cos, sin = rotary.angles(
        jnp.broadcast_to(jnp.arange(T), (B, T)),
        rotary.frequencies(config.head_dim, config.rope_theta, config.rope_scaling),
    )
    context = block.Context(cos, sin, segments, segments, None)
    kind = config.layer_kinds()[0]
    carry = block.Carry(jnp.asarray(given))
    got, _ = block.forward(params["layers"]["000"], config, carry, context, None, kind, "xla", lambda x, *axes: x)
    np.testing.assert_allclose(got.x_BTD, want, atol=5e-5)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_logits_equal_torch(pair, implementation):
    model, config, params = pair
    ids = tokens()
    got, _ = logits(params, config, {"tokens": jnp.asarray(ids)}, implementation=implementation)
    np.testing.assert_allclose(got, torch_logits(model, ids), atol=1e-4)


def test_decoding_with_cache_equals_torch(pair):
    """Prefill of two chunks, then one token at a time, beyond the sliding window; scanned runs included."""
    model, config, params = pair
    ids = tokens()
    want = torch_logits(model, ids)
    weights = stack.pack(params, config.layer_kinds(), jnp.float32)
    cache = decoder.init_cache(weights, config, 2, 32)
    got = []
    for start, stop in [(0, 7), (7, 14), *((i, i + 1) for i in range(14, 23))]:
        part, cache = logits(weights, config, {"tokens": jnp.asarray(ids[:, start:stop])}, cache)
        got.append(part)
    np.testing.assert_allclose(np.concatenate(got, axis=1), want, atol=1e-4)


def test_padding_on_either_side_changes_nothing(pair):
    model, config, params = pair
    ids = tokens(1, 11)
    want = torch_logits(model, ids)
    for side in ("left", "right"):
        padded = np.zeros((1, 16), np.int64)
        segments = np.zeros((1, 16), np.int32)
        place = slice(5, 16) if side == "left" else slice(0, 11)
        padded[:, place], segments[:, place] = ids, 1
        batch = {"tokens": jnp.asarray(padded), "segment_ids": jnp.asarray(segments)}
        np.testing.assert_allclose(logits(params, config, batch)[0][:, place], want, atol=1e-4)
