"""Exercises that check themselves: the answer is right, not there yet, or a known mistake, named in a sentence.

Each chapter declares its exercises in a file of its own, `checks/ch02.py` and so on:

    \"\"\"Exercises of chapter 02.\"\"\"
    import torch
    from ddpm_utils.checks import Exercise

    def _cases():
        g = torch.Generator().manual_seed(0)
        x0, eps = torch.randn(2, 4, 3, 8, 8, generator=g)
        return [(x0, alpha_bar, eps) for alpha_bar in (0.9, 0.5, 0.01)]

    jump = Exercise(
        "jump",
        reference=lambda x0, alpha_bar, eps: alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps,
        cases=_cases,
        mistakes={
            "this weighs x0 by alpha_bar; eq. 4 wants its square root.":
                lambda x0, alpha_bar, eps: alpha_bar * x0 + (1 - alpha_bar) ** 0.5 * eps,
        },
        note="The variances of the two terms add up to 1.",
    )

The notebook has the cell that the reader completes, which runs as it stands, and ends by calling the check:

    from ddpm_utils.checks import ch02  # in the cell tagged "imports"

    def jump(x0, alpha_bar, eps):
        ...  # your code

    ch02.jump(jump)

and beneath it, in a markdown cell, `<details><summary>Hint</summary>` and `<details><summary>Solution</summary>`;
the solution's ```python block holds the definition and ends with the same call. Tests run it, and `self_test`.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor


def close(got: object, want: object, rtol: float = 1e-4, atol: float = 1e-5) -> str:
    """What sets got apart from want: "" if nothing does, else a phrase like "the shape is (2,); it should be (2, 1)".

    want: a tensor, a number, a bool, a string, or a tuple or list of these. A number may be given as a tensor of one.
    """
    if isinstance(want, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(want):
            return f"{_kind(got)} is given where {len(want)} values are wanted"
        problems = [(i, close(g, w, rtol, atol)) for i, (g, w) in enumerate(zip(got, want, strict=True))]
        return next((f"value {i}: {problem}" for i, problem in problems if problem), "")
    if isinstance(got, Tensor) and got.numel() == 1 and not isinstance(want, Tensor):
        got = got.item()
    if isinstance(want, str | bool):
        return "" if isinstance(got, type(want)) and got == want else f"{_kind(got)} is not the answer"
    if isinstance(want, Tensor):
        if not isinstance(got, Tensor):
            return f"{_kind(got)} is given where a tensor of shape {tuple(want.shape)} is wanted"
        if got.shape != want.shape:
            return f"the shape is {tuple(got.shape)}; it should be {tuple(want.shape)}"
        if got.dtype != want.dtype:
            return f"the dtype is {got.dtype}; it should be {want.dtype}"
    elif not isinstance(got, Real):
        return f"{_kind(got)} is given where a number is wanted"
    got, want = (torch.as_tensor(x).detach().cpu().double() for x in (got, want))
    if got.isnan().any() and not want.isnan().any():
        return "there is NaN in it"
    if torch.allclose(got, want, rtol, atol, equal_nan=True):
        return ""
    return f"the largest difference is {float((got - want).abs().nan_to_num(0, torch.inf).max()):.2g}"


class Exercise:
    """One exercise. Calling it with the reader's answer prints a verdict at once; it never raises, and returns None.

    name: as the reader sees it. reference: the right answer: a function, a class, or a value.
    cases: a function that makes the list of argument tuples to try, the same at each call. A value needs none.
    mistakes: wrong answers by the sentence that names them. Each must differ from the reference on some case.
    run: how to get an output from an answer and a case, when it is not answer(*case): build a module and call it, say.
    compare: (got, want) -> what sets them apart, or "". note: said after "Correct."
    The random seed is the same for each run, and the reader's own stream of random numbers is left alone.
    """

    def __init__(
        self,
        name: str,
        reference: object,
        cases: Callable[[], Sequence[tuple]] = lambda: [()],
        mistakes: Mapping[str, object] = {},
        *,
        run: Callable[..., object] | None = None,
        compare: Callable[[object, object], str] = close,
        note: str = "",
    ):
        self.name, self.reference, self.cases, self.mistakes = name, reference, cases, mistakes
        self.run = run or _call
        self.compare, self.note = compare, note

    def __call__(self, answer: object) -> None:
        print(self.verdict(answer))

    def verdict(self, answer: object) -> str:
        """What the reader sees: "Correct. ...", "Not solved yet: ..." or "Not yet: ..."."""
        got = self._outcomes(answer)
        if answer is None or answer is ... or any(_unsolved(x) for x in got):
            return f"Not solved yet: {self.name}.\nReplace the placeholder in the cell above; a hint is folded below."
        want = self._outcomes(self.reference)
        problems = [self._differ(g, w) for g, w in zip(got, want, strict=True)]
        if not any(problems):
            return f"Correct. {self.note}".strip()
        for sentence, mistake in self.mistakes.items():
            if not any(map(self._differ, got, self._outcomes(mistake))):
                return f"Not yet: {sentence}"
        case, problem = next((i, p) for i, p in enumerate(problems, 1) if p)
        where = f" (case {case} of {len(got)})" if len(got) > 1 else ""
        return f"Not yet: {problem}{where}."

    def self_test(self) -> None:
        """Raise AssertionError unless the reference passes, each mistake is named by its own sentence, and a
        placeholder counts as not solved.
        """

        def unsolved(*_args: object, **_kwargs: object) -> None:
            raise NotImplementedError

        failures = [x for x in self._outcomes(self.reference) if isinstance(x, Exception)]
        assert not failures, f"{self.name}: the reference stops with {failures}"
        assert self.verdict(self.reference).startswith("Correct"), f"{self.name}: {self.verdict(self.reference)}"
        for sentence, mistake in self.mistakes.items():
            assert self.verdict(mistake) == f"Not yet: {sentence}", f"{self.name}: {sentence} {self.verdict(mistake)}"
        for nothing in (None, ..., unsolved) if callable(self.reference) else (None, ...):
            assert self.verdict(nothing).startswith("Not solved yet"), f"{self.name}: {self.verdict(nothing)}"

    def _outcomes(self, answer: object) -> list[object]:
        """The answer's output on each case; where it raises, the exception."""
        outcomes = []
        with torch.random.fork_rng(devices=[]):
            for case in self.cases():
                torch.manual_seed(0)
                try:  # on a copy: an answer that writes into its arguments spoils only its own
                    outcomes.append(self.run(answer, *copy.deepcopy(case)))
                except Exception as error:
                    outcomes.append(error)
        return outcomes

    def _differ(self, got: object, want: object) -> str:
        """What sets two outcomes apart, or ""."""
        if isinstance(got, Exception) and isinstance(want, Exception) and _said(got) == _said(want):
            return ""
        if isinstance(got, Exception):
            return f"it stops with {_said(got)}"
        if isinstance(want, Exception):
            return "it should have raised an error"
        try:
            return self.compare(got, want)
        except Exception as error:  # a comparison made for this exercise may not foresee every answer
            return f"{_kind(got)} cannot be compared with what is wanted: {_said(error)}"


def _call(answer: object, *case: object) -> object:
    return answer(*case) if callable(answer) else answer


def _unsolved(outcome: object) -> bool:
    """Whether an output, or an error, shows that a placeholder (None, `...`, NotImplementedError) is still in place."""
    placeholder = isinstance(outcome, TypeError) and "ellipsis" in str(outcome)
    return outcome is None or outcome is ... or isinstance(outcome, NotImplementedError) or placeholder


def _said(error: Exception) -> str:
    """An exception in one line that does not change from run to run."""
    message = re.sub(r"0x[0-9a-f]+", "0x...", (str(error).splitlines() or [""])[0])
    return f"{type(error).__name__}: {message[:200]}".rstrip(".: ")


def _kind(value: object) -> str:
    """What a value is, in words that do not change from run to run."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value) if isinstance(value, Real | str) else f"a {type(value).__name__}"
