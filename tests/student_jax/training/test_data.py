import itertools

import fsspec
import numpy as np
import pytest
from negatives import SIZE, negative

from student_jax.training.data import load_sources, split_triplets, training_batches
from triplets import Cache, ImageSet, InputError, TripletDataset, TripletWriter
from triplets.convert import ConvertConfig, convert

PICTURES = ("content", "style", "stylised")


def batches(triplets, **changes):
    options = {"batch_size": 4, "crop_size": 32, "seed": 3, "num_workers": 0} | changes
    sources, _ = load_sources([str(triplets)], None, 0.2)
    return training_batches(sources, **options)


def assert_same(batch, other):
    for name in PICTURES:
        np.testing.assert_array_equal(batch[name], other[name])
    assert batch["record"].tolist() == other["record"].tolist()


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """4 triplets."""
    root = tmp_path_factory.mktemp("grey") / "triplets"
    images = np.arange(0, 200, 50, np.uint8)[:, None, None, None] * np.ones(
        (SIZE, SIZE, 3), np.uint8
    )
    pictures = ImageSet(images, [f"{i}.png" for i in range(4)], [(SIZE, SIZE)] * 4)
    pairs = np.stack([np.arange(4)] * 2, axis=1)
    writer = TripletWriter(root, contents=pictures, styles=pictures, pairs=pairs, shard_size=4)
    writer.write_shard(0, images)
    return root


def test_validation_triplets_share_no_picture_with_training(triplets):
    dataset = TripletDataset(triplets)
    split = split_triplets(dataset, 0.2)
    train, validation = dataset.pairs[split.train], dataset.pairs[split.validation]
    assert len(train) == 4 * 3 and len(validation) == 1 * 1
    assert not set(train[:, 0]) & set(validation[:, 0])
    assert not set(train[:, 1]) & set(validation[:, 1])


def test_nothing_is_kept_for_validation_on_request(triplets):
    split = split_triplets(TripletDataset(triplets), 0.0)
    assert len(split.train) == 20 and len(split.validation) == 0


def test_too_few_pictures_to_hold_any_out(triplets):
    with pytest.raises(InputError, match="too few to keep 90% of them for validation"):
        split_triplets(TripletDataset(triplets), 0.9)


def test_content_and_stylised_are_cut_alike(triplets):
    """The teacher of these triplets works pixel by pixel, so it must hold on the crops too."""
    dataset = TripletDataset(triplets)
    tints = dataset.styles.mean(axis=(1, 2))
    iterator = batches(triplets)
    for _ in range(5):
        batch = next(iterator)
        assert batch["style"].shape == (4, 32, 32, 3) and batch["style"].dtype == np.uint8
        for content, stylised in zip(batch["content"], batch["stylised"], strict=True):
            fits = [
                np.abs(negative(content, tint[None, None]) - stylised.astype(int)).max() <= 1
                for tint in tints
            ]
            assert any(fits)


def test_batches_depend_on_the_seed_alone(triplets):
    first, again, other = batches(triplets), batches(triplets), batches(triplets, seed=4)
    same = [np.array_equal(next(first)["content"], next(again)["content"]) for _ in range(5)]
    assert all(same)
    assert not np.array_equal(next(first)["content"], next(other)["content"])


def test_batches_can_begin_at_any_number(triplets):
    """Also beyond the first epoch, of three batches."""
    expected = list(itertools.islice(batches(triplets), 8))
    for batch, other in zip(batches(triplets, start=5), expected[5:], strict=False):
        assert_same(batch, other)


def test_parts_of_all_processes_are_the_whole_batch(triplets):
    whole = batches(triplets, start=2)
    parts = [batches(triplets, start=2, process_index=i, process_count=2) for i in range(2)]
    for _ in range(4):
        halves = [next(part) for part in parts]
        joined = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
        assert_same(joined, next(whole))


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_bucket_gives_the_same_batches(triplets, tmp_path, share):
    """For each process, from any number on; with a cache for all of it, and for a part."""
    address = "memory://bucket/training"
    convert(ConvertConfig(triplets, address))
    total = TripletDataset(address).storage.total_bytes()
    cache = Cache(tmp_path / "cache", int(share * total))
    sources, _ = load_sources([address], None, 0.2, cache)
    options = {"batch_size": 4, "crop_size": 32, "seed": 3, "num_workers": 0}
    for process in range(2):
        part = {"start": 3, "process_index": process, "process_count": 2}
        there, here = training_batches(sources, **options, **part), batches(triplets, **part)
        for batch, other in itertools.islice(zip(there, here, strict=True), 4):
            for name in PICTURES:
                np.testing.assert_array_equal(batch[name], other[name])
    fsspec.filesystem("memory").store.clear()


def test_an_epoch_has_every_triplet_once(triplets):
    records = np.concatenate([next(it)["record"] for it in [batches(triplets)] for _ in range(3)])
    train = split_triplets(TripletDataset(triplets), 0.2).train
    assert sorted(records) == sorted(f"{triplets}[{i}]" for i in train)


def test_datasets_are_mixed_by_their_weights(triplets, grey):
    sources, validation = load_sources([str(triplets), str(grey)], None, 0.2)
    assert len(validation) == 1 + 1
    iterator = training_batches(
        sources, (1.0, 3.0), batch_size=4, crop_size=32, seed=0, num_workers=0
    )
    names = [record.rpartition("[")[0] for _ in range(10) for record in next(iterator)["record"]]
    assert (names.count(str(triplets)), names.count(str(grey))) == (10, 30)


def test_validation_dataset_of_its_own(triplets, grey):
    (source,), validation = load_sources([str(triplets)], str(grey), 0.2)
    assert len(source) == 20
    assert [triplet["record"] for triplet in validation] == [f"{grey}[{i}]" for i in range(4)]


def test_pictures_are_reduced_by_averaging(triplets):
    contents = TripletDataset(triplets).contents.reshape(-1, 24, 2, 24, 2, 3).mean((2, 4))
    batch = next(batches(triplets, image_size=24, crop_size=24))
    for content in batch["content"]:
        # Of one picture or of its mirror image; Pillow rounds twice, after rows and after columns.
        errors = [np.abs(content - other).max() for x in contents for other in (x, x[:, ::-1])]
        assert min(errors) <= 1
    # Smaller pictures stay as they are.
    whole = next(batches(triplets, image_size=2 * SIZE, crop_size=SIZE))
    assert (
        (
            np.sort(whole["content"], axis=2)[:, None]
            == np.sort(TripletDataset(triplets).contents, axis=2)
        )
        .all((2, 3, 4))
        .any(1)
        .all()
    )


def test_crop_larger_than_the_pictures(triplets):
    with pytest.raises(InputError, match=r"is 48 x 48 px, smaller than --crop-size 64"):
        next(batches(triplets, crop_size=64))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(triplets):
    iterator = batches(triplets, num_workers=2, start=1)
    for batch, other in zip(
        itertools.islice(iterator, 6), batches(triplets, start=1), strict=False
    ):
        assert_same(batch, other)
