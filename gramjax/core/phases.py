"""The phases of a config: trainings that follow one another, each from the weights of the one before."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def phases(config: Any, workdir: Path, dry_run: bool = False) -> Iterator[tuple[str, Any, Path]]:
    """The trainings of a config, one after the other: (name, config, folder).

    `config.phases` maps names, in alphabetical order, to the settings that differ. A phase starts from the weights of
    the one before (which a dry run does not make: there each starts as the first does). The last one writes into
    `workdir` itself, the others into folders named after them.
    """
    names = sorted(config.get("phases", {}))
    if not names:
        yield "", config, workdir
        return
    start = config.model.path
    for name in names:
        own = copy.deepcopy(config)
        with own.unlocked():
            own.update(config.phases[name])
            own.data.train = own.data.train or config.data.train  # a phase without data of its own
            own.model.path, own.phases = start, {}
            if start != config.model.path:
                own.model.adapter = ""  # it is in the weights of the phase before
        target = workdir if name == names[-1] else workdir / name
        yield name, own, target
        start = start if dry_run else str(target)
