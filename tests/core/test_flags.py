"""The command line of config jobs: every row of the behaviour table, and every way to get it wrong."""

import json

import pytest
from ml_collections import ConfigDict

from gramjax.core import checks, flags, plugins
from gramjax.core import config as configs
from gramjax.core.errors import UserError

CONFIG = '''
"""A config for tests."""
from ml_collections import ConfigDict
from gramjax.core import config as configs

def get_config(arg=""):
    config = ConfigDict(configs.GENERAL)
    for name, record in configs.SECTIONS.items():
        config[name] = configs.as_config(record())
    config.objective = ConfigDict({"name": "bradley_terry"})
    config.optim.lr = 2e-5
    config.data.train = ["a.jsonl", "b.jsonl"]
    if arg:
        config.train.batch_size = int(arg)
    return config
'''


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def parse(config_file):
    return lambda *words: flags.parse([f"--config={config_file}", "--workdir=w", *words])


def message(parse, *words) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.smoke
def test_values_keep_the_types_of_the_config(parse):
    got = parse(
        "--config.optim.lr=3e-5", "--config.optim.weight_decay=1", "--config.train.batch_size", "8",
        "--noconfig.resume", "--config.data.packing", "--config.overwrite=True", "--config.optim.betas=(0,0.5)",
    )
    assert got.config.optim.lr == 3e-5
    assert got.config.optim.weight_decay == 1.0 and isinstance(got.config.optim.weight_decay, float)
    assert got.config.train.batch_size == 8
    assert got.config.resume is False and got.config.data.packing is True and got.config.overwrite is True
    assert got.config.optim.betas == (0.0, 0.5) and isinstance(got.config.optim.betas[0], float)
    assert got.overrides["optim.betas"] == (0.0, 0.5) and got.overrides["train.batch_size"] == 8
    assert got.workdir == "w" and not got.dry_run
    with pytest.raises((KeyError, AttributeError)):
        got.config.new = 1


@pytest.mark.parametrize(
    "text,expected",
    [("c.jsonl", ("c.jsonl",)), ("('c','d')", ("c", "d")), ("'c','d'", ("c", "d")), ("7", ("7",)), ("()", ())],
)
def test_tuples_of_texts(parse, text, expected):
    assert parse(f"--config.data.train={text}").config.data.train == expected


def test_lists_of_a_config_file_are_tuples(parse):
    assert parse().config.data.train == ("a.jsonl", "b.jsonl")


def test_argument_after_the_colon(config_file):
    got = flags.parse([f"--config={config_file}:24", "--dry_run"])
    assert got.config.train.batch_size == 24 and got.dry_run and got.workdir == ""


def test_origin_of_every_setting(parse):
    origins = parse("--config.train.keep=5").origins
    assert origins["train.keep"] == "command line"
    assert origins["optim.lr"] == "config"
    assert origins["optim.eps"] == "default"
    assert set(origins.values()) == {"default", "config", "command line"}


