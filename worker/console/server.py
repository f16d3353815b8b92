"""How the console is served: by uvicorn, on a socket of its own."""

import signal
import socket

import structlog
import uvicorn

from models.errors import OperatorError
from worker.app import PostageApp
from worker.console.app import create_console
from worker.settings import Settings

CONNECTIONS_MAX = 200
"""Connections at the same time; further ones are answered 503. Slow clients are the affair of the proxy before it."""
END_WITHIN_S = 5

log = structlog.get_logger(__name__)


def serve_console(app: PostageApp) -> None:
    """Serve the console until a signal ends it.

    Raises
    ------
    OperatorError
        If its address is taken, or is none of this machine's.

    """
    settings = app.settings
    with _listening(settings) as listening:
        log.info("console", address=settings.console_address_for_people)
        server = uvicorn.Server(
            uvicorn.Config(
                create_console(app),
                log_config=None,
                access_log=False,  # addresses have links in them that sign in, and ids of users
                server_header=False,
                lifespan="off",
                proxy_headers=bool(settings.console_proxies),
                forwarded_allow_ips=settings.console_proxies,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_graceful_shutdown=END_WITHIN_S,
            )
        )
        signal.signal(signal.SIGTERM, _end)  # uvicorn raises the signal once more when it has ended
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            log.info("console ended")


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.console_address else socket.AF_INET
    try:
        return socket.create_server((settings.console_address, settings.console_port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # Python adds the address, in brackets
        msg = (
            f"The console cannot listen on {settings.console_address}:{settings.console_port}: {why}. "
            "Set POSTAGE_CONSOLE_ADDRESS and POSTAGE_CONSOLE_PORT to others."
        )
        raise OperatorError(msg) from error


def _end(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
