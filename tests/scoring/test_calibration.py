"""Layers fitted to what the original has: exact where they can be, sums of the definition, and padding counts not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gramjax.core import attention_similarity as similar
from gramjax.core import spec
from gramjax.core.errors import DataError, UserError
from gramjax.data import tokenizer
from gramjax.models import decoder, lisa, model, stack
from gramjax.scoring import calibration

CONFIG = decoder.Config(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=4,
    init_scale=0.6,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 64, (24, 14)).astype(np.int32)
SEGMENTS = np.ones_like(TOKENS)
SEGMENTS[1, :6] = 0
HANDLE = model.Model(decoder, CONFIG)
ORDER = np.array([3, 2, 1, 0])


def params_of(permuted=False):
    """Random weights; `permuted`: layer 1 passes its input on, and layer 2 has its heads in another order."""
    params = spec.init_params(decoder.specs(CONFIG), jax.random.key(0))
    if not permuted:
        return params
    first, second = params["layers"]["001"], params["layers"]["002"]
    first["attn"]["o"], first["mlp"]["down"] = (jnp.zeros_like(x) for x in (first["attn"]["o"], first["mlp"]["down"]))
    second["attn"] |= {"q": first["attn"]["q"][:, ORDER], "k": first["attn"]["k"][:, ::-1]}
    return params


def batches(segments=SEGMENTS):
    return [{"tokens": TOKENS[i : i + 12], "segment_ids": segments[i : i + 12]} for i in (0, 12)]


def observed(params, config=CONFIG):
    """Scores, visible keys and inputs of every layer."""
    weights = stack.pack(params, config.layer_kinds(), jnp.float32)
    watch = stack.Observer(lambda seen, memory: (memory, (seen.scores_BHTS, seen.visible_BTS, seen.hidden_BTD)))
    batch = {"tokens": TOKENS, "segment_ids": SEGMENTS}
    return jax.jit(lambda w: decoder.forward(w, config, batch, observer=watch).observed)(weights)


def fitted(params, together=True, text=None, ridge=1e-7, **settings):
    section = lisa.LisaSection(settings.pop("layers", (2,)), **settings)
    return section, calibration.calibrate(
        HANDLE, HANDLE.pack(params), text or batches(), section, ridge, (1.0, 1.0), together
    )


def converted(params, section, found):
    mixing, pairs = (
        {layer: jax.tree.map(jnp.asarray, x) for layer, x in part.items()} for part in (found.mixing, found.low_rank)
    )
    return lisa.convert(params, CONFIG, section, jax.random.key(1), "calibrated", mixing, pairs)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 0, "align": "linear", "share_point": "post"}])
def test_a_layer_with_permuted_heads_stays_the_same_model(settings):
    params = params_of(permuted=True)
    section, found = fitted(params, **settings)
    np.testing.assert_array_equal(np.argmax(found.mixing[2], axis=1), ORDER)
    assert found.unexplained[2] < 1e-6
    new, config = converted(params, section, found)
    batch = {"tokens": TOKENS, "segment_ids": SEGMENTS}
    forward = jax.jit(lambda p, c: decoder.forward(p, c, batch).hidden, static_argnums=1)
    want, got = forward(params, CONFIG), forward(new, config)
    np.testing.assert_allclose(np.where(SEGMENTS[..., None], got - want, 0), 0, atol=2e-3)
    shared, _ = lisa.convert(params, CONFIG, dataclasses.replace(section, align="ffn"), jax.random.key(1))
    other = dataclasses.replace(config, lisa=dataclasses.replace(section, align="ffn"))
    assert np.abs(np.where(SEGMENTS[..., None], forward(shared, other) - want, 0)).max() > 0.1


@pytest.mark.parametrize("source", ["chain", "anchor"])
def test_maps_of_a_chain_are_ridges_on_what_is_handed_on(source):
    """Layers 2 and 3 share: 2 is fitted to 1, and 3 to what 2 makes of 1 (chain), or to 1 itself (anchor)."""
    params = params_of()
    _, found = fitted(params, layers=(2, 3), rank=0, source=source)
    scores, visible, _ = observed(params)
    use = np.asarray(visible[1])[:, None] & (SEGMENTS != 0)[:, None, :, None]
    s = [np.asarray(similar.centred(scores[i], visible[i]), np.float64) for i in range(4)]
    row = np.maximum(np.sum(np.asarray(visible[1]), axis=-1), 1)[:, None, :, None]  # every row weighs the same
    flat = [np.where(use, x / np.sqrt(row), 0).transpose(1, 0, 2, 3).reshape(4, -1) for x in s]

    def ridge(y, x):
        return y @ x.T @ np.linalg.inv(x @ x.T)

    np.testing.assert_allclose(found.mixing[2], ridge(flat[2], flat[1]), atol=2e-3)
    handed = flat[1] if source == "anchor" else found.mixing[2] @ flat[1]
    got, best = found.mixing[3] @ handed, ridge(flat[3], handed) if source == "anchor" else None
    if best is not None:
        np.testing.assert_allclose(found.mixing[3], best, atol=2e-3)
    left = np.mean(np.sum((flat[3] - got) ** 2, axis=1) / np.sum(flat[3] ** 2, axis=1))
    np.testing.assert_allclose(found.unexplained[3], left, rtol=1e-3)
    _, apart = fitted(params, together=False, layers=(2, 3), rank=0)
    np.testing.assert_allclose(apart.mixing[3], ridge(flat[3], flat[2]), atol=2e-3)


def test_the_low_rank_pair_brings_the_scores_nearer():
    """Of the first layer that shares, whose input is the original's, against the map of heads alone."""
    params = params_of()
    scores, visible, _ = observed(params)
    use = np.asarray(visible[2])[:, None] & (SEGMENTS != 0)[:, None, :, None]
    section, found = fitted(params, rank=4, delta_rope=False, delta_kv_heads="kv")
    assert set(found.low_rank) == {2}
    squares = [np.where(use, similar.centred(scores[2], visible[2]), 0) ** 2]
    made, _, _ = observed(*converted(params, section, found))
    squares.append(np.where(use, similar.centred(made[2] - scores[2], visible[2]), 0) ** 2)
    whole, left = (x.sum(axis=(0, 2, 3)) for x in squares)
    assert np.mean(left / whole) < 0.75 * found.unexplained[2] <= 0.75


