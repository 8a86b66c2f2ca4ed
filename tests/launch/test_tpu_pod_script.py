"""`launch/tpu_pod.sh` with a gcloud that is played: two workers are two home folders, and what is sent to them runs."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WHERE = ["--name=mine", "--zone=here"]
WORDS = ["train", "--config=quickstart", "--config.data.train=('a b.jsonl', \"$HOME\")", "--workdir=/shared/it's"]

GCLOUD = """words=() command= name=
for word in "$@"; do
  case $word in
    --command=*) command=${word#*=} ;;
    --*) ;;
    *) words+=("$word") ;;
  esac
done
case "${words[*]:0:4}" in
  "compute tpus tpu-vm scp")
    for home in "$WORKERS"/*/; do cp "${words[@]:4:${#words[@]}-5}" "$home"; done ;;
  "compute tpus tpu-vm ssh")
    pids=() code=0
    for home in "$WORKERS"/*/; do (cd "$home" && HOME=$home bash -c "$command" 2>&1) & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    exit "$code" ;;
  "compute tpus queued-resources describe")
    echo "$(head -n 1 "$STATES")"; sed -i 1d "$STATES" ;;
esac
"""
PYTHON = """# stands for `python3 -m venv FOLDER`
mkdir -p "$3/bin"
printf '#!/usr/bin/env bash\\ntrue\\n' > "$3/bin/pip"
cp "$STAND_IN" "$3/bin/gramjax"
chmod +x "$3/bin/pip" "$3/bin/gramjax"
"""
GRAMJAX = """#!/usr/bin/env bash
trap 'echo term >> ../marks; sleep 0.3; echo saved >> ../marks; exit 75' TERM
printf '%s\\n' "$PWD" "$LIBTPU_INIT_ARGS" "$@" > ../called
echo "computing on $HOME"
while true; do sleep 0.05; done
"""


@pytest.fixture
def pod(stands, tmp_path, monkeypatch):
    """A checkout with a new, an ignored and a deleted file, two workers, gcloud; runs the script of the checkout."""
    code = tmp_path / "code"
    (code / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "tpu_pod.sh", code / "launch")
    for name in ("pyproject.toml", "gone.py", "secret.txt", "new file.py"):
        (code / name).write_text(name)
    (code / ".gitignore").write_text("secret.txt\nruns\n")
    subprocess.run(["git", "init", "-q", code], check=True)
    subprocess.run(["git", "-C", code, "add", "pyproject.toml", "gone.py", ".gitignore", "launch"], check=True)
    (code / "gone.py").unlink()
    for number in ("0", "1"):
        (tmp_path / "workers" / number).mkdir(parents=True)
    stands.add("gcloud", GCLOUD)
    stands.add("venv_maker", PYTHON)
    (tmp_path / "stand_in").write_text(GRAMJAX)
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    monkeypatch.setenv("PATH", stands.path())
    monkeypatch.setenv("GRAMJAX_POLL", "0")
    for name in ("workers", "states", "stand_in"):
        monkeypatch.setenv(name.upper(), str(tmp_path / name))

    def start(*words):
        command = ["bash", str(code / "launch" / "tpu_pod.sh"), *WHERE, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)  # fmt: skip

    yield start
    for left in tmp_path.glob("workers/*/gramjax.pid"):
        try:
            os.kill(int(left.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def ended(job, code=0):
    said = job.communicate()[0]
    assert job.returncode == code, said
    return said


def test_the_same_command_runs_on_every_worker_until_it_is_asked_to_stop(pod, stands, tmp_path):
    given = ["--python=venv_maker", "--env=LIBTPU_INIT_ARGS=--a=1 --b=2", *WORDS]
    first = pod(*given)
    homes = sorted((tmp_path / "workers").iterdir())
    while not all((home / "called").exists() for home in homes):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    for home in homes:
        code = home / "gramjax"
        assert (home / "called").read_text().splitlines() == [str(code), "--a=1 --b=2", *WORDS, "--distributed=auto"]
        found = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
        assert found == {"pyproject.toml", "new file.py", ".gitignore", "launch/tpu_pod.sh"}
    os.killpg(first.pid, signal.SIGKILL)  # the connection breaks
    first.communicate()
    assert "still runs here" in ended(pod(*given), 2)

    ended(pod("--stop"))
    said = ended(pod("--follow"), 75)
    assert said.count("computing on") == 2 and said.count("exit code 75") == 2
    for home in homes:
        assert (home / "marks").read_text().split() == ["term", "saved"]
    ended(pod("--stop"))  # nothing runs: nobody is told
    assert (homes[0] / "marks").read_text().split() == ["term", "saved"]
    for call in stands.calls("gcloud"):
        assert {"--zone=here", "--worker=all", "--quiet"} <= set(call["argv"])
        assert ("mine:" if call["argv"][3] == "scp" else "mine") in call["argv"]


def test_a_slice_is_asked_for_and_waited_for(pod, stands, tmp_path):
    (tmp_path / "stand_in").write_text('#!/usr/bin/env bash\nexit 3\n')
    job = pod("--create=v5litepod-16", "--runtime=v2", "--spot", "--project=p", "--python=venv_maker", "train")
    said = ended(job, 3)
    assert said.count("mine is") == 3 and "exit code 3" in said
    calls = [call["argv"] for call in stands.calls("gcloud")]
    common = ["mine", "--zone=here", "--quiet", "--project=p"]
    asked = ["--node-id=mine", "--accelerator-type=v5litepod-16", "--runtime-version=v2", "--spot"]
    assert calls[0] == ["compute", "tpus", "queued-resources", "create", *common, *asked]
    assert [call[3] for call in calls] == ["create", "describe", "describe", "describe", "scp", "ssh", "ssh", "ssh"]
    ended(pod("--delete"))
    assert stands.calls("gcloud")[-1]["argv"] == [*calls[0][:3], "delete", "mine", "--zone=here", "--quiet", "--force"]


def test_a_slice_that_is_not_given_ends_the_wait(pod, stands, tmp_path):
    (tmp_path / "states").write_text("FAILED\n")
    ended(pod("--create=v5litepod-16", "--runtime=v2", "train"), 1)
    assert [call["argv"][3] for call in stands.calls("gcloud")] == ["create", "describe"]


def test_dry_run_only_prints(pod, stands):
    said = ended(pod("--create=v5litepod-16", "--runtime=v2", "--dry_run", "--env=A=b c", *WORDS))
    assert stands.calls("gcloud") == []
    lines = [line.split()[:5] for line in said.splitlines() if line.startswith("gcloud")]
    assert [line[4] for line in lines] == ["create", "scp", "ssh", "ssh", "ssh"]
    assert "export A=b\\ c" in said and "--distributed=auto" in said
    assert "--distributed" not in ended(pod("--dry_run", "convert", "a", "b"))


@pytest.mark.parametrize(
    "words,said",
    [([], "give a verb"), (["--create=v5litepod-8", "train"], "needs --runtime"), (["--spot", "train"], "belongs to"),
     (["--stop", "train"], "takes no verb"), (["--zones=x", "train"], "unknown option --zones=x"),
     (["--name=", "train"], "give --name=TPU")],
)  # fmt: skip
def test_what_cannot_start_ends_with_2(pod, stands, words, said):
    assert said in ended(pod(*words), 2)
    assert stands.calls("gcloud") == []
