import os
import tempfile

# One compilation cache for this test run: many tests, some in processes of their own, compile the
# same program. It starts empty, so that no result depends on earlier runs. JAX reads the variable
# when it is imported, which checked annotations do early.
_cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name

# What runs on one device runs on two.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from triplets import ImageSet, TripletWriter  # noqa: E402

SIZE = 64  # the smallest that LPIPS takes


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    """5 contents x 4 styles; "stylised" is a blend of the two."""
    root = tmp_path_factory.mktemp("data") / "triplets"
    small = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    images = small.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
    contents, styles = images[:5], images[5:]
    writer = TripletWriter(
        root,
        contents=ImageSet(contents, [f"photo{i}.jpg" for i in range(5)], [(SIZE, SIZE)] * 5),
        styles=ImageSet(styles, [f"painting{i}.jpg" for i in range(4)], [(SIZE, SIZE)] * 4),
        pairs=np.indices((5, 4)).reshape(2, -1).T,
        shard_size=20,
    )
    rows = writer.shard_pairs(0)
    writer.write_shard(0, contents[rows[:, 0]] // 2 + styles[rows[:, 1]] // 2)
    return root
