"""What ships with the module: whole, offline, quick to load, fast to sample, described by what was measured."""

import hashlib
import json
import re
import socket
import statistics
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
from ddpm_utils.checkpoint import PRETRAINED, STAGES, WEIGHTS, load_checkpoint, load_model, load_pretrained
from ddpm_utils.sampling import last, noise_model, sample_ddim, start_noise

RESULTS = WEIGHTS / "evaluation.json"


@pytest.fixture(scope="module")
def trained():
    return load_pretrained()


def test_it_loads_in_less_than_a_second_and_without_a_network(monkeypatch):
    def no_network(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "socket", no_network)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        load_pretrained()
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 1, seconds


def test_each_stage_has_seen_more_images_than_the_one_before():
    seen = [load_model(path).images_seen for path in STAGES]
    assert seen == sorted(set(seen))


def test_all_weights_together_stay_small():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 40e6


def test_every_file_beside_the_weights_is_installed_with_the_package():
    project = (Path(main.__file__).parent / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"(\*\.\w+)"', re.search(r'"ddpm_utils.weights" = \[(.*)\]', project)[1])
    assert len(patterns) > 2
    for path in WEIGHTS.iterdir():
        assert path.is_dir() or path.suffix == ".py" or any(path.match(pattern) for pattern in patterns), path.name


def test_the_gallery_has_eight_images_of_each_class():
    width, height = Image.open(WEIGHTS / "gallery.png").size
    assert (height, width) == (8 * 33 + 1, 10 * 33 + 1)


def test_sampling_costs_what_its_forward_passes_cost(trained):
    """A guided step is one pass of twice the images; all the rest of a sampler may add a fifth, no more."""
    y = torch.arange(8)
    x_T, _ = start_noise(8, 0)
    eps_model = noise_model(trained.model, y, guidance=2.0)
    both, t, labels = torch.cat([x_T, x_T]), torch.full((16,), 500), torch.cat([y, torch.full_like(y, 10)])

    @torch.no_grad()
    def passes(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            trained.model(both, t, labels)
        return time.perf_counter() - start

    def sampling(number: int) -> float:
        start = time.perf_counter()
        last(sample_ddim(eps_model, trained.ddpm, x_T, steps=number))
        return time.perf_counter() - start

    passes(1)
    ratios = [sampling(5) / passes(5) for _ in range(7)]
    assert 0.7 < statistics.median(ratios) < 1.2, ratios


def test_the_figures_belong_to_the_weights_that_ship():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert results["sha256"] == hashlib.sha256(PRETRAINED.read_bytes()).hexdigest()
    assert results["models"]["measured"]["images_seen"] == load_pretrained().images_seen


def test_what_the_notebooks_draw_from_files_was_measured_with_the_weights_that_ship():
    folder = Path(main.__file__).parent / "notebooks" / "data"
    shipped = hashlib.sha256(PRETRAINED.read_bytes()).hexdigest()
    for name in ("06_steps", "07_guidance", "10_shipped"):
        assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["sha256"] == shipped, name
    assert load_checkpoint(folder / "08_features.safetensors")[1]["weights_sha256"] == shipped


def test_the_cards_and_the_readmes_figures_are_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(Path(main.__file__).parent / "tools")
    import model_card

    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for path, made_anew in ((model_card.CARD, model_card.card), (model_card.README, model_card.readme)):
        text = path.read_text(encoding="utf-8")
        assert made_anew(text, results) == text
