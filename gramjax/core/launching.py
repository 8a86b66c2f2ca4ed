"""What starts a command elsewhere: options in, the text of a script, a command line or a manifest out.

Pure functions. The scripts and the manifest stand in `launch/`, where they work and can be read without this file; here
their blanks are filled in. The number of devices that was asked for goes into the command as `--devices=N`.
"""

import dataclasses
import json
import math
import re
import shlex
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import chips
from gramjax.core.errors import UserError

SEVERAL = ("train", "evaluate")
"""Verbs that run as one job of several processes."""
ONE = ("score", "annotate", "select_layers", "generate", "serve", "run")
"""Verbs that use devices in one process."""

PORT = 8476
"""Where the processes of a manifest for GPUs meet, on the first pod."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """On this host, through launch/gpu_host.sh."""

    processes: int = 1
    """1: one process that sees all GPUs; more: one process per GPU (on a CPU as many as asked for)"""
    gpus: int = 0
    """GPUs that the host must have; 0: as many as there are"""
    port: int = 0
    """where several processes meet; 0: a port that is free"""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """As a batch job, through launch/slurm.sh."""

    nodes: int = 1
    """nodes of the job"""
    gpus: int = 0
    """GPUs of each node; 0: none, it computes on processors"""
    processes: str = "per_node"
    """per_node: a process that sees all GPUs of its node; per_gpu: one process per GPU"""
    cpus: int = 0
    """processor cores of each node; 0: SLURM's default, which may be one"""
    memory: str = ""
    """of each node, as SLURM writes it: 200G"""
    time: str = ""
    """most time until it is stopped and put back into the queue: 24:00:00"""
    partition: str = ""
    """queue"""
    account: str = ""
    """whom it is charged to"""
    container: str = ""
    """image to run in: a .sif file (apptainer), or what pyxis calls an image"""
    mounts: str = ""
    """further folders that the container sees: HOST:INSIDE[,...]"""
    sbatch: str = ""
    """further options of sbatch, as one text: "--qos=high --exclusive\""""
    name: str = ""
    """of the job; default: gramjax-CONFIG"""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """On the workers of a Cloud TPU slice, through launch/tpu_pod.sh."""

    topology: str = ""
    """the slice, such as v5e:4x4 or v5p:4x4x4"""
    name: str = ""
    """of the slice"""
    zone: str = ""
    """where it is"""
    project: str = ""
    """default: gcloud's"""
    create: bool = False
    """ask for the slice first, as a queued resource, and wait for it"""
    runtime: str = ""
    """with create: the software of the workers, as Google names it"""
    spot: bool = False
    """with create: cheaper, and may be taken away"""
    python: str = "python3"
    """the workers' interpreter, 3.11 or newer"""


@dataclasses.dataclass(frozen=True)
class Gke:
    """As a JobSet on a GKE cluster, through launch/gke_jobset.yaml."""

    topology: str = ""
    """a TPU slice such as v5e:4x4, or GPUs such as h100:16 (eight per node)"""
    image: str = ""
    """container image with gramjax in it"""
    claim: str = ""
    """CLAIM:PATH, the disk of the runs and where the pods see it; the run folder lies on it"""
    name: str = ""
    """of the JobSet; default: gramjax-CONFIG"""
    namespace: str = "default"
    """of the JobSet"""
    slices: int = 1
    """TPU slices, joined by the network between them"""
    restarts: int = 100
    """times that all pods are started anew before the JobSet has failed"""
    grace: int = 300
    """seconds between the request to stop and the end"""
    spot: bool = False
    """on nodes that are cheaper, and may be taken away"""


TARGETS: dict[str, type[Any]] = {"gpu": Gpu, "slurm": Slurm, "tpu": Tpu, "gke": Gke}


@dataclasses.dataclass(frozen=True)
class Command:
    """What is to be run: `gramjax VERB WORDS`, with variables set before it."""

    verb: str
    words: tuple[str, ...]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def value(self, flag: str) -> str:
        """The text of `--flag=TEXT` or `--flag TEXT` among the words, "" without it."""
        for word, after in zip(self.words, (*self.words[1:], "")):
            name, equals, text = word.partition("=")
            if name == f"--{flag}":
                return text if equals else after
        return ""

    def label(self) -> str:
        """A name for the job that schedulers take: gramjax and the config's name."""
        name = Path(self.value("config").partition(":")[0]).stem or self.verb
        return re.sub("[^a-z0-9]+", "-", f"gramjax-{name}".lower()).strip("-")[:40].rstrip("-")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A script, a manifest, or the script that holds a command line; and the words that submit it."""

    text: str
    submit: tuple[str, ...]
    """`-` stands for the text: its file, or the standard input where it has none."""


def launch_folder() -> Path:
    """Where the scripts are: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "launch" if (package / "launch").is_dir() else package.parent / "launch"


def platform(target: str, options: Any) -> str:
    """Whose flags of XLA count there: `gpu` or `tpu`."""
    return chips.parse(options.topology).platform if target in ("tpu", "gke") else "gpu"


