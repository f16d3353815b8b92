"""When a job is tried again. Pure."""

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a carrier is tried, how long to wait between attempts, and how long one attempt may take.

    The delay before attempt n+1 is drawn between half and all of `base_s * 2**(n-1)`, at most `max_s` (seconds):
    exponential back-off, with jitter so that jobs that failed together do not come back together. By default the last
    attempt is four to eight hours after the first one.
    """

    attempts_max: int = 18
    base_s: float = 5.0
    max_s: float = 3600.0
    lease_s: float = 300.0
    wait_max: timedelta = timedelta(days=4)
    """How long a job may wait for carriers that rest, or are set up wrongly here, after which it ends (RFC 5321 section
    4.5.4.1 gives mail four to five days)."""

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
    def renewal(self) -> timedelta:
        """How long after a lease began, or was renewed, a worker that lives renews it."""
        return self.lease / 3

    @property
    def start_window(self) -> timedelta:
        """How long after their lease began jobs may be started, which wait for a free place at their carrier."""
        return self.lease / 3
