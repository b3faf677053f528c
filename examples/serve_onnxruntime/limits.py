"""Limits on what a client may send."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["read_body"]


async def read_body(request: Request, *, most: int, seconds: float) -> bytes:
    """The body of a request, which is not kept beyond its limit.

    Args:
        request: The request.
        most: Bytes that are allowed.
        seconds: Seconds that the client may take.

    Raises:
        HTTPException: 411 for a length that is no number, 413 for too many bytes, 408 for too slow a client.
    """
    stated = request.headers.get("content-length")
    if stated is not None and not stated.isdigit():
        raise HTTPException(411, "The content length is no number.")
    too_large = HTTPException(413, f"The body of a request may have {most:,} bytes.", {"Connection": "close"})
    if stated is not None and int(stated) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():  # a chunked body states no length
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"A request has to arrive within {seconds:g} s.", {"Connection": "close"}) from None
    return b"".join(parts)
