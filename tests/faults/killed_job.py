"""Runs a job in a process that kills itself, -9, just before its n-th step: every place where it can die, in turn."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

STEPS = {
    *("open", "write", "pwrite", "writelines", "flush", "truncate", "fsync", "fdatasync", "sync"),
    *("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir", "put", "drop", "commit"),
}
"""Calls to compiled code that change what is on a disk, and those that open something to do so."""
MODULES = ["heliotrope_server.backup", "heliotrope_server.restore", "heliotrope_server.build_command"]
"""Imported once, in the process that all others are forked from."""


def killed_at(step: int, job: Callable[..., object], *arguments: object) -> bool:
    """Whether the job, a function of a module, died at that step, counted from 0; False: it had ended before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*MODULES, job.__module__])
    process = context.Process(target=_run, args=(step, job, arguments))
    process.start()
    process.join(timeout=120)
    assert process.exitcode in (0, -signal.SIGKILL), f"{job.__name__} ended with {process.exitcode} before step {step}"
    return process.exitcode != 0


def _run(step: int, job: Callable[..., object], arguments: tuple[object, ...]) -> None:
    left = step

    def watch(frame: FrameType, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and getattr(function, "__name__", "") in STEPS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    threading.setprofile(watch)
    sys.setprofile(watch)
    job(*arguments)
    sys.setprofile(None)
