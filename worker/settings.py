"""Every setting of Postage: one frozen, typed table, read once from POSTAGE_… environment variables."""

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.errors import OperatorError
from models.messages.fields import KINDS, Kind
from tasks import broker_urls
from tasks.queues import Queue
from worker.carrier_urls import CarrierUrl, check_carrier_urls, parse_carrier_urls

PREFIX = "POSTAGE_"
CARRIER_FIELDS: dict[Kind, str] = {"email": "smtp_url", "sms": "sms_url"}
"""The setting that names the carriers of each kind."""
CONVERSATIONS_MAX = 2_000
"""Messages of a kind that a worker process has at work besides its batches, at most: each takes some kilobytes."""
PLACEHOLDER = ":replace-"
"""How the passwords begin that stand in example files, for people to replace."""
SOCKET_PATH_MAX = 100
"""Bytes. Linux allows 108 for a unix socket's path (unix(7), sun_path), macOS 104, both with the closing zero."""


class SettingsError(OperatorError):
    """A setting is wrong. The message says which, and why."""


def carrier_setting(kind: Kind) -> str:
    """Return the environment variable that names the carriers of a kind."""
    return PREFIX + CARRIER_FIELDS[kind].upper()


class Settings(BaseSettings):
    """All settings. Without any, everything is embedded under `./var`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)
    SECRETS: ClassVar = frozenset(
        {"database_url", "broker_url", "result_url", "sentinel_password", "smtp_url", "sms_url", "flower_auth"}
    )
    """Those that are a password, or may contain one."""

    var: Path = Field(default=Path("var"), description="Folder of everything embedded: database, broker, outbox, logs.")
    database_url: str | None = Field(
        default=None, description="postgresql://user:password@host/name, or sqlite:///path. Unset: SQLite under var."
    )
    broker_url: str | None = Field(
        default=None,
        description="redis://…, rediss://…, redis+socket://… or sentinel://…;sentinel://…. Unset: a Valkey under var.",
    )
    result_url: str | None = Field(default=None, description="Where answers of purchases and views wait; the broker.")
    sentinel_master: str = Field(default="mymaster", min_length=1, description="The name Sentinels know the broker by.")
    sentinel_password: str | None = Field(default=None, description="Password of the Sentinels themselves.")
    key_prefix: str = Field(
        default="", description="Before every key in Redis, so that several installations can share a database."
    )
    smtp_url: str = Field(
        default="null://",
        description="smtp://[user:pass@]host:port or smtps://…; several with blanks between (docs/carriers.md).",
    )
    sms_url: str = Field(
        default="null://", description="http(s)://… of the SMS gateway; several with blanks between. Or null://."
    )

    email_headers: str = Field(
        default="", description="Headers beginning with X- that emails may have, such as X-Campaign,X-Tag."
    )
    producer_keys: Path | None = Field(
        default=None, description="File of the keys with which producers sign. Unset: producer-keys.json under var."
    )
    signed_queues: str = Field(
        default="", description="Queues whose messages must be signed with a key, such as billing,views,bulk."
    )
    signature_age_s: int = Field(
        default=604_800, ge=60, le=31_622_400, description="How old a signature may be when its message is read."
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Jobs a worker process runs at a time (threads).")
    message_bytes_max: int = Field(
        default=6_000_000, ge=10_000, le=100_000_000, description="Bytes of one job, inflated; larger ones are refused."
    )
    batch: int = Field(default=100, ge=1, le=500, description="Send jobs charged in one transaction, at most.")
    connections: int = Field(
        default=20, ge=1, le=1000, description="Connections of a worker process to a carrier whose URL says nothing."
    )
    database_pool: int = Field(default=10, ge=1, le=256, description="Database connections kept by one process.")
    database_wait_s: float = Field(
        default=300.0, ge=0, le=86400, description="How long a job waits for a database that does not answer."
    )
    smtp_timeout_s: float = Field(default=20.0, gt=0, le=300, description="For each step of a mail conversation.")
    smtp_dot_timeout_s: float = Field(
        default=600.0,
        gt=0,
        le=3600,
        description="For a mail server's answer to a whole message (RFC 5321: 10 minutes).",
    )
    sms_timeout_s: float = Field(default=20.0, gt=0, le=300, description="For one request to the SMS gateway.")

    organization_rate: float | None = Field(
        default=None, gt=0, le=100_000, description="Messages (segments) a second an organization may send of a kind."
    )
    sender_rate: float | None = Field(
        default=None, gt=0, le=100_000, description="Messages (segments) a second a sender may send of a kind."
    )

    attempts_max: int = Field(default=18, ge=1, le=100, description="Attempts at a carrier before the credits go back.")
    retry_base_s: float = Field(default=5.0, gt=0, le=3600, description="Longest wait before the second attempt.")
    retry_max_s: float = Field(default=3600.0, gt=0, le=86400, description="Longest wait between two attempts.")
    wait_max_s: float = Field(
        default=345_600.0, gt=0, le=2_592_000, description="How long a job waits for carriers that rest, in all."
    )
    lease_s: float = Field(
        default=300.0, gt=0, le=86400, description="How long an attempt may hold a job before its worker has crashed."
    )
    keep_dead_s: int = Field(
        default=604800, ge=0, le=31_622_400, description="How long refused and failed jobs are kept to be replayed."
    )
    keep_personal_s: int = Field(
        default=7_776_000,
        ge=0,
        le=315_360_000,
        description="How long refusals, refused recipients and other data about people are kept.",
    )
    sweep_s: float = Field(default=2.0, gt=0, le=3600, description="How often beat looks for due retries.")
    roll_up_s: float = Field(default=5.0, gt=0, le=3600, description="How often beat has usage rolled up.")
    audit_s: float = Field(default=60.0, gt=0, le=86400, description="How often beat asks for an audit.")
    audit_again: int = Field(
        default=10_000, ge=1, description="How much of what was checked before an audit checks again: entries, credits."
    )
    unknown_alarm_s: float = Field(
        default=86_400.0, gt=0, description="How long a message may be unknown before audits report it."
    )

    visibility_timeout_s: int = Field(
        default=1800, ge=1, description="After which Redis hands an unacknowledged job to another worker."
    )
    result_expires_s: int = Field(default=3600, ge=1, description="How long answers of purchases and views are kept.")

    task_events: bool = Field(default=True, description="Whether workers tell Flower of each job, by id and sender.")
    remote_control: bool = Field(
        default=True, description="Whether workers obey remote control: ping, inspect, revoke, shutdown."
    )
    flower_read_only: bool = Field(
        default=True, description="Whether Flower only shows: false lets it stop workers and apply tasks."
    )
    flower_address: str = Field(default="127.0.0.1", description="Address Flower listens on.")
    flower_port: int = Field(default=5555, ge=1, le=65535, description="Port Flower listens on.")
    flower_auth: str | None = Field(default=None, description="user:password that Flower asks for.")

    console_address: str = Field(default="127.0.0.1", description="Address the console listens on.")
    console_port: int = Field(default=5580, ge=1, le=65535, description="Port the console listens on.")
    console_url: str | None = Field(
        default=None, description="Where people open the console, such as https://credits.example.org."
    )
    console_proxies: str = Field(
        default="", description="Addresses of proxies before the console, whose X-Forwarded-For is believed."
    )

    metrics_address: str = Field(default="127.0.0.1", description="Address a worker serves its metrics on.")
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port a worker serves its metrics on. Unset: none."
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="json for machines, text for people; auto: text on a terminal."
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Return the settings of this process.

        Raises
        ------
        SettingsError
            With a sentence for each variable that is unknown or wrong.

        """
        known = {PREFIX + name.upper() for name in cls.model_fields}
        unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
        if unknown:
            msg = f"Unknown setting {', '.join(unknown)}. The known ones are: {', '.join(sorted(known))}."
            raise SettingsError(msg)
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError(
                "\n".join(_sentence(problem["loc"], problem["msg"]) for problem in error.errors())
            ) from None

    @field_validator(*CARRIER_FIELDS.values())
    @classmethod
    def _names_carriers(cls, urls: str, info: ValidationInfo) -> str:
        kind = next(kind for kind, name in CARRIER_FIELDS.items() if name == info.field_name)
        check_carrier_urls(kind, urls)
        return urls

    @field_validator("database_url", "broker_url", "result_url")
    @classmethod
    def _password_is_encoded(cls, url: str | None) -> str | None:
        """Parts of such a password would be taken for host or port, and be shown as these in logs."""
        try:
            parts = broker_urls.parts_of(url or "")
            fits = all(part.netloc.count("@") <= 1 and part.port != 0 for part in parts)
        except ValueError:
            fits = False
        if not fits:
            msg = (
                "its port must be a number from 1 to 65535, and what is not a letter, a digit or -._~ in its"
                " password written as %XX"
            )
            raise ValueError(msg)
        return url

    @field_validator(
        "database_url", "broker_url", "result_url", "smtp_url", "sms_url", "sentinel_password", "flower_auth"
    )
    @classmethod
    def _password_is_chosen(cls, url: str | None) -> str | None:
        """A password that everybody can read in an example protects nothing."""
        if PLACEHOLDER in f":{url}":
            msg = "its password is the one of an example: replace it with one of your own"
            raise ValueError(msg)
        return url

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("postgresql://", "postgresql+psycopg://", "sqlite:///")):
            msg = "a database is postgresql://… or sqlite:///…"
            raise ValueError(msg)
        return url

    @field_validator("broker_url", "result_url")
    @classmethod
    def _known_broker(cls, url: str | None) -> str | None:
        return None if url is None else broker_urls.complete(url)

    @field_validator("console_url")
    @classmethod
    def _opens_in_a_browser(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://one")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
            msg = "it is https://host or http://host:port, without user, path and parameters"
            raise ValueError(msg)
        return url and url.rstrip("/")

    @field_validator("key_prefix")
    @classmethod
    def _fit_to_be_prefix(cls, prefix: str) -> str:
        return broker_urls.check_prefix(prefix)

    @field_validator("signed_queues")
    @classmethod
    def _known_queues(cls, queues: str) -> str:
        unknown = _listed(queues) - {*Queue}
        if unknown:
            msg = f"{', '.join(sorted(unknown))} is no queue; the queues are {', '.join(Queue)}"
            raise ValueError(msg)
        return queues

    @model_validator(mode="after")
    def _safe_times(self) -> Self:
        """A crashed worker's lease ends before Redis hands its jobs to another worker.

        A worker that lives renews its leases, so a slow carrier may take longer than either. What Redis hands out
        again meanwhile is known, and left alone.
        """
        if self.visibility_timeout_s < 2 * self.lease_s:
            msg = (
                f"POSTAGE_VISIBILITY_TIMEOUT_S ({self.visibility_timeout_s}) must be at least twice POSTAGE_LEASE_S "
                f"({self.lease_s:g}), or Redis would hand jobs that still run to a second worker"
            )
            raise ValueError(msg)
        if self.retry_max_s < self.retry_base_s:
            msg = "POSTAGE_RETRY_MAX_S must not be less than POSTAGE_RETRY_BASE_S"
            raise ValueError(msg)
        return self

    @property
    def allowed_email_headers(self) -> frozenset[str]:
        """The headers that emails may have beside the usual ones, in small letters."""
        return _listed(self.email_headers.lower())

    @property
    def producer_keys_file(self) -> Path:
        """The file of the keys with which producers sign; it need not exist."""
        return self.producer_keys or (self.var / "producer-keys.json").absolute()

    @property
    def carriers(self) -> dict[Kind, list[CarrierUrl]]:
        """The carriers of each kind."""
        return {
            kind: parse_carrier_urls(getattr(self, name), self.connections) for kind, name in CARRIER_FIELDS.items()
        }

    def conversations(self, kind: Kind) -> int:
        """Return how many messages may be at work at the carriers: one, and the next, for each connection."""
        each = sum(2 * one.connections for one in self.carriers[kind] if one.sends)
        return min(each, CONVERSATIONS_MAX)

    @property
    def send_threads(self) -> int:
        """Threads of each kind, of which each holds up to a batch of jobs until they are answered."""
        most = max(map(self.conversations, KINDS))
        return self.concurrency + -(-most // self.batch)

    @property
    def console_address_for_people(self) -> str:
        """Where people open the console, without a slash at the end."""
        host = f"[{self.console_address}]" if ":" in self.console_address else self.console_address
        return self.console_url or f"http://{host}:{self.console_port}"

    @property
    def must_be_signed(self) -> frozenset[str]:
        """The queues whose messages must be signed."""
        return _listed(self.signed_queues)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the database, with the driver named."""
        if self.database_url is None:
            return f"sqlite:///{(self.var / 'postage.db').resolve()}"
        return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def embedded_socket(self) -> Path:
        """Where the embedded Valkey listens: under `var`, or in a private short path where `var` is too deep."""
        inside = (self.var / "valkey" / "valkey.sock").resolve()
        if len(os.fsencode(inside)) <= SOCKET_PATH_MAX:
            return inside
        import hashlib  # noqa: PLC0415  only deep folders need it

        name = hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
        return Path("/tmp") / f"postage-{os.getuid()}-{name}" / "valkey.sock"  # noqa: S108  made 0700 by its server

    @property
    def embedded_url_file(self) -> Path:
        """The file that has the URL of the embedded Valkey for producers, with its password."""
        return self.var / "broker-url"

    @property
    def console_link_file(self) -> Path:
        """The file that has the link by which the console of `postage up` is opened, once."""
        return self.var / "console-link"

    @property
    def broker(self) -> str:
        """The kombu URL of the broker."""
        return self.broker_url or f"redis+socket://{self._embedded_login()}{quote(str(self.embedded_socket))}"

    def _embedded_login(self) -> str:
        """Return user and password as a URL has them, once the embedded Valkey has been started."""
        try:
            login, at, _ = urlsplit(self.embedded_url_file.read_text().strip()).netloc.rpartition("@")
        except (OSError, ValueError):
            return ""
        return login + at

    @property
    def results(self) -> str:
        """The Celery URL of the result backend."""
        return self.result_url or self.broker

    @property
    def broker_options(self) -> dict[str, Any]:
        """What it takes to reach the broker or the result backend beside the URL: transport options of kombu's."""
        return broker_urls.transport_options(self.key_prefix, self.sentinel_master, self.sentinel_password)


def _listed(names: str) -> frozenset[str]:
    """Return the names in a list with commas."""
    return frozenset(name.strip() for name in names.split(",") if name.strip())


def _sentence(where: tuple[int | str, ...], message: str) -> str:
    """Return what pydantic says of a setting, for somebody who sets environment variables."""
    words = message.removeprefix("Value error, ")
    return f"{PREFIX}{'_'.join(map(str, where)).upper()}: {words}." if where else f"{words}."
