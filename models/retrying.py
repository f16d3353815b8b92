"""When a job is tried again. Pure."""

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and how long apart, a carrier is asked.

    The wait before attempt n+1 is drawn between half and all of `base_s * 2**(n-1)`, at most `longest_s` (seconds):
    exponential back-off, with jitter so that jobs that failed together do not come back together.
    """

    attempts_max: int = 8
    base_s: float = 5.0
    longest_s: float = 900.0
    lease_s: float = 300.0

    def used_up(self, attempts: int) -> bool:
        """Whether no attempt is left after `attempts` of them."""
        return attempts >= self.attempts_max

    def wait(self, attempts: int, draw: float | None = None) -> timedelta:
        """How long to wait after attempt number `attempts` (from 1). `draw` is between 0 and 1; random if None."""
        longest = min(self.longest_s, self.base_s * 2.0 ** min(attempts - 1, 60))
        share = random.random() if draw is None else draw  # noqa: S311  jitter is no secret
        return timedelta(seconds=longest * (0.5 + share / 2))

    @property
    def lease(self) -> timedelta:
        """How long one attempt may hold a job."""
        return timedelta(seconds=self.lease_s)

    @property
    def time_to_begin(self) -> timedelta:
        """How far into a lease that covers several jobs another of them may begin.

        Two thirds are left for it then, and a carrier takes at most four timeouts, of which a lease has six or more.
        """
        return self.lease / 3
