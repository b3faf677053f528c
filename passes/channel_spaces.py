"""Lines of channels, and how they are laid side by side or on top of each other: union-find with offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autorep_fx.sites import ChannelGroup

__all__ = ["Broken", "Layout", "Spaces", "Value"]


@dataclass(frozen=True)
class Layout:
    """Where the channels of a value are.

    Attributes:
        space: The line of channels that they are.
        axis: The axis of the value that they lie on.
        channels: How many there are.
        rank: Axes of the value.
        block: Elements of that axis per channel: more than 1 where positions were flattened into it.
    """

    space: int
    axis: int
    channels: int
    rank: int
    block: int = 1

    def in_rank(self, rank: int) -> Layout:
        """The same channels after broadcasting to ``rank`` axes, which adds axes in front."""
        return replace(self, axis=self.axis + rank - self.rank, rank=rank)


@dataclass(frozen=True)
class Broken:
    """A value whose channels cannot be followed, and why."""

    reason: str


#: None: a value without channels, which ties nothing, such as a constant.
Value = Layout | Broken | None


class Spaces:
    """Union-find in which channel c of a space is channel c + offset of its parent."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._offset: list[int] = []
        self._sizes: list[int] = []
        self._weight: list[int] = []
        self._ties: list[tuple[int, str]] = []
        self._reasons: list[tuple[int, str]] = []

    def fresh(self, shape: Sequence[int], axis: int) -> Layout:
        """A new line for a value of this shape with its channels on ``axis``."""
        self._parent.append(len(self._parent))
        self._offset.append(0)
        self._sizes.append(shape[axis])
        self._weight.append(1)
        return Layout(self._parent[-1], axis, shape[axis], len(shape))

    def decline(self, value: Value, reason: str) -> None:
        """Note that the channels of ``value`` cannot be put into another order."""
        if isinstance(value, Layout):
            self._reasons.append((value.space, reason))

    def note(self, value: Layout, node: str) -> None:
        """Note that ``node`` ties its output to its input."""
        self._ties.append((value.space, node))

    def tie(self, one: int, other: int, shift: int, node: str | None = None) -> None:
        """Lay channel c of ``other`` on channel c + ``shift`` of ``one``, because of ``node`` if it is given."""
        if one == other and shift == 0:
            return
        if node is not None:
            self._ties.append((one, node))
        (root, base), (below, start) = self._find(one), self._find(other)
        shift += base - start
        if root == below:
            if shift:
                self._reasons.append((root, f"{node or 'a slice'} meets the same channels at another position"))
            return
        if self._weight[root] < self._weight[below]:
            root, below, shift = below, root, -shift
        self._parent[below], self._offset[below] = root, shift
        self._weight[root] += self._weight[below]

    def _find(self, space: int) -> tuple[int, int]:
        """Root of a space, and the space's offset in it."""
        path = []
        while self._parent[space] != space:
            path.append(space)
            space = self._parent[space]
        for step in reversed(path):  # from the root on, so that every parent is already right
            self._offset[step] += self._offset[self._parent[step]]
            self._parent[step] = space
        return (space, self._offset[path[0]]) if path else (space, 0)

    def stretches(self) -> dict[int, tuple[int, int, int]]:
        """By space: the root of its group, and the stretch of the group's channels that it covers."""
        found = {space: self._find(space) for space in range(len(self._sizes))}
        low: dict[int, int] = {}
        for root, offset in found.values():
            low[root] = min(low.get(root, 0), offset)
        return {
            space: (root, offset - low[root], offset - low[root] + self._sizes[space])
            for space, (root, offset) in found.items()
        }

    def groups(self, members: Mapping[str, int]) -> tuple[ChannelGroup, ...]:
        """The groups that ``members`` (space by site name) form, in the order of their first members."""
        low: dict[int, int] = {}
        high: dict[int, int] = {}
        for space, size in enumerate(self._sizes):
            root, offset = self._find(space)
            low[root] = min(low.get(root, 0), offset)
            high[root] = max(high.get(root, 0), offset + size)
        offsets: dict[int, dict[str, int]] = {}
        for name, space in members.items():
            root, offset = self._find(space)
            offsets.setdefault(root, {})[name] = offset - low[root]
        ties, reasons = self._by_root(self._ties), self._by_root(self._reasons)
        return tuple(
            ChannelGroup(found, high[root] - low[root], ties.get(root, ()), next(iter(reasons.get(root, ())), None))
            for root, found in offsets.items()
        )

    def declined(self) -> dict[int, str]:
        """By root of a group: why its channels cannot be put into another order."""
        return {root: texts[0] for root, texts in self._by_root(self._reasons).items()}

    def _by_root(self, notes: Sequence[tuple[int, str]]) -> dict[int, tuple[str, ...]]:
        found: dict[int, dict[str, None]] = {}
        for space, text in notes:
            found.setdefault(self._find(space)[0], {})[text] = None
        return {root: tuple(texts) for root, texts in found.items()}
