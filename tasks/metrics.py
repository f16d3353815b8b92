"""What tasks count and measure, for Prometheus. It costs one step a message, and the rest once a batch.

Labels come from closed lists: tasks, kinds, statuses. None names a person, a job or an organization.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from models.messages.fields import KINDS, Kind
from models.messages.wire import SEND_TASKS
from models.sends.charges import Charge, SendJob, State
from models.sends.outcomes import Settlement

ENDS: Final = (State.SENT, State.FAILED, State.UNKNOWN)
"""How a message that was charged can end; one that is unknown may be sent or refunded by a person later."""
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MESSAGES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics(Collector):
    """What the tasks of one process have counted and measured since it began. Safe for threads."""

    def __init__(self) -> None:
        self._messages = Counter(
            "postage_messages",
            "Messages that have ended, those of bulk jobs and those that were tried again too.",
            ["task", "status"],
            registry=None,
        )
        self._charged = Counter("postage_credits_charged", "Credits that were charged.", ["kind"], registry=None)
        self._refunded = Counter("postage_credits_refunded", "Credits that went back.", ["kind"], registry=None)
        self._charge_s = Histogram(
            "postage_charge_seconds",
            "How long a charging transaction took, with its waits for the database.",
            ["task"],
            buckets=SECONDS,
            registry=None,
        )
        self._batch = Histogram(
            "postage_batch_messages",
            "Messages that one transaction charged.",
            ["task"],
            buckets=MESSAGES,
            registry=None,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Make every series that there can be: the first increase of one that appears later is not seen as one."""
        for task in SEND_TASKS:
            self._charge_s.labels(task)
            self._batch.labels(task)
            for state in ENDS:
                self._messages.labels(task, state)
        for kind in KINDS:
            self._charged.labels(kind)
            self._refunded.labels(kind)

    def note_charging(self, job: SendJob, messages: int, charges: Sequence[Charge], took_s: float) -> None:
        """Note a transaction that has charged so many messages of jobs like `job`, and how long it took, in seconds."""
        self._charge_s.labels(job.task).observe(took_s)
        self._batch.labels(job.task).observe(messages)
        self._charged.labels(job.kind).inc(sum(charge.credits for charge in charges if charge.is_new))

    def note_ends(self, settlements: Iterable[Settlement]) -> None:
        """Note how attempts have ended that count."""
        ended: Tally[tuple[str, State]] = Tally()
        refunded: Tally[Kind] = Tally()
        for one in settlements:
            ended[one.charge.task, one.state] += 1
            if one.refund:
                refunded[one.charge.kind] += one.refund
        for (task, state), messages in ended.items():
            if state in ENDS:
                self._messages.labels(task, state).inc(messages)
        for kind, credits_back in refunded.items():
            self._refunded.labels(kind).inc(credits_back)

    def describe(self) -> list[Metric]:
        """Return the metrics, which are there from the beginning."""
        return self.collect()

    def collect(self) -> list[Metric]:
        """Return everything as it stands."""
        mine = (self._messages, self._charged, self._refunded, self._charge_s, self._batch)
        return [metric for one in mine for metric in one.collect()]
