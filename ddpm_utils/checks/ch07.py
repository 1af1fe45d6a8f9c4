"""Exercises of chapter 07."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import Exercise

# ---- 7.1: labels dropped, each image on its own ----------------------------------------------------------------------

NO_LABEL = 10


def _dropping(answer: Callable[..., object], share: float) -> str | None:
    """What the reader's drop_labels does, in a word."""
    y = torch.arange(40_000) % 10
    before = y.clone()
    got = answer(y, NO_LABEL, share, torch.Generator().manual_seed(1))
    if got is None or got is ...:
        return None
    if not isinstance(got, Tensor) or got.shape != y.shape or got.dtype != torch.long:
        return "the answer must be labels like y: a long tensor of shape (B,)"
    if not torch.equal(y, before):
        return "written"
    changed = got != before
    if changed.any() and not (got[changed] == NO_LABEL).all():
        return "another"
    batches = [answer(before[:50].clone(), NO_LABEL, share, torch.Generator().manual_seed(seed)) for seed in range(60)]
    counts = torch.tensor([int((batch == NO_LABEL).sum()) for batch in batches])
    if 0 < share < 1 and bool(((counts == 0) | (counts == 50)).all()):
        return "whole"
    if 0 < share < 1 and all(torch.equal(batch, batches[0]) for batch in batches):
        return "the same"
    dropped = changed.double().mean().item()
    if abs(dropped - share) < 0.02:
        return "right"
    return "kept" if abs(dropped - (1 - share)) < 0.02 else f"a share of {dropped:.2f} is dropped, not {share}"


def _dropped(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(y), generator=generator) < share


def _write_into(y: Tensor, no_label: int, share: float, generator: torch.Generator) -> Tensor:
    y[_dropped(y, share, generator)] = no_label
    return y


drop_labels = Exercise(
    "drop_labels",
    reference=lambda y, no_label, share, g: torch.where(_dropped(y, share, g), no_label, y),
    cases=lambda: [(0.15,), (0.4,)],
    run=_dropping,
    compare=lambda got, want: "" if got == want else str(got),
    mistakes={
        "the whole batch keeps its labels or loses them; draw one number per image, not one per batch.": (
            lambda y, no_label, share, g: torch.full_like(y, no_label) if torch.rand((), generator=g) < share else y
        ),
        "the share is KEPT, not dropped; is the comparison the right way round?": (
            lambda y, no_label, share, g: torch.where(_dropped(y, share, g), y, no_label)
        ),
        "dropped labels become another number than no_label; 0 is a class (airplane), and -1 has no row.": (
            lambda y, no_label, share, g: torch.where(_dropped(y, share, g), 0, y)
        ),
        "this writes into y, so the caller's labels are lost for every later epoch; return a new tensor.": _write_into,
        "the same places are dropped whatever the generator; draw from it.": (
            lambda y, no_label, share, g: torch.where(torch.arange(len(y)) < share * len(y), no_label, y)
        ),
    },
    note="One number per image: nearly every batch trains both answers.",
)

# ---- 7.2: a classifier on top of a network that knows the label ------------------------------------------------------


def _classifier_cases() -> list[tuple]:
    eps_y, gradient = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return [(eps_y, gradient, alpha_bar, w) for alpha_bar, w in ((0.3, 1.0), (0.9, 2.5), (0.01, 0.0))]


classifier_guided = Exercise(
    "classifier_guided",
    reference=lambda eps_y, gradient, alpha_bar, w: eps_y - (w - 1) * (1 - alpha_bar) ** 0.5 * gradient,
    cases=_classifier_cases,
    mistakes={
        "this counts the label twice: eps_y holds the gradient once already, so w = 1 must return eps_y.": (
            lambda eps_y, gradient, alpha_bar, w: eps_y - w * (1 - alpha_bar) ** 0.5 * gradient
        ),
        "the sign: score and noise point in opposite directions, so more guidance means minus the gradient.": (
            lambda eps_y, gradient, alpha_bar, w: eps_y + (w - 1) * (1 - alpha_bar) ** 0.5 * gradient
        ),
        "the gradient is a score; turn it into noise by the factor sqrt(1 - alpha_bar).": (
            lambda eps_y, gradient, alpha_bar, w: eps_y - (w - 1) * gradient
        ),
        "the root is missing: the score is -eps / sqrt(1 - alpha_bar).": (
            lambda eps_y, gradient, alpha_bar, w: eps_y - (w - 1) * (1 - alpha_bar) * gradient
        ),
        "this divides by sqrt(1 - alpha_bar), as one does to get a score from noise; here it goes the other way.": (
            lambda eps_y, gradient, alpha_bar, w: eps_y - (w - 1) * gradient / (1 - alpha_bar) ** 0.5
        ),
        "this takes sqrt(alpha_bar), the factor of the signal; wanted is the noise's, sqrt(1 - alpha_bar).": (
            lambda eps_y, gradient, alpha_bar, w: eps_y - (w - 1) * alpha_bar**0.5 * gradient
        ),
    },
    note="At w = 0 the label is gone again.",
)