def devices_of(options: Any) -> int:
    """How many devices a target has with these options; 0: not known."""
    if isinstance(options, Gpu):
        return options.gpus or (options.processes if options.processes > 1 else 0)
    if isinstance(options, Slurm):
        return options.nodes * options.gpus
    return chips.parse(options.topology).count * getattr(options, "slices", 1) if options.topology else 0


def check_mesh(mesh: Mapping[str, Any], options: Any) -> None:
    """Raise UserError for a `config.mesh` that does not go with the devices of a target: it would end the job there."""
    sizes = {axis: size for axis, size in mesh.items() if axis != "slices"}
    known, devices = math.prod(size for size in sizes.values() if size != -1), devices_of(options)
    if devices and (devices % known if -1 in sizes.values() else devices != known):
        raise UserError(f"config.mesh {sizes} does not go with the {devices} devices that are asked for")
    slices = getattr(options, "slices", 1)
    if devices and isinstance(options, Gke) and mesh.get("slices", 1) != slices:
        raise UserError(f"--slices={slices}, but config.mesh.slices={mesh['slices']}: give the same number")


def render(target: str, options: Any, command: Command) -> Rendered:
    """The text for a target of `TARGETS` and an instance of its options."""
    renderers: dict[str, Callable[[Any, Command], Rendered]] = {"gpu": gpu, "slurm": slurm, "tpu": tpu, "gke": gke}
    return renderers[target](options, command)


def gpu(options: Gpu, command: Command) -> Rendered:
    """A command line of gpu_host.sh, as a script."""
    several = options.processes > 1
    if several and options.gpus not in (0, options.processes):
        raise UserError(f"--processes={options.processes}, --gpus={options.gpus}: one process per GPU, or one in all")
    if options.port and not several:
        raise UserError(f"--port={options.port} is where several processes meet (--processes)")
    given = given_options(processes=options.processes if several else 0, port=options.port)
    words = expecting(command, devices_of(options), options.processes)
    return shell_command("gpu_host.sh", given, words, command.variables)


def slurm(options: Slurm, command: Command) -> Rendered:
    """slurm.sh with its directives and its command filled in."""
    if options.processes not in ("per_node", "per_gpu"):
        raise UserError(f"--processes={options.processes}: expected per_node or per_gpu")
    if options.processes == "per_gpu" and not options.gpus:
        raise UserError("--processes=per_gpu needs --gpus=N, the GPUs of each node")
    if options.mounts and not options.container:
        raise UserError("--mounts belongs to --container=IMAGE")
    processes = options.nodes * (options.gpus if options.processes == "per_gpu" else 1)
    directives = [f"--nodes={options.nodes}"]
    directives += given_options(**{
        "gpus-per-node": options.gpus, "cpus-per-task": options.cpus, "mem": options.memory, "time": options.time,
        "partition": options.partition, "account": options.account,
    })  # fmt: skip
    directives += shlex.split(options.sbatch)  # the last: they override those of the script
    text = (launch_folder() / "slurm.sh").read_text("utf-8")
    text = filled(text, r"#SBATCH --job-name=.*", directive(f"--job-name={options.name or command.label()}"))
    last = "#SBATCH --open-mode=append"
    text = filled(text, re.escape(last), "\n".join([last, *map(directive, directives)]))
    values = {"processes": options.processes, "container": options.container, "mounts": options.mounts}
    for name, value in values.items():
        text = filled(text, rf"{name}=.*", f"{name}={shlex.quote(value)}")
    variables = shlex.join(f"{name}={value}" for name, value in command.variables.items())
    text = filled(text, r"environment=\(\)", f"environment=({variables})")
    words = expecting(command, devices_of(options), processes)
    return Rendered(filled(text, r"command=\(\)", f"command=({shlex.join(words)})"), ("sbatch", "-"))


ACCELERATORS = {"v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
"""What Cloud TPU calls a chip, and how many it counts for each in the name of a slice."""


def tpu(options: Tpu, command: Command) -> Rendered:
    """A command line of tpu_pod.sh, as a script."""
    for name in ("topology", "name", "zone"):
        if not getattr(options, name):
            raise UserError(f"give --{name}=…: {field_doc(Tpu, name)}")
    topology = chips.parse(options.topology)
    if topology.platform != "tpu":
        raise UserError(f"--topology={options.topology} is no TPU slice")
    if options.create != bool(options.runtime):
        raise UserError("--create and --runtime=VERSION belong together")
    if options.spot and not options.create:
        raise UserError("--spot belongs to --create")
    kind, each = ACCELERATORS[topology.kind]
    given = given_options(
        name=options.name, zone=options.zone, project=options.project, runtime=options.runtime, spot=options.spot,
        create=f"{kind}-{topology.count * each}" if options.create else "",
        python="" if options.python == "python3" else options.python,
    )  # fmt: skip
    given += [f"--env={name}={value}" for name, value in command.variables.items()]
    words = expecting(command, devices_of(options), hosts_of(topology)[0])
    if command.value("distributed"):
        raise UserError("--distributed: tpu_pod.sh gives it")
    return shell_command("tpu_pod.sh", given, words, {})


NODES = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice", "a100": "nvidia-a100-80gb",
         "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb", "b200": "nvidia-b200"}
