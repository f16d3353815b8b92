"""What a server turned out to take at most: it is kept to, and tried again slowly."""

import time


class LearntLimit:
    """A limit that a server has shown by refusing more. It grows again by one in each `grow_s` seconds."""

    def __init__(self, most: int, grow_s: float) -> None:
        """Begin with the limit that was set, which is never exceeded."""
        self._most = most
        self._grow_s = grow_s
        self._learnt = most
        self._since = 0.0

    @property
    def now(self) -> int:
        """The limit as it is now."""
        if self._learnt == self._most:
            return self._most  # as nearly always
        return min(self._most, self._learnt + int((time.monotonic() - self._since) / self._grow_s))

    def learn(self, limit: int) -> None:
        """Keep to `limit`, which was just shown."""
        self._learnt = min(self._most, max(1, limit))
        self._since = time.monotonic()
