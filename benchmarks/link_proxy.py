"""A TCP relay that shapes a link: a bandwidth and a delay for each direction.

    python benchmarks/link_proxy.py --link 100Mbps,40ms 9101:9001 9102:9002

listens on the first port of each pair, on this machine, and relays to the second. Each pair is a link of its own: all
its connections share the bandwidth of a direction, in which bytes leave one after the other and arrive a delay later.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from functools import partial

from autorep_fx.cost.network import Network

__all__ = ["Direction", "serve"]

_CHUNK = 16 * 1024
# Seconds of data that wait to leave before the sender is held back; a router's buffer.
_BUFFER = 0.05


class Direction:
    """One way of a link.

    Args:
        network: Its bandwidth in bits per second, and its delay in seconds.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free = 0.0

    def arrival(self, size: int, now: float) -> float:
        """When the last of ``size`` bytes arrives that are sent now, after all that was sent before."""
        self._free = max(self._free, now) + 8 * size / self._network.bandwidth
        return self._free + self._network.latency

    def backlog(self, now: float) -> float:
        """Seconds until all that was sent has left."""
        return max(self._free - now, 0.0)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    """Pass on what one side says, shaped, until it has said all."""
    clock = asyncio.get_running_loop().time
    travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            arrival, content = await travelling.get()
            await asyncio.sleep(max(arrival - clock(), 0.0))
            if not content:
                break
            writer.write(content)
            await writer.drain()
        writer.write_eof()  # the other way goes on

    delivery = asyncio.ensure_future(deliver())
    try:
        while content := await reader.read(_CHUNK):
            travelling.put_nowait((direction.arrival(len(content), clock()), content))
            await asyncio.sleep(max(direction.backlog(clock()) - _BUFFER, 0.0))
    except ConnectionError:
        pass  # the other side is told by the end of what arrives
    travelling.put_nowait((direction.arrival(0, clock()), b""))
    await asyncio.gather(delivery, return_exceptions=True)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # of a connection that the other side broke
        await writer.wait_closed()


async def serve(network: Network, listen: int, target: int) -> asyncio.Server:
    """Start one link.

    Args:
        network: Its shape.
        listen: Port to listen on; 0 for any.
        target: Port to relay to.
    """
    there, back = Direction(network), Direction(network)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            await _close(writer)  # the party has not started; the other tries again
            return
        await asyncio.gather(_carry(reader, far_writer, there), _carry(far_reader, writer, back))
        await asyncio.gather(_close(writer), _close(far_writer))

    return await asyncio.start_server(connected, "127.0.0.1", listen)


async def _run(network: Network, pairs: list[tuple[int, int]]) -> None:
    servers = [await serve(network, listen, target) for listen, target in pairs]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", default="100Mbps,40ms", help="bandwidth and one-way delay, or lan or wan")
    parser.add_argument("pairs", nargs="+", help="LISTEN:TARGET ports")
    options = parser.parse_args()
    pairs = [(int(listen), int(target)) for listen, target in map(partial(str.split, sep=":"), options.pairs)]
    asyncio.run(_run(Network.parse(options.link), pairs))


if __name__ == "__main__":
    main()
