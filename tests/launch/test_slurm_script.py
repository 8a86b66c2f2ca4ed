"""`launch/slurm.sh` inside a made-up job: what it starts, whom it tells to stop, when it goes back into the queue."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "launch" / "slurm.sh"
JOB = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "66"}
WORDS = ["train", "--config=quickstart", "--config.data.train=('a b.jsonl', \"$HOME\")"]


def run(stands, *words, **job):
    environment = {**os.environ, **JOB, **job, "PATH": stands.path()}
    return subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def slurm(stands):
    """srun ends as CODE says; scontrol only takes notes."""
    stands.add("srun", 'exit "${CODE:-0}"')
    stands.add("scontrol")
    stands.add("gramjax")
    return stands


@pytest.mark.parametrize(
    "code,nodes,again",
    [(0, 2, False), (1, 2, False), (2, 2, False), (3, 2, False), (76, 2, False), (137, 2, False),
     (75, 2, True), (77, 2, True), (75, 1, True), (134, 2, True), (134, 1, False)],
)  # fmt: skip
def test_it_goes_back_into_the_queue_only_when_that_helps(slurm, code, nodes, again):
    done = run(slurm, *WORDS, CODE=str(code), SLURM_NNODES=str(nodes))
    assert done.returncode == code and f"ended with {code}" in done.stderr
    assert [call["argv"] for call in slurm.calls("scontrol")] == ([["requeue", "4711"]] if again else [])


@pytest.mark.parametrize("first,again", [(3, False), (1, False), (75, True)])
def test_the_first_process_that_says_why_decides(stands, tmp_path, monkeypatch, first, again):
    """srun reports the highest code: that of the partners, which are aborted."""
    monkeypatch.chdir(tmp_path)
    stands.add("srun", f'echo {first} >> "$GRAMJAX_CODES"; echo 2 >> "$GRAMJAX_CODES"; exit 134')
    stands.add("scontrol")
    for _ in range(2):  # what an earlier life left is not read
        assert run(stands, *WORDS).returncode == first
    assert len(stands.calls("scontrol")) == 2 * again
    assert list(tmp_path.glob(".gramjax*")) == []


def test_one_process_per_node_sees_all_its_gpus(slurm):
    assert run(slurm, *WORDS).returncode == 0
    (call,) = slurm.calls("srun")
    expected = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--gpu-bind=none"]
    assert call["argv"] == [*expected, "--cpus-per-task=66", "gramjax", *WORDS]
    assert call["env"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"


def test_one_process_per_gpu(slurm):
    assert run(slurm, "--processes=per_gpu", *WORDS).returncode == 0
    (call,) = slurm.calls("srun")
    assert call["argv"][1:3] == ["--ntasks=8", "--ntasks-per-node=4"] and "--cpus-per-task=16" in call["argv"]
    assert call["argv"][-4:] == ["gramjax", *WORDS] and "JAX_LOCAL_DEVICE_IDS" not in call["env"]


def test_without_gpus(slurm):
    assert run(slurm, *WORDS, SLURM_GPUS_ON_NODE="", SLURM_CPUS_ON_NODE="").returncode == 0
    (call,) = slurm.calls("srun")
    assert call["argv"][1:4] == ["--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    assert call["argv"][4:] == ["gramjax", *WORDS] and "JAX_LOCAL_DEVICE_IDS" not in call["env"]


def test_containers(slurm):
    here = os.getcwd()
    assert run(slurm, "--container=lab/gramjax:1", "--mounts=/data:/data", *WORDS).returncode == 0
    assert run(slurm, "--container=image.sif", "--mounts=/data:/data", *WORDS).returncode == 0
    assert run(slurm, "--container=image.sif", *WORDS, SLURM_GPUS_ON_NODE="0").returncode == 0
    pyxis, apptainer, without = (call["argv"] for call in slurm.calls("srun"))
    mounts = f"{here}:{here},/data:/data"
    given = ["--container-image=lab/gramjax:1", f"--container-mounts={mounts}", f"--container-workdir={here}"]
    assert pyxis[-7:] == [*given, "gramjax", *WORDS]
    inside = ["apptainer", "exec", "--bind", mounts, "--pwd", here, "--nv", "image.sif", "gramjax"]
    assert apptainer[-12:] == [*inside, *WORDS]
    assert without[-5:] == ["image.sif", "gramjax", *WORDS] and "--nv" not in without


@pytest.mark.parametrize(
    "words,job,said",
    [([], {}, "give a verb"), (["--processes=two", "train"], {}, "expected per_node or per_gpu"), (["train"],
     {"SLURM_JOB_ID": ""}, "runs inside a SLURM job"), (["--processes=per_gpu", "train"], {"SLURM_GPUS_ON_NODE": ""},
     "the job has no GPUs")],
)  # fmt: skip
def test_what_cannot_start_ends_with_2_and_starts_nothing(slurm, words, job, said):
    done = run(slurm, *words, **job)
    assert done.returncode == 2 and said in done.stderr
    assert slurm.calls("srun") == [] and slurm.calls("scontrol") == []


SRUN = """trap 'echo "srun kills its tasks" >> "$MARKS"; kill -KILL $task' TERM
bash -c 'trap "echo term >> \\"$MARKS\\"; sleep 0.3; echo saved >> \\"$MARKS\\"; exit 75" TERM
echo $$ > "$MARKS.pid"; echo started >> "$MARKS"
while true; do sleep 0.05; done' &
task=$!
wait $task
"""
"""As the real one does: told to end, it kills. A task hears of a request to stop through scancel."""


def wait_for(file, word, job):
    while not (file.exists() and word in file.read_text()):
        assert job.poll() is None, f"it ended with {job.returncode}"
        time.sleep(0.02)


@pytest.mark.parametrize("state,array", [("RUNNING", False), ("RUNNING", True), ("COMPLETING", False)])
def test_a_request_to_stop_reaches_each_task_once_and_is_waited_for(stands, tmp_path, state, array):
    """SLURM sends TERM to the shell alone (`--signal=B:`): the step hears of it, saves, and the job is queued again.
    When the whole job is being ended (scancel) the step has been told already, and nothing is queued again."""
    stands.add("srun", SRUN)
    stands.add("squeue", f"echo {state}")
    stands.add("scancel", 'kill -TERM "$(cat "$MARKS.pid")"')
    stands.add("scontrol", 'cat "$MARKS" > "$MARKS.then"')
    marks, named = tmp_path / "marks", {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "2"} if array else {}
    environment = {**os.environ, **JOB, **named, "PATH": stands.path(), "MARKS": str(marks)}
    job = subprocess.Popen(["bash", SCRIPT, *WORDS], env=environment, start_new_session=True)
    try:
        wait_for(marks, "started", job)
        os.kill(job.pid, signal.SIGTERM)
        if state == "COMPLETING":
            os.kill(int(Path(f"{marks}.pid").read_text()), signal.SIGTERM)  # from SLURM
        assert job.wait(60) == 75
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert marks.read_text().split() == ["started", "term", "saved"]
    name = "4711_2" if array else "4711"
    if state == "COMPLETING":
        assert stands.calls("scancel") == stands.calls("scontrol") == []
        return
    assert [call["argv"] for call in stands.calls("scancel")] == [["--signal=TERM", name]]
    assert [call["argv"] for call in stands.calls("scontrol")] == [["requeue", name]]
    assert Path(f"{marks}.then").read_text().split()[-1] == "saved", "queued again before the state was saved"


TASKS = """export SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=2
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do
  SLURM_PROCID=$i "$@" &
