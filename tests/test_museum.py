"""The bugs of notebook 09, put back: each, in ddpm_utils, makes a named test fail. Without it, the same test passes.

A row of BUGS is one change of one file; some exhibits have two. The label of an exhibit in the notebook names the same
tests. That so many slip in with one line each is the point: nothing but the test would tell.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mutants
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "09_museum_of_bugs.ipynb"
EXHIBITS = range(1, 26)


class Bug(NamedTuple):
    exhibit: int
    file: str  # of ddpm_utils
    right: str  # occurs once in it
    wrong: str
    test: str  # fails with the bug


BUGS = [
    # ---- schedule
    Bug(1, "diffusion.py", "def linear_betas(T: int = 1000,", "def linear_betas(T: int = 200,",
        "test_diffusion.py::test_the_last_state_of_a_schedule_is_noise"),
    Bug(2, "diffusion.py", ".clamp(max=max_beta)", "",
        "test_diffusion.py::test_cosine_betas_give_the_cosine_alpha_bars"),
    Bug(3, "diffusion.py", "self.alphas.cumprod(0)", "self.alphas.prod().expand(len(betas))",
        "test_diffusion.py::test_single_steps_add_up_to_the_jump"),
    # ---- forward process
    Bug(4, "diffusion.py", "(1 - alpha_bar).sqrt() * eps).to(x0.dtype)", "(1 - alpha_bar) * eps).to(x0.dtype)",
        "test_diffusion.py::test_single_steps_add_up_to_the_jump"),
    Bug(4, "diffusion.py", "self._at(variances, t, xt).sqrt()", "self._at(variances, t, xt)",
        "test_diffusion.py::test_the_noise_of_a_step_has_the_variance_that_was_asked_for"),
    Bug(5, "sampling.py", "return torch.randn(x.shape", "return torch.rand(x.shape",
        "test_sampling.py::test_ddim_with_eta_one_has_the_posterior_variance"),
    Bug(5, "training.py", "eps = torch.randn(", "eps = torch.rand(",
        "test_training.py::test_a_batch_is_what_it_says"),
    # ---- network
    Bug(6, "unet.py", "return self.conv_out(F.silu(self.norm_out(h)))",
        "return self.conv_out(F.silu(self.norm_out(h))).relu()",
        "test_unet.py::test_the_answer_may_be_any_number"),
    Bug(7, "unet.py", "h = h + self.emb_proj(", "h = h + 0 * self.emb_proj(",
        "test_unet.py::test_time_reaches_each_image_and_only_its_own"),
    Bug(7, "unet.py", "sinusoidal_embedding(t, self", "sinusoidal_embedding(t / 1000, self",
        "test_unet.py::test_the_network_is_told_the_time_in_steps"),
    Bug(8, "unet.py", "(F.silu(emb))[:, :, None, None]", "(F.silu(emb)).T[:, :, None, None]",
        "test_unet.py::test_the_time_is_added_per_channel_at_every_pixel"),
    Bug(9, "unet.py", "torch.cat([h, skips.pop()], dim=1)", "torch.cat([h, torch.zeros_like(skips.pop())], dim=1)",
        "test_unet.py::test_every_tensor_of_the_way_down_comes_back_on_the_way_up"),
    Bug(9, "unet.py", "self.dropout(F.silu(self.norm2(h)))", "self.dropout(F.silu(h))",
        "test_unet.py::test_every_parameter_gets_a_gradient"),
    Bug(10, "unet.py", "self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))",
        "self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)",
        "test_unet.py::test_a_new_network_answers_zero_and_its_blocks_are_the_identity"),
    Bug(11, "embedding.py", "/ (half - 1)", "/ half",
        "test_embedding.py::test_every_entry_is_the_sine_or_cosine_it_should_be"),
    Bug(11, "embedding.py", "[angles.sin(), angles.cos()]", "[angles.cos(), angles.sin()]",
        "test_embedding.py::test_every_entry_is_the_sine_or_cosine_it_should_be"),
    Bug(12, "unet.py", "eps=1e-6", "eps=1e-5",
        "test_unet.py::test_norms_eps_is_the_official_one"),
    Bug(12, "unet.py", "F.pad(x, (0, 1, 0, 1))", "F.pad(x, (1, 1, 1, 1))",
        "test_unet.py::test_downsampling_pads_right_and_bottom_only"),
    # ---- training
    Bug(13, "checkpoint.py", 'model.load_state_dict(weights_of(tensors, "ema."))',
        'model.load_state_dict(weights_of(tensors, "model."))',
        "test_checkpoint.py::test_sampling_uses_the_average_and_not_the_last_weights"),
    Bug(13, "training.py", "decay = min(self.decay, (1 + step) / (10 + step))", "decay = self.decay",
        "test_training.py::test_ema_of_a_short_run_has_forgotten_its_start"),
    Bug(14, "training.py", "torch.rand(len(x0), generator=generator, device=device) < config.label_dropout",
        "torch.rand(1, generator=generator, device=device) < config.label_dropout",
        "test_training.py::test_a_batch_is_what_it_says"),
    Bug(15, "training.py", "loss.backward()", "loss.backward(loss)",
        "test_training.py::test_the_gradient_is_the_slope_of_the_loss"),
    # ---- sampling
    Bug(16, "diffusion.py", " * (_spread(t, xt) > 0)", "",
        "test_diffusion.py::test_no_noise_on_the_last_step"),
    Bug(17, "training.py", "t = torch.randint(T, ", "t = torch.randint(1, T, ",
        "test_training.py::test_every_timestep_is_trained_as_often_as_any_other"),
    Bug(17, "sampling.py", "timesteps.to(xt.device)[index]", "timesteps.to(xt.device)[(index - 1).clamp(min=0)]",
        "test_sampling.py::test_a_sampler_tells_the_model_the_timestep_of_the_state_that_it_shows"),
    Bug(18, "sampling.py", "x0_hat = chain.predict_x0(xt, index, eps_hat)\n        if clip:",
        "x0_hat = chain.predict_x0(xt, index, eps_hat)\n        if False:",
        "test_sampling.py::test_ancestral_sampling_clips_its_estimate_only_if_told"),
    Bug(18, "sampling.py", "            eps_hat = ddpm.predict_eps(xt, t, x0_hat)\n", "",
        "test_sampling.py::test_clipping_keeps_the_estimate_in_range_and_the_pair_consistent"),
    Bug(19, "diffusion.py", "sigma = self._at(variances, t, xt)", "sigma = self._at(self.betas, t, xt)",
        "test_diffusion.py::test_the_noise_of_a_step_has_the_variance_that_was_asked_for"),
    Bug(20, "sampling.py", "eps_hat = eps_model(xt, t)", 'eps_hat = globals().setdefault("net", eps_model)(xt, t)',
        "test_sampling.py::test_a_sampler_asks_the_model_that_it_was_given"),
    # ---- data and plots
    Bug(21, "data.py", "images.float() / 127.5 - 1", "images.float() / 255",
        "test_data.py::test_every_byte_survives_the_round_trip"),
    Bug(22, "data.py", "((x.float().clamp(-1, 1) + 1) * 127.5).round()", "((x.float() + 1) * 127.5).round().int()",
        "test_data.py::test_to_uint8_clamps_before_the_cast_and_rounds"),
    Bug(23, "plots.py", "image.permute(1, 2, 0)", "image.reshape(h, w, -1)",
        "test_plots_widgets.py::test_tile_puts_every_image_in_its_place"),
    # ---- measuring
    Bug(24, "diffusion.py", ".square().flatten(1).mean(1)", ".square().mean().expand(len(eps))",
        "test_diffusion.py::test_loss_is_the_mean_square_per_image"),
    Bug(25, "evaluation.py", "return (y.mean() - slope * x.mean()).item()", "return y[0].item()",
        "test_evaluation.py::test_too_few_samples_look_worse_and_the_extrapolation_mends_it"),
]  # fmt: skip
NAMES = [f"{bug.exhibit:02}-{bug.test.split('::')[1]}" for bug in BUGS]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What became of each bug's test, in the order of BUGS; last, all these tests together without any bug."""
    home = tmp_path_factory.mktemp("museum")
    jobs = [[str(home / "right"), "", sorted({bug.test for bug in BUGS})]]
    mutants.lay_out(home / "right", "", "")
    for i, bug in enumerate(BUGS):
        text = (mutants.PACKAGE / bug.file).read_text(encoding="utf-8")
        assert text.count(bug.right) == 1, f"{bug.file} holds {bug.right!r} {text.count(bug.right)} times, not once"
        mutants.lay_out(home / str(i), bug.file, text.replace(bug.right, bug.wrong))
        jobs.append([str(home / str(i)), bug.file, [bug.test]])
    (home / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    subprocess.run([sys.executable, mutants.__file__, str(home / "jobs.json")], check=True, timeout=900)
    return [json.loads((Path(job[0]) / "result.json").read_text(encoding="utf-8")) for job in [*jobs[1:], jobs[0]]]


@pytest.mark.parametrize("i", range(len(BUGS)), ids=NAMES)
def test_the_bug_put_back_is_caught(results, i):
    result, bug = results[i], BUGS[i]
    assert result["exit"] == 1 and len(result["failures"]) == 1, result
    assert Path(result["file"]).parent.parent.name == str(i), "the test did not see the changed file"
    (test, phase, error) = result["failures"][0]
    assert test.split("::")[1].split("[")[0] == bug.test.split("::")[1] and phase == "call"
    assert error in ("AssertionError", "Failed"), f"{test} stops with {error}, which is no verdict"


def test_without_a_bug_the_same_tests_pass(results):
    result = results[-1]
    assert result["exit"] == 0 and result["failures"] == []
    assert result["passed"] >= len({bug.test for bug in BUGS})


def test_every_exhibit_has_a_bug_and_every_named_test_exists():
    assert {bug.exhibit for bug in BUGS} == set(EXHIBITS)
    for bug in BUGS:
        file, name = bug.test.split("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, bug.test


# ---- the notebook ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def prose(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module")
def exhibits(prose) -> dict[int, str]:
    """The text under each exhibit's heading, its label included."""
    parts = re.split(r"^#+ (.*)$", prose, flags=re.MULTILINE)  # text, heading, text, heading, text ...
    found = [
        (re.match(r"Bug: (\d+)\. ", heading), text) for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return {int(number[1]): text for number, text in found if number}


def test_each_label_names_the_tests_that_catch_its_bug(exhibits):
    named = {n: re.findall(r"`(test_\w+\.py)` :: `(test_\w+)`", text) for n, text in exhibits.items()}  # may be wrapped
    labels = {n: {"::".join(parts) for parts in pairs} for n, pairs in named.items()}
    assert labels == {n: {bug.test for bug in BUGS if bug.exhibit == n} for n in EXHIBITS}


def test_the_tree_its_table_and_the_labels_agree(notebook, prose, exhibits):
    (source,) = (cell.source for cell in notebook.cells if cell.source.startswith("TREE = "))
    branches = ast.literal_eval(source.removeprefix("TREE = ")).values()
    tree = {leaf: numbers for branch in branches for leaf, numbers in branch.items()}
    assert len(tree) == sum(map(len, branches))  # no leaf twice
    table = re.findall(r"^\| \*(.+?)\*.*?\| (.*) \|$", prose, flags=re.MULTILINE)
    links = [(leaf, re.findall(r"\[(\d+)\]\(#Bug:-(\d+)\.", row)) for leaf, row in table]
    assert links == [(leaf, [(str(n), str(n)) for n in numbers]) for leaf, numbers in tree.items()]
    symptoms = {n: text.split("**Symptom.**")[1].split("**Cause.**")[0] for n, text in exhibits.items()}
    seen = {(word.lower(), n) for n, text in symptoms.items() for word in re.findall(r"\*([^*]+)\*", text)}
    assert seen == {(leaf.lower(), n) for leaf, numbers in tree.items() for n in numbers}


def test_every_link_within_the_notebook_leads_to_a_heading(prose):
    """As JupyterLab and nbconvert (which GitHub uses) name headings: their text, with hyphens for spaces."""
    headings = {heading.replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]*)\)", prose))
    assert links and links <= headings, links - headings
    assert {int(n) for n in re.findall(r"Bug:-(\d+)\.-", " ".join(links))} == set(EXHIBITS)  # the tree leads to each
