"""PEFT folders: what is written is read back to the bit, computes in torch what it computes here, and nothing else is
taken for it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import FAMILIES, SMALL, assert_equal, random_params

from gramjax.checkpoint import adapters, huggingface, state
from gramjax.checkpoint.source import open_source
from gramjax.core import spec, tree
from gramjax.core.config import LoraSection
from gramjax.core.errors import DataError, UserError
from gramjax.jobs import convert
from gramjax.models import decoder, lora

LORA = LoraSection(rank=3, alpha=5.0)


def adapted(config=SMALL, section=LORA):
    return dataclasses.replace(config, lora=section)


def held(params, config):
    flat = tree.flatten(params)
    return {path: flat[path] for path in adapters.rows(config)}


def parts(params):
    """The tree without its rank leaves, and those alone."""
    flat = tree.flatten(params)
    thin = {path: leaf for path, leaf in flat.items() if lora.is_rank_leaf(path)}
    return tree.unflatten({path: leaf for path, leaf in flat.items() if path not in thin}), thin


@pytest.fixture
def pair(tmp_path):
    """A base folder, a PEFT folder, and the parameters of both."""
    config = adapted()
    params = random_params(config)
    huggingface.save(tmp_path / "base", parts(params)[0], SMALL)
    adapters.save(tmp_path / "peft", held(params, config), config, str(tmp_path / "base"))
    return tmp_path / "base", tmp_path / "peft", params


def rewrite(folder, **changes):
    path = folder / adapters.SETTINGS
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))


def test_the_folder_has_the_names_and_shapes_of_peft(pair):
    from safetensors.numpy import load_file

    base, peft, params = pair
    found = load_file(peft / "adapter_model.safetensors")
    assert len(found) == 2 * 2 * 7
    name = "base_model.model.model.layers.1.self_attn.{}_proj.lora_{}.weight"
    assert {n: found[name.format(*n)].shape for n in ("qA", "qB", "kB", "oA", "oB")} == {
        "qA": (3, 16), "qB": (16, 3), "kB": (8, 3), "oA": (3, 16), "oB": (16, 3),
    }  # fmt: skip
    # lora_B @ lora_A is the change of [outputs, inputs]
    layer = params["layers"]["001"]["mlp"]
    down = found["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    np.testing.assert_array_equal(down, np.asarray(layer["down_lora"]["b"]).T)
    settings = json.loads((peft / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down"))
    assert (settings["peft_type"], settings["task_type"], settings["r"], settings["lora_alpha"]) == (
        "LORA", "CAUSAL_LM", 3, 5,
    )  # fmt: skip
    assert settings["base_model_name_or_path"] == str(base) and settings["layers_to_transform"] is None


@pytest.mark.parametrize("section", [
    LoraSection(rank=2, alpha=3.0, rslora=True, targets=(r"layers/001/attn/.",)),
    LoraSection(rank=1, targets=(r"layers/000/attn/[qv]", "layers/001/mlp/up")),
], ids=["layers_to_transform", "names"])  # fmt: skip
def test_round_trip_to_the_bit(tmp_path, section):
    plain = dataclasses.replace(FAMILIES["qwen2"], heads=("score",))
    config = adapted(plain, section)
    params = random_params(config)
    values = huggingface.save(tmp_path / "base", parts(params)[0], plain, token_ids={"pad_token_id": 0})
    assert values == []
    adapters.save(tmp_path / "peft", held(params, config), config, "anywhere")
    source = open_source(tmp_path / "base", None, tmp_path / "peft")
    assert source.config.heads == ("score",) and lora.scale(source.config.lora) == lora.scale(section)
    assert_equal(source.load(decoder.specs(source.config), source.config).params, params)


@pytest.mark.parametrize("head,whole,kept", [
    ("value", (), ["score"]),
    ("tokens", ("embed", "lm_head", "layers/001/attn_norm", "norm"),
     ["lm_head", "model.embed_tokens", "model.layers.1.input_layernorm", "model.norm"]),
    ("score", ("norm",), ["model.norm", "score"]),
])  # fmt: skip
def test_what_trained_whole_is_kept_beside_the_adapters(tmp_path, head, whole, kept):
    """`modules_to_save`: the base has other values, and none of a head that is not its own."""
    plain = dataclasses.replace(SMALL, heads=(head,))
    config = adapted(plain)
    params = tree.flatten(random_params(config))
    body = {path: leaf + 1 if path in whole else leaf for path, leaf in params.items() if not lora.is_rank_leaf(path)}
    base = {path: leaf for path, leaf in body.items() if path not in ("score", "value/weight", "value/bias")}
    base.setdefault("lm_head", random_params(SMALL)["lm_head"])
    huggingface.save(tmp_path / "base", tree.unflatten(base), SMALL)
    leaves = {path: params[path] for path in adapters.rows(config, whole)}
    adapters.save(tmp_path / "peft", leaves, config, "base")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == kept and settings["task_type"] == adapters.TASKS[head]
    source = open_source(tmp_path / "base", None, tmp_path / "peft")
    beside = tuple(sorted({*whole, *adapters.HEADS.get(head, ())}))
    assert source.config.heads == (head,) and source.adapter.whole == beside
    assert_equal(source.load(decoder.specs(source.config), source.config).params, tree.unflatten(params))
    merged = source.load(decoder.specs(plain), plain).params
    assert_equal(merged, lora.merge(tree.unflatten(params), config))
    # PEFT's short names mean the same: every module that ends so
    if "norm" in whole and head == "tokens":
        rewrite(tmp_path / "peft", modules_to_save=["lm_head", "embed_tokens", "1.input_layernorm", "model.norm"])
        assert open_source(tmp_path / "base", None, tmp_path / "peft").adapter.whole == source.adapter.whole
        for wrong, text in ((["lm_head"], "in the file but not named: model.embed_tokens"),
                            ([*kept, "input_layernorm"], "not in the file: model.layers.0.input_layernorm"),
                            ([*kept, "dense"], "not in the file: dense"), ("all", "expected a list")):  # fmt: skip
            rewrite(tmp_path / "peft", modules_to_save=wrong)
            with pytest.raises(DataError, match=text):
                open_source(tmp_path / "base", None, tmp_path / "peft")


def test_adapter_on_its_base_merged_and_continued(pair):
    base, peft, params = pair
    source = open_source(base, None, peft)
    assert (source.config.lora.rank, source.config.lora.alpha, source.config.lora.rslora) == (3, 5.0, False)
    loaded = source.load(decoder.specs(source.config), source.config)
    assert_equal(loaded.params, params)
    assert loaded.notes == loaded.fresh == ()
    # the same adapters in other words are continued, others are merged and new ones begun
    other = adapted(section=dataclasses.replace(LORA, targets=("layers/.*",)))
    assert_equal(source.load(decoder.specs(other), other).params, params)
    merged = source.load(decoder.specs(SMALL), SMALL)
    assert_equal(merged.params, lora.merge(params, adapted()))
    assert "(rank 3) are merged" in merged.notes[-1]
    other = adapted(section=LoraSection(rank=3, alpha=6.0))
    begun = source.load(decoder.specs(other), other, key=jax.random.key(1))
    body, thin = parts(begun.params)
    assert_equal(body, merged.params)
    assert all(not np.any(leaf) for path, leaf in thin.items() if path.endswith("/b"))
    assert set(begun.fresh) == set(thin)


def test_a_run_with_adapters_opens_without_its_settings(tmp_path):
    config = adapted()
    params = random_params(config)
    with state.Checkpoints(tmp_path / "run") as saved:
        saved.save(4, {"params": params, "step": jnp.int32(4)}, {}, {"model": dataclasses.asdict(config)})
    source = open_source(tmp_path / "run")
    assert source.config == config
    assert_equal(source.load(decoder.specs(source.config), source.config).params, params)
    assert_equal(source.load(decoder.specs(SMALL), SMALL).params, lora.merge(params, config))
    with pytest.raises(UserError, match="adapters of its own"):
        open_source(tmp_path / "run", None, tmp_path)


def test_leaves_are_read_onto_their_dtypes(pair):
    base, peft, params = pair
    source = open_source(base, None, peft)
    specs = decoder.specs(source.config)
    dtypes = spec.map_specs(lambda s: jnp.dtype(jnp.float32 if "rank" in s.axes else jnp.bfloat16), specs)
    found = source.load(specs, source.config, dtype=dtypes).params
    assert found["layers"]["000"]["attn"]["q"].dtype == jnp.bfloat16
    assert_equal(parts(found)[1], parts(params)[1])


def score_run(tmp_path, section=LORA):
    """A run of a reward model with adapters that began at a language model in a folder."""
    config = dataclasses.replace(adapted(section=section), heads=("score",))
    params = random_params(config)
    body = parts(params)[0]
    tokens = {**{k: v for k, v in body.items() if k != "score"}, "lm_head": random_params(SMALL)["lm_head"]}
    huggingface.save(tmp_path / "base", tokens, SMALL)
    with state.Checkpoints(tmp_path / "run") as saved:
        saved.save(4, {"params": params, "step": jnp.int32(4)}, {}, {"model": dataclasses.asdict(config)})
    section_of_model = {"kind": "decoder", "path": str(tmp_path / "base"), "arch": {}}
    settings = {"model": section_of_model, "train": {"trainable": [".*"]}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings | {"lora": dataclasses.asdict(section)}))
    return tmp_path / "run", config, params


def test_convert_writes_the_adapter_or_the_whole(tmp_path, capsys):
    run, config, params = score_run(tmp_path)
    assert convert.main([str(run), str(tmp_path / "peft"), "--adapter", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "verify with gramjax" in out and "max abs difference 0.00e+00: ok" in out
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    source = open_source(tmp_path / "base", None, tmp_path / "peft")
    assert source.config.heads == ("score",)
    assert_equal(source.load(decoder.specs(source.config), source.config).params, params)
    # a whole folder from the run, and the same from base and adapter
    flags = ["--to=gramjax", "--verify"]
    assert convert.main([str(run), str(tmp_path / "merged"), *flags]) == 0
    assert convert.main([str(tmp_path / "base"), str(tmp_path / "again"), f"--merge={tmp_path / 'peft'}", *flags]) == 0
    want = lora.merge(params, config)
    for name in ("merged", "again"):
        found = open_source(tmp_path / name)
        assert found.config.lora.rank == 0
        assert_equal(found.load(decoder.specs(found.config), found.config).params, want)
    assert "lora" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    # a folder whose base has changed is not verified
    changed = random_params(SMALL, seed=5)
    huggingface.save(tmp_path / "base", changed, SMALL, overwrite=True)
    assert convert.main([str(run), str(tmp_path / "peft"), "--adapter", "--verify", "--overwrite"]) == 1


def test_what_an_adapter_folder_cannot_say_is_refused(tmp_path):
    run, config, params = score_run(tmp_path)
    path = run / "config.json"
    settings = json.loads(path.read_text())
    target = str(tmp_path / "out")

    def refused(text, *flags, **changes):
        path.write_text(json.dumps(settings | changes))
        with pytest.raises(UserError, match=text):
            convert.main([str(run), target, "--adapter", *flags])

    refused("cannot hold layers/000/attn/q, .*which trained too", train={"trainable": ["layers/.*/q"]})
    refused("drawn from the seed", model={"path": ""})
    refused("give --base=FOLDER", model={"path": str(run)})
    refused("give --base=FOLDER", model={"path": str(tmp_path / "base"), "adapter": "peft"})
    refused("does not go with --adapter", "--to=gramjax")
    with pytest.raises(UserError, match="has no adapters"):
        convert.main([str(tmp_path / "base"), target, "--adapter"])
    with pytest.raises(UserError, match="--base belongs to --adapter"):
        convert.main([str(run), target, "--base=x"])
    path.write_text(json.dumps(settings | {"train": {"trainable": ["layers/.*norm"]}}))
    assert convert.main([str(run), target, "--adapter"]) == 0
    tied = adapted(dataclasses.replace(SMALL, tie_word_embeddings=True))
    with pytest.raises(UserError, match="cannot hold embed"):
        adapters.settings_for(tied, "tokens", "base", ["embed"])
    with pytest.raises(UserError, match="holds no margin head"):
        adapters.settings_for(config, "margin", "base")


@pytest.mark.parametrize("changes,text", [
    ({"use_dora": True}, "not supported here: use_dora True"),
    ({"bias": "all"}, "bias 'all'"),
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ({"modules_to_save": ["lm_head"]}, "named but not in the file: lm_head.weight"),
    ({"task_type": "FEATURE_EXTRACTION"}, "task_type 'FEATURE_EXTRACTION'"),
    ({"task_type": "TOKEN_CLS"}, "neither it nor its base holds score.weight"),
    ({"a_feature_of_tomorrow": 3}, "a_feature_of_tomorrow 3"),
    ({"target_modules": ["q_proj", "lm_head"]}, "names lm_head"),
    ({"target_modules": ["q_proj"]}, "in the file but not named: layers/000/attn/k"),
    ({"layers_to_transform": [1]}, "in the file but not named: layers/000/attn/k"),
    ({"layers_to_transform": "all"}, "layers_to_transform"),
    ({"r": 4}, "is .3, 16., expected .4, 16."),
    ({"lora_alpha": 0}, "lora_alpha is 0"),
    ({"task_type": "SEQ_CLS"}, "neither it nor its base holds score.weight"),
])  # fmt: skip
def test_refused_by_name(pair, changes, text):
    base, peft, _ = pair
    rewrite(peft, **changes)
    with pytest.raises((UserError, DataError), match=text):
        open_source(base, None, peft)


def test_other_words_for_the_same_modules(pair):
    base, peft, _ = pair
    for targets in ("all-linear", r".*\.(self_attn|mlp)\.\w+_proj", ["self_attn.q_proj", *(
        f"{name}_proj" for name in ("k", "v", "o", "gate", "up", "down"))]):  # fmt: skip
        rewrite(peft, target_modules=targets, lora_dropout=0.1, megatron_core="megatron.core", layers_to_transform=None)
        assert open_source(base, None, peft).config.lora.rank == 3


def test_files_that_are_damaged_or_something_else(pair, tmp_path):
    from safetensors.numpy import load_file, save_file

    base, peft, params = pair
    weights = peft / "adapter_model.safetensors"
    good = load_file(weights)
    first = sorted(good)[0]

    def refused(arrays, text):
        save_file(arrays, weights)
        with pytest.raises(DataError, match=text):
            source = open_source(base, None, peft)
            source.load(decoder.specs(source.config), source.config)

    refused({k: v for k, v in good.items() if k != first}, "one half of the pairs")
    refused(good | {"base_model.model.lm_head.lora_A.weight": good[first]}, "no place for: base_model.model.lm_head")
    refused(good | {first: np.full_like(good[first], np.nan)}, "NaN or infinite")
    weights.unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors$"):
        open_source(base, None, peft)
    (peft / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="only adapter_model.bin, a pickle that can run code"):
        open_source(base, None, peft)
    with pytest.raises(UserError, match="has no adapter_config.json"):
        open_source(base, None, base)
    with pytest.raises(UserError, match="is an adapter .LoRA., not a model"):
        open_source(peft)
    bad = {path: leaf * np.inf for path, leaf in held(params, adapted()).items()}
    with pytest.raises(UserError, match="NaN or infinite values: not exported"):
        adapters.save(tmp_path / "bad", bad, adapted(), "base")
    assert not (tmp_path / "bad").exists()


def test_torch_computes_the_same_from_the_folder_and_from_the_merged_export(tmp_path):
    """PEFT's arithmetic written out on a transformers model: W + lora_alpha / r * lora_B @ lora_A."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.torch import load_file

    plain = FAMILIES["qwen3"]
    config = adapted(plain, dataclasses.replace(LORA, rslora=True))
    params = jax.tree.map(lambda x: 0.3 * x, random_params(config))
    huggingface.save(tmp_path / "base", parts(params)[0], plain)
    adapters.save(tmp_path / "peft", held(params, config), config, "base")
    huggingface.save(tmp_path / "merged", lora.merge(params, config), plain)
    rows = convert._rows(config, None)
    ours = convert.logits(params, config, rows)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    found = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"] ** (0.5 if settings["use_rslora"] else 1)
    with torch.no_grad():
        before = network(torch.from_numpy(rows).long()).logits.numpy()
        for name, a in found.items():
            if name.endswith("lora_A.weight"):
                module = network.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                module.weight += scale * found[name.replace("lora_A", "lora_B")] @ a
        theirs = network(torch.from_numpy(rows).long()).logits.numpy()
    largest = np.abs(theirs).max()
    assert np.abs(theirs - before).max() > 0.01 * largest
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * largest)
    merged = convert.torch_logits(tmp_path / "merged", "tokens", rows)
    np.testing.assert_allclose(merged, theirs, atol=1e-4 * largest)
