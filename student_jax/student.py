"""What a student is, and which students there are.

Training, checkpoints, weights, inference and export know a student by this protocol alone. A new
student is a folder with a configuration and a model, and one call of `register_student`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

MAX_NUMBER = 65_536
"""Largest number in a configuration that is read from a file."""

MAX_LAYERS = 256
"""Largest number of layers, and of the entries of a tuple, in such a configuration: models are
built layer by layer before their weights are looked at."""

LearningGroup = Literal["frozen", "slow", "normal"]
"""How a variable is trained: never, at `TrainConfig.slow_rate` of the learning rate, or fully."""

LearningGroups = Callable[[tuple[str | int, ...]], LearningGroup]
"""The learning group of a variable by its path in the model; see `Student.learning_group`."""

Memory = Any
"""An encoded style: a pytree of arrays whose first axis is the batch."""

Tokens = Any
"""What stands for a picture between the stages of a `TileRule`: a pytree of arrays. A leaf with
four axes, [b h w c], is a grid with a cell for each token, and is cut into tiles and windows; any
other leaf describes the whole picture."""


class StudentConfig(abc.ABC):
    """Architecture of a student: everything that is needed to build it before it has weights.

    A configuration is a frozen dataclass whose fields all have defaults and hold what JSON can
    hold: numbers, strings, booleans, None and tuples of them.
    """

    @property
    @abc.abstractmethod
    def content_stride(self) -> int:
        """The sides of contents are multiples of this, in pixels."""

    @property
    @abc.abstractmethod
    def style_stride(self) -> int:
        """The sides of styles are multiples of this, in pixels."""

    @property
    def style_scale(self) -> int:
        """Shorter side in pixels to which larger styles are best reduced: at this scale their
        strokes have the size that the student has learned."""
        return 256


@dataclasses.dataclass(frozen=True)
class TileRule:
    """How a large picture is stylised in tiles with the result of the whole picture.

    All functions are pure, on batches of one picture. Tiles are cut at multiples of the content
    stride; a token spans one stride.
    """

    halo: int
    """Tokens around a tile's core that it has to see: at least as many as `encode` and `decode`
    look beyond a token."""
    encode: Callable[[Float[Array, "b h w 3"]], Tokens]
    """Pixels of a tile to its tokens: grids alone."""
    context: Callable[[Tokens], Tokens]
    """What `transform` has to know of the whole picture, from the tokens of all tiles."""
    transform: Callable[[Tokens, Tokens, Sequence[Memory], Float[Array, " s"] | None], Tokens]
    """Tokens, context, styles and their weights to transformed tokens: the stage where distant
    tokens meet. Grids of the context are cut like the tokens when memory only suffices for
    windows."""
    decode: Callable[[Float[Array, "b h w 3"], Tokens], Float[Array, "b h w 3"]]
    """Pixels of a tile and its transformed tokens to the prediction."""


@runtime_checkable
class Student(Protocol):
    """A model that stylises pictures: an `nnx.Module` with a constructor as in `build_student`.

    Pixels are in [0, 1] and predictions are not clipped. The model keeps no random state: dropout
    takes its keys from the `rngs` of a call.
    """

    config: StudentConfig

    @property
    def tiles(self) -> TileRule | None:
        """How large pictures are tiled; None: a picture is stylised whole or not at all."""
        ...

    def __call__(
        self,
        content: Float[ArrayLike, "b h w 3"],
        style: Float[ArrayLike, "b h2 w2 3"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w 3"]:
        """Stylise every content with the style of the same row.

        Args:
            train: behave as in training: dropout, batch statistics.
            rngs: with a `dropout` stream, for a student with dropout.
        """
        ...

    def encode_style(self, style: Float[ArrayLike, "b h w 3"]) -> Memory:
        """What the student keeps of every style, for any number of contents."""
        ...

    def decode(
        self,
        content: Float[ArrayLike, "b h w 3"],
        memories: Sequence[Memory],
        *,
        weights: Float[Array, " s"] | None = None,
        padding: Bool[Array, "b h w"] | None = None,
    ) -> Float[Array, "b h w 3"]:
        """Stylise every content with the encoded styles of the same row.

        Args:
            memories: one style for each content, or several that are blended.
            weights: shares of several styles, with sum 1; None for one style.
            padding: True at pixels beyond the picture, which continue it by its mirror image; None:
                there are none. A student that looks far should not let them weigh in.
        """
        ...

    def learning_group(self, path: tuple[str | int, ...]) -> LearningGroup:
        """How the variable at this path is trained, such as ("decoder", 0, "norm1", "scale")."""
        ...


class Registered(NamedTuple):
    """The two classes of a student."""

    config: type[StudentConfig]
    model: Callable[..., Student]


STUDENTS: dict[str, Registered] = {}
"""Students by name; `student_jax.students` registers the ones of this package."""


def register_student(name: str, config: type[StudentConfig], model: Callable[..., Student]) -> None:
    """Make a student known by a name, which its files then carry.

    Raises:
        ValueError: the name or the configuration belongs to another student.
    """
    entry = Registered(config, model)
    for other, registered in STUDENTS.items():
        if registered != entry if other == name else registered.config is config:
            raise ValueError(
                f"cannot register {config.__name__} as {name!r}: {registered.config.__name__} is "
                f"{other!r}"
            )
    STUDENTS[name] = entry


def student_name(config: StudentConfig) -> str:
    """The name under which a configuration's student is registered.

    Raises:
        ValueError: it is not registered.
    """
    for name, registered in STUDENTS.items():
        if type(config) is registered.config:
            return name
    raise ValueError(f"{type(config).__name__} is not registered; register_student does that")


def build_student(
    config: StudentConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> Student:
    """A new student.

    Args:
        dtype: in which to compute; parameters and predictions remain float32.
        remat: in training, compute parts again in the backward pass to save memory.
        rngs: for the initial parameters.

    Raises:
        ValueError: the configuration's student is not registered.
    """
    _, model = STUDENTS[student_name(config)]
    return model(config, dtype=dtype, remat=remat, rngs=rngs)


def blend(memories: Sequence[Memory], weights: Float[Array, " s"] | None) -> Memory:
    """The weighted mean of encoded styles; of one style without weights, itself."""
    if weights is None:
        (memory,) = memories
        return memory
    return jax.tree.map(lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *memories)


def count_parameters(student: Student) -> int:
    """Numbers that gradients could train; also of an abstract model (`nnx.eval_shape`)."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(student, nnx.Param)))


