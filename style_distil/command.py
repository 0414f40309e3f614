"""The command `style-distil`: which commands it has, and how each of them starts and fails.

A command's package is imported when that command is chosen, so that `style-distil --help` needs
none of them, no command of JAX waits for torch, and none of torch for JAX.
"""

import difflib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import tyro

PROGRAM = "style-distil"
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


@dataclass(frozen=True)
class Command:
    """One command, by name alone."""

    help: str
    module: str
    """Where the function and the settings are."""
    function: str
    """Takes the settings and does the work."""
    settings: str
    """The class that tyro makes the command line of."""
    extra: str = ""
    """Extra of pyproject.toml that brings what the module imports."""
    presets: tuple[str, ...] = ()
    """Class methods of the settings, of which the first word of the command line chooses one. The
    command line has to give their parameters."""
    settings_for: str | None = None
    """Function from the arguments to that class, if some flags decide which others there are."""


@dataclass(frozen=True)
class Group:
    """Commands that share their first word."""

    help: str
    commands: Mapping[str, "Command | Group"]


COMMANDS = Group(
    "Distil a diffusion teacher's style transfer into a small JAX student.",
    {
        "dump": Command(
            "Stylise N contents with M styles by a teacher and write the triplets.",
            "teacher_torch.dump",
            "dump",
            "DumpConfig",
            extra="teacher",
            settings_for="dump_config_type_for",
        ),
        "train": Command(
            "Train a student on a teacher's triplets.",
            "student_jax.training.train",
            "train",
            "TrainConfig",
            extra="student",
            presets=("mini", "modulated", "reference"),
        ),
        "stylize": Command(
            "Stylise pictures, folders of pictures or videos with a student.",
            "student_jax.inference.command",
            "stylise_files",
            "StyliseConfig",
            extra="student",
        ),
        "evaluate": Command(
            "Measure a student, a teacher's dump or anyone's results beside three baselines.",
            "student_jax.evaluation.evaluate",
            "evaluate",
            "EvaluateConfig",
            extra="evaluation",
        ),
        "export": Command(
            "Export a student as safetensors, StableHLO and ONNX.",
            "student_jax.export.export",
            "export",
            "ExportConfig",
            extra="student",
        ),
        "demo": Command(
            "Serve a web page, for this machine only, to try a student on.",
            "student_jax.demo.server",
            "demo",
            "DemoConfig",
            extra="demo",
        ),
        "pretrain": Command(
            "Pre-train the mini teacher, a small latent diffusion model, on your pictures.",
            "teacher_torch.mini.pretrain",
            "pretrain",
            "PretrainConfig",
            extra="pretrain",
        ),
        "triplets": Group(
            "Check, look at, make and convert triplet datasets.",
            {
                "verify": Command(
                    "Read a whole dataset and report what is damaged or missing.",
                    "triplets.verify",
                    "verify",
                    "VerifyConfig",
                ),
                "preview": Command(
                    "Show triplets of a dataset as one picture.",
                    "triplets.preview",
                    "preview",
                    "PreviewConfig",
                ),
                "import": Command(
                    "Make a dataset of pictures that another tool stylised.",
                    "triplets.import_pictures",
                    "import_pictures",
                    "ImportConfig",
                ),
                "convert": Command(
                    "Copy a dataset, raw or compressed, to a folder or to a bucket.",
                    "triplets.convert",
                    "convert",
                    "ConvertConfig",
                ),
                "export-tfds": Command(
                    "Copy a dataset for TensorFlow Datasets.",
                    "triplets.tfds_export",
                    "export_tfds",
                    "ExportConfig",
                    extra="tfds",
                ),
                "split": Command(
                    "Split a folder of pictures into a training part and a held-out tenth.",
                    "triplets.split",
                    "split_pictures",
                    "SplitConfig",
                ),
            },
        ),
        "weights": Group(
            "Convert weights from and to the names of other programs.",
            {
                "import": Command(
                    "Make a student of published weights: STTR's checkpoint or ImageNet backbones.",
                    "student_jax.students.sttr.published",
                    "import_weights",
                    "ImportConfig",
                    extra="student",
                ),
                "export": Command(
                    "Write a student by the names of STTR's authors, in a safetensors file.",
                    "student_jax.students.sttr.published",
                    "export_weights",
                    "ExportConfig",
                    extra="student",
                ),
            },
        ),
        "study": Group(
            "Repeat the project's experiments (needs a clone of the repository).",
            {
                "losses": Command(
                    "Compare the losses L1, L2 and L3 from the same start, over several seeds.",
                    "experiments.compare_losses",
                    "compare_losses",
                    "CompareConfig",
                    extra="evaluation",
                ),
                "ablations": Command(
                    "Vary the number of triplets, the styles, the student's size, the Gram loss.",
                    "experiments.ablations",
                    "ablate",
                    "AblationConfig",
                    extra="evaluation",
                ),
                "teachers": Command(
                    "Stylise the same pictures with every teacher: figure, measures, costs.",
                    "experiments.teachers",
                    "compare_teachers",
                    "TeachersConfig",
                    extra="evaluation",
                ),
                "cost": Command(
                    "Measure what a picture costs teachers and students on this machine.",
                    "experiments.cost",
                    "measure_costs",
                    "CostConfig",
                    extra="evaluation",
                ),
            },
        ),
    },
)

RENAMED = {
    "dump verify": "triplets verify",
    "dump preview": "triplets preview",
    "dump import": "triplets import",
    "dump export-tfds": "triplets export-tfds",
    "dump_teacher": "dump",
    "train_flax": "train",
    "stylise": "stylize",
    "pretrain_mini_teacher": "pretrain",
    "measure_teacher": "evaluate",
    "split_pictures": "triplets split",
    "import_weights": "weights import",
    "export_weights": "weights export",
    "compare_losses": "study losses",
}
"""What commands were called before, or are easily called."""

