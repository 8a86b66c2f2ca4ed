"""The command line of the jobs that take a config: `--config=NAME_OR_PATH[:ARGUMENT] --workdir=DIR --config.a.b=VALUE`.

`ml_collections` parses the values, with flags of their own per call (no global state). In front of it stand the checks
that it lacks: misspelt settings are answered with the nearest one, forgotten dashes and repeated flags are refused, and
every message is one line. A config is a Python file with `get_config()` (it is code, so it is only run when it is
named on the command line or comes with the package), or the `config.json` of a run folder.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from gramjax.core import checks, plugins
from gramjax.core import config as configs
from gramjax.core.errors import GramjaxError, UserError

SWITCHES = {"help": "print this, or with --config the settings with type, value and origin, and stop",
            "dry_run": "resolve and check everything, print it, write nothing"}
VALUES = {"config": "packaged config, .py file (with :ARGUMENT for its get_config), or config.json of a run folder",
          "workdir": "folder of the run: everything is written below it",
          "distributed": "start as one of several processes: auto, slurm, or ADDRESS:PORT,NUMBER,COUNT",
          "devices": "stop unless JAX finds so many devices, those of all processes together"}
MOST_NESTING = 50
"""Depth at which a JSON config is refused."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a job was asked to do."""

    config: ConfigDict
    """Locked, checked, overrides applied."""
    workdir: str
    """Empty only with `dry_run`."""
    overrides: dict[str, Any]
    """The settings given on the command line, by path."""
    config_name: str
    dry_run: bool = False
    distributed: str = ""
    devices: int = 0
    """How many devices there must be; 0: any number."""
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Per setting: `default`, `config` (the file changed it) or `command line`."""


class Parser(argparse.ArgumentParser):
    """The parser for verbs without a config: like argparse, with its complaints as one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('gramjax ')}: {message} ({self.prog} --help)")


def config_folder() -> Path:
    """The folder of packaged configs: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Names of the packaged configs (`quickstart`, `models/NAME`), sorted."""
    folder = config_folder()
    files = [path.relative_to(folder) for path in folder.rglob("*.py") if not path.name.startswith("_")]
    return sorted((path.with_suffix("").as_posix() for path in files), key=lambda name: ("/" in name, name))


def config_path(name: str) -> Path:
    """The file of `--config=NAME_OR_PATH` (without `:ARGUMENT`); raises UserError naming the packaged configs."""
    known = config_names()
    if name in known:
        return config_folder() / f"{name}.py"
    path = Path(name).expanduser()
    if path.suffix in (".py", ".json"):
        if path.is_file():
            return path
        if path.is_dir():
            raise UserError(f"config {name!r} is a folder, not a file")
    near = difflib.get_close_matches(name.removesuffix(".py").removeprefix("configs/"), known, n=1)
    hint = f" — did you mean --config={near[0]}?" if near else ""
    where = "" if path.suffix in (".py", ".json") else " (a file of your own is given by its path, ending in .py)"
    if path.suffix in (".yaml", ".yml", ".toml"):
        where = f"; {path.suffix} files are not read: a config is a .py file, or the config.json of a run"
    raise UserError(f"config {name!r} not found{hint}; packaged configs: {', '.join(known) or 'none'}{where}")


def load(name: str) -> ConfigDict:
    """The config `NAME_OR_PATH[:ARGUMENT]`, unlocked. Raises UserError with file and line for a broken one."""
    base, _, argument = name.partition(":")
    path = config_path(base)
    config = read_json(path) if path.suffix == ".json" else run_python(path, argument if ":" in name else None)
    try:
        return tuples(config)
    except Exception as error:  # required_placeholder: raises when it is read
        raise UserError(f"{path}: {error}; give every setting an ordinary default") from None


def run_python(path: Path, argument: str | None) -> ConfigDict:
    """Run `get_config` of a Python file."""
    try:
        spec = importlib.util.spec_from_file_location("gramjax_config", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, "get_config", None)
        if function is None:
            raise UserError(f"{path}: no function get_config()")
        takes = len(inspect.signature(function).parameters)
        if argument is not None and not takes:
            raise UserError(f"{path}: get_config() takes no argument, but ':{argument}' was given")
        config = function() if argument is None else function(argument)
    except GramjaxError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename} line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path} line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {type(error).__name__}: {error}".replace("\n", " ")) from error
    if isinstance(config, dict):
        config = ConfigDict(config)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, expected a ConfigDict")
    return config


