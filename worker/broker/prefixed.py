# mypy: disable-error-code="misc,no-untyped-call,no-untyped-def"
# kombu's classes have no types.
"""A Redis client that puts a prefix before every key, so that several installations can share one Redis database.

kombu's own puts it before the keys of the commands that kombu uses, and of a script before the first key alone. Others
would be written without it, and meet those of another installation.
"""

from typing import Any

from kombu.transport.redis import PrefixedRedisPipeline, PrefixedStrictRedis

_WITHOUT_KEYS = frozenset(
    {"ACL", "AUTH", "BGSAVE", "CLIENT", "COMMAND", "CONFIG", "DBSIZE", "DISCARD", "EXEC", "FLUSHALL", "FLUSHDB"}
    | {"HELLO", "INFO", "LASTSAVE", "MULTI", "KEYS", "PING", "REPLICAOF", "ROLE", "SCAN", "SCRIPT", "SELECT", "TIME"}
    | {"UNWATCH", "WAIT"}
)
_SCRIPTS = frozenset({"EVAL", "EVALSHA"})
_ONLY_KEYS = frozenset({"DEL", "EXISTS", "MGET", "UNLINK", "WATCH"})


def prefix_of(redis: Any) -> str:  # noqa: ANN401  a client or a pipeline
    """Return the prefix that a client puts before every key."""
    return str(getattr(redis, "global_keyprefix", ""))


def with_prefix(prefix: str, command: str, *args: Any) -> tuple[Any, ...]:  # noqa: ANN401  what redis-py may send
    """Return a command with the prefix before each of its keys. Of most commands, the first argument is the only one.

    `SCAN` and `KEYS` look at all keys, as they are named.
    """
    if not prefix or command.split(maxsplit=1)[0] in _WITHOUT_KEYS:
        return (command, *args)
    first, last = 0, 1
    if command in _SCRIPTS:
        first, last = 2, 2 + int(args[1])
    elif command in _ONLY_KEYS:
        last = len(args)
    elif command == "BRPOP":
        last = len(args) - 1
    keys = (prefix.encode() + key if isinstance(key, bytes) else f"{prefix}{key}" for key in args[first:last])
    return (command, *args[:first], *keys, *args[last:])


class _EveryKey:
    """What makes kombu's client, or its pipeline, put the prefix before every key."""

    global_keyprefix: str

    def _prefix_args(self, args: Any) -> list[Any]:  # noqa: ANN401  kombu's
        return list(with_prefix(self.global_keyprefix, *args))


class PrefixedPipeline(_EveryKey, PrefixedRedisPipeline):
    """A pipeline with the prefix before every key."""


class PrefixedRedis(_EveryKey, PrefixedStrictRedis):
    """A client with the prefix before every key and every channel."""

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> PrefixedPipeline:  # noqa: ANN401, FBT001, FBT002  redis-py's
        """Return a pipeline with the same prefix."""
        return PrefixedPipeline(
            self.connection_pool,
            self.response_callbacks,
            transaction,
            shard_hint,
            global_keyprefix=self.global_keyprefix,
        )
