"""Forms: small, in time, and handled in a thread."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FORM_BYTES_MAX = 20_000
FORM_FIELDS_MAX = 50
FORM_WITHIN_S = 10.0

Form = Mapping[str, str]
FormHandler = Callable[[Request, Form], Response]


async def read_form(request: Request) -> Form:
    """Return the fields of a form.

    Raises
    ------
    HTTPException
        If it is none, is too large, or comes too slowly.

    """
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise HTTPException(415)
    body = b""
    try:
        async with asyncio.timeout(FORM_WITHIN_S):
            async for part in request.stream():
                body += part
                if len(body) > FORM_BYTES_MAX:
                    raise HTTPException(413)
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except TimeoutError:
        raise HTTPException(408) from None
    except ValueError:
        raise HTTPException(400) from None
    return dict(fields)


def handles_form(handler: FormHandler) -> Callable[[Request], Any]:
    """Return an endpoint that reads the form first, and then runs `handler` in a thread, as all that asks databases."""

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(handler, request, await read_form(request))

    return endpoint
