"""Exercise of notebook 00: the scale of the images."""

import torch

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
