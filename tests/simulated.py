"""Environments of processes that see several devices on one CPU."""

import os


def environment(devices: int, **others: str) -> dict[str, str]:
    """Variables of a process with this many simulated devices.

    NPROC: threads of XLA. A collective that waits for another device holds one, and as few as a small machine has cores
    may all be held.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": "32", **others}