@pytest.mark.parametrize(
    "word,expected",
    [
        ("--config.optim.lrr=3", "unknown setting config.optim.lrr — did you mean config.optim.lr? "
         "(gramjax train --config=… --help lists all)"),
        ("--config.lr=3", "unknown setting config.lr — did you mean config.optim.lr? (gramjax train"),
        ("--config.zebra=3", "unknown setting config.zebra (gramjax train --config=… --help lists all)"),
        ("config.optim.lr=3", "'config.optim.lr=3' is not a flag: write --config.optim.lr=3"),
        ("again", "'again' is not a flag"),
        ("--config.data.train=['a','b']",
         "config.data.train is a list; give it as a tuple: --config.data.train=\"('a','b')\""),
        ("--config.optim.betas[0]=0.8",
         'config.optim.betas is a tuple and is given whole: --config.optim.betas="(0.9,0.95)"'),
        ("--config.train.batch_size=abc", "config.train.batch_size takes a whole number (now 32), not 'abc'"),
        ("--config.train.batch_size=1.5", "config.train.batch_size takes a whole number (now 32), not '1.5'"),
        ("--config.optim.lr=fast", "config.optim.lr takes a number (now 2e-05), not 'fast'"),
        ("--config.optim.lr=None", "config.optim.lr cannot be None: leave the flag out to keep 2e-05"),
        ("--config.data.packing=maybe", "config.data.packing takes True or False (now False), not 'maybe'"),
        ("--config.optim.betas=(0.9,",
         "config.optim.betas takes a tuple: --config.optim.betas=\"(0.9,0.95)\", not '(0.9,'"),
        ("--config.optim=3", "config.optim is a section; set one of its settings: optim.betas, "),
        ("--config.optim.lr", "--config.optim.lr needs a value: --config.optim.lr=…"),
        ("--cofnig=x", "unknown flag --cofnig — did you mean --config?"),
        ("--workdir=again", "--workdir is given twice ('w' and 'again'); give it once"),
        ("--workdir2=", "unknown flag --workdir2 — did you mean --workdir?"),
        ("--config.data.train=a,b", "config.data.train: is 'a,b' one text or several?"),
        ("--dry_run=perhaps", "--dry_run is True or False, not 'perhaps'"),
    ],
)
def test_mistakes_are_answered_in_one_line(parse, word, expected):
    assert message(parse, word).startswith(expected)


def test_a_repeated_setting_is_refused(parse):
    assert message(parse, "--config.seed=1", "--config.seed=2") == (
        "--config.seed is given twice ('1' and '2'); give it once")


def test_a_word_after_a_switch_is_not_its_value(parse):
    assert "is not a flag" in message(parse, "--config.resume", "False")


def test_missing_config_and_workdir(config_file):
    with pytest.raises(UserError, match=r"give --config=NAME_OR_PATH \(packaged configs: "):
        flags.parse(["--workdir=w"])
    with pytest.raises(UserError, match="give --workdir=DIR"):
        flags.parse([f"--config={config_file}"])


def test_config_not_found_names_the_packaged_ones(tmp_path, monkeypatch):
    (tmp_path / "configs" / "models").mkdir(parents=True)
    (tmp_path / "configs" / "quickstart.py").write_text(CONFIG)
    (tmp_path / "configs" / "models" / "tiny.py").write_text(CONFIG)
    monkeypatch.setattr(flags, "config_folder", lambda: tmp_path / "configs")
    assert flags.config_names() == ["quickstart", "models/tiny"]
    assert flags.load("models/tiny:5").train.batch_size == 5
    with pytest.raises(UserError) as caught:
        flags.load("quikstart")
    assert "config 'quikstart' not found — did you mean --config=quickstart?" in str(caught.value)
    assert "models/tiny" in str(caught.value)
    with pytest.raises(UserError, match="'nope.py' not found"):
        flags.load("nope.py")
    with pytest.raises(UserError, match="not found"):
        flags.load("../configs/quickstart")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        flags.load(str(tmp_path / "folder.py"))


@pytest.mark.parametrize(
    "source,expected",
    [
        ("x = 1", "no function get_config"),
        ("def get_config(:", "line 1"),
        ("def get_config():\n    return 3", "returned int"),
        ("def get_config():\n    return missing", "line 2: NameError"),
        ("import ml_collections as m\ndef get_config():\n    c = m.ConfigDict({}).lock()\n    c.b = 2\n", "line 4"),
        ("import ml_collections as m\n"
         "def get_config():\n    return m.ConfigDict({'seed': m.config_dict.required_placeholder(int)})", "ordinary"),
    ],
)
def test_broken_config_files_are_located(tmp_path, source, expected):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError) as caught:
        flags.load(str(path))
    assert expected in str(caught.value) and "broken.py" in str(caught.value)


