"""At most so many examples per user and window."""


class UserQuota:
    """Counts by fixed windows, so it forgets all users at once and holds no more users than examples of one window.

    Around the turn of a window a user can have two windows' worth in a row.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._window = -1
        self._used: dict[str, int] = {}

    def take(self, user_id: str, count: int, now_s: float) -> int:
        """Takes up to `count`; returns how many there were left to take."""
        window = int(now_s // self._window_s)
        if window != self._window:
            self._window, self._used = window, {}
        used = self._used.get(user_id, 0)
        granted = max(0, min(count, self._limit - used))
        self._used[user_id] = used + granted
        return granted
