"""Exercises of notebook 00: the scale of the images, and eq. 4 solved for the image."""

import torch
from torch import Tensor

from ddpm_utils.checks import Exercise
from ddpm_utils.data import shapes, to_float


def _cases():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    return [(every,), (shapes(3).images,)]


scale = Exercise(
    "scale",
    reference=to_float,
    cases=_cases,
    mistakes={
        "this lies in [0, 1]; the range wanted is twice as wide, from -1 to 1.": lambda images: images / 255,
        "this lies in [0, 2]: the width is right, now move it down by 1.": lambda images: images / 127.5,
        "this lies in [-0.5, 0.5]: the middle is right, the width is 1 where 2 is wanted.": lambda images: (
            images / 255 - 0.5
        ),
        "white becomes 0.992: the largest value is 255, not 256, so divide by 127.5.": lambda images: images / 128 - 1,
        "black and white have changed places: 0 should become -1.": lambda images: 1 - images / 127.5,
        "the numbers wrapped around: uint8 ends at 255, so call images.float() before you multiply or subtract.": (
            lambda images: images * 2 / 255 - 1
        ),
        "this depends on the other images of the batch; the same byte must always become the same number.": (
            lambda images: (images.float() - images.float().mean()) / images.float().std()
        ),
    },
    note="This is to_float of ddpm_utils/data.py; to_uint8 is its way back.",
)


def _image_behind(xt: Tensor, eps_hat: Tensor, alpha_bar: Tensor) -> Tensor:
    return (xt - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()


def _image_behind_cases() -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.9, 0.3, 0.04], dtype=torch.float64)  # as ddpm.alpha_bars[t] gives them
    return [(*torch.randn(2, 2, 3, 8, 8, generator=g), alpha_bar) for alpha_bar in levels]


image_behind = Exercise(
    "image_behind",
    reference=_image_behind,
    cases=_image_behind_cases,
    mistakes={
        "both weights lack their square root: eq. 4 multiplies by the roots of alpha_bar and 1 - alpha_bar.": (
            lambda xt, eps_hat, alpha_bar: (xt - (1 - alpha_bar) * eps_hat) / alpha_bar
        ),
        "the noise is weighed by 1 - alpha_bar; eq. 4 has its square root.": (
            lambda xt, eps_hat, alpha_bar: (xt - (1 - alpha_bar) * eps_hat) / alpha_bar.sqrt()
        ),
        "this divides by alpha_bar; x0 is multiplied by its square root.": (
            lambda xt, eps_hat, alpha_bar: (xt - (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar
        ),
        "the noise is gone, but the image is still dimmed: divide by sqrt(alpha_bar).": (
            lambda xt, eps_hat, alpha_bar: xt - (1 - alpha_bar).sqrt() * eps_hat
        ),
        "only the noise term is divided by sqrt(alpha_bar): put brackets around the difference.": (
            lambda xt, eps_hat, alpha_bar: xt - (1 - alpha_bar).sqrt() * eps_hat / alpha_bar.sqrt()
        ),
        "only xt is divided by sqrt(alpha_bar): put brackets around the difference.": (
            lambda xt, eps_hat, alpha_bar: xt / alpha_bar.sqrt() - (1 - alpha_bar).sqrt() * eps_hat
        ),
        "this multiplies by sqrt(alpha_bar) a second time; undo it by dividing.": (
            lambda xt, eps_hat, alpha_bar: (xt - (1 - alpha_bar).sqrt() * eps_hat) * alpha_bar.sqrt()
        ),
        "this adds the noise once more: on the other side of the equation its sign is minus.": (
            lambda xt, eps_hat, alpha_bar: (xt + (1 - alpha_bar).sqrt() * eps_hat) / alpha_bar.sqrt()
        ),
        "this is eq. 4 solved for the noise, with eps_hat in the image's place; solve it for x0.": (
            lambda xt, eps_hat, alpha_bar: (xt - alpha_bar.sqrt() * eps_hat) / (1 - alpha_bar).sqrt()
        ),
        "this is eq. 4 itself, which noises xt once more; solve it for x0 first.": (
            lambda xt, eps_hat, alpha_bar: alpha_bar.sqrt() * xt + (1 - alpha_bar).sqrt() * eps_hat
        ),
    },
    note="This is predict_x0 of ddpm_utils/diffusion.py, for one alpha_bar. With the true noise it gives x0 back.",
)