"""What GKE calls the nodes of a chip."""


def gke(options: Gke, command: Command) -> Rendered:
    """gke_jobset.yaml with its blanks filled in; every value is written as JSON, which YAML reads."""
    for name in ("topology", "image", "claim"):
        if not getattr(options, name):
            raise UserError(f"give --{name}=…: {field_doc(Gke, name)}")
    topology = chips.parse(options.topology)
    on_tpu = topology.platform == "tpu"
    if topology.platform == "cpu":
        raise UserError(f"--topology={options.topology}: expected a TPU slice or GPUs")
    if options.slices > 1 and not on_tpu:
        raise UserError(f"--slices={options.slices} belongs to a TPU topology; more GPUs are {topology.kind}:N")
    claim, _, mount = options.claim.partition(":")
    if not claim or not mount.startswith("/"):
        raise UserError(f"--claim={options.claim}: expected CLAIM:PATH, such as runs:/runs")
    workdir = command.value("workdir")
    if workdir and Path(mount) not in (Path(workdir), *Path(workdir).parents):
        raise UserError(f"--workdir={workdir} is not below {mount}, the disk that stays: a restart would begin anew")
    name = options.name or command.label()
    if not re.fullmatch("[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(f"--name={name}: up to 40 lower-case letters, digits and dashes, a letter first")
    hosts, per_host = hosts_of(topology)
    processes = hosts * options.slices
    words = expecting(command, devices_of(options), processes)
    environment: list[dict[str, Any]] = [{"name": key, "value": v} for key, v in command.variables.items()]
    if processes > 1 and on_tpu:
        words += ["--distributed=auto"]
    elif processes > 1:
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        environment += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-slice-0-0.{name}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(processes)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]
    label = "cloud.google.com/gke-"
    shape = {f"{label}tpu-topology": str(topology).partition(":")[2]} if on_tpu else {}
    selector = {f"{label}{'tpu-' if on_tpu else ''}accelerator": NODES[topology.kind]} | shape
    spot = {"key": f"{label}spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    values = {
        "name": name, "namespace": options.namespace, "image": options.image, "claim": claim, "mount": mount,
        "slices": options.slices, "hosts": hosts, "restarts": options.restarts, "grace": options.grace,
        # A slice is a node pool: each job of the set gets one of its own.
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": f"{label}nodepool"} if on_tpu else {},
        "node_selector": selector | ({f"{label}spot": "true"} if options.spot else {}),
        "tolerations": [spot] if options.spot else [],
        "command": ["gramjax", *words], "environment": environment,
        "limits": {"google.com/tpu" if on_tpu else "nvidia.com/gpu": str(per_host)},
    }  # fmt: skip
    template = string.Template((launch_folder() / "gke_jobset.yaml").read_text("utf-8"))
    text = template.substitute({key: json.dumps(value) for key, value in values.items()})
    return Rendered(text, ("kubectl", "apply", "-f", "-"))


def hosts_of(topology: chips.Topology) -> tuple[int, int]:
    """Hosts of a slice, or nodes of so many GPUs, and the devices of each."""
    most = 8 if topology.platform == "gpu" or topology.shape == (2, 4) else 4
    if topology.count <= most:
        return 1, topology.count
    if topology.count % most:
        raise UserError(f"--topology={topology}: {topology.count} devices do not fill hosts of {most}")
    return topology.count // most, most


def expecting(command: Command, devices: int, processes: int) -> list[str]:
    """The words of the command, verb first, with the number of devices that there must be (0: not known).

    Raises UserError for a verb that is one process where several would run it.
    """
    if processes > 1 and command.verb not in SEVERAL:
        raise UserError(f"{command.verb} is one process; several run {', '.join(SEVERAL)}")
    words = [command.verb, *command.words]
    if devices and command.verb in (*SEVERAL, *ONE) and not command.value("devices"):
        words.append(f"--devices={devices}")
    return words


def given_options(**values: Any) -> list[str]:
    """`--name=value` for every value that is not empty; `--name` for True."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items() if value]


def shell_command(script: str, given: Sequence[str], words: Sequence[str], variables: Mapping[str, str]) -> Rendered:
    """A command line of one of the scripts, as a script of its own."""
    head = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
    line = [*head, "bash", str(launch_folder() / script), *given, *words]
    return Rendered(f"#!/usr/bin/env bash\nexec {shlex.join(line)}\n", tuple(line))


def filled(text: str, pattern: str, line: str) -> str:
    """A script with its one line that matches a pattern replaced."""
    out, count = re.subn(rf"^{pattern}$", lambda _: line, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{count} lines match {pattern!r}")
    return out


def directive(word: str) -> str:
    """A line of a script that SLURM reads an option from. Raises UserError for one that would end the line."""
    if any(character in word for character in "\n\r"):
        raise UserError(f"{word!r} holds a line break")
    return f"#SBATCH {shlex.quote(word)}"


def field_doc(record: type, name: str) -> str:
    """What an option means."""
    from gramjax.core import settings

    return settings.field_docs(record)[name]
