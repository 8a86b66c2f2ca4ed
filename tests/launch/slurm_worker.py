"""What a SLURM task runs in a test: it joins the others as a job does, says which GPUs are its own, ends like one."""

import sys

from gramjax.core import runtime
from gramjax.core.errors import GramjaxError


def main() -> int:
    try:
        runtime.start(expected=int(sys.argv[1]))
    except GramjaxError as error:
        from jax._src import xla_bridge

        own = xla_bridge.CUDA_VISIBLE_DEVICES.value
        sys.stderr.write(f"{error}; own: {own}\n")  # in one piece: the other task writes too
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
