"""What workers note of the organizations of people, by which organizations take turns."""

from contextlib import closing

from redis import Redis

from worker.app import create_app
from worker.broker.fair_queue import ORGANIZATIONS
from worker.broker.organizations import RedisOrganizations
from worker.settings import Settings


def test_people_are_noted_once_and_forgotten_when_they_are_erased(valkey_url: str, redis: Redis) -> None:
    with closing(create_app(Settings(broker_url=valkey_url))) as app:
        organizations = RedisOrganizations(app)
        organizations.note({"john": 1, "mary": 1})
        redis.hset(ORGANIZATIONS, "john", 9)
        organizations.note({"john": 1, "mary": 2})
        noted = redis.hgetall(ORGANIZATIONS)
        organizations.forget("john")

        assert noted == {b"john": b"9", b"mary": b"2"}
        assert redis.hkeys(ORGANIZATIONS) == [b"mary"]
