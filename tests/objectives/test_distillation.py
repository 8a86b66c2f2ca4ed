"""Teaching layers that share attention: every term by its definition, what learns, and that both ways learn."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gramjax import cli
from gramjax.checkpoint import huggingface
from gramjax.checkpoint.source import open_source
from gramjax.core import spec, tree
from gramjax.core.config import OptimSection
from gramjax.core.errors import UserError
from gramjax.data import tokenizer
from gramjax.models import decoder, heads, lisa, model, stack
from gramjax.objectives import distillation
from gramjax.training import optimizer

PLAIN = decoder.Config(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4,
    init_scale=0.5,
)  # fmt: skip
LAYERS = (1, 2)
NEW = (r"layers/\d+/attn/(align_(in|out)(_bias)?|[qk]_low)",)
TOKENS = np.random.default_rng(0).integers(0, 48, (3, 10)).astype(np.int32)


def batch():
    segments, mask = np.ones_like(TOKENS), np.ones(TOKENS.shape, np.float32)
    segments[0, 7:], mask[0, 6:], mask[1, :3], mask[:, -1] = 0, 0, 0, 0
    positions = np.tile(np.arange(10, dtype=np.int32), (3, 1))
    return {"tokens": TOKENS, "labels": np.roll(TOKENS, -1, axis=1), "loss_mask": mask, "segment_ids": segments,
            "positions": positions}  # fmt: skip


def pair(**settings):
    """The original, and what it becomes: (handle, weights at rest, those of the original)."""
    params = spec.init_params(decoder.specs(PLAIN), jax.random.key(0))
    section = lisa.LisaSection(LAYERS, **{"rank": 4, **settings})
    student, config = lisa.convert(params, PLAIN, section, jax.random.key(1))
    noise = lambda path, x: x + 0.1 * jax.random.normal(jax.random.key(len(path)), x.shape) if "_low" in path else x  # noqa: E731
    student = tree.unflatten({path: noise(path, x) for path, x in tree.flatten(student).items()})
    return model.Model(decoder, config), student, params


def seen(handle, params):
    """Scores, visible keys, and states as they are read, of every layer, and the last states."""
    watch = stack.Observer(lambda s, m: (m, (s.scores_BHTS, s.visible_BTS, s.hidden_BTD)))
    out = jax.jit(lambda p: handle.forward(handle.pack(p), batch(), observer=watch))(params)
    return [np.asarray(x, np.float64) for x in (*out.observed, out.hidden)]


def softmax(x, visible=None):
    x = np.where(visible, x, -np.inf) if visible is not None else x
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def every_term(handle, student, params, temperature):
    """The terms by their definitions, sums over scored tokens, in float64."""
    teacher = model.Model(decoder, PLAIN)
    ours, theirs = seen(handle, student), seen(teacher, params)
    mask, out = batch()["loss_mask"], {}
    logits = [hidden @ np.asarray(p["embed"], np.float64).T for hidden, p in ((ours[3], student), (theirs[3], params))]
    picked = np.take_along_axis(softmax(logits[0]), batch()["labels"][..., None], -1)[..., 0]
    out["lm"] = -np.sum(mask * np.log(picked))
    p, q = (softmax(x / temperature) for x in logits)
    out["kl_logits"] = temperature**2 * np.sum(mask * np.sum(q * np.log(q / p), axis=-1))
    js = mse = states = 0.0
    for layer in LAYERS:
        visible = ours[1][layer].astype(bool)[:, None]
        a, b = (softmax(x[0][layer], visible) for x in (ours, theirs))
        middle = np.where(visible, (a + b) / 2, 1)
        part = lambda x, m=middle: np.sum(np.where(x > 0, x * np.log(np.where(x > 0, x, 1) / m), 0), -1)  # noqa: E731
        js += np.sum(mask * np.mean(part(a) + part(b), axis=1) / 2)
        gap = np.where(visible, ours[0][layer] - theirs[0][layer], np.nan)
        gap = gap - np.nanmean(gap, axis=-1, keepdims=True)
        mse += np.sum(mask * np.nanmean(gap**2, axis=(1, 3)))
        behind = [x[2][layer + 1] if layer + 1 < PLAIN.num_layers else x[3] for x in (ours, theirs)]
        states += np.sum(mask * np.mean((behind[0] - behind[1]) ** 2, axis=-1))
    return out | {"js_attn": js / 2, "mse_score": mse / 2, "mse_hidden": states / 2}


def test_each_term_is_its_definition():
    handle, student, params = pair()
    teacher = model.Model(decoder, PLAIN)
    factors = {"lm": 1.0, "kl_logits": 0.5, "js_attn": 2.0, "mse_score": 0.25, "mse_hidden": 3.0}
    config = distillation.resolve(distillation.Config(**factors, temperature=2.0), None)
    (total, tokens), found = jax.jit(
        lambda s, p: distillation.loss(handle, handle.pack(s), batch(), config, teacher.pack(p))
    )(student, params)
    want = every_term(handle, student, params, 2.0)
    assert tokens == batch()["loss_mask"].sum() and set(found) == set(factors)
    for name in factors:
        np.testing.assert_allclose(found[name][0], want[name], rtol=2e-4, err_msg=name)
        assert want[name] > 1e-3, name
    np.testing.assert_allclose(total, sum(factors[name] * found[name][0] for name in factors), rtol=1e-5)


def test_a_perfect_student_has_nothing_to_learn_from_the_reference():
    """Layers that copy what they were: every term but that of the texts is 0."""
    params = spec.init_params(decoder.specs(PLAIN), jax.random.key(0))
    section = lisa.LisaSection(LAYERS, rank=4, align="linear")
    student, arch = lisa.convert(params, PLAIN, section, jax.random.key(1), "copy")
    handle, teacher = model.Model(decoder, arch), model.Model(decoder, PLAIN)
    config = distillation.Config(lm=0.0, js_attn=1.0, mse_score=1.0, kl_logits=1.0, mse_hidden=1.0)
    loss = jax.jit(lambda s, p: distillation.loss(handle, handle.pack(s), batch(), config, teacher.pack(p)))
    _, found = loss(student, params)
    assert len(found) == 4 and max(float(value) for value, _ in found.values()) < 1e-6


def test_chunks_of_tokens_change_no_divergence_and_no_gradient():
    weights, other = ({"embed": jax.random.normal(jax.random.key(i), (48, 16))} for i in (0, 1))
    states = jax.random.normal(jax.random.key(2), (2, 3, 10, 16))

    def total(weights, chunk):
        return heads.divergence(weights, states[0], other, states[1], batch()["loss_mask"], 1.5, chunk)

    want, got = (jax.value_and_grad(total)(weights, chunk) for chunk in (1000, 6))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1]["embed"], want[1]["embed"], rtol=1e-4, atol=1e-4)
    assert float(heads.divergence(other, states[0], other, states[0], batch()["loss_mask"])) == 0.0


def test_layerwise_training_sees_each_layer_alone():
    """Gradients reach the new leaves only, steps along them lower the differences, and a layer that alone shares has
    the terms of the running student."""
    handle, student, params = pair()
    teacher = model.Model(decoder, PLAIN)
    config = distillation.Config(lm=0.0, js_attn=1.0, mse_score=0.1, layerwise=True)

    def local(student):
        (total, _), found = distillation.loss(handle, handle.pack(student), batch(), config, teacher.pack(params))
        return total, found

    step = jax.jit(jax.value_and_grad(local, has_aux=True))
    (total, _), gradients = step(student)
    reached = {path for path, g in tree.flatten(gradients).items() if np.abs(g).max() > 0}
    leaves = ("align_in", "align_out", "q_low", "k_low")
    assert reached == {f"layers/{layer:03d}/attn/{leaf}" for layer in LAYERS for leaf in leaves}
    new, tx = student, optax.adam(0.02)
    state = tx.init(new)
    for _ in range(15):
        updates, state = tx.update(step(new)[1], state)
        new = optax.apply_updates(new, updates)
    assert float(step(new)[0][0]) < 0.8 * float(total)
    one = dataclasses.replace(handle, config=dataclasses.replace(handle.config, lisa=lisa.LisaSection((1,), rank=4)))
    alone = {**student, "layers": {**student["layers"], "002": params["layers"]["002"]}}

    @jax.jit
    def two_ways(student, params):
        given = (one, one.pack(student), batch())
        ways = (dataclasses.replace(config, layerwise=way) for way in (True, False))
        return [distillation.loss(*given, way, teacher.pack(params))[1] for way in ways]

    first, second = two_ways(alone, params)
    for name in ("js_attn", "mse_score"):
        np.testing.assert_allclose(first[name][0], second[name][0], rtol=1e-4)
        assert float(first[name][0]) > 0


def test_what_cannot_be_is_refused():
    for settings, said in (
        ({"lm": 0.0}, "all terms are 0"), ({"layerwise": True, "js_attn": 1.0}, "set lm to 0"),
        ({"kl_logits": 1.0, "temperature": 0.0}, "above 0"), ({"temperature": 2.0}, "kl_logits"),
        ({"js_attn": -1.0}, "negative"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            distillation.resolve(distillation.Config(**settings), None)
    with pytest.raises(UserError, match="convert"):
        distillation.loss(model.Model(decoder, PLAIN), {}, batch(), distillation.Config())


def test_learning_rates_by_pattern():
    """Adam's first update is the learning rate times the sign of the gradient: halved where a factor says so."""
    params = {"a": {"q_low": jnp.ones(3), "align": jnp.ones(3)}, "b": jnp.ones(2)}
    labels = {"a/q_low": "train", "a/align": "train", "b": "freeze"}
    section = OptimSection(
        lr=0.1, schedule="constant", warmup_ratio=0.0, clip_norm=0.0, lr_factors=(r"a/[qk]_low:0.5",)
    )
    tx = optimizer.build(section, labels, 10)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["q_low"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["a"]["align"], -0.1, rtol=1e-5)
    np.testing.assert_array_equal(updates["b"], 0)
    for entry, said in (("b:2", "no parameter that trains"), ("a/q_low", "pattern:factor"), ("(:2", "pattern:factor"),
                        ("a/q_low:-1", "0 or more"), (r"a/q_low:0.5", "earlier")):  # fmt: skip
        given = (r"a/.*:1.0", entry) if said == "earlier" else (entry,)
        with pytest.raises(UserError, match=said):
            optimizer.lr_factors(given, labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes with random weights, rows of text, and the model with its last two layers sharing."""
    folder = tmp_path_factory.mktemp("distillation")
    tokenizer.load("bytes").save(folder / "tokenizer")
    arch = dataclasses.replace(PLAIN, vocab_size=320)
    params = spec.init_params(decoder.specs(arch), jax.random.key(0))
    huggingface.save(folder / "base", params, arch, folder / "tokenizer")
    rows = [{"id": str(i), "text": f"row {i} says that {i} and {i} are {i + i}"} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--to=lisa", "--layers=1,2", "--set=rank=4", "--dtype=float32"]
    assert cli.main(["convert", str(folder / "base"), str(folder / "shared"), *options]) == 0
    return folder


def trained(folder, workdir, *settings):
    common = [f"--config.data.train=('{folder / 'rows.jsonl'}',)", "--config.data.max_length=64",
              "--config.train.steps=8", "--config.train.batch_size=4", "--config.optim.lr=0.05",
              "--config.log.tensorboard=False", "--config.log.report=False",
              "--config.train.log_every=1", f"--workdir={workdir}"]  # fmt: skip
    return cli.main(["train", *settings, *common])


def losses(workdir):
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_only_the_new_leaves_train_through_the_verb(folder, tmp_path, capsys):
    """And a model that is not the original, or none, is refused as the reference."""
    model, reference = f"--config.model.path={folder / 'shared'}", f"--config.reference.path={folder / 'base'}"
    assert trained(folder, tmp_path / "run", "--config=lisa", model, reference, "--config.train.grad_accum=2") == 0
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    before, after = (
        tree.flatten(source.load(decoder.specs(source.config), source.config).params)
        for source in (open_source(folder / "shared"), open_source(tmp_path / "run"))
    )
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if "_low" in path or "align" in path}
    with pytest.raises(UserError, match=r"reference\.path=ORIGINAL"):
        trained(folder, tmp_path / "none", "--config=lisa", model)
    with pytest.raises(UserError, match="has lisa"):
        trained(folder, tmp_path / "wrong", "--config=lisa", model, reference.replace("base", "shared"))
