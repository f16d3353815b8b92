"""When a job is tried again. Pure."""

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a carrier is tried, how long to wait between attempts, and how long one attempt may take.

    The delay before attempt n+1 is drawn between half and all of `base_s * 2**(n-1)`, at most `max_s` (seconds):
    exponential back-off, with jitter so that jobs that failed together do not come back together.
    """

    attempts_max: int = 8
    base_s: float = 5.0
    max_s: float = 900.0
    lease_s: float = 300.0

    def is_exhausted(self, attempts: int) -> bool:
        """Whether no attempt is left after `attempts` of them."""
        return attempts >= self.attempts_max

    def delay(self, attempts: int, draw: float | None = None) -> timedelta:
        """Return the delay after attempt number `attempts` (from 1). `draw` is between 0 and 1; random if None."""
        longest_s = min(self.max_s, self.base_s * 2.0 ** min(attempts - 1, 60))
        share = random.random() if draw is None else draw  # noqa: S311  jitter is no secret
        return timedelta(seconds=longest_s * (0.5 + share / 2))

    @property
    def lease(self) -> timedelta:
        """How long one attempt may hold a job."""
        return timedelta(seconds=self.lease_s)

    @property
    def start_window(self) -> timedelta:
        """How long after the beginning of a lease that covers several jobs another of them may be started.

        Two thirds of the lease are left for it then. A carrier takes at most four timeouts, and a lease is at least
        six.
        """
        return self.lease / 3
