"""Distances between sets of pictures: FID and ArtFID."""

import numpy as np
from jaxtyping import Float


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Frechet distance of the Gaussians that fit two sets of features.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al., NeurIPS 2017, eq. 6), with the
    sample covariances A and B. It falls with the number of pictures: compare figures of the same
    numbers only.

    Raises:
        ValueError: fewer than two pictures in a set.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} pictures; a covariance needs two.")
    a, b = a.astype(np.float64), b.astype(np.float64)
    x, y = ((s - s.mean(axis=0)) / np.sqrt(len(s) - 1) for s in (a, b))
    # A = x^T x and B = y^T y, so the eigenvalues of A B are the squared singular values of x y^T:
    # no root of a singular matrix of d x d is needed.
    root_trace = np.linalg.norm(x @ y.T, "nuc")
    means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(means + (x**2).sum() + (y**2).sum() - 2 * root_trace)


def art_fid(fid: float, content_distance: float) -> float:
    """(1 + LPIPS to the content) (1 + FID) (Wright and Ommer, "ArtFID", GCPR 2022)."""
    return (1 + content_distance) * (1 + fid)
