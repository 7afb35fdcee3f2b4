"""How the threads of the numeric libraries wait for each other."""

from __future__ import annotations

import os


def sleep_when_waiting() -> None:
    """Lets OpenMP's threads sleep at a barrier, unless the environment says otherwise; call before torch is imported.

    By default they spin. On a machine that also does other work, or with more threads than it has cores, each waits for
    one that does not run: an epoch of 3 s took 60 s beside another training job, and 5 s with sleeping threads. Alone
    sleeping costs a tenth.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
