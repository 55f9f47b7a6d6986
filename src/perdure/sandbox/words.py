"""What the model is told in words when a call met a limit, and what the operator's log says of it."""

from __future__ import annotations

from perdure.sandbox.base import Limits, Outcome

KEPT = "Variables and files are kept."
FRESH = "The interpreter was started anew: variables, imports and functions are gone; files in /mnt/data are kept."
LOST = (
    "The session of this code is gone: variables, imports and functions, and the files in /mnt/data that were not "
    "handed over. Do again what is needed."
)


def size(count: int) -> str:
    """Return a number of bytes as people write it."""
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


def ended(outcome: Outcome, limits: Limits, *, kept: bool) -> str:
    """Return the sentences for a call that did not end by itself."""
    what = {
        "timeout": f"The code ran longer than {limits.wall_seconds:g} seconds and was stopped.",
        "cpu": f"The code used more than {limits.cpu_seconds:g} seconds of processor time and was stopped.",
        "memory": f"The code used more than {size(limits.memory_bytes)} of memory and was stopped.",
        "disk": f"The code filled its disk ({size(limits.disk_bytes)}, {limits.files} files) and was stopped.",
        "processes": f"The code started more than {limits.processes} processes and was stopped.",
        "output": f"The code printed far more than {size(limits.output_bytes)} and was stopped.",
        "interrupted": "The code was interrupted.",
        "died": "The interpreter died while it ran the code.",
    }.get(outcome, "")
    return f"{what} {KEPT if kept else FRESH}" if what else ""


def hinted(hint: str, limits: Limits) -> str:
    """Return the sentence for a limit that the code met as an exception; '' for none."""
    return {
        "memory": f"Limit: a session has {size(limits.memory_bytes)} of memory. Read and work in smaller pieces.",
        "disk": f"Limit: /mnt/data holds {size(limits.disk_bytes)}. Delete what is not needed.",
        "file": f"Limit: a file may be {size(limits.file_bytes)} long.",
        "processes": f"Limit: a session has {limits.processes} processes and threads.",
        "network": "Limit: there is no network in the sandbox, not even to this machine itself.",
    }.get(hint, "")


def cut(limits: Limits) -> str:
    """Return the sentence for outputs that were cut."""
    return f"The output was cut: only its first {size(limits.output_bytes)} are shown. Print less."