def test_an_argument_for_a_config_that_takes_none(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text("def get_config():\n    return {}")
    with pytest.raises(UserError, match="takes no argument"):
        flags.load(f"{path}:big")


def test_a_typing_error_in_the_file_is_found(tmp_path):
    path = tmp_path / "typo.py"
    path.write_text(CONFIG.replace("config.optim.lr = 2e-5", "config.optim.lrr = '2e-5'; config.train.batch_size = 0"))
    with pytest.raises(UserError) as caught:
        flags.parse([f"--config={path}", "--dry_run"])
    assert str(caught.value).startswith("2 problems: unknown setting config.optim.lrr — did you mean config.optim.lr?")
    assert "config.train.batch_size is 0; it must be at least 1" in str(caught.value)


def test_help_lists_settings_with_origin(config_file, capsys):
    with pytest.raises(SystemExit) as caught:
        flags.parse([f"--config={config_file}", "--config.seed=3", "--help"])
    assert caught.value.code == 0
    rows = capsys.readouterr().out.split("Settings of", 1)[1].splitlines()[1:]
    lines = {row[2:].split()[0]: row for row in rows}
    assert lines["config.seed"].split()[2:] == ["int", "3", "command", "line"] and lines["config.seed"].startswith("*")
    assert lines["config.optim.lr"].split()[2:] == ["float", "2e-05", "config"]
    assert lines["config.optim.eps"].split()[1:] == ["float", "1e-08", "default"]


def test_a_saved_config_is_a_config(parse, tmp_path):
    from gramjax.core import folder

    first = parse("--config.seed=7").config
    path = tmp_path / "config.json"
    folder.write_json(path, folder.as_dict(first))
    again = flags.parse([f"--config={path}", "--dry_run"]).config
    assert folder.as_dict(again) == folder.as_dict(first) and again.optim.betas == first.optim.betas


@pytest.mark.parametrize(
    "text,expected",
    [
        ('{"seed": 1, "seed": 2}', "'seed' stands twice"),
        ('{"seed": NaN}', "NaN"),
        ('{"optim": ' * 60 + "1" + "}" * 60, "nested deeper"),
        ("[" * 100_000, "no readable JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "no readable JSON"),
        ("[1]", "expected an object"),
        ("{", "no readable JSON"),
        ('{"seed": 1} x', "no readable JSON"),
        ('{"seed": "1"}', "config.seed takes a whole number, not '1'"),
    ],
)
def test_hostile_json_is_refused(tmp_path, text, expected):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        flags.parse([f"--config={path}", "--dry_run"])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "path,value,expected",
    [
        ("train.batch_size", 0, "config.train.batch_size is 0; it must be at least 1"),
        ("train.batch_size", -4, "at least 1"),
        ("train.batch_size", True, "takes a whole number, not True"),
        ("train.steps", -1, "from 0 to"),
        ("optim.lr", float("nan"), "config.optim.lr is nan; give a finite number"),
        ("optim.lr", float("inf"), "finite"),
        ("optim.lr", "1e-4", "config.optim.lr takes a number, not '1e-4'"),
        ("optim.lr", -1e-4, "at least 0"),
        ("optim.eps", 0.0, "above 0"),
        ("optim.betas", (0.9, 1.0), "below 1"),
        ("optim.betas", (0.9,), "a tuple of 2 numbers"),
        ("optim.betas", (0.9, float("nan")), "finite"),
        ("optim.warmup_ratio", 1.5, "from 0 to 1"),
        ("data.overlong", "cut", "choose one of drop, truncate_prompt_left"),
        ("data.verdicts", ("A", "A"), "must differ"),
        ("data.train", (1,), "a tuple of texts"),
        ("seed", 2**40, "from 0 to"),
        ("mesh.data", 0, "each size must be positive"),
        ("mesh.data", -2, "at least -1"),
        ("mesh.tensor", -1, "one at most -1"),
        ("train.grad_accum", 3, "config.train.batch_size 32 is not a multiple of config.train.grad_accum 3"),
        ("train.epochs", 0.0, "both 0"),
        ("model.attention", "flash", "choose one of auto"),
    ],
)
def test_ranges(tmp_path, path, value, expected):
    config = ConfigDict(configs.GENERAL)
    for name, record in configs.SECTIONS.items():
        config[name] = configs.as_config(record())
    assert checks.problems(config) == []
    with config.ignore_type():
        config.update_from_flattened_dict({path: value})
    found = checks.problems(config)
    assert len(found) == 1 and expected in found[0]


def test_whole_numbers_stand_for_numbers():
    assert checks.problems(ConfigDict({"optim": {"lr": 1, "betas": (0, 0.5)}})) == []


def test_a_phase_is_checked_as_the_config_it_makes():
    config = ConfigDict(configs.GENERAL)
    config.train = configs.as_config(configs.TrainSection())
    config.phases = ConfigDict({"one": {"train": {"batch_size": 16}}, "two": {"train": {"grad_accum": 5, "keeep": 1}}})
    found = checks.problems(config)
    assert len(found) == 2 and all(problem.startswith("phase two: ") for problem in found)
    assert "config.train.keeep — did you mean config.train.keep?" in found[0] and "grad_accum 5" in found[1]


def test_choices_are_the_documented_ones():
    """The words allowed are those that the setting's own text names."""
    import re

    from gramjax.core import settings

    for path, allowed in checks.CHOICES.items():
        section, name = path.split(".")
        documented = re.findall(r"`(\w+)`", settings.field_docs(configs.SECTIONS[section])[name])
        assert set(documented) == set(allowed) - {""}, path


def test_ranges_and_choices_name_settings_that_exist():
    known = {f"{name}.{field}" for name, record in configs.SECTIONS.items() for field in record.__dataclass_fields__}
    methods = [plugins.load("objectives", name) for name in plugins.names("objectives")]
    rolling = [method for method in methods if hasattr(method, "SECTION")]
    known |= {f"{method.SECTION}.{field}" for method in rolling for field in method.Config.__dataclass_fields__}
    assert set(checks.RANGES) | set(checks.CHOICES) <= known | set(configs.GENERAL)


def test_as_dict_is_json():
    from gramjax.core import folder

    values = folder.as_dict(ConfigDict({"a": {"b": (1, ("c",))}, "d": 1.5}))
    assert json.loads(json.dumps(values)) == values == {"a": {"b": [1, ["c"]]}, "d": 1.5}


def test_a_setting_that_phases_replace_is_refused_with_the_flags_to_give(capsys):
    """It would do nothing: every phase of the quickstart brings data of its own."""
    with pytest.raises(UserError) as caught:
        flags.parse(["--config=quickstart", "--dry_run", "--config.data.train=('mine.jsonl',)"])
    assert "--config.phases.stage1.data.train=" in str(caught.value)
    assert "--config.phases.stage2.data.train=" in str(caught.value)
    # stage 1 of `gram` has an empty tuple there: it takes the data of the whole config
    parsed = flags.parse(["--config=gram", "--dry_run", "--config.data.train=('mine.jsonl',)"])
    assert parsed.config.data.train == ("mine.jsonl",)


def test_a_config_of_another_verb_is_refused():
    with pytest.raises(UserError, match="'evaluate' is for gramjax evaluate, not for train"):
        flags.parse(["--config=evaluate", "--dry_run"])


def test_a_flag_names_one_more_reward():
    parse = lambda *words: flags.parse(["--config=grpo_modadd", *words], "train", False).config  # noqa: E731
    own = set(parse().rewards)
    config = parse("--config.rewards.length.weight=0.5", "--config.rewards.contains.words=('a',)")
    assert set(config.rewards) == {*own, "length", "contains"} and config.rewards.contains.words == ("a",)
    assert config.rewards.length.weight == 0.5 and config.rewards.length.kind == "overlong"
    for word in ("--config.rewards.lenght.weight=1", "--config.rewards.length.wieght=1", "--config.rewards.length=1"):
        with pytest.raises(UserError, match="unknown setting config.rewards"):
            parse(word)
    with pytest.raises(UserError, match="unknown setting config.rewards.length.weight"):
        flags.parse(["--config=bradley_terry", "--config.rewards.length.weight=1"], "train", False)
