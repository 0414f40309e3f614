"""What a teacher is to the rest of the package, and all teachers by name.

A teacher is one method in one folder. It prepares each picture once (an inversion, an embedding, a
network that was tuned to a style) and stylises pairs of prepared pictures. The dump plans, counts,
stores and continues the work and knows nothing but the `Teacher` below.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from teacher_torch.devices import MemoryNeed
from triplets.atomic import synced_file
from triplets.storage import open_storage

Role = Literal["content", "style"]
"""What a picture is in a pair."""
ROLES: tuple[Role, Role] = ("content", "style")
"""Both roles, in the order of the columns of an array of pairs."""
Piece = Literal["content", "style", "pair"]
"""What the work consists of: preparing a content or a style, stylising a pair."""
PIECES: tuple[Piece, Piece, Piece] = (*ROLES, "pair")
"""All of them."""


@dataclass(frozen=True)
class Key:
    """What random numbers belong to: a content, a style, or a pair of both."""

    seed: int
    """Of the whole dump."""
    content: str = ""
    """Id of the content, empty if there is none."""
    style: str = ""
    """Id of the style, empty if there is none."""

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A generator on the CPU that depends on this key and the purpose ("noise", 7) alone.

        Drawn from it in float32 and moved to the device afterwards, random numbers are the same
        whatever the tile, the batch, the rank and the device, and after every interruption.
        """
        text = json.dumps([self.seed, self.content, self.style, *purpose])
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True)
class Prepared:
    """What a teacher keeps of a batch of pictures: named tensors, the first dimension counts them.

    Raises:
        ValueError: no tensors, or tensors of different numbers of pictures.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self):
        lengths = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected tensors of one length, got {lengths}.")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> "Prepared":
        """One of the pictures, as a batch."""
        return self._map(lambda tensor: tensor[index, None])

    def to(self, device: str | torch.device) -> "Prepared":
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def save(self, path: Path) -> None:
        """Write a safetensors file.

        Raises:
            FileExistsError: there is one.
            OSError: the disk is full and so on.
        """
        with synced_file(path) as file:
            file.write(save({name: t.contiguous() for name, t in self.tensors.items()}))

    @classmethod
    def load(cls, path: Path) -> "Prepared":
        """Read what `save` has written."""
        return cls(load_file(path))

    @classmethod
    def cat(cls, batches: Sequence["Prepared"]) -> "Prepared":
        """Several batches as one."""
        return cls(
            {name: torch.cat([b.tensors[name] for b in batches]) for name in batches[0].tensors}
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Prepared":
        return Prepared({name: function(tensor) for name, tensor in self.tensors.items()})


def _ignore(rows: int) -> None:
    """Do nothing."""


@runtime_checkable
class Teacher(Protocol):
    """A method that stylises contents with styles; derive from it to inherit what is optional.

    Methods decide for themselves where gradients flow: nothing here is called in inference mode.
    """

    size_px: int
    """Native side of the square pictures."""
    side_multiple: int = 1
    """What the sides must be multiples of, in pixels."""
    device: torch.device = torch.device("cpu")
    """Where the networks are."""
    tile: tuple[int, int] = (8, 8)
    """Contents and styles that are cheapest together: a square if all rows of a grid are sampled
    jointly, (256, 1) if the style is what costs."""
    rows_per_call: int = 64
    """Most rows of one UNet call. The dump sets it, and halves it when the memory is exhausted."""
    persistent: tuple[Role, ...] = ()
    """Roles whose preparation takes long, or differs in its last bits each time, as trainings do:
    it is kept on disk, so that it is done once whatever is killed and however many ranks work."""
    unfinished: Path | None = None
    """Folder for the state of a preparation that goes on after a kill. For each group of a
    persistent role the dump sets one of its own, and removes it when the group is published."""
    keep_prepared: bool = True
    """Whether it stays on disk when no pair needs it any more."""
    after_call: Callable[[int], None] = staticmethod(_ignore)
    """To be called with the number of rows after each UNet call; the dump sets it."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the pixels, as JSON: the method's settings under its name, and a sha256
        of the weights of every network."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays to keep with the dataset; a later start gets them back from `Runtime.stored`."""
        return {}

    def check_ids(self, contents: Sequence[str], styles: Sequence[str]) -> None:
        """Refuse pictures that the teacher has no use for, by their ids, before any work.

        Raises:
            InputError: one that lacks what its style was to come from, and so on.
        """
        return

    def group(self, role: Role) -> int:
        """How many pictures of a role are prepared together."""
        return 16

    @abstractmethod
    def prepare(
        self, role: Role, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> Prepared:
        """What stylising needs of each picture.

        Args:
            role: what the pictures are used as.
            images: pictures in [-1, 1], on the CPU.
            keys: one for each picture, for random numbers.
        """

    @abstractmethod
    def stylise(
        self,
        contents: Prepared,
        styles: Prepared,
        pairs: Int[Tensor, "p 2"],
        keys: Sequence[Key],
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """The stylised pictures in about [-1, 1], not clipped, in the order of the pairs.

        Args:
            contents: the distinct contents of the pairs, on the CPU.
            styles: the distinct styles of the pairs, on the CPU.
            pairs: index of the content and index of the style of each pair.
            keys: one for each pair, for random numbers.
        """

    def preparation_work(self, role: Role, pictures: int) -> int:
        """UNet rows that `prepare` takes for so many pictures; a row with a backward pass counts
        twice."""
        return 0

    @abstractmethod
    def work(self, contents: int, styles: int, pairs: int) -> int:
        """UNet rows that `stylise` takes for pairs of so many distinct contents and styles; a
        row with a backward pass counts twice."""

    def trial(self, piece: Piece, size_px: int) -> int:
        """Do a small, typical part of a piece of the work on arbitrary pictures, from which the
        dump estimates its time; nothing is kept.

        Returns:
            UNet rows that it took, as `work` and `preparation_work` count them; 0 if there is
            nothing to try. A row of a picture is then taken to cost what one of a pair does.
        """
        return 0

    @abstractmethod
    def memory(self, size_px: int, contents: int, styles: int, pairs: int) -> MemoryNeed:
        """What preparing and stylising so many pictures of that side take on the device at most."""


@dataclass(frozen=True)
class Runtime:
    """What a teacher is opened with besides its own settings."""

    model: str
    """The weights: "mini", a folder or a hub id."""
    device: torch.device
    dtype: torch.dtype
    """Of the networks."""
    compile: bool = False
    """Whether to compile the networks (torch.compile)."""
    dataset: str | Path | None = None
    """Folder or address of the dataset, where an earlier start may have left arrays."""

    def stored(self, name: str, shape: tuple[int | None, ...], dtype: str) -> np.ndarray | None:
        """An array that `Teacher.arrays` left with the dataset at an earlier start, if any.

        Raises:
            DatasetError: it is damaged, or has another shape or dtype.
        """
        if self.dataset is None:
            return None
        storage = open_storage(self.dataset)
        if not storage.holds(f"{name}.npy"):
            return None
        return np.array(storage.load_array(f"{name}.npy", shape, dtype))


@dataclass(frozen=True)
class Method:
    """How a registered teacher is set up."""

    config_class: type
    """Frozen dataclass of its settings: fields become flags of the command."""
    open: Callable[[Any, Runtime], Teacher]
    """Loads the networks; raises InputError if something given cannot be used."""
    presets: Mapping[str, Any] = field(default_factory=dict)
    """Named settings; the first are the default."""


_methods: dict[str, Method] = {}
TEACHERS: Mapping[str, Method] = MappingProxyType(_methods)
"""All teachers by the name that the manifest and the command's --teacher give them."""


def register_teacher(
    name: str,
    config_class: type,
    open: Callable[[Any, Runtime], Teacher],
    presets: Mapping[str, Any] | None = None,
) -> None:
    """Make a teacher known to the dump.

    Args:
        name: the word for it in manifests and commands.
        config_class: frozen dataclass of its settings; its fields have defaults.
        open: makes the teacher of its settings and a `Runtime`.
        presets: named settings, of which the first are the default; by default there is one,
            `config_class()`.

    Raises:
        ValueError: the name is taken.
    """
    if name in _methods:
        raise ValueError(f'there is a teacher "{name}" already.')
    _methods[name] = Method(config_class, open, presets or {"default": config_class()})
