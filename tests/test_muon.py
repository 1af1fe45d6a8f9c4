"""Muon: its update against a singular value decomposition and PyTorch's own Muon, and which weights it moves."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddpm_utils.muon import RATE, Muon, hidden_matrices, orthogonalize
from ddpm_utils.unet import SMALL, TINY, UNet

NANO = replace(TINY, channels=16, groups=1, num_classes=10)


@pytest.mark.parametrize("shape", [(32, 32), (16, 144), (144, 16)])
def test_all_singular_values_come_near_one_and_the_directions_stay(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = torch.linspace(1.0, 0.02, len(s))  # a few directions much stronger than others, as gradients have them
    result = u.T @ orthogonalize(u @ s.diag() @ vt) @ vt.T
    assert result.diagonal().min() > 0.6 and result.diagonal().max() < 1.25
    assert (result - result.diagonal().diag()).abs().max() < 1e-3


def test_the_size_of_a_gradient_does_not_matter():
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(orthogonalize(matrix), orthogonalize(1e4 * matrix), atol=1e-4)
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_steps_are_those_of_pytorchs_own_muon():
    torch.manual_seed(0)
    model, lr = UNet(NANO), 1e-3
    ours = Muon(model, lr)
    weight = model.mid1.attention.qkv.weight  # (96, 32): a matrix as PyTorch's optimizer wants it
    theirs = nn.Parameter(weight.detach().clone())
    reference = torch.optim.Muon([theirs], lr=RATE * lr, momentum=0.95, weight_decay=0.0)
    start = weight.detach().clone()
    for _ in range(4):
        weight.grad = torch.randn(weight.shape)
        theirs.grad = weight.grad.clone()
        ours.step()
        reference.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (weight - theirs).norm() < 0.02 * moved  # theirs is computed in bfloat16


def test_a_convolution_is_moved_as_the_matrix_that_multiplies_its_patches():
    torch.manual_seed(0)
    model = UNet(NANO).to(memory_format=torch.channels_last)  # the order in memory must not matter
    weight = model.down[0].res.conv1.weight
    start, gradient = weight.detach().clone(), torch.randn(weight.shape)
    weight.grad = gradient.clone()
    Muon(model, 1e-3).step()
    expected = orthogonalize(torch.stack([gradient[i].reshape(-1) for i in range(len(gradient))]))
    assert torch.allclose(start - weight, RATE * 1e-3 * expected.reshape(weight.shape), atol=1e-6)


def test_every_other_weight_is_moved_as_adam_would():
    torch.manual_seed(0)
    model = UNet(NANO)
    twin = UNet(NANO)
    twin.load_state_dict(model.state_dict())
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    optimizers = Muon(model, 1e-3), torch.optim.Adam(twin.parameters(), 1e-3)
    for _ in range(3):
        for ours, theirs in pairs:
            ours.grad = torch.randn(ours.shape)
            theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    matrices = {id(p) for p in hidden_matrices(model)}
    assert all(torch.equal(a, b) != (id(a) in matrices) for a, b in pairs)


def test_muon_moves_the_layers_of_the_blocks_and_no_others():
    model = UNet(replace(SMALL, num_classes=10))
    chosen = {id(p) for p in hidden_matrices(model)}
    blocks = [m for part in (model.down, model.mid1, model.mid2, model.up) for m in part.modules()]
    layers = [m for m in blocks if isinstance(m, nn.Conv2d | nn.Linear)]
    time = [m.res.emb_proj for m in blocks if hasattr(m, "res")]
    assert chosen == {id(m.weight) for m in layers} - {id(m.weight) for m in time}
    assert sum(p.numel() for p in hidden_matrices(model)) > 0.9 * sum(p.numel() for p in model.parameters())


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="matrix must have two dimensions"):
        orthogonalize(torch.ones(3))
