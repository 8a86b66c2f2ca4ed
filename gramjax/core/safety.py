"""The section of what a training does when something goes wrong."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SafetySection:
    """What a training does about bad steps, stuck devices, drifting copies and crashes that repeat."""

    on_bad_step: str = "skip"
    """A step whose loss or gradient is NaN or infinite: `skip` (parameters and optimiser stay as they were; counted) or
    `stop`."""
    max_bad_steps: int = 3
    """So many bad steps in a row end the training."""
    watchdog_seconds: float = 900.0
    """A step, save or evaluation batch that makes no progress for so long (and for `watchdog_factor` times the median
    step) ends the process with all stacks printed, exit code 77; 0: never."""
    watchdog_factor: float = 20.0
    """See watchdog_seconds; the first step, which compiles, is given ten times as long."""
    check_replicas_every: int = 0
    """Steps between comparisons of what several devices or hosts hold copies of; a copy that differs is named, and the
    training ends; 0: never."""
    max_crashes: int = 3
    """The same step crashed so often in a row, over restarts, that another try is refused (exit code 76); 0: never."""
    reset_data: bool = False
    """Go on although rows, data settings, batch size, seed or tokenizer are not those of the checkpoint: batches go on
    at the same number, in the new order."""