RENAMED_FLAGS = {
    "train --held-out-fraction": "--validation-fraction",
    "train --backbone-rate": "--slow-rate",
    "stylize --style-size": "--style-scale",
    "evaluate --style-size": "--style-scale",
    "study ablations --study": "--vary",
    "study losses --teacher": "--model",
}
"""What flags were called before, by command."""

SOURCE_TREE = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the words name, by default those of this process; see `run`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].replace("_", "-") in COMPLETION:
        # Asked for once, when a shell is set up: all packages that are there are imported.
        tyro.cli(_union(COMMANDS, loaded=True), prog=PROGRAM, args=words)
    else:
        command, prog, arguments = _choose(words)
        run(lambda: _start(command, prog, arguments))


def run(work: Callable[[], None]) -> None:
    """Do a command's work.

    What a user can cause ends in one sentence on stderr; a traceback always means a defect. Exit
    status 2: the command line makes no sense whatever the files hold, and so the settings'
    constructor, or the parser, refuses it. 1: anything else that was given cannot be used. 130: an
    interruption.
    """
    # Orbax comments on its own options in warnings that are of no use to a user.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Here and not above, because the list of the commands does without NumPy.
    from triplets import InputError

    try:
        work()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        # The number that Python puts first means nothing to a user; the file does.
        of_file = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {of_file}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _choose(words: Sequence[str]) -> tuple[Command, str, Sequence[str]]:
    """The command, its whole name and its own arguments; exits where the words name none."""
    chosen, number = COMMANDS, 0
    while isinstance(chosen, Group):
        prog = " ".join((PROGRAM, *words[:number]))
        if number == len(words) or words[number].startswith("-"):
            # Help, or something that tyro refuses.
            tyro.cli(_union(chosen), prog=prog, description=chosen.help, args=words[number:])
        following = chosen.commands.get(words[number].replace("_", "-"))
        if following is None:
            _refuse(words[: number + 1])
        chosen, number = following, number + 1
    if " ".join(words[: number + 1]) in RENAMED:
        _refuse(words[: number + 1])
    return chosen, " ".join((PROGRAM, *words[:number])), words[number:]


def _refuse(words: Sequence[str]) -> NoReturn:
    """Exit with one sentence about words that name no command."""
    name = " ".join(words).removesuffix(".py")
    names = list(_names(COMMANDS))
    same_end = [whole for whole in names if whole.split()[-1] == words[-1]]
    meant = [
        *([RENAMED[name]] if name in RENAMED else []),
        *(same_end or difflib.get_close_matches(name, names, n=1)),
    ]
    hint = f'did you mean "{PROGRAM} {meant[0]}"?' if meant else f'see "{PROGRAM} --help".'
    print(f'error: there is no command "{PROGRAM} {name}"; {hint}', file=sys.stderr)
    sys.exit(2)


def _names(group: Group, prefix: str = "") -> Iterator[str]:
    for name, node in group.commands.items():
        if isinstance(node, Group):
            yield from _names(node, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def _start(command: Command, prog: str, arguments: Sequence[str]) -> None:
    name = prog.removeprefix(f"{PROGRAM} ")
    for argument in arguments:
        flag = argument.partition("=")[0]
        if now := RENAMED_FLAGS.get(f"{name} {flag}"):
            print(f"error: {flag} of {prog} is called {now} now.", file=sys.stderr)
            sys.exit(2)
    module = _load(command, prog)
    kind = _settings_type(command, module, arguments)
    settings = tyro.cli(kind, prog=prog, description=command.help, args=arguments)
    getattr(module, command.function)(settings)


def _load(command: Command, prog: str) -> ModuleType:
    """Import the command's module.

    Raises:
        InputError: it is not installed, or something that it imports is not.
    """
    from triplets import InputError

    package = command.module.partition(".")[0]
    if not (SOURCE_TREE / package / "__init__.py").is_file():
        raise InputError(f"{prog} needs a clone of the repository, where {package}/ is.")
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if not command.extra or (SOURCE_TREE / str(error.name).partition(".")[0]).is_dir():
            raise
        raise InputError(
            f'{prog} needs {error.name}: pip install "style-distil[{command.extra}]".'
        ) from error


def _settings_type(command: Command, module: ModuleType, arguments: Sequence[str] = ()) -> Any:
    """What tyro makes the command line of."""
    if command.settings_for is not None:
        return getattr(module, command.settings_for)(arguments)
    settings = getattr(module, command.settings)
    if not command.presets:
        return settings
    presets = {name: getattr(settings, name) for name in command.presets}
    return tyro.extras.subcommand_type_from_defaults(
        {
            name: preset(**dict.fromkeys(inspect.signature(preset).parameters, tyro.MISSING))
            for name, preset in presets.items()
        },
        {name: preset.__doc__ for name, preset in presets.items()},
        prefix_names=False,
    )


def _union(group: Group, loaded: bool = False) -> Any:
    """A group as a type that tyro makes subcommands of, with their flags if `loaded`."""

    def arm(node: Command | Group) -> Any:
        if isinstance(node, Group):
            return _union(node, loaded)
        if not loaded:
            return _no_flags
        try:
            return _settings_type(node, _load(node, PROGRAM))
        except (ImportError, ValueError):
            return _no_flags  # what is not installed is completed without its flags

    arms = []
    for name, node in group.commands.items():
        subcommand = tyro.conf.subcommand(
            name, constructor_factory=partial(arm, node), description=node.help
        )
        arms.append(Annotated[Any, subcommand])
    return reduce(or_, arms)


def _no_flags() -> None:
    """A command of which no more than the name matters."""
