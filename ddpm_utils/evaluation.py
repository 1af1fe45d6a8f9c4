"""Chapter 08: what samples are worth, in numbers, each with its error bar.

Images are compared in the feature space of a small classifier of our own, which ships with the module: FID's
Inception weights would need a download. So these Frechet distances compare with each other, and with no paper's FID.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .checkpoint import WEIGHTS, load_checkpoint, weights_of
from .data import ImageSet, to_float
from .diffusion import DDPM, posterior_variances
from .sampling import NoiseModel

CLASSIFIER = WEIGHTS / "classifier.safetensors"
SIZES = (250, 500, 1000, 2000, 5000)  # numbers of samples that a Frechet distance is taken with
STRATA = (0, 1, 5, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900)  # first timestep of each part of the chain


class Measured(NamedTuple):
    value: float
    error: float  # one standard error

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ± {self.error:{spec}}"


class Classifier(nn.Module):
    """Which of ten classes an image shows: (B, 3, 32, 32) in [-1, 1] -> logits (B, 10). A narrow residual network."""

    def __init__(self, widths: tuple[int, int, int, int], classes: int = 10):
        super().__init__()
        w0, w1, w2, w3 = widths
        self.body = nn.Sequential(
            conv_norm(3, w0),
            conv_norm(w0, w1),
            nn.MaxPool2d(2),  # (B, w1, 16, 16)
            Residual(w1),
            conv_norm(w1, w2),
            nn.MaxPool2d(2),  # (B, w2, 8, 8)
            conv_norm(w2, w3),
            nn.MaxPool2d(2),  # (B, w3, 4, 4)
            Residual(w3),
        )
        self.head = nn.Linear(w3, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, 192): what the last layer decides from; each the mean of a feature over the image."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(conv_norm(channels, channels), conv_norm(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x)


def conv_norm(c_in: int, c_out: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def load_classifier(path: str | Path = CLASSIFIER) -> tuple[Classifier, dict]:
    """The classifier that ships with the module, and how it was trained (its accuracy, among others)."""
    tensors, info = load_checkpoint(path)
    if "widths" not in info:
        raise ValueError(f"{path} does not hold a classifier.")
    classifier = Classifier(tuple(info["widths"]), len(info["class_names"]))
    classifier.load_state_dict(weights_of(tensors, "classifier."))
    return classifier.eval().requires_grad_(False), info


class Seen(NamedTuple):
    """A set of images through the classifier's eyes."""

    features: Tensor  # (N, 192) float32
    labels: Tensor  # (N,) long: the class it assigns


@torch.no_grad()
def look_at(classifier: Classifier, images: Tensor, batch_size: int = 500) -> Seen:
    """images: (N, 3, 32, 32), uint8 or floats in [-1, 1]."""
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be (N, 3, 32, 32) with N at least 1, not {tuple(images.shape)}.")
    parts = []
    for part in images.split(batch_size):
        x = to_float(part) if part.dtype == torch.uint8 else part
        parts.append(classifier.features(x.contiguous(memory_format=torch.channels_last)))
    features = torch.cat(parts)
    return Seen(features, classifier.head(features).argmax(1))


def look_shuffled(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Seen, Tensor]:
    """images as look_at takes them, and their labels (N,), both in random_order: any first n are a fair draw."""
    order = random_order(len(images))
    return look_at(classifier, images[order]), labels[order]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between two sets of features, (N, D) and (M, D): |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)).

    The squared Wasserstein distance of two Gaussians with the sets' means and covariances A, B (Dowson & Landau 1982;
    as a measure of samples: Heusel et al. 2017, arXiv:1706.08500). Too few images make it too large, by about 1/N.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"a and b must be (N, D) and (M, D) with N, M > 1, not {tuple(a.shape)} and {tuple(b.shape)}.")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)  # (D, D)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # A^(1/2); A B and A^(1/2) B A^(1/2) share eigenvalues
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def frechet(samples: Tensor, reference: Tensor, n: int | None = None, groups: int = 10) -> Measured:
    """Frechet distance of the first n samples to a fixed reference, with the jackknife's standard error.

    Give samples in random order, as look_shuffled does: where classes take turns, a group that is left out may be a
    class, and the error is far too large. It says how much another n samples would change the distance, not how far n
    is from infinity: see `extrapolated`.
    """
    samples = samples[:n]
    indices = torch.arange(len(samples)) % groups
    left_out = [frechet_distance(samples[indices != g], reference) for g in range(groups)]
    spread = torch.tensor(left_out, dtype=torch.float64).var(correction=0).item()
    return Measured(frechet_distance(samples, reference), math.sqrt((groups - 1) * spread))


