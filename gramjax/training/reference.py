"""The frozen second model that some objectives compare with, such as the reference of DPO.

It lies beside the state, in the compute dtype and without optimiser state, and is part of no checkpoint: there only its
fingerprint stands, so that a run that is resumed cannot go on with another one.
"""

import dataclasses
import hashlib
from typing import Any

import jax

from gramjax.checkpoint import source as weight_source
from gramjax.checkpoint.checksum import checksums
from gramjax.core import config as configs
from gramjax.core import tree
from gramjax.core.errors import UserError
from gramjax.models import lora
from gramjax.training import setup

HEADS = ("tokens",)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Parameters at rest, and what tells them from others."""

    params: Any
    fingerprint: str
    model: Any
    """Whose weights they are."""


def load(config: Any, run: setup.Run) -> Reference | None:
    """The reference of a run: what `config.reference` names, else the weights that the run starts from.

    None if its objective needs none, and where the frozen base of rollouts with adapters is one already. Adapters are
    merged; those that the run itself adds are not part of it. Raises UserError for weights of another architecture.
    """
    if not setup.needs_reference(run.objective, run.objective_config):
        return None
    if run.rolls and not config.reference.path and base_is_frozen(run):
        return None
    section = configs.section(config.get("reference", {}), configs.ReferenceSection, "reference")
    network = run.network
    source = weight_source.open_source(section.path, section.step or None) if section.path else network.source
    arch = lora.off(network.model.config) if source is None else source.config
    arch = dataclasses.replace(arch, heads=HEADS)
    expected = setup.reference_model(network.model, run.objective).config
    if not section.path and expected != lora.off(network.model.config):
        raise UserError("this objective compares with the model before its layers shared anything: give "
                        "--config.reference.path=ORIGINAL, or set the terms that look at it to 0")  # fmt: skip
    check_same(arch, expected)
    model = dataclasses.replace(network.model, config=arch)
    params = setup.load_for_use(dataclasses.replace(network, model=model, source=source), run.seed)
    params = lora.merge(params, arch)
    sums = checksums(tree.flatten(params))
    model = dataclasses.replace(model, config=lora.off(arch))
    return Reference(params, hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest(), model)


def base_is_frozen(run: setup.Run) -> bool:
    """Whether a run trains adapters and nothing else: without them its weights are those that it started from."""
    adapters = [path for path in run.labels if lora.is_rank_leaf(path)]
    return bool(adapters) and all(lora.is_rank_leaf(path) for path, label in run.labels.items() if label == tree.TRAIN)


def packed(compared: Reference | None) -> Any:
    """The weights in use of a reference, for evaluations; None without one."""
    if compared is None:
        return None
    return jax.jit(compared.model.pack)(compared.params)


MAY_DIFFER = ("heads", "lora", "init_scale", "preference_width", "preference_pool", "score_hidden")
"""Settings in which a reference may differ: it is asked for log-probabilities alone."""


def check_same(reference: Any, trained: Any) -> None:
    """Raise UserError naming the first setting in which the two architectures differ (heads and adapters may)."""
    for field in dataclasses.fields(reference):
        ours, other = (getattr(arch, field.name) for arch in (trained, reference))
        if field.name not in MAY_DIFFER and ours != other:
            raise UserError(
                f"the reference (config.reference.path) has {field.name} {other!r}, the model that is trained has "
                f"{ours!r}; they must be of one architecture"
            )