done
wait -n; first=$?; wait -n; second=$?
exit $((first > second ? first : second))
"""


def test_tasks_find_each_other_and_count_the_devices_of_all(stands):
    """srun's part is played by two local tasks with SLURM's variables. The rest is real: JAX's reading of them, the
    GPUs that each takes for its own, the count of all devices against what was asked for, no requeue of a wrong job."""
    stands.add("srun", TASKS)
    stands.add("scontrol")
    stands.add("gramjax", f'exec {sys.executable} {Path(__file__).parent / "slurm_worker.py"} "$@"')
    job_id = str(5000 + os.getpid() % 4000)  # JAX makes the port out of it
    one_each = "--xla_force_host_platform_device_count=1"
    done = run(stands, "3", SLURM_JOB_ID=job_id, XLA_FLAGS=one_each)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("--devices=3")]
    assert len(said) == 2 and said[0] == said[1]
    assert "JAX finds 2 x cpu in 2 processes" in said[0] and said[0].endswith("own: 0,1,2,3")
    assert stands.calls("scontrol") == []


@pytest.mark.parametrize("script", sorted(ROOT.glob("launch/*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound_and_say_what_they_take(script):
    subprocess.run(["bash", "-n", script], check=True)
    said = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert script.name in said.splitlines()[0] and "#" not in said and len(said.splitlines()) > 5


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed (gramjax[dev] brings it)")
    done = subprocess.run([program, *sorted(ROOT.glob("launch/*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
