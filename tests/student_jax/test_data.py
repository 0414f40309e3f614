import numpy as np
import pytest
from conftest import negative

from student_jax.data import TripletSource, split_triplets, training_batches
from triplets import InputError, TripletDataset


def batches(triplets, **changes):
    dataset = TripletDataset(triplets)
    options = {"batch_size": 4, "crop_size": 32, "seed": 3, "num_workers": 0} | changes
    indices = split_triplets(dataset, 0.2).train
    return training_batches(TripletSource(dataset, indices), **options)


def test_held_out_triplets_share_no_picture_with_training(triplets):
    dataset = TripletDataset(triplets)
    split = split_triplets(dataset, 0.2)
    train, held_out = dataset.pairs[split.train], dataset.pairs[split.held_out]
    assert len(train) == 4 * 3 and len(held_out) == 1 * 1
    assert not set(train[:, 0]) & set(held_out[:, 0])
    assert not set(train[:, 1]) & set(held_out[:, 1])


def test_nothing_held_out_on_request(triplets):
    split = split_triplets(TripletDataset(triplets), 0.0)
    assert len(split.train) == 20 and len(split.held_out) == 0


def test_too_few_pictures_to_hold_any_out(triplets):
    with pytest.raises(InputError, match="too few to hold out 90%"):
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


def test_iterator_continues_from_its_state(triplets):
    iterator = batches(triplets)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["stylised"] for _ in range(4)]
    restored = batches(triplets)
    restored.set_state(state)
    np.testing.assert_array_equal([next(restored)["stylised"] for _ in range(4)], expected)


def test_processes_see_disjoint_triplets(triplets):
    """Over one epoch of 12 triplets, two processes see 6 each."""
    pictures = []
    for index in range(2):
        iterator = batches(
            triplets, batch_size=6, crop_size=48, process_index=index, process_count=2
        )
        # Flips are undone by sorting the pixels; crops of full size leave all of them.
        flat = next(iterator)["stylised"].reshape(6, -1)
        pictures.append({np.sort(row).tobytes() for row in flat})
    assert len(pictures[0]) == len(pictures[1]) == 6
    assert not pictures[0] & pictures[1]
