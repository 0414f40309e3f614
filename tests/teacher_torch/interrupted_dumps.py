"""Dumps of a tiny teacher, one whole and others interrupted in many ways and started again.

Run as a program, `python interrupted_dumps.py FOLDER MODEL PICTURES` writes each dump in a folder
of its own below FOLDER and prints how many processes were killed. It is a program of its own
because it forks, which a process with threads must not: nothing is computed before a fork.
"""

import os
import random
import resource
import signal
import sys
from pathlib import Path

import torch

from teacher_torch import StyleIDConfig, work
from teacher_torch.dump import DumpConfig, dump


def fork(function, *arguments, **keywords) -> int:
    """Start a process that calls the function and ends; returns its id."""
    process = os.fork()
    if process == 0:
        try:
            function(*arguments, **keywords)
            os._exit(0)
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(2)
    return process


def status(process: int) -> int:
    """Wait for a process: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def dump_and_die(config: DumpConfig, event: int) -> None:
    """Dump, with a kill -9 at the given one of all steps of progress and file operations."""
    operations = ("open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove")
    update, seen = work.tqdm.update, 0

    def count():
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def count_step(*arguments):
        count()
        return update(*arguments)

    def count_operation(name, arguments):
        # Opening for reading alone leaves nothing behind.
        if name in operations and str(config.out) in str(arguments[0]):
            count()

    work.tqdm = type("Bar", (work.tqdm,), {"update": count_step})
    sys.addaudithook(count_operation)
    dump(config)


def dump_on_a_full_disk(config: DumpConfig, num_bytes: int) -> None:
    """Dump where no file can grow beyond `num_bytes`: the kernel refuses to write more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    dump(config)


def main(folder: Path, model: str, pictures: Path) -> None:
    torch.set_num_threads(1)
    # Waiting for the disk matters when the power fails, not when a process is killed.
    os.fsync = lambda descriptor: None
    rng = random.Random(0)
    killed = 0

    def config(name: str, **changes) -> DumpConfig:
        sources = (str(pictures / "content"), str(pictures / "style"))
        method = StyleIDConfig(num_steps=2)
        return DumpConfig(*sources, folder / name, model=model, method=method, tile=2, **changes)

    assert status(fork(dump, config("whole"))) == 0

    # One dump that is killed at random places again and again, each time a little later.
    latest = 5
    while (code := status(fork(dump_and_die, config("often"), rng.randint(1, latest)))) != 0:
        assert code == -signal.SIGKILL
        killed += 1
        latest += 10

    # A disk on which the pictures fit, but not a whole shard.
    assert status(fork(dump_on_a_full_disk, config("full"), 40_000)) == 1
    assert status(fork(dump, config("full"))) == 0

    # Two ranks side by side, the second killed in its first shard, then both again.
    ranks = [config("ranks", rank=rank, world_size=2) for rank in (0, 1)]
    processes = [fork(dump, ranks[0]), fork(dump_and_die, ranks[1], 8)]
    codes = [status(process) for process in processes]
    assert codes == [0, -signal.SIGKILL], codes
    killed += 1
    assert [status(process) for process in [fork(dump, rank) for rank in ranks]] == [0, 0]

    # Both ranks killed, and one process without ranks takes over.
    ranks = [config("taken-over", rank=rank, world_size=2) for rank in (0, 1)]
    processes = [fork(dump_and_die, ranks[0], 16), fork(dump_and_die, ranks[1], 8)]
    codes = [status(process) for process in processes]
    assert codes == [-signal.SIGKILL] * 2, codes
    killed += 2
    assert status(fork(dump, config("taken-over"))) == 0

    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
