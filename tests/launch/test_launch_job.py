"""`gramjax launch`: what it prints is what runs; nothing is submitted unless it is asked to."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gramjax import cli
from gramjax.core import chips, flags, launching, xla_flags
from gramjax.core.errors import UserError
from gramjax.jobs import generate, launch

ROOT = Path(__file__).parent.parent.parent
CONFIG = ["--config=quickstart", "--workdir=runs/x"]
SLICE = ["tpu", "--zone=z", "--name=n", "--topology=v5e:4x4"]
JOBSET = ["gke", "--topology=v5e:4x4", "--image=i", "--claim=c:/runs"]
NASTY = "--config.data.valid=('a b.jsonl','it''s \"$HOME\" `x` #.jsonl')"


def printed(capsys, *words):
    assert launch.main(list(words)) == 0
    return capsys.readouterr().out


def command_of(text):
    """The words of the command line that a script of two lines ends with."""
    first, line, _ = text.split("\n", 2)
    assert first == "#!/usr/bin/env bash" and line.startswith("exec ")
    return shlex.split(line)[1:]


def test_gpu(capsys):
    script = str(ROOT / "launch" / "gpu_host.sh")
    assert command_of(printed(capsys, "gpu", *CONFIG)) == ["bash", script, "train", *CONFIG]
    assert command_of(printed(capsys, "gpu", "--gpus=8", *CONFIG))[2:] == ["train", *CONFIG, "--devices=8"]
    words = command_of(printed(capsys, "gpu", *CONFIG, "--processes=4", "--port=1234", NASTY))
    assert words[2:] == ["--processes=4", "--port=1234", "train", *CONFIG, NASTY, "--devices=4"]
    words = command_of(printed(capsys, "gpu", "evaluate", "--config=evaluate", "--workdir=x", "--devices=2"))
    assert words[2:] == ["evaluate", "--config=evaluate", "--workdir=x", "--devices=2"]
    words = command_of(printed(capsys, "gpu", "convert", "runs/x", "exported", "--to=hf"))
    assert words[2:] == ["convert", "runs/x", "exported", "--to=hf"]


def test_tpu(capsys):
    base = ["tpu", "--name=mine", "--zone=here"]
    words = command_of(printed(capsys, *base, "--topology=v5e:4x4", *CONFIG))
    assert words[2:] == ["--name=mine", "--zone=here", "train", *CONFIG, "--devices=16"]
    slices = (("v5e:4x4", "v5litepod-16", 16), ("v6e:8x8", "v6e-64", 64), ("v5p:4x4x4", "v5p-128", 64))
    for topology, kind, devices in slices:
        asked = ["--create", "--runtime=v2", "--spot", "--project=p", "--python=python3.12"]
        words = command_of(printed(capsys, *base, f"--topology={topology}", *asked, *CONFIG))
        assert {f"--create={kind}", "--runtime=v2", "--spot", "--project=p", "--python=python3.12"} <= set(words)
        assert words[-1] == f"--devices={devices}"


def test_a_verb_of_one_process_runs_on_a_slice_of_one_worker(capsys):
    words = ["tpu", "--name=a", "--zone=b", "score", "--config=score", "--workdir=x"]
    assert command_of(printed(capsys, *words, "--topology=v5e:2x4"))[-1] == "--devices=8"
    with pytest.raises(UserError, match="score is one process; several run train, evaluate"):
        launch.main([*words, "--topology=v5e:4x4"])


def test_every_option_of_a_command_line_is_one_of_its_script(capsys):
    """The words that come before the verb are taken by the script: it says so in its `case`."""
    given = {"gpu": ["--processes=2", "--port=1"],
             "tpu": ["--topology=v5e:4x4", "--name=a", "--zone=b", "--project=p", "--create", "--runtime=v", "--spot",
                     "--python=x", "--xla_flags=--xla_tpu_scoped_vmem_limit_kib=65536"]}  # fmt: skip
    for target, options in given.items():
        words = command_of(printed(capsys, target, *options, *CONFIG))
        cases = re.findall(r"^ +(--.*)\) ", Path(words[1]).read_text(), re.MULTILINE)
        taken = set(re.findall(r"--\w+", "".join(cases)))
        own = [word.partition("=")[0] for word in words[2 : words.index("train")]]
        assert own and set(own) <= taken


def test_slurm_script_runs_the_command_with_its_variables(capsys, stands, tmp_path):
    """The rendered script, run as SLURM would, with nothing on its command line."""
    file = tmp_path / "job.sh"
    options = ["--nodes=3", "--gpus=8", "--processes=per_gpu", "--cpus=96", "--memory=500G", "--time=24:00:00",
               "--partition=big", "--account=lab", "--sbatch=--qos=high --comment='two words'", f"--write={file}"]
    text = printed(capsys, "slurm", *options, "--xla_flags=recommended", *CONFIG, NASTY)
    assert file.read_text() + f"# not submitted: add --submit, or sbatch {file}\n" == text
    directives = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=gramjax-quickstart", "--requeue", "--signal=B:TERM@300", "--open-mode=append", "--nodes=3",
        "--gpus-per-node=8", "--cpus-per-task=96", "--mem=500G", "--time=24:00:00", "--partition=big", "--account=lab",
        "--qos=high", "--comment=two words"]  # fmt: skip
    lines = text.splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last]), "SLURM reads no directive below a command"
    for name in ("srun", "gramjax"):
        stands.add(name)
    environment = {**os.environ, "PATH": stands.path(), "SLURM_JOB_ID": "1", "SLURM_NNODES": "3",
                   "SLURM_GPUS_ON_NODE": "8"}  # fmt: skip
    subprocess.run(["bash", file], env=environment, check=True)
    (call,) = stands.calls("srun")
    assert call["argv"][-5:] == ["train", *CONFIG, NASTY, "--devices=24"] and call["argv"][-6] == "gramjax"
    assert "--ntasks=24" in call["argv"]
    assert xla_flags.parse(call["env"]["XLA_FLAGS"]) == xla_flags.chosen("recommended", "gpu")


def test_slurm_containers(capsys):
    text = printed(capsys, "slurm", "--container=lab/my image", "--mounts=/a b:/c", *CONFIG)
    assert "\ncontainer='lab/my image'\n" in text and "\nmounts='/a b:/c'\n" in text and "#SBATCH --gpus" not in text
    assert "--devices" not in text.split("command=(")[1].split("\n")[0]


def test_submitting(capfd, stands, monkeypatch, tmp_path):
    """sbatch and kubectl are given the text that was printed, or the file that was written."""
    for name in ("sbatch", "kubectl"):
        stands.add(name, 'cat > "$0.read"; exit 5')
    monkeypatch.setenv("PATH", stands.path())
    gke = ["gke", "--topology=v5e:4x4", "--image=i", "--claim=c:/runs", "--config=quickstart", "--workdir=/runs/x"]
    for words, program, argv in ((["slurm", *CONFIG], "sbatch", []), (gke, "kubectl", ["apply", "-f", "-"])):
        assert launch.main(words) == 0
        text = capfd.readouterr().out
        assert stands.calls(program) == []
        assert launch.main([*words, "--submit"]) == 5
        assert stands.calls(program)[-1]["argv"] == argv
        given = (stands.folder / f"{program}.read").read_text()
        assert text.startswith(given) and capfd.readouterr().out == given
        file = tmp_path / program
        launch.main([*words, "--submit", f"--write={file}"])
        capfd.readouterr()
        assert stands.calls(program)[-1]["argv"] == [word if word != "-" else str(file) for word in argv or ["-"]]
        assert file.read_text() == given


def test_a_program_that_is_not_here_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        launch.main(["slurm", "--submit", *CONFIG])


def test_gpu_is_started_in_place_of_the_launcher():
    """A signal to `gramjax launch gpu --submit` reaches the command: it is the same process."""
    words = [sys.executable, "-m", "gramjax", "launch", "gpu", "--submit", "configs", "quickstart"]
    job = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    said = job.communicate()[0]
    assert job.returncode == 0 and "exec bash" in said and "def get_config(" in said


@pytest.mark.parametrize(
    "words,said",
    [
        (["slrm"], "did you mean slurm"),
        (["slurm", "--node=2", *CONFIG], "did you mean --nodes"),
        (["slurm", "--nodes=0", *CONFIG], "number of 1 or more"),
        (["slurm", "--gpus=-1", *CONFIG], "number of 0 or more"),
        (["slurm", "--processes=per_gpu", *CONFIG], "needs --gpus=N"),
        (["slurm", "--processes=both", *CONFIG], "expected per_node or per_gpu"),
        (["slurm", "--mounts=a:b", *CONFIG], "belongs to --container"),
        (["slurm", "--partition=a\n#SBATCH --x", *CONFIG], "holds a line break"),
        (["slurm", "--nodes=2", "convert", "a", "b"], "convert is one process"),
        (["gpu", "trian", *CONFIG], "did you mean train"),
        (["gpu", "launch", *CONFIG], "no verb 'launch'"),
        (["gpu", "--config=quikstart", "--workdir=x"], "did you mean --config=quickstart"),
        (["gpu", *CONFIG, "--config.optim.lrr=1"], "config.optim.lr"),
        (["gpu", "--config=quickstart"], "give --workdir"),
        (["gpu", "--processes=2", "--gpus=3", *CONFIG], "one process per GPU"),
        (["gpu", "--port=3", *CONFIG], "several processes meet"),
        (["gpu", "--xla_flags=fast", *CONFIG], "neither deterministic nor recommended"),
        (["gpu", "--xla_flags=--xla_gpu_graph_level=0", *CONFIG], "does not take --xla_gpu_graph_level=0"),
        (["tpu", "--zone=z", "--name=n", *CONFIG], "give --topology"),
        ([*SLICE, "--topology=h100:8", *CONFIG], "is no TPU slice"),
        ([*SLICE, "--create", *CONFIG], "--runtime=VERSION belong together"),
        ([*SLICE, "--spot", *CONFIG], "belongs to --create"),
        ([*SLICE, "--distributed=auto", *CONFIG], "tpu_pod.sh gives it"),
        ([*SLICE, *CONFIG, "--config.mesh.tensor=3"], "does not go with the 16 devices"),
        (["slurm", "--gpus=4", *CONFIG, "--config.mesh.fsdp=2"], "does not go with the 4 devices"),
        ([*JOBSET, "--slices=2", *CONFIG], "--slices=2, but config.mesh.slices=1"),
    ],
)
def test_what_cannot_be_launched_is_said_before_anything_is_printed(capsys, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        launch.main(words)
    assert capsys.readouterr().out == ""


def test_a_config_that_is_elsewhere(capsys):
    words = ["gke", "--topology=v5e:4x4", "--image=i", "--claim=c:/runs", "--config=/image/own.py", "--workdir=/runs/x"]
    with pytest.raises(UserError, match="not found"):
        launch.main(words)
    assert '"--config=/image/own.py"' in printed(capsys, *words, "--unread")


def test_options_are_no_flags_of_the_verbs():
    """A word belongs to the launcher or to the verb, never to both."""
    sources = [path.read_text() for path in (ROOT / "gramjax" / "jobs").glob("*.py") if path.stem != "launch"]
    of_tools = {name for text in sources for name in re.findall(r'add_argument\(\s*"--(\w+)"', text)}
    of_verbs = {*flags.VALUES, *flags.SWITCHES, *generate.OWN, *generate.OWN_SWITCHES, *of_tools}
    assert {"to", "verify", "json"} <= of_tools
    for target in launching.TARGETS:
        words = [word for action in launch.parser_of(target)._actions for word in action.option_strings]
        options = {word.removeprefix("--") for word in words}
        assert options & of_verbs == {"help"}


def test_flags_of_xla_are_added_to_those_of_this_environment(capsys, monkeypatch):
    """`launch gpu` runs here, where XLA_FLAGS may be set; what is asked for counts."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_gpu_deterministic_ops=false")
    words = command_of(printed(capsys, "gpu", "--xla_flags=deterministic", *CONFIG))
    assert words[0] == "env" and words[2] == "bash"
    name, _, text = words[1].partition("=")
    assert (name, xla_flags.parse(text)) == (
        "XLA_FLAGS", {"xla_force_host_platform_device_count": "2", "xla_gpu_deterministic_ops": "true"})  # fmt: skip


