"""Where this process finds its database, its broker and its carriers, named for people, without passwords.

Embedded ones are for `postage up`. Any other command uses them only where `postage up` has made them: otherwise an
audit in the wrong folder would make an empty database, and find that all is well.
"""

from collections.abc import Sequence

from sqlalchemy.engine import make_url

from models.errors import OperatorError
from tasks import broker_urls
from worker.carrier_urls import CarrierUrl
from worker.settings import Settings, carrier_setting

UP_LOCK = "up.lock"
"""The file by which a folder shows that `postage up` has made it."""


class NothingHereError(OperatorError):
    """No database or broker was named, and none is embedded here. The message says what to do."""


def require_embedded(settings: Settings, *, database: bool, broker: bool) -> None:
    """Make sure that what is used and not named by a setting is embedded here.

    Raises
    ------
    NothingHereError
        If it is not.

    """
    names = [
        name
        for name, is_used, url in (
            ("POSTAGE_DATABASE_URL", database, settings.database_url),
            ("POSTAGE_BROKER_URL", broker, settings.broker_url),
        )
        if is_used and url is None
    ]
    if not names or (settings.var / UP_LOCK).exists():
        return
    msg = (
        f"Nothing is here: {' and '.join(names)} {'are' if len(names) > 1 else 'is'} not set, and no `postage up` has "
        f"run on the folder {settings.var.absolute()}. Set what is missing, or change to the folder in which `postage "
        "up` runs (or set POSTAGE_VAR to its var)."
    )
    raise NothingHereError(msg)


def make_var(settings: Settings) -> None:
    """Make the folder of everything embedded, for its owner alone.

    Raises
    ------
    OperatorError
        If that is not possible.

    """
    try:
        settings.var.mkdir(mode=0o700, parents=True, exist_ok=True)
        (settings.var / UP_LOCK).open("a").close()
    except OSError as error:
        msg = (
            f"The folder {settings.var.absolute()} cannot be written: {error.strerror}. "
            "Set POSTAGE_VAR to a folder of your own."
        )
        raise OperatorError(msg) from error


def database_name(url: str) -> str:
    """Return which database a URL means, without user and password."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return str(parsed.database)
    name, hosts = parsed.database or parsed.username, parsed.host or parsed.query.get("host") or "the local socket"
    if isinstance(hosts, tuple):  # a primary and its standbys, each with its port
        return f"{name} at {', '.join(hosts)}"
    return f"{name} at {hosts}:{parsed.port or 5432}"


def carriers(settings: Settings) -> dict[str, str]:
    """Return the addresses of the carriers of each kind, without user, password, path and parameters."""
    return {kind: _addresses(named) for kind, named in settings.carriers.items()}


def _addresses(named: Sequence[CarrierUrl]) -> str:
    if len(named) == 1:
        return named[0].address
    return ", ".join(f"{one.name} {one.address}" for one in named)


def carriers_that_send_nowhere(settings: Settings) -> list[str]:
    """Return a sentence for each kind of which a carrier accepts everything and sends nothing."""
    return [
        f"{kind}: every message is charged, called sent, and sent nowhere. "
        f"Set {carrier_setting(kind)} to a real carrier."
        for kind, named in settings.carriers.items()
        if not all(one.sends for one in named)
    ]


def named_parts(settings: Settings, *, sends: bool = True) -> dict[str, str]:
    """Return which database and broker this process uses, the carriers if it sends, and the folder of what is embedded.

    Beat is not told of carriers where each process gets only what it needs, and would name null:// for them.
    """
    return {
        "database": database_name(settings.database),
        "broker": broker_urls.name(settings.broker, settings.sentinel_master),
        **(carriers(settings) if sends else {}),
        "var": str(settings.var.absolute()),
    }
