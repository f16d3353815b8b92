"""A carrier that accepts everything and sends nothing, for benchmarks and first steps."""

from models.sends.carrier import NEVER_SENDS, Handover, OutboundMessage, Outcome, Receipt


class NullCarrier:
    """Accepts every message at once."""

    key_window = NEVER_SENDS
    capacity = 1_000_000

    async def deliver(self, message: OutboundMessage, handover: Handover) -> Receipt:  # noqa: ARG002
        """Accept `message`; its own job id is the reference."""
        return Receipt(Outcome.ACCEPTED, reference=message.job_id)

    async def find_fault(self) -> str | None:
        """Find nothing: there is nobody who could refuse."""
        return None

    async def close(self) -> None:
        """Nothing is kept open."""
