"""The inversions that a dump needs, each made once."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from teacher_torch.pixels import to_model_range
from teacher_torch.styleid.teacher import Inversion, StyleID

GROUP = 16
"""Pictures that are inverted together."""


class InversionCache:
    """Inversions of contents or of styles, each made when a shard first needs it and kept, in
    main memory, until the last shard that needs it is done.

    They are made in fixed groups of the whole plan's pictures, because a network's rounding
    depends on its batch: what an earlier run has finished must not change a result.
    """

    def __init__(
        self,
        teacher: StyleID,
        images: UInt8[np.ndarray, "n h w 3"],
        plan: Int[np.ndarray, " p"],
        shards: Sequence[Int[np.ndarray, " k"]],
    ):
        """
        Args:
            teacher: makes the inversions.
            images: all pictures.
            plan: rows in `images` that the plan uses, in any order, with repetitions.
            shards: those of each shard that is still to be made, in the order of the work.
        """
        self._teacher, self._images = teacher, images
        self._rows = np.unique(plan)
        # The place in `shards` of the last use of each group.
        self._last_use = {
            group: place for place, rows in enumerate(shards) for group in self._places(rows)[0]
        }
        self._groups: dict[int, Inversion] = {}

    @property
    def pictures(self) -> int:
        """Pictures that have to be inverted for all shards."""
        return sum(len(self._group_rows(group)) for group in self._last_use)

    def get(self, rows: Int[np.ndarray, " b"], shard: int) -> Inversion:
        """The inversions of some rows, in their order, for the shard at that place of the work."""
        groups, members = self._places(rows)
        for group in [g for g in self._groups if self._last_use[g] < shard]:
            del self._groups[group]
        for group in sorted(set(groups) - self._groups.keys()):
            images = to_model_range(self._images[self._group_rows(group)])
            self._groups[group] = self._teacher.invert(images).to("cpu")
        taken = [self._groups[group][member] for group, member in zip(groups, members, strict=True)]
        return Inversion.cat(taken).to(self._teacher.unet.device)

    def _group_rows(self, group: int) -> Int[np.ndarray, " b"]:
        return self._rows[group * GROUP : (group + 1) * GROUP]

    def _places(self, rows: Int[np.ndarray, " b"]) -> tuple[list[int], list[int]]:
        """Group of each row, and its place in the group."""
        groups, members = np.divmod(np.searchsorted(self._rows, rows), GROUP)
        return groups.tolist(), members.tolist()
