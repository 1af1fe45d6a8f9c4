"""Chapter 04: Muon, an optimizer with which the loss falls further in the same time than with Adam.

Adam moves each weight for itself. But the weights of a layer are a matrix, and a few of its directions usually make
most of the gradient: the others hardly learn. Muon steps equally far along all of them.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/. Left out: weight decay, and sharing the work between processes.
"""

import torch
from torch import Tensor

from .guards import _check_floats, _check_number
from .unet import UNet

MOMENTUM = 0.95
RATE = 25.0  # of a matrix, in units of Adam's: 0.02 where Adam has 8e-4


class Muon(torch.optim.Adam):
    """Muon for the weights of convolutions and attention within the U-Net's blocks, Adam for all others.

    Adam keeps: biases and norms, which are no matrices; the first and last layer, and all that carries time and
    label, which see or make raw numbers. lr is Adam's rate; a matrix's is RATE times as large.
    """

    def __init__(self, model: UNet, lr: float):
        _check_number("lr", lr, low=0.0)
        super().__init__(model.parameters(), lr=lr)
        self.matrices = hidden_matrices(model)

    @torch.no_grad()
    def step(self) -> None:
        """Move all weights whose gradient is there; the matrices' gradients are used up (None) after it."""
        lr = RATE * self.param_groups[0]["lr"]
        for weight in self.matrices:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            momentum = state["momentum"]
            momentum.mul_(MOMENTUM).add_(weight.grad)
            ahead = weight.grad + MOMENTUM * momentum  # Nesterov: where the momentum will be after the next gradient
            matrix = ahead.flatten(1)  # (c_out, c_in * 3 * 3): a convolution multiplies each patch by this matrix
            rows, columns = matrix.shape
            update = orthogonalize(matrix) * max(1.0, rows / columns) ** 0.5
            weight.sub_(update.reshape(weight.shape), alpha=lr)
            weight.grad = None  # Adam passes over what has no gradient
        super().step()


def hidden_matrices(model: UNet) -> list[Tensor]:
    """The weights that Muon moves: those of every convolution and attention layer of the blocks, in order."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("down.", "mid", "up.")) and parameter.ndim >= 2 and "emb_proj" not in name
    ]


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of matrix = U S V^T, nearly: all singular values become 0.7 to 1.2. (m, n) floats, (m, n) float32.

    Five steps of a Newton-Schulz iteration: each applies s -> 3.4445 s - 4.7750 s^3 + 2.0315 s^5 to every singular
    value s at once, which takes any s in (0, 1] towards 1. Values below about 1e-3 of the largest stay small.
    """
    _check_floats("matrix", matrix)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two dimensions, not the shape {tuple(matrix.shape)}.")
    x = matrix.float()
    x = x / (x.norm() + 1e-7)  # the norm is at least the largest singular value
    if tall := x.shape[0] > x.shape[1]:
        x = x.T  # the products below are of the shorter side's size
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x
