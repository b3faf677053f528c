"""The relay that shapes links in the benchmarks: when bytes arrive, and that they all do, in order."""

from __future__ import annotations

import asyncio

import pytest

from autorep_fx.cost.network import Network
from benchmarks.link_proxy import Direction, serve


def test_bytes_leave_one_after_the_other_and_arrive_a_delay_later() -> None:
    """1,000 bytes at 8 kbit/s take a second; what is sent meanwhile waits, what is sent later does not."""
    direction = Direction(Network("slow", 8000.0, 0.25))
    assert direction.arrival(1000, 10.0) == pytest.approx(11.25)
    assert direction.backlog(10.0) == pytest.approx(1.0)
    assert direction.arrival(500, 10.5) == pytest.approx(11.75)
    assert direction.backlog(11.5) == 0.0
    assert direction.arrival(1000, 20.0) == pytest.approx(21.25)


def test_a_link_carries_everything_both_ways_no_sooner_than_its_shape_allows() -> None:
    """Over a real connection: an echo of 100,000 bytes, and the end of what is said."""

    async def run() -> tuple[bytes, float]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.write_eof()
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        target = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = target.sockets[0].getsockname()[1]
        proxy = await serve(Network("shaped", 16e6, 0.05), 0, port)
        clock = asyncio.get_running_loop().time
        start = clock()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.sockets[0].getsockname()[1])
        writer.write(content)
        writer.write_eof()
        answer = await reader.read()
        seconds = clock() - start
        writer.close()
        await writer.wait_closed()
        for server in (proxy, target):
            server.close()
        return answer, seconds

    content = bytes(range(250)) * 400
    answer, seconds = asyncio.run(run())
    assert answer == content
    assert seconds >= 2 * (0.05 + 8 * len(content) / 16e6)  # a lower bound: a busy machine only takes longer


def test_a_party_that_has_not_started_is_seen_as_a_closed_connection() -> None:
    """The relay goes on, so that the other party may try again."""

    async def run() -> bytes:
        free = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = free.sockets[0].getsockname()[1]
        free.close()
        await free.wait_closed()
        proxy = await serve(Network("shaped", 16e6, 0.0), 0, port)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.sockets[0].getsockname()[1])
        answer = await reader.read()
        assert proxy.is_serving()
        writer.close()
        await writer.wait_closed()
        proxy.close()
        return answer

    assert asyncio.run(asyncio.wait_for(run(), 20)) == b""
