import os

import numpy as np
import pytest

# Read when JAX starts. The programs of these tests take far longer to compile than to run: the
# compiler's optimisations are left out, and small programs kept for processes that follow.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

from negatives import SIZE, negative

from student_jax import MiniConfig, STTRConfig
from student_jax.training.config import TrainConfig
from triplets import ImageSet, TripletWriter


@pytest.fixture(scope="session")
def triplets(tmp_path_factory):
    """5 contents x 4 styles; "stylised" is the negative of the content tinted by the style."""
    root = tmp_path_factory.mktemp("data") / "triplets"
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 6, 6, 3), np.uint8)
    images = small.repeat(SIZE // 6, axis=1).repeat(SIZE // 6, axis=2)
    contents, styles = images[:5], images[5:]
    pairs = np.indices((5, 4)).reshape(2, -1).T
    writer = TripletWriter(
        root,
        contents=ImageSet(contents, [f"photo{i}.jpg" for i in range(5)], [(SIZE, SIZE)] * 5),
        styles=ImageSet(styles, [f"painting{i}.jpg" for i in range(4)], [(SIZE, SIZE)] * 4),
        pairs=pairs,
        shard_size=8,
    )
    for shard in writer.missing_shards():
        rows = writer.shard_pairs(shard)
        writer.write_shard(shard, negative(contents[rows[:, 0]], styles[rows[:, 1]]))
    return root


@pytest.fixture(scope="session")
def tiny_model():
    """The smallest STTR: it has frozen layers, dropout and batch norm, and compiles in seconds."""
    return STTRConfig(
        content_widths=(256,),
        style_widths=(256,),
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_dim=16,
        dropout=0.1,
        tail_dim=16,
    )


@pytest.fixture(scope="session")
def tiny_mini():
    """The smallest mini student."""
    return MiniConfig(
        content_widths=(8, 8),
        style_widths=(8, 8),
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_dim=16,
        tail_dim=16,
        style_code=4,
    )


@pytest.fixture(scope="session")
def train_settings(triplets, tiny_model):
    """A run of 12 steps with three checkpoints, all but its workdir."""
    return {
        "data": (str(triplets),),
        "model": tiny_model,
        "steps": 12,
        "batch_size": 4,
        "crop_size": 32,
        "learning_rate": 3e-3,
        "slow_rate": 1.0,
        "warmup_steps": 2,
        "validation_fraction": 0.2,
        "checkpoint_every": 4,
        "log_every": 1,
        "clip_norm": 1.0,
    }


@pytest.fixture
def train_config(train_settings, tmp_path):
    return TrainConfig(workdir=tmp_path / "run", **train_settings)