def config_to_json(config: StudentConfig) -> dict[str, Any]:
    """A configuration as JSON values, with its student's name; `config_from_json` reads it."""
    fields = dataclasses.asdict(config)
    # JSON has lists only.
    plain = {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}
    return {"student": student_name(config)} | plain


def config_from_json(fields: Mapping[str, Any]) -> StudentConfig:
    """The configuration that `config_to_json` described, or a file of version 0.1.0.

    Raises:
        ValueError: an unknown student, fields that are unknown or missing, or a value that is out
            of its range.
    """
    if "student" not in fields:
        # Here, because the students build on this module.
        from student_jax.students.unnamed import config_from_unnamed

        return config_from_unnamed(fields)
    name = fields["student"]
    if name not in STUDENTS:
        raise ValueError(
            f"the student {name!r} is not known, only {', '.join(sorted(STUDENTS))}; one from "
            "elsewhere must be registered first (student_jax.student.register_student)"
        )
    return config_from_fields(
        STUDENTS[name].config, {key: value for key, value in fields.items() if key != "student"}
    )


def config_from_fields(config: type[StudentConfig], fields: Mapping[str, Any]) -> StudentConfig:
    """A configuration of this class from JSON values, one for each field.

    Raises:
        ValueError: as `config_from_json`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    if fields.keys() != defaults.keys():
        unknown, missing = fields.keys() - defaults.keys(), defaults.keys() - fields.keys()
        raise ValueError(
            f"not the fields of {config.__name__}: unknown {sorted(unknown)}, "
            f"missing {sorted(missing)}"
        )
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
    for name, value in values.items():
        _check_value(name, value, defaults[name])
    return config(**values)


def _check_value(name: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the default's, and one that no model could have.

    Raises:
        ValueError: names the field.
    """
    kinds = {type(default), int} if isinstance(default, float) else {type(default)}
    if default is not None and type(value) not in kinds:
        raise ValueError(f"{name} is {value!r}; expected {type(default).__name__}")
    if isinstance(value, tuple):
        if len(value) > MAX_LAYERS:
            raise ValueError(f"{name} has {len(value)} entries; expected at most {MAX_LAYERS}")
        for entry in value:
            _check_value(name, entry, default[0] if default else None)
    limit = MAX_LAYERS if name.endswith("_layers") else MAX_NUMBER
    if isinstance(value, int | float) and not abs(value) <= limit:
        raise ValueError(f"{name} is {value}; expected at most {limit}")


# Registers the students of this package, which build on this module.
import student_jax.students  # noqa: E402, F401