def random_order(n: int) -> Tensor:
    """(n,) indices, the same at every call: folders come class by class, and drawn classes take turns."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def extrapolated(samples: Tensor, reference: Tensor, parts: Sequence[int] = (1, 2, 4)) -> float:
    """The distance for infinitely many samples: a line through distances at N, N/2, N/4 against 1/N, read at 0.

    Chong & Forsyth 2020 (arXiv:1911.07023). The reference's own size stays as it is.
    """
    rows = []
    for k in parts:
        distances = [frechet_distance(part, reference) for part in samples[: len(samples) // k * k].chunk(k)]
        rows.append((k / len(samples), sum(distances) / k))
    x, y = torch.tensor(rows, dtype=torch.float64).T
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()


def share(hits: Tensor) -> Measured:
    """The share of True in hits, (N,), with its binomial standard error."""
    p = hits.double().mean().item()
    return Measured(p, math.sqrt(p * (1 - p) / len(hits)))


def nearest(features: Tensor, reference: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """For each row of features, (N, D): the distance (N,) to its nearest row in reference, and that row's index."""
    best = [torch.cdist(part, reference).min(1) for part in features.split(batch_size)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


class Judge:
    """The classifier, with the real images that samples are compared with.

    reference: what the Frechet distance is taken to. known: what the model was trained on; a sample nearer to one of
    these than real images ever are would be a copy.
    """

    def __init__(self, classifier: Classifier, reference: ImageSet, known: ImageSet):
        self.reference = look_at(classifier, reference.images).features
        self.known = look_at(classifier, known.images).features

    def __call__(self, seen: Seen, labels: Tensor) -> dict:
        """All that is measured on N images, by look_shuffled, that should show labels, (N,): ready for JSON.

        "frechet": {n: (distance, error)} for several n; "neighbours": percentiles 1...99 of the distance to the
        nearest known image, of the first 1,000 images.
        """
        sizes = [n for n in SIZES if n <= len(labels)]
        distances, _ = nearest(seen.features[:1000], self.known)
        return {
            "number": len(labels),
            "recognised": share(seen.labels == labels),
            "frechet": {n: frechet(seen.features, self.reference, n) for n in sizes},
            "frechet_limit": extrapolated(seen.features, self.reference),
            "neighbours": distances.quantile(torch.arange(1, 100) / 100).tolist(),
        }


class Stratum(NamedTuple):
    """What a part of the chain, timesteps first...last, costs on held-out images."""

    first: int
    last: int
    loss: Measured  # mean of (eps - eps_hat)^2
    bits: Measured  # its share of the bound on -log p(x0), in bits per dimension


def held_out_loss(eps_model: NoiseModel, ddpm: DDPM, images: Tensor, seed: int = 0) -> list[Stratum]:
    """Loss and bits per dimension of uint8 images (N, 3, H, W), part by part of the chain (STRATA); the sum of all
    bits, and `prior_bits`, is the bound on the negative log-likelihood (eq. 5), without bias.

    Every image draws one timestep per part. From t = 1 on, the bits are the KL divergences L_{t-1} of eq. 5, which for
    sigma_t^2 = posterior variance are the weight of eq. 12 times the loss; at t = 0 they are eq. 13's discrete
    decoder, with the posterior variance of t = 1 (it is 0 at t = 0), as in the official code. x0_hat is not clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    variances = posterior_variances(ddpm)
    edges = [first for first in STRATA if first < ddpm.T] + [ddpm.T]
    rows = []
    for first, end in itertools.pairwise(edges):
        losses, nats = [], []
        for part in images.split(128):
            x0 = to_float(part)
            t = torch.randint(first, end, (len(part),), generator=generator)
            eps = torch.randn(x0.shape, generator=generator)
            xt = ddpm.q_sample(x0, t, eps)
            eps_hat = eps_model(xt, t)
            loss = (eps - eps_hat).square().flatten(1).mean(1).double()  # (B,)
            losses.append(loss)
            if first == 0:
                mean, _ = ddpm.q_posterior(ddpm.predict_x0(xt, t, eps_hat), xt, t)
                nats.append(decoder_nats(x0, mean, variances[1].sqrt().item()))
            else:
                weight = ddpm.betas[t] ** 2 / (2 * variances[t] * ddpm.alphas[t] * (1 - ddpm.alpha_bars[t]))
                nats.append(weight * loss * (end - first))  # the part's timesteps, estimated by one of them
        rows.append(Stratum(first, end - 1, mean_of(torch.cat(losses)), mean_of(torch.cat(nats) / math.log(2))))
    return rows


def decoder_nats(x0: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """(B,) -log p(x0 | x1) per dimension, eq. 13: a Gaussian's mass in each pixel value's bin of width 2/255."""
    upper = torch.where(x0 > 0.999, math.inf, x0 + 1 / 255)
    lower = torch.where(x0 < -0.999, -math.inf, x0 - 1 / 255)
    normal = torch.distributions.Normal(mean.double(), sigma)
    return -(normal.cdf(upper.double()) - normal.cdf(lower.double())).clamp(min=1e-12).log().flatten(1).mean(1)


def prior_bits(ddpm: DDPM, images: Tensor) -> Measured:
    """L_T of eq. 5 in bits per dimension: what the chain's end still tells about uint8 images, (N, 3, H, W)."""
    alpha_bar = ddpm.alpha_bars[-1].item()
    mean2 = alpha_bar * to_float(images).double().square().flatten(1).mean(1)  # (N,)
    return mean_of((mean2 + (1 - alpha_bar) - 1 - math.log(1 - alpha_bar)) / (2 * math.log(2)))


def mean_of(values: Tensor) -> Measured:
    """The mean of values, (N,), with its standard error."""
    return Measured(values.mean().item(), (values.std() / math.sqrt(len(values))).item())


def inception_fid(samples: Tensor, reference: Tensor) -> float:
    """FID with Inception's features, through torchmetrics: samples (N, ...) and reference (M, ...), floats in [-1, 1].

    Raises ValueError where torchmetrics is missing, or its weights can't be fetched.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ValueError('FID needs torchmetrics: pip install -e ".[fid]", and a network for its weights.') from error
    try:
        fid = FrechetInceptionDistance(normalize=True)
    except (ImportError, OSError) as error:  # ImportError: torchmetrics's own word for a missing torch-fidelity
        reason = str(error).splitlines()[0]
        raise ValueError(f"FID's Inception weights could not be had ({reason}).") from error
    for images, real in ((reference, True), (samples, False)):
        for part in images.split(100):
            fid.update((part.clamp(-1, 1) + 1) / 2, real=real)
    return fid.compute().item()