def test_padding_and_the_cut_into_batches_change_nothing():
    params = params_of()
    _, want = fitted(params, rank=0)
    spread = []
    for i in range(0, 24, 4):  # fewer texts a batch, with more padding on both sides and other tokens there
        room = ((0, 0), (2, 1))
        spread.append({"tokens": np.pad(TOKENS[i : i + 4], room, constant_values=7 + i),
                       "segment_ids": np.pad(SEGMENTS[i : i + 4], room)})  # fmt: skip
    _, got = fitted(params, text=spread, rank=0)
    np.testing.assert_allclose(got.mixing[2], want.mixing[2], atol=1e-3)


def test_a_rotated_pair_is_no_worse_than_none_and_starts_in_slow_channels():
    params = params_of()
    scores, visible, _ = observed(params)
    errors = []
    for rank in (0, 4):
        section, found = fitted(params, rank=rank)
        made, _, _ = observed(*converted(params, section, found))
        gap = similar.centred(made[2] - scores[2], visible[2])
        use = (SEGMENTS != 0)[:, None, :, None]
        keys = np.maximum(np.sum(visible[2], axis=-1), 1)[:, None, :, None]
        errors.append(float(np.sum(np.where(use, gap**2 / keys, 0))))
    assert errors[1] < errors[0]
    pair = similar.LowRank(*(np.arange(6.0)[None, None] for _ in range(2)))
    np.testing.assert_array_equal(calibration.slow_first(pair).query[0, 0], [4, 2, 0, 5, 3, 1])


def test_nothing_to_fit_is_said(tmp_path):
    tokenizer.load("bytes").save(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "one two three"}) + "\n")
    arguments = (str(tmp_path / "rows.jsonl"), str(tmp_path / "tokenizer"), 4)
    with pytest.raises(UserError, match="nothing to fit"):
        calibration.from_file({}, CONFIG, lisa.LisaSection((2,), shares="keys"), *arguments)
    with pytest.raises(DataError, match="no text"):
        calibration.calibrate(HANDLE, {}, [], lisa.LisaSection((2,), rank=0))
    shared = dataclasses.replace(CONFIG, lisa=lisa.LisaSection((1,), rank=2))
    with pytest.raises(UserError, match="original"):
        calibration.calibrate(model.Model(decoder, shared), {}, batches(), lisa.LisaSection((2,)))


def test_rows_of_a_file_are_cut_not_dropped(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "abc " * n}) + "\n" for n in (2, 50, 3)))
    (batch,) = calibration.read(str(tmp_path / "rows.jsonl"), 2, tokenizer.load("bytes"), 20)
    assert batch["counted"].sum(axis=1).tolist()[:2] != [0, 0]
    assert (
        sorted(batch["counted"].sum(axis=1).tolist())[-1] == 20 and int((batch["counted"].sum(axis=1) > 0).sum()) == 2
    )
