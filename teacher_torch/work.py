"""The work of a dump: its UNet rows, their order, and what happens when memory runs out."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from teacher_torch.devices import GIB, MemoryNeed, is_out_of_memory, release_cached_memory
from teacher_torch.estimate import Rates, hours, tflop
from teacher_torch.pixels import to_uint8
from teacher_torch.prepared import PreparedPictures, prepared_store
from teacher_torch.teacher import PIECES, ROLES, Key, Role, Teacher
from triplets import ImageSet, InputError, TripletWriter


class Work:
    """The shards that this process has still to make."""

    _BARS = ("preparing", "stylising")

    def __init__(
        self,
        writer: TripletWriter,
        teacher: Teacher,
        contents: ImageSet,
        styles: ImageSet,
        seed: int = 0,
    ):
        self.writer, self.teacher, self._seed = writer, teacher, seed
        self.shards = writer.missing_shards()
        self._sets = (contents, styles)
        self._bars: list[tqdm] = []
        self._settled: list[float] = []
        self._prepared = [
            PreparedPictures(
                teacher,
                role,
                pictures,
                seed,
                writer.pairs[:, column],
                [writer.shard_pairs(shard)[:, column] for shard in self.shards],
                prepared_store(writer) if role in teacher.persistent else None,
            )
            for column, (role, pictures) in enumerate(zip(ROLES, self._sets, strict=True))
        ]

    @property
    def _by_role(self) -> Iterator[tuple[Role, PreparedPictures]]:
        return zip(ROLES, self._prepared, strict=True)

    @property
    def preparation_rows(self) -> int:
        """UNet rows that the preparation of pictures takes."""
        return sum(pictures.work for pictures in self._prepared)

    @property
    def stylisation_rows(self) -> int:
        """UNet rows that the stylisation of pairs takes."""
        return sum(self._shard_rows(shard) for shard in self.shards)

    def describe(self, need: MemoryNeed, budget: int, rates: Rates | None = None) -> str:
        """The plan of this process in a few lines.

        Args:
            need: what the work takes of the device's memory.
            budget: what it may take.
            rates: of the pieces of the work that were tried, for its operations and its time.
        """
        writer, rows_per_call = self.writer, self.teacher.rows_per_call
        contents, styles = self._sets
        pairs = sum(len(writer.shard_pairs(shard)) for shard in self.shards)
        pixels = (len(writer.pairs) + len(contents) + len(styles)) * contents.images[0].nbytes
        whose = f" by rank {writer.rank} of {writer.world_size}" if writer.world_size > 1 else ""
        packed = " before they are compressed" if writer.version == 2 else ""
        room = writer.storage.free_bytes()
        free = f"in {writer.root}" if room is None else f"{room / 1e9:.0f} GB free"
        lines = [
            f"{len(writer.pairs)} pairs of {len(contents)} contents and {len(styles)} styles in "
            f"{writer.num_shards} shards; to do{whose}: {pairs} pairs in {len(self.shards)} shards",
            f"UNet rows: {self.preparation_rows} to prepare pictures, {self.stylisation_rows} to "
            f"stylise pairs, at most {rows_per_call} per call",
            *self._describe_cost(rates or {}),
            f"memory: about {need.total(rows_per_call) / GIB:.2f} of {budget / GIB:.2f} GiB on "
            f"{self.teacher.device}, {need.weights / GIB:.2f} of them weights",
            f"disk: {pixels / 1e9:.2f} GB for all shards{packed}, {free}",
        ]
        return "\n".join(lines)

    def _describe_cost(self, rates: Rates) -> list[str]:
        """What each piece of the work costs, and all of it."""
        pairs = sum(len(self.writer.shard_pairs(shard)) for shard in self.shards)
        work = [(of.count, of.work) for of in self._prepared] + [(pairs, self.stylisation_rows)]
        parts, flops, seconds = [], 0.0, 0.0
        for piece, (count, rows) in zip(PIECES, work, strict=True):
            if not count or not rows:
                continue
            each = rows / count
            text = f"{each:.4g} rows per {piece}"
            if rate := rates.get(piece) or rates.get("pair"):
                text += f" ({tflop(each * rate.flops)}, {hours(each * rate.seconds)})"
                flops, seconds = flops + rows * rate.flops, seconds + rows * rate.seconds
            parts.append(text)
        lines = [f"cost: {', '.join(parts)}"] if parts else []
        if seconds:
            lines.append(f"in all: {tflop(flops)}, about {hours(seconds)} at the measured rate")
        return lines

    def run(self) -> None:
        """Make and write the shards. One bar shows the pictures that are prepared, another one the
        pairs that are stylised; both count UNet rows, and tell the time left.

        Raises:
            InputError: not even one row fits into memory, or the numbers overflow.
            OSError: the disk is full and so on.
        """
        writer, teacher = self.writer, self.teacher
        start, done = time.monotonic(), 0
        self._drop_unneeded()  # a kill may have come between a shard and this
        rank = f"rank {writer.rank}, " if writer.world_size > 1 else ""
        place = len(self._BARS) * int(os.environ.get("LOCAL_RANK", 0))
        totals = (self.preparation_rows, self.stylisation_rows)
        with contextlib.ExitStack() as stack:
            self._bars = [
                stack.enter_context(
                    tqdm(
                        desc=f"{rank}{name}",
                        total=total,
                        unit="row",
                        position=place + i,
                        disable=total == 0,
                    )
                )
                for i, (name, total) in enumerate(zip(self._BARS, totals, strict=True))
            ]
            for index, shard in enumerate(self.shards):
                # In a bucket nobody keeps another process from doing the same work.
                if not writer.storage.is_local and writer.holds_shard(shard):
                    continue
                stylised = self._stylise_in_memory(index)
                reduced = teacher.rows_per_call != writer.settings["rows_per_call"]
                remarks = {"rows_per_call": teacher.rows_per_call} if reduced else None
                writer.write_shard(shard, stylised, remarks)
                self._drop_unneeded()
                done += len(stylised)
                speed = 60 * done / (time.monotonic() - start)
                self._bars[1].set_postfix_str(f"{done} pairs, {speed:.1f} pairs/min")

    def _drop_unneeded(self) -> None:
        """Remove from disk what was prepared for pairs that are all there."""
        if self.teacher.keep_prepared or not self.teacher.persistent:
            return
        unfinished = self.writer.unfinished_shards()
        pairs = np.concatenate([self.writer.pairs[:0], *map(self.writer.shard_pairs, unfinished)])
        for column, role in enumerate(ROLES):
            if role in self.teacher.persistent:
                self._prepared[column].drop_unneeded(np.unique(pairs[:, column]))

    def _shard_rows(self, shard: int) -> int:
        pairs = self.writer.shard_pairs(shard)
        return self.teacher.work(*(len(np.unique(column)) for column in pairs.T), len(pairs))

    def _stylise_in_memory(self, index: int) -> UInt8[np.ndarray, "p h w 3"]:
        """Stylise a shard; if memory runs out, with half of the rows per call from then on."""
        teacher = self.teacher
        self._settled = [bar.n for bar in self._bars]
        while True:
            try:
                return self._stylise(index)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed call alive.
            if teacher.rows_per_call == 1:
                raise InputError(
                    f"not even one UNet row fits into the memory of {teacher.device}: free some, "
                    "take a smaller --size, or --dtype float16; finished shards are kept."
                )
            teacher.rows_per_call //= 2
            release_cached_memory(teacher.device)
            print(
                f"out of memory: continuing with at most {teacher.rows_per_call} rows per call",
                file=sys.stderr,
            )
            for bar, rows in zip(self._bars, self._settled, strict=True):
                bar.n = rows
                bar.refresh()

    def _stylise(self, index: int) -> UInt8[np.ndarray, "p h w 3"]:
        """The pictures of the shard at that index of the work."""
        pairs = self.writer.shard_pairs(self.shards[index])
        rows, local_pairs = zip(
            *(np.unique(column, return_inverse=True) for column in pairs.T), strict=True
        )
        preparing, stylising = self._bars
        self.teacher.after_call = preparing.update
        prepared = []
        for pictures, chosen in zip(self._prepared, rows, strict=True):
            prepared.append(pictures.get(chosen, index))
            self._settled[0] = preparing.n  # these are kept if memory runs out later
            numbers = (f"{of.made} of {of.count} {role}s" for role, of in self._by_role if of.count)
            preparing.set_postfix_str(", ".join(numbers))
        self.teacher.after_call = stylising.update
        contents, styles = self._sets
        keys = [Key(self._seed, contents.ids[c], styles.ids[s]) for c, s in pairs.tolist()]
        stylised = []
        for picture in self.teacher.stylise(
            *prepared, torch.from_numpy(np.stack(local_pairs, axis=1)), keys
        ):
            if not picture.isfinite().all():
                raise InputError(
                    f"the teacher's numbers overflow in {self.writer.settings['dtype']}: use "
                    "--dtype bfloat16 or float32, with another folder for the dataset."
                )
            stylised.append(to_uint8(picture.detach()[None]))
        return np.concatenate(stylised)