def read_json(path: Path) -> ConfigDict:
    """A config saved as JSON. Data only: repeated keys, NaN and deep nesting are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise UserError(f"{path}: key {repeated!r} stands twice")
        return out

    def constant(text: str) -> NoReturn:
        raise UserError(f"{path}: {text} is not a number that can be used")

    try:
        values = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: no readable JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object of settings, found {type(values).__name__}")
    if depth(values) > MOST_NESTING:
        raise UserError(f"{path}: nested deeper than {MOST_NESTING}")
    return ConfigDict(values)


def depth(value: Any) -> int:
    """Nesting of dicts and lists, without recursion."""
    level, found = [value], 0
    while level:
        level = [v for item in level if isinstance(item, dict | list)
                 for v in (item.values() if isinstance(item, dict) else item)]
        found += 1
    return found


def tuples(config: ConfigDict) -> ConfigDict:
    """The config with every list as a tuple: ml_collections cannot override a list."""
    for name, value in list(config.items()):
        if isinstance(value, ConfigDict):
            tuples(value)
        elif isinstance(value, list):
            del config[name]  # a field that was a list stays one when it is assigned
            config[name] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return config


def complete(config: ConfigDict, name: str, verb: str) -> None:
    """Give a training config what it leaves out, with its defaults (an older version saved fewer settings).

    Raises UserError for a value where a section belongs, and for a job without a section that all packaged configs of
    its verb have.
    """
    groups = ("evals", "rewards", "phases")
    for section in (*configs.SECTIONS, *checks.PLUGINS, *groups):
        found = {section: config[section]} if section in config else {}
        if section in groups and hasattr(config.get(section), "items"):
            found |= {f"{section}.{inner}": value for inner, value in config[section].items()}
        for path, value in found.items():
            if not isinstance(value, ConfigDict):
                raise UserError(f"{name}: config.{path} is {value!r:.80}; a section of settings belongs there")
    if verb == "train":
        kind = config.get("model", {}).get("kind", "decoder")
        method = config.get("objective", {}).get("name")
        if isinstance(method, str) and isinstance(kind, str):
            own = tuple(config.get("evals", {})), kind, tuple(config.get("rewards", {}))
            fill(config, configs.defaults(method, *own))
    elif name.partition(":")[0] not in config_names():
        same = [load(other) for other in config_names()]
        needed = [set(other) for other in same if other.get("job", "train") == config.get("job", verb)]
        if missing := sorted(set.intersection(*needed) - set(config)) if needed else []:
            raise UserError(f"{name}: config.{missing[0]} is missing; gramjax {verb} needs it")


def fill(config: ConfigDict, whole: ConfigDict) -> None:
    """Add to a config what another has besides."""
    for name, value in whole.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            fill(config[name], value)


def split(argv: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """The flags as `{name: text}` (None: no value given), and the names whose value stood in the next word."""
    out: dict[str, str | None] = {}
    apart: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.partition("=")
        if not name.startswith("-") or not name.lstrip("-"):
            dotted = "." in name and equals
            raise UserError(f"{word!r} is not a flag" + (f": write --{word}" if dotted or name in VALUES else ""))
        name = "help" if word == "-h" else name.lstrip("-")
        value: str | None = text if equals else None
        if name.startswith("noconfig.") and value is None:
            name, value = name.removeprefix("no"), "False"
        elif value is None and name not in SWITCHES and words and not words[0].startswith("--"):
            value = words.pop(0)
            apart.append(name)
        if not name.startswith("config.") and name not in SWITCHES and name not in VALUES:
            near = difflib.get_close_matches(name, [*SWITCHES, *VALUES], n=1)
            hint = f" — did you mean --{near[0]}?" if near else f" (there are: --{', --'.join([*VALUES, *SWITCHES])})"
            raise UserError(f"unknown flag --{name}{hint}")
        if name in out:
            raise UserError(f"--{name} is given twice ({out[name]!r:.200} and {value!r:.200}); give it once")
        if name in VALUES and not value:
            raise UserError(f"--{name} needs a value: --{name}=…")
        out[name] = value
    return out, apart


def full_path(config: ConfigDict, path: str) -> str:
    """`eval.NAME` as `evals.PLUGIN.NAME` in a config with one eval; any other path as it is."""
    first, _, rest = path.partition(".")
    plugins = list(config.get("evals", {}))
    return f"evals.{plugins[0]}.{rest}" if first == "eval" and rest and len(plugins) == 1 else path


def as_text(values: tuple[Any, ...] | list[Any]) -> str:
    """A tuple as it is written on a command line: `('a','b')`."""
    return f"({','.join(repr(v) for v in values)}{',' if len(values) == 1 else ''})"


def offer_to_phase(config: ConfigDict, path: str) -> None:
    """Give a phase a setting that only the whole config has yet, so that `--config.phases.NAME.a.b=c` can change it."""
    parts = path.split(".")
    flat = checks.flatten(config)
    inner = ".".join(parts[2:])
    if parts[0] != "phases" or len(parts) < 3 or parts[1] not in config.phases or path in flat or inner not in flat:
        return
    node = config.phases[parts[1]]
    for name in parts[2:-1]:
        if name not in node:
            node[name] = ConfigDict()
        node = node[name]
    node[parts[-1]] = flat[inner]


def name_rewards(config: ConfigDict, flags: Iterable[str]) -> None:
    """Add the rewards that a flag gives a setting of: `--config.rewards.length.weight=0.5` asks for one more."""
    for flag in flags:
        first, _, rest = flag.partition("config.rewards.")
        name, dot, _ = rest.partition(".")
        if not first and dot and name not in config.get("rewards", {name: 0}) and name in plugins.names("rewards"):
            config.rewards[name] = configs.as_config(plugins.load("rewards", name).Config())


def name_selection(config: ConfigDict, given: dict[str, str | None]) -> dict[str, Any]:
    """Another plug-in with its own settings, where `--config.selection=NAME` asks for one; what was set so."""
    name = given.pop("config.selection", None)
    if name is None or "selection" not in config:
        return {}
    configs.with_plugin(config, "selection", checks.folder_of("selection", config.get("job", "")), name)
    return {"selection.name": name}


def override(config: ConfigDict, path: str, text: str | None, kinds: Mapping[str, checks.Setting], verb: str) -> Any:
    """Set one setting from the text of its flag and return the value; the config stays unlocked."""
    offer_to_phase(config, path)
    flat = checks.flatten(config)
    base = path.partition("[")[0]
    if base != path and isinstance(flat.get(base), tuple):
        raise UserError(f'config.{base} is a tuple and is given whole: --config.{base}="{as_text(flat[base])}"')
    if path not in flat:
        below = [other.removeprefix("config.") for other in flat if other.startswith(f"{path}.")]
        if below:
            raise UserError(f"config.{path} is a section; set one of its settings: {', '.join(below[:8])}")
        raise UserError(checks.unknown(path, flat, verb))
    old = flat[path]
    kind = kinds[path].kind if path in kinds else type(old)
    if isinstance(old, tuple) and text is not None and text.lstrip().startswith("["):
        try:
            shown = as_text(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            shown = as_text(old)
        raise UserError(f'config.{path} is a list; give it as a tuple: --config.{path}="{shown}"')
    if text is None and not isinstance(old, bool):
        raise UserError(f"--config.{path} needs a value: --config.{path}=…")
    if text == "None" and not isinstance(old, str):
        raise UserError(f"config.{path} cannot be None: leave the flag out to keep {old!r}")
    word = f"--config.{path}" if text is None else f"--config.{path}={text}"
    values = absl_flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False, sys_argv=[word])
        values(["gramjax", word])
        value = config_flags.get_override_values(values["config"])[path]
    except (absl_flags.Error, AttributeError, KeyError, ValueError, TypeError, SyntaxError, RecursionError,
            MemoryError) as error:  # the last two: of nested brackets  # fmt: skip
        if isinstance(old, tuple):
            example = as_text(old if old else ("a", "b"))
            raise UserError(f'config.{path} takes a tuple: --config.{path}="{example}", not {text!r:.200}') from error
        raise UserError(f"config.{path} takes {checks.describe(kind)} (now {old!r}), not {text!r:.200}") from error
    if isinstance(value, tuple):
        value = elements(path, value, kind, old)
        config.update_from_flattened_dict({path: value})
    return value


def hidden_by_phases(config: ConfigDict, path: str) -> None:
    """Raise UserError for a setting on the command line that a phase replaces with its own: it would do nothing."""
    phases = config.get("phases", {})
    owners = [name for name in sorted(phases) if checks.flatten(phases[name]).get(path, ()) != ()]
    if owners:
        flags = " and ".join(f"--config.phases.{name}.{path}=…" for name in owners)
        raise UserError(f"config.{path} is set by the phases of this config: give {flags}")


def elements(path: str, value: tuple[Any, ...], kind: Any, old: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple from the command line with its elements as the setting has them: 1 as 1.0, 7 as '7'."""
    inner = [a for a in getattr(kind, "__args__", ()) if a is not Ellipsis] or [type(v) for v in old[:1]]
    if inner and inner[0] is float:
        return tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
    if inner and inner[0] is str:
        if len(value) == 1 and isinstance(value[0], str) and "," in value[0] and "('" not in value[0]:
            shown = as_text(value[0].split(","))
            raise UserError(f'config.{path}: is {value[0]!r} one text or several? Write --config.{path}="{shown}" '
                            f'or --config.{path}="{as_text(value)}"')
        return tuple(str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in value)
    return value


