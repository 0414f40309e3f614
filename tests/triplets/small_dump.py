"""A small dataset whose every byte follows from its settings, and ways to kill its writing.

Run as a program, `python small_dump.py FOLDER` writes the dataset once whole and again and again
with interruptions, each in a folder of its own below FOLDER, and prints how many processes were
killed. It is a program of its own because it forks, which a process with threads must not.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from triplets import ImageSet, TripletWriter

SIZE = (6, 8)
NUM_CONTENTS, NUM_STYLES, SHARD_SIZE = 3, 4, 5
NUM_SHARDS = 3
SETTINGS = {"teacher": "test", "seed": 7, "styleid": {"gamma": 0.75, "layers": [6, 7]}}


def image_set(count: int, seed: int) -> ImageSet:
    images = np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)
    return ImageSet(images, [f"{seed}/{index}.png" for index in range(count)], [(60, 80)] * count)


CONTENTS, STYLES = image_set(NUM_CONTENTS, seed=1), image_set(NUM_STYLES, seed=2)
PAIRS = np.array([(c, s) for c in range(NUM_CONTENTS) for s in range(NUM_STYLES)])


def stylise(pairs: np.ndarray) -> np.ndarray:
    """Stands for the teacher: any function of the two pictures."""
    return CONTENTS.images[pairs[:, 0]] // 2 + STYLES.images[pairs[:, 1]] // 2


def make_writer(root, **changes) -> TripletWriter:
    arguments = {
        "contents": CONTENTS,
        "styles": STYLES,
        "pairs": PAIRS,
        "settings": SETTINGS,
        "shard_size": SHARD_SIZE,
        **changes,
    }
    return TripletWriter(root, **arguments)


def dump(root, **changes) -> TripletWriter:
    """Write the dataset, or what is missing of it."""
    writer = make_writer(root, **changes)
    for shard in writer.missing_shards():
        writer.write_shard(shard, stylise(writer.shard_pairs(shard)))
    return writer


def tree(root) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones included, with its bytes."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in Path(root).rglob("*")
    }


def fork(function, *arguments, **keywords) -> int:
    """Start a process that calls the function and ends; returns its id."""
    process = os.fork()
    if process == 0:
        try:
            function(*arguments, **keywords)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return process


def was_killed(process: int) -> bool:
    """Wait for a process; whether a signal ended it (otherwise it must have succeeded)."""
    status = os.waitpid(process, 0)[1]
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def dump_and_die(root, event: int, **changes) -> None:
    """Dump, with a kill -9 at the given one of the file operations that Python announces."""
    operations = ("open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove")
    seen = 0

    def kill_at_event(name, arguments):
        nonlocal seen
        if name in operations:
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_at_event)
    dump(root, **changes)


def dump_and_die_within_a_file(root, num_bytes: int) -> None:
    """Dump, with the kernel ending the process when a file grows beyond `num_bytes`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    dump(root)


def main(folder: Path) -> None:
    # Waiting for the disk matters when the power fails, not when a process is killed.
    os.fsync = lambda descriptor: None
    dump(folder / "whole")
    killed = 0

    # One kill at each file operation of a whole run, then a restart.
    event = 0
    while True:
        event += 1
        root = folder / f"event-{event}"
        if not was_killed(fork(dump_and_die, root, event)):
            break
        killed += 1
        assert not was_killed(fork(dump, root))

    # One kill at many places within the files.
    for num_bytes in range(0, 800, 93):
        root = folder / f"bytes-{num_bytes}"
        assert was_killed(fork(dump_and_die_within_a_file, root, num_bytes))
        killed += 1
        assert not was_killed(fork(dump, root))

    # The same dump killed again and again; each time it gets a little further.
    event = 8
    while was_killed(fork(dump_and_die, folder / "often", event)):
        killed += 1
        event += 1

    # Ranks side by side: all at once, the first of them killed, all again.
    for repetition in range(8):
        root = folder / f"ranks-{repetition}"
        ranks = [fork(dump_and_die, root, 5 + 9 * repetition, rank=0, world_size=3)]
        ranks += [fork(dump, root, rank=rank, world_size=3) for rank in (1, 2)]
        killed += sum(map(was_killed, ranks))
        ranks = [fork(dump, root, rank=rank, world_size=3) for rank in range(3)]
        assert not any(map(was_killed, ranks))
        # A killed rank's leftovers are swept when fewer ranks take over, too.
        root = folder / f"fewer-ranks-{repetition}"
        killed += was_killed(fork(dump_and_die, root, 5 + 9 * repetition, rank=2, world_size=3))
        assert not was_killed(fork(dump, root))

    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
