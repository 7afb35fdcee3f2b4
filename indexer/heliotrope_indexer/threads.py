"""How the threads of the numeric libraries wait for each other, and for the rest of the machine."""

from __future__ import annotations

import os
from pathlib import Path


def sleep_when_waiting() -> None:
    """Lets OpenMP's threads sleep at a barrier, unless the environment says otherwise; call before torch is imported.

    By default they spin. On a machine that also does other work, or with more threads than it has cores, each waits for
    one that does not run: an epoch of 3 s took 60 s beside another training job, and 5 s with sleeping threads. Alone
    sleeping costs a tenth.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def stand_back(nice: int) -> None:
    """Lowers the priority of every thread of this process, and so of those to come, to a nice value of 0 to 19.

    On Linux the value belongs to a thread: os.nice alone would leave the pools that libraries made when they were
    imported as they were.
    """
    tasks = Path("/proc/self/task")
    for thread in [int(path.name) for path in tasks.iterdir()] if tasks.exists() else [0]:
        os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
