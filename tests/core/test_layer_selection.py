"""What `config.select` makes of layers, rules and files: patterns of the parameters that train."""

import json

import pytest

from gramjax.core import layer_selection, spec, tree
from gramjax.core.config import SelectSection
from gramjax.core.errors import UserError
from gramjax.models import decoder
from gramjax.training import setup

ARCH = decoder.Config(
    vocab_size=16, hidden_size=8, intermediate_size=12, num_layers=8, num_heads=2, num_kv_heads=2, head_dim=4,
    attention_bias=True,
)  # fmt: skip
PATHS = list(tree.flatten(decoder.specs(ARCH), is_leaf=spec.is_spec))


def train(**settings) -> list[str]:
    selected = layer_selection.patterns(SelectSection(**settings), ARCH)
    labels = setup.trained(PATHS, (r".*",), None, selected)
    return [path for path, label in labels.items() if label == tree.TRAIN]


@pytest.fixture
def chosen(tmp_path):
    """A `layers.json` for a model of these sizes."""
    found = layer_selection.LayerScores({"s": [0.0] * 8}, (0, 1, 5), "explicit", {"kept": 1}, ("so so",))
    sizes = {"model": {"architecture": layer_selection.architecture(ARCH)}}
    (tmp_path / "layers.json").write_text(json.dumps({**sizes, **layer_selection.as_json(found)}))
    return tmp_path


def test_layers_and_targets():
    assert train(layers=(0, 2)) == [f"layers/{n:03d}/mlp/{part}" for n in (0, 2) for part in ("down", "up")]
    attention = train(layers=(7,), targets=("attn",))
    assert attention == [path for path in PATHS if path.startswith("layers/007/attn/")] and len(attention) == 7
    assert train(layers=(3,), targets=("attn/q", "mlp/gate")) == ["layers/003/attn/q", "layers/003/mlp/gate"]
    assert train(layers=(3,), targets=("mlp/up",), also=("embed",)) == ["embed", "layers/003/mlp/up"]
    assert train() == PATHS  # nothing is chosen: everything trains


def test_layers_of_a_file(chosen):
    expected = train(layers=(0, 1, 5))
    assert train(path=str(chosen)) == train(path=str(chosen / "layers.json")) == expected
    assert train(path=str(chosen), rule="measured") == expected
    assert train(path=str(chosen), rule="lower") == train(layers=(0, 1, 2))
    assert train(path=str(chosen), rule="upper") == train(layers=(5, 6, 7))
    drawn = [train(path=str(chosen), rule="random", seed=seed) for seed in range(8)]
    assert all(len(paths) == 6 for paths in drawn) and len(set(map(tuple, drawn))) > 3
    assert train(rule="lower", count=2) == train(layers=(0, 1))


def test_scores_that_are_no_numbers_are_null():
    found = layer_selection.LayerScores({"js": [float("nan"), 1.0]}, (1,), "topk(k=1)")
    assert layer_selection.as_json(found)["scores"] == {"js": [None, 1.0]}


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"layers": (8,)}, "config.select: layer 8 does not exist; the model has layers 0 to 7"),
        ({"layers": (0,), "targets": ("mlp/upp",)}, "config.select .targets, also.: .*mlp/upp.* matches no parameter"),
        ({"layers": (0,), "targets": ()}, "config.select.targets is empty"),
        ({"targets": ("attn",)}, "config.select.targets is given, but no layers"),
        ({"layers": (0,), "also": ("embedding",)}, "'embedding' matches no parameter"),
        ({"rule": "measured"}, "config.select: which layers"),
        ({"rule": "upper"}, "config.select.count=0: 1 to 8 layers can be chosen by config.select.rule=upper"),
        ({"rule": "random", "count": 9}, "config.select.count=9: 1 to 8 layers"),
        ({"layers": (0,), "count": 2}, "config.select.count=2 is for config.select.rule lower, upper or random"),
        ({"layers": (0,), "seed": 2}, "config.select.seed=2 is for config.select.rule=random"),
        ({"path": "nowhere.json"}, "config.select.path=nowhere.json: there is no such file"),
        ({"path": "nowhere.json", "layers": (1,)}, "config.select.path and config.select.layers are both given"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        train(**settings)


def test_layers_of_another_model_are_refused(chosen):
    file = chosen / "layers.json"
    found = json.loads(file.read_text())
    found["model"]["architecture"]["hidden_size"] = 4096
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match="chosen for a model with hidden_size=4096, this one has 8"):
        train(path=str(file))
    found["model"]["architecture"]["hidden_size"], found["layers"] = 8, []
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match="chose no layer: nothing would train"):
        train(path=str(file))
    file.write_text("{}")
    with pytest.raises(UserError, match="has no list of layers"):
        train(path=str(file))


def test_one_thing_says_what_trains():
    selected = layer_selection.patterns(SelectSection(layers=(0,)), ARCH)
    with pytest.raises(UserError, match="config.select is given, but so is config.train.trainable"):
        setup.trained(PATHS, (r".*mlp.*",), None, selected)
    with pytest.raises(UserError, match="config.select is given, but the model has adapters"):
        setup.trained([*PATHS, "layers/000/mlp/up_lora/a"], (r".*",), None, selected)
    labels = setup.trained([*PATHS, "score"], (r".*",), None, selected)
    assert labels["score"] == tree.TRAIN and labels["norm"] == tree.FREEZE  # a new head learns too
