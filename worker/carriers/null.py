"""A carrier that accepts everything and sends nothing, for benchmarks and first steps."""

from collections.abc import Callable

from models.sends.carrier import OutboundMessage, Outcome, Receipt


class NullCarrier:
    """Accepts every message at once."""

    is_idempotent = True
    concurrency = 1

    def deliver(self, message: OutboundMessage, before_handover: Callable[[], None]) -> Receipt:  # noqa: ARG002
        """Accept `message`; its own job id is the reference."""
        return Receipt(Outcome.ACCEPTED, reference=message.job_id)

    def close(self) -> None:
        """Nothing is kept open."""