# ---- 7.3: the sharpened density of two Gaussians ---------------------------------------------------------------------


def _sharpened(m: float, v: float, m_y: float, v_y: float, w: float) -> tuple[float, float]:
    precision = (1 - w) / v + w / v_y
    return ((1 - w) * m / v + w * m_y / v_y) / precision, 1 / precision


def _forgets_p(m: float, v: float, m_y: float, v_y: float, w: float) -> tuple[float, float]:
    precision = 1 / v + w / v_y
    return (m / v + w * m_y / v_y) / precision, 1 / precision


sharpened = Exercise(
    "sharpened",
    reference=_sharpened,
    cases=lambda: [(0.0, 1.0, 0.5, 0.25, 2.0), (-0.3, 2.0, 0.4, 0.5, 3.0), (0.1, 1.0, 0.2, 0.5, 1.5)],
    mistakes={
        "this is p(x) p(x|y)^w; as p(y|x) is p(x|y) / p(x) but for a constant, p(x) has the power 1 - w.": _forgets_p,
        "this counts w as 1 + w; here w = 1 must give p(x|y) back.": (
            lambda m, v, m_y, v_y, w: _sharpened(m, v, m_y, v_y, 1 + w)
        ),
        "this extrapolates means and variances; the exponents add, so extrapolate 1/variance and mean/variance.": (
            lambda m, v, m_y, v_y, w: ((1 - w) * m + w * m_y, (1 - w) * v + w * v_y)
        ),
        "the mean is extrapolated directly; it is weighted by the precisions 1/variance.": (
            lambda m, v, m_y, v_y, w: ((1 - w) * m + w * m_y, 1 / ((1 - w) / v + w / v_y))
        ),
        "this is p(x|y)^w alone, without p(x)^(1-w).": lambda m, v, m_y, v_y, w: (m_y, v_y / w),
        "the second number is the standard deviation; return the variance.": (
            lambda m, v, m_y, v_y, w: (_sharpened(m, v, m_y, v_y, w)[0], _sharpened(m, v, m_y, v_y, w)[1] ** 0.5)
        ),
        "p(x) and p(x|y) have changed places.": lambda m, v, m_y, v_y, w: _sharpened(m_y, v_y, m, v, w),
    },
    note="Precisions are extrapolated: v = 1 and v_y = 1/4 give 1/7 at w = 2.",
)

# ---- 7.4: a weight for every timestep --------------------------------------------------------------------------------


def _weighted(answer: Callable[..., object]) -> list[tuple[Tensor, str]] | None:
    """What the reader's network returns at several timesteps, and which of the two networks it asked there."""
    xt = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    asked = []

    def with_label(xt: Tensor, t: Tensor) -> Tensor:
        asked.append("with")
        return 0.7 * xt + 0.001 * t.view(-1, 1, 1, 1)

    def without(xt: Tensor, t: Tensor) -> Tensor:
        asked.append("without")
        return 0.2 * xt

    eps_model = answer(with_label, without, lambda t: {900: 1.0, 500: 3.0, 250: 1.5, 0: 1.0}[t])
    if not callable(eps_model):
        return eps_model if eps_model is None or eps_model is ... else [(xt, "no function")]
    outcomes = []
    for t in (900, 500, 250, 0):
        asked.clear()
        outcomes.append((eps_model(xt, torch.full((2,), t)), " ".join(sorted(asked))))
    return outcomes


def _combined(combine: Callable[[Tensor, Tensor, float], Tensor], always: bool = False):
    def scheduled(with_label, without, weight):
        def eps_model(xt, t):
            w = weight(int(t[0]))
            if w == 1 and not always:
                return with_label(xt, t)
            return combine(with_label(xt, t), without(xt, t), w)

        return eps_model

    return scheduled


def _one_weight(with_label, without, weight):
    w = weight(900)
    return lambda xt, t: with_label(xt, t) if w == 1 else without(xt, t) + w * (with_label(xt, t) - without(xt, t))


scheduled = Exercise(
    "scheduled",
    reference=_combined(lambda a, b, w: b + w * (a - b)),
    cases=lambda: [()],
    run=_weighted,
    mistakes={
        "the pictures are right, but not the price: where the weight is 1, `without` need not be asked.": (
            _combined(lambda a, b, w: b + w * (a - b), always=True)
        ),
        "the two answers are swapped; move away from the one without a label.": (
            _combined(lambda a, b, w: a + w * (b - a))
        ),
        "this counts w as 1 + w; weight(t) = 1 must be the plain network with its label.": (
            _combined(lambda a, b, w: a + w * (a - b), always=True)
        ),
        "this adds w times the difference to the answer WITH the label; start from the one without.": (
            _combined(lambda a, b, w: a + w * (a - b))
        ),
        "the weight is looked up once, when the network is made; ask weight(t) at every call.": _one_weight,
    },
    note="Now try weights: a ramp, a bump, a step.",
)