def parse(argv: list[str], verb: str = "train", workdir_needed: bool = True) -> Arguments:
    """The arguments of a job that takes a config; prints and exits 0 for `--help`.

    Raises UserError for anything that is not understood, and one with every problem of the resulting config.
    """
    given, apart = split(argv)
    if "help" in given and "config" not in given:
        print(usage(verb))
        raise SystemExit(0)
    name = given.get("config") or ""
    if not name:
        raise UserError(f"give --config=NAME_OR_PATH (packaged configs: {', '.join(config_names()) or 'none'})")
    config = load(name)
    if verb == "train" and config.get("job", verb) != verb:
        raise UserError(f"config {name!r} is for gramjax {config.job}, not for train")
    complete(config, name, verb)
    name_rewards(config, given)
    overrides = name_selection(config, given)
    known = checks.settings(config)
    before = checks.flatten(config)
    for flag, text in given.items():
        if flag.startswith("config."):
            path = full_path(config, flag.removeprefix("config."))
            if path in overrides:
                raise UserError(f"config.{path} is given twice (config.eval is short for it); give it once")
            if flag in apart and isinstance(before.get(path), bool):
                raise UserError(f"{text!r} is not a flag (--{flag} is a switch; --no{flag} turns it off)")
            overrides[path] = override(config, path, text, known, verb)
            hidden_by_phases(config, path)
    origins = {
        path: "command line" if path in overrides
        else "default" if path in known and known[path].default == value else "config"
        for path, value in before.items()
    }
    checks.check(config, verb)
    if verb == "train" and "objective" not in config:
        raise UserError(f"{name}: config.objective.name is missing, the method that is trained (there are: "
                        f"{', '.join(plugins.names('objectives'))})")  # fmt: skip
    config.lock()
    dry_run = "dry_run" in given and switch("dry_run", given["dry_run"])
    workdir = given.get("workdir") or ""
    devices = whole("devices", given.get("devices"))
    joined = given.get("distributed") or ""
    arguments = Arguments(config, workdir, overrides, name, dry_run, joined, devices, origins)
    if "help" in given:
        print(f"{usage(verb)}\n\nSettings of {name}:\n{show(arguments)}")
        raise SystemExit(0)
    if workdir_needed and not workdir and not dry_run:
        raise UserError("give --workdir=DIR, the folder that everything of this run is written to")
    return arguments


