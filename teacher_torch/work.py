"""The work of a dump: its UNet rows, their order, and what happens when memory runs out."""

import os
import sys
import time

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from teacher_torch.devices import GIB, MemoryNeed, is_out_of_memory, release_cached_memory
from teacher_torch.pixels import to_uint8
from teacher_torch.prepared import PreparedPictures, prepared_store
from teacher_torch.teacher import ROLES, Key, Teacher
from triplets import ImageSet, InputError, TripletWriter


class Work:
    """The shards that this process has still to make."""

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
    def preparation_rows(self) -> int:
        """UNet rows that the preparation of pictures takes."""
        return sum(pictures.work for pictures in self._prepared)

    @property
    def stylisation_rows(self) -> int:
        """UNet rows that the stylisation of pairs takes."""
        return sum(self._shard_rows(shard) for shard in self.shards)

    def describe(self, need: MemoryNeed, budget: int) -> str:
        """The plan of this process in a few lines."""
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
            f"memory: about {need.total(rows_per_call) / GIB:.2f} of {budget / GIB:.2f} GiB on "
            f"{self.teacher.device}, {need.weights / GIB:.2f} of them weights",
            f"disk: {pixels / 1e9:.2f} GB for all shards{packed}, {free}",
        ]
        return "\n".join(lines)

    def run(self) -> None:
        """Make and write the shards, showing the progress in UNet rows and the time left.

        Raises:
            InputError: not even one row fits into memory, or the numbers overflow.
            OSError: the disk is full and so on.
        """
        writer, teacher = self.writer, self.teacher
        start, done = time.monotonic(), 0
        self._drop_unneeded()  # a kill may have come between a shard and this
        with tqdm(
            desc="stylising" if writer.world_size == 1 else f"rank {writer.rank}",
            total=self.preparation_rows + self.stylisation_rows,
            unit="row",
            position=int(os.environ.get("LOCAL_RANK", 0)),
        ) as bar:
            teacher.after_call = bar.update
            for index, shard in enumerate(self.shards):
                # In a bucket nobody keeps another process from doing the same work.
                if not writer.storage.is_local and writer.holds_shard(shard):
                    continue
                stylised = self._stylise_in_memory(index, bar)
                reduced = teacher.rows_per_call != writer.settings["rows_per_call"]
                remarks = {"rows_per_call": teacher.rows_per_call} if reduced else None
                writer.write_shard(shard, stylised, remarks)
                self._drop_unneeded()
                done += len(stylised)
                speed = 60 * done / (time.monotonic() - start)
                bar.set_postfix_str(f"{done} pairs, {speed:.1f} pairs/min")

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

    def _stylise_in_memory(self, index: int, bar: tqdm) -> UInt8[np.ndarray, "p h w 3"]:
        """Stylise a shard; if memory runs out, with half of the rows per call from then on."""
        teacher = self.teacher
        before = bar.n
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
            bar.n = before
            bar.refresh()

    def _stylise(self, index: int) -> UInt8[np.ndarray, "p h w 3"]:
        """The pictures of the shard at that index of the work."""
        pairs = self.writer.shard_pairs(self.shards[index])
        rows, local_pairs = zip(
            *(np.unique(column, return_inverse=True) for column in pairs.T), strict=True
        )
        prepared = [
            pictures.get(chosen, index)
            for pictures, chosen in zip(self._prepared, rows, strict=True)
        ]
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
