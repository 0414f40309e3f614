import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from student_jax.evaluation.judge import Judge
from student_jax.evaluation.measures.frechet import art_fid, frechet_distance
from student_jax.evaluation.measures.inception import ArtFeatures
from student_jax.evaluation.measures.networks import (
    LPIPS,
    ContentStructureDistance,
    GramDistance,
    _structure_divergence,
)
from student_jax.nets.vgg_weights import bundled_vgg16
from triplets import InputError


def test_lpips_has_the_published_values(lpips_pictures):
    reference, p0, p1 = lpips_pictures
    lpips = LPIPS()
    # What the authors' programs print for their example pictures, to three digits; see SOURCES.md.
    assert round(lpips(reference, p0), 3) == 0.722
    assert round(lpips(reference, p1), 3) == 0.138
    # Two rows of one batch may round differently.
    assert lpips(reference, reference) == pytest.approx(0, abs=1e-10)
    assert lpips(p0, reference) == pytest.approx(lpips(reference, p0))
    with pytest.raises(ValueError, match="LPIPS needs 64"):
        lpips(p0[:32], p1[:32])


def test_gram_distance(lpips_pictures):
    distance = GramDistance()
    reference, p0, p1 = lpips_pictures
    assert distance(reference, reference) == 0
    assert distance(p1, reference) < distance(p0, reference)
    assert distance(p0[:48], reference) > 0  # another size


def test_gram_distance_by_hand(lpips_pictures):
    features, style = (bundled_vgg16()(jnp.asarray(x)[None]) for x in lpips_pictures[:2])
    expected = []
    for name, f in features.items():
        grams = []
        for x in (f, style[name]):
            flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
            grams.append(flat.T @ flat / flat.size)
        expected.append(np.linalg.norm(grams[0] - grams[1]) / np.linalg.norm(grams[1]))
    # float32 sums of thousands of products against float64 ones
    assert GramDistance()(*lpips_pictures[:2]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_structure_divergence_by_hand():
    rng = np.random.default_rng(0)
    stylised, content = np.maximum(20 * rng.standard_normal((2, 6, 7, 8)), 0).astype(np.float32)
    expected = 0.0
    flat = [x.reshape(-1, 8).astype(float) / 8 for x in (stylised, content)]
    for i in range(42):
        log_q, log_p = (f @ f[i] - np.log(np.exp(f @ f[i]).sum()) for f in flat)
        expected += (np.exp(log_p) * (log_p - log_q)).sum()
    assert float(_structure_divergence(stylised, content)) == pytest.approx(expected, rel=1e-4)
    assert float(_structure_divergence(content, content)) == 0


def test_structure_distance_of_pictures(lpips_pictures):
    distance = ContentStructureDistance(bundled_vgg16())
    reference, _, p1 = lpips_pictures
    assert distance(reference, reference) == pytest.approx(0, abs=1e-6)
    slightly_darker = np.float32(0.98) * reference
    assert 0 < distance(slightly_darker, reference) < distance(p1, reference)


def test_frechet_distance_of_gaussians_in_closed_form():
    def sample(mean, covariance):
        """Points with exactly this mean and sample covariance."""
        x = np.random.default_rng(0).standard_normal((500, 3))
        x -= x.mean(0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)
        return x @ np.linalg.cholesky(covariance).T + mean

    # Commuting covariances: |difference of means|^2 + sum of (s - t)^2 over the deviations.
    a = sample([1.0, 2.0, 3.0], np.diag([1.0, 4.0, 9.0]))
    b = sample([1.0, 4.0, 2.0], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 4)
    assert frechet_distance(b, a) == pytest.approx(10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_fewer_pictures_than_features():
    # Two points each in the plane of a 2048-dimensional space: means 0, variances 2 and 8.
    a, b = np.zeros((2, 2, 2048))
    a[:, 0], b[:, 0] = (1, -1), (2, -2)
    assert frechet_distance(a, b) == pytest.approx(2.0)  # (sqrt 8 - sqrt 2)^2
    with pytest.raises(ValueError, match="1 and 2 pictures"):
        frechet_distance(a[:1], b)


def test_art_fid_by_hand():
    assert art_fid(fid=18.0, content_distance=0.5) == pytest.approx(28.5)


def test_weights_that_do_not_fit(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other", "text", "absent"):
        file = str(tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=f"--fid-weights {file}"):
            ArtFeatures.load(file)
        with pytest.raises(InputError, match=f"--vgg19-weights {file}"):
            Judge(vgg19_weights=file)
