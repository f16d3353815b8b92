"""Dividing much into groups that are not too large."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_groups(
    items: Iterable[T], size_of: Callable[[T], int], size_max: int, count_max: int | None = None
) -> Iterator[list[T]]:
    """Yield items, in order, in groups of at most `size_max` together, unless a single one is larger.

    With a `count_max`, no group has more items than that.
    """
    group: list[T] = []
    size = 0
    for item in items:
        item_size = size_of(item)
        if group and (len(group) == count_max or size + item_size > size_max):
            yield group
            group, size = [], 0
        group.append(item)
        size += item_size
    if group:
        yield group
