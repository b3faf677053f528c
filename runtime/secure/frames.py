"""Shares on their way between parties: every length is said, bounded and checked before it is used."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from autorep_fx.errors import PeerError

__all__ = ["frame", "unframe"]

_MAGIC = b"ARS1"
_HEAD = struct.Struct("<4sIIQ")  # magic, bytes of meta, chunks, bytes of all chunks
_LENGTH = struct.Struct("<Q")
# Per element: one ring element, twice where shares are replicated; and headers of the engine's own.
_PER_ELEMENT, _OVERHEAD, _CHUNKS = 2, 4096, 1024


def frame(share: Any) -> bytes:
    """A share as bytes."""
    meta, chunks = bytes(share.meta), [bytes(chunk) for chunk in share.share_chunks]
    head = _HEAD.pack(_MAGIC, len(meta), len(chunks), sum(map(len, chunks)))
    return b"".join([head, meta, *(_LENGTH.pack(len(chunk)) for chunk in chunks), *chunks])


def unframe(content: bytes, shape: tuple[int, ...], ring_bits: int, sender: int) -> Any:
    """A share of an array of ``shape`` that rank ``sender`` sent.

    Raises:
        PeerError: It is no frame, its lengths do not add up, or it is a share of something else.
    """
    from spu import libspu

    def refuse(what: str) -> PeerError:
        return PeerError(
            f"Rank {sender} sent a share that does not fit.", received=what,
            fix="Run one version of autorep-fx and spu at all parties; otherwise do not trust that party.",
        )  # fmt: skip

    limit = int(np.prod(shape, dtype=np.int64)) * _PER_ELEMENT * ring_bits // 8 + _OVERHEAD
    if not _HEAD.size <= len(content) <= limit + _OVERHEAD:
        raise refuse(f"{len(content):,} bytes; at most {limit + _OVERHEAD:,} are a share of {shape}")
    magic, meta_size, count, chunk_bytes = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise refuse("no frame")
    start = _HEAD.size + meta_size
    if count > _CHUNKS or chunk_bytes > limit or len(content) != start + _LENGTH.size * count + chunk_bytes:
        raise refuse(f"lengths that do not add up: {meta_size}, {count} chunks of {chunk_bytes}, {len(content)} in all")
    lengths = [_LENGTH.unpack_from(content, start + _LENGTH.size * index)[0] for index in range(count)]
    if sum(lengths) != chunk_bytes:
        raise refuse(f"chunks of {sum(lengths):,} bytes in all, not {chunk_bytes:,}")
    meta = libspu.ValueMeta()
    content_of_meta = content[_HEAD.size : start]
    if not meta.ParseFromString(content_of_meta):
        raise refuse("a description that cannot be read")
    if tuple(meta.shape.dims) != shape or meta.visibility != libspu.Visibility.VIS_SECRET:
        raise refuse(f"a share of shape {tuple(meta.shape.dims)}, expected {shape}; {meta.visibility}")
    share = libspu.Share()
    share.meta = content_of_meta
    position, chunks = start + _LENGTH.size * count, []
    for length in lengths:
        chunks.append(content[position : position + length])
        position += length
    share.share_chunks = chunks
    return share