def test_verbs_of_several_processes_are_those_that_can_be_joined():
    sources = {path.stem: path.read_text() for path in (ROOT / "gramjax" / "jobs").glob("*.py")}
    counted = {verb for verb, text in sources.items() if "expected=arguments.devices" in text}
    alone = {verb for verb in counted if f'alone="{verb}"' in sources[verb]}
    assert (counted - alone, alone) == (set(launching.SEVERAL), set(launching.ONE))


def test_every_chip_can_be_launched_on():
    assert set(launching.NODES) == set(chips.CHIPS)
    assert set(launching.ACCELERATORS) == {name for name, chip in chips.CHIPS.items() if chip.platform == "tpu"}


def test_help_is_quick_and_complete(capsys):
    code = ("import sys; from gramjax import cli; cli.main(['launch', '--help'])\n"
            "try: cli.main(['launch', 'slurm', '--help'])\nexcept SystemExit: pass\n"
            "assert 'jax' not in sys.modules and 'numpy' not in sys.modules")  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(target in said for target in launching.TARGETS)
    assert all(f"--{field.name}" in said for field in dataclasses.fields(launching.Slurm))
    assert cli.main(["launch"]) == 2


def test_scripts_are_found_where_they_are_installed(tmp_path, monkeypatch):
    package = tmp_path / "gramjax"
    (package / "core").mkdir(parents=True)
    (package / "launch").mkdir()
    monkeypatch.setattr(launching, "__file__", str(package / "core" / "launching.py"))
    assert launching.launch_folder() == package / "launch"
