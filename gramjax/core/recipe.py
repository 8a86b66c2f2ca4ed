"""A recipe is a list of gramjax commands; this is one of them."""

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Step:
    """One command: its folder's name below `steps/`, the verb, and its whole config."""

    name: str
    verb: str
    config: ConfigDict
