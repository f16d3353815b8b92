"""A carrier that accepts everything and sends nothing: for benchmarks and first steps."""

from collections.abc import Callable

from models.carriers import Outcome, Parcel, Receipt


class NullCarrier:
    """Accepts every parcel at once."""

    honours_job_id = True
    at_once = 1

    def deliver(self, parcel: Parcel, about_to_hand_over: Callable[[], None]) -> Receipt:  # noqa: ARG002
        """Accept `parcel`; its own job id is the reference."""
        return Receipt(Outcome.ACCEPTED, reference=parcel.job_id)

    def close(self) -> None:
        """Nothing is kept open."""
