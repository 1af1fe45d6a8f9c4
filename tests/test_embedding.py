"""The embedding against its definition, written with Python's own sine, and its properties."""

import math

import pytest
import torch

from ddpm_utils.embedding import sinusoidal_embedding


@pytest.mark.parametrize("dim,max_period", [(4, 10_000.0), (32, 10_000.0), (128, 100.0)])
def test_every_entry_is_the_sine_or_cosine_it_should_be(dim, max_period):
    t = torch.tensor([0, 1, 7, 999])
    embedding = sinusoidal_embedding(t, dim, max_period)
    half = dim // 2
    for row, time in zip(embedding, t.tolist(), strict=True):
        for i in range(half):
            angle = time * max_period ** (-i / (half - 1))
            assert row[i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert row[half + i].item() == pytest.approx(math.cos(angle), abs=1e-4)


def test_the_dot_product_depends_only_on_the_distance_in_time():
    embedding = sinusoidal_embedding(torch.arange(1000), 64).double()
    products = embedding @ embedding.T
    for distance in (0, 1, 10, 300):
        diagonal = products.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-3


def test_no_two_timesteps_share_an_embedding():
    embedding = sinusoidal_embedding(torch.arange(1000), 32)
    distances = torch.cdist(embedding, embedding) + 10 * torch.eye(1000)
    assert distances.min() > 0.1


def test_shape_dtype_and_device():
    embedding = sinusoidal_embedding(torch.arange(5, dtype=torch.int32), 8)
    assert embedding.shape == (5, 8) and embedding.dtype == torch.float32


@pytest.mark.parametrize("dim", [0, 2, 7, -4])
def test_a_bad_dim_is_named(dim):
    with pytest.raises(ValueError, match="dim"):
        sinusoidal_embedding(torch.arange(3), dim)


@pytest.mark.parametrize("t", [torch.tensor(3), torch.zeros(2, 2), torch.tensor([float("nan")])])
def test_a_bad_t_is_named(t):
    with pytest.raises(ValueError, match="t must"):
        sinusoidal_embedding(t, 8)
