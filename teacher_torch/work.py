"""The work of a dump: its UNet rows, their order, and what happens when memory runs out."""

import os
import shutil
import sys
import time

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from teacher_torch.inversions import InversionCache
from teacher_torch.memory import GIB, MemoryNeed, is_out_of_memory, release_cached_memory
from teacher_torch.pixels import to_uint8
from teacher_torch.styleid.teacher import StyleID
from triplets import ImageSet, InputError, TripletWriter


class Work:
    """The shards that this process has still to make."""

    def __init__(
        self, writer: TripletWriter, teacher: StyleID, contents: ImageSet, styles: ImageSet
    ):
        self.writer, self.teacher = writer, teacher
        self.shards = writer.missing_shards()
        self._sets = (contents, styles)
        self._inversions = [
            InversionCache(
                teacher,
                images.images,
                writer.pairs[:, kind],
                [writer.shard_pairs(shard)[:, kind] for shard in self.shards],
            )
            for kind, images in enumerate(self._sets)
        ]

    @property
    def inversion_rows(self) -> int:
        """UNet rows of the inversions."""
        pictures = sum(cache.pictures for cache in self._inversions)
        return self.teacher.config.num_steps * pictures

    @property
    def sampling_rows(self) -> int:
        """UNet rows of the joint sampling."""
        steps = self.teacher.schedule.sampling_start + 1
        return steps * sum(_grid_rows(self.writer.shard_pairs(shard)) for shard in self.shards)

    def describe(self, need: MemoryNeed, budget: int) -> str:
        """The plan of this process in a few lines."""
        writer, rows_per_call = self.writer, self.teacher.rows_per_call
        contents, styles = self._sets
        pairs = sum(len(writer.shard_pairs(shard)) for shard in self.shards)
        pixels = (len(writer.pairs) + len(contents) + len(styles)) * contents.images[0].nbytes
        whose = f" by rank {writer.rank} of {writer.world_size}" if writer.world_size > 1 else ""
        lines = [
            f"{len(writer.pairs)} pairs of {len(contents)} contents and {len(styles)} styles in "
            f"{writer.num_shards} shards; to do{whose}: {pairs} pairs in {len(self.shards)} shards",
            f"UNet rows: {self.inversion_rows} to invert pictures, {self.sampling_rows} to sample "
            f"pairs, at most {rows_per_call} a call",
            f"memory: about {need.total(rows_per_call) / GIB:.2f} of {budget / GIB:.2f} GiB on "
            f"{self.teacher.unet.device}, {need.weights / GIB:.2f} of them weights",
            f"disk: {pixels / 1e9:.2f} GB for all shards, "
            f"{shutil.disk_usage(writer.root).free / 1e9:.0f} GB free",
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
        with tqdm(
            desc="stylising" if writer.world_size == 1 else f"rank {writer.rank}",
            total=self.inversion_rows + self.sampling_rows,
            unit="row",
            position=int(os.environ.get("LOCAL_RANK", 0)),
        ) as bar:
            teacher.after_call = bar.update
            for place, shard in enumerate(self.shards):
                stylised = self._stylise_in_memory(place, bar)
                reduced = teacher.rows_per_call != writer.settings["rows_per_call"]
                remarks = {"rows_per_call": teacher.rows_per_call} if reduced else None
                writer.write_shard(shard, stylised, remarks)
                done += len(stylised)
                speed = 60 * done / (time.monotonic() - start)
                bar.set_postfix_str(f"{done} pairs, {speed:.1f} pairs/min")

    def _stylise_in_memory(self, place: int, bar: tqdm) -> UInt8[np.ndarray, "p h w 3"]:
        """Stylise a shard, where memory runs out with half of the rows a call from then on."""
        teacher = self.teacher
        before = bar.n
        while True:
            try:
                return self._stylise(place)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed call alive.
            if teacher.rows_per_call == 1:
                raise InputError(
                    f"not even one UNet row fits into the memory of {teacher.unet.device}: free "
                    "some, take a smaller --size, or --dtype float16; finished shards are kept."
                )
            teacher.rows_per_call //= 2
            release_cached_memory(teacher.unet.device)
            print(
                f"out of memory: continuing with at most {teacher.rows_per_call} rows a call",
                file=sys.stderr,
            )
            bar.n = before
            bar.refresh()

    def _stylise(self, place: int) -> UInt8[np.ndarray, "p h w 3"]:
        pairs = self.writer.shard_pairs(self.shards[place])
        rows, local_pairs = zip(
            *(np.unique(column, return_inverse=True) for column in pairs.T), strict=True
        )
        content, style = (
            cache.get(chosen, place) for cache, chosen in zip(self._inversions, rows, strict=True)
        )
        local_pairs = torch.from_numpy(np.stack(local_pairs, axis=1))
        pictures = []
        # Decoded one at a time, because pictures in float32 are large.
        for latents in self.teacher.sample(content, style, local_pairs).split(1):
            picture = self.teacher.decode(latents)
            if not picture.isfinite().all():
                raise InputError(
                    f"the teacher's numbers overflow in {str(self.teacher.unet.dtype)[6:]}: use "
                    "--dtype bfloat16 or float32, with another folder for the dataset."
                )
            pictures.append(to_uint8(picture))
        return np.concatenate(pictures)


def _grid_rows(pairs: np.ndarray) -> int:
    """UNet rows of one step of joint sampling."""
    return len(pairs) + sum(len(np.unique(column)) for column in pairs.T)
