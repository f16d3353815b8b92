"""TLS with the certificate of the tests."""

import functools
import ssl
from pathlib import Path

CERTIFICATES = Path(__file__).parent.parent / "certificates"


@functools.cache
def server_context() -> ssl.SSLContext:
    """Give what a server with the certificate of the tests needs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    """Give what a client that trusts only this certificate needs: much faster to make than the default one."""
    return ssl.create_default_context(cafile=CERTIFICATES / "server.pem")
