"""Enqueues to Postage and asks it, with the server's own messages, through Celery on Redis."""

from collections.abc import Iterable
from typing import Any

from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from postage_client.models import messages
from postage_client.models.messages import *  # noqa: F403  the contract
from postage_client.models.messages.signatures import ProducerKey
from postage_client.tasks.client import BrokerAwayError, EnqueueError, InvalidJobError, JobLike, enqueue, producer_app

__all__ = [  # noqa: PLE0604
    *messages.__all__,
    "BrokerAwayError",
    "EnqueueError",
    "InvalidJobError",
    "JobLike",
    "NoAnswerError",
    "PostageClient",
    "ProducerKey",
]  # fmt: skip


class NoAnswerError(EnqueueError):
    """A job was enqueued, and its answer has not come, or cannot be read. The message says what to do."""


class PostageClient:
    """A producer. It may be shared by threads; make one in each process, after a fork."""

    def __init__(
        self,
        broker_url: str,
        results_url: str | None = None,
        key: ProducerKey | None = None,
        *,
        key_prefix: str = "",
        sentinel_master: str = "mymaster",
        sentinel_password: str | None = None,
    ) -> None:
        """Make a producer. With a `key`, every message is signed.

        The options are called as the settings of Postage are: `POSTAGE_KEY_PREFIX` and so on.

        Raises
        ------
        ValueError
            With a sentence, if the Sentinels of a URL contradict each other, or the prefix is not fit to be one.

        """
        self.app = producer_app(
            broker_url,
            results_url or broker_url,
            key_prefix=key_prefix,
            sentinel_master=sentinel_master,
            sentinel_password=sentinel_password,
        )
        self.key = key

    def send(self, job: JobLike) -> str:
        """Put one job on its queue, and return its Celery task id. Raises as `send_many` does."""
        return self.send_many([job])[0]

    def send_many(self, jobs: Iterable[JobLike]) -> list[str]:
        """Put jobs on their queues, 500 a round trip, and return their Celery task ids, in order.

        Raises
        ------
        InvalidJobError
            Naming the first job that no worker could parse, or a send job without its `job_id`.
        BrokerAwayError
            Saying how much was published. The same jobs can be sent again.

        """
        return enqueue(self.app, jobs, key=self.key)

    def ask(self, job: JobLike, timeout_s: float = 30.0) -> dict[str, Any]:
        """Put a purchase, a change, a save or a view on its queue, and wait for its answer.

        Send jobs keep no answer: ask `views.message` for it.

        Raises
        ------
        InvalidJobError, BrokerAwayError
            As `send_many`.
        NoAnswerError
            If no answer has come within `timeout_s`, or if the broker went away meanwhile.

        """
        task_id = self.send(job)
        again = "Ask again: a purchase or change under the same id is done once, and a view changes nothing."
        try:
            answer: dict[str, Any] = self.app.AsyncResult(task_id).get(timeout=timeout_s)
        except CeleryTimeoutError:
            raise NoAnswerError(f"There is no answer after {timeout_s:g} s: is a worker running? {again}") from None
        except (OperationalError, RedisError):
            raise NoAnswerError(f"The broker went away before the answer came. {again}") from None
        return answer
