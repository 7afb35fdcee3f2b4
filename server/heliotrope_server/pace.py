"""How a long job in a thread shares the interpreter with the event loop."""

import time

WORK_S = 0.001
REST_S = 0.002


class Pace:
    """To be called between small steps: after each millisecond of work it sleeps for two.

    While the thread works the loop waits for it now and then, by half a millisecond at most (the switch interval of a
    shard); while it sleeps, not at all.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._since >= WORK_S:
            time.sleep(REST_S)
            self._since = time.perf_counter()