def switch(name: str, text: str | None) -> bool:
    """The value of `--name`, `--name=True` or `--name=False`."""
    if text is None or text.lower() in ("true", "1", "false", "0"):
        return text is None or text.lower() in ("true", "1")
    raise UserError(f"--{name} is True or False, not {text!r}")


def whole(name: str, text: str | None) -> int:
    """The positive number of `--name`, 0 when it is not given."""
    if text is not None and not (text.isdecimal() and int(text)):
        raise UserError(f"--{name} is a positive number, not {text!r}")
    return int(text or 0)


def usage(verb: str) -> str:
    """The help text that needs no config."""
    lines = [f"usage: gramjax {verb} --config=NAME_OR_PATH --workdir=DIR [--config.SECTION.NAME=VALUE ...]", ""]
    lines += [f"  --{name:<14}{text}" for name, text in {**VALUES, **SWITCHES}.items()]
    lines += ["", f"packaged configs: {', '.join(config_names()) or 'none'}"]
    lines += [f"gramjax {verb} --config=NAME --help lists every setting of a config with its value and origin"]
    return "\n".join(lines)


def show(arguments: Arguments) -> str:
    """Every setting on a line: path, type, value, origin. Changed ones are marked with `*`."""
    flat = checks.flatten(arguments.config)
    width = max(len(path) for path in flat) + 7
    lines = []
    for path, value in flat.items():
        origin = arguments.origins.get(path, "config")
        mark = " " if origin == "default" else "*"
        lines.append(f"{mark} {'config.' + path:<{width}} {type(value).__name__:<6} {value!r:<24} {origin}")
    return "\n".join(lines)
