"""Figures of quality: against scipy, closed forms, brute force, and the spread of repeated experiments."""

import json
import math
import sys
from pathlib import Path

import pytest
import scipy.linalg
import torch
from torch.distributions import Normal, kl_divergence

import main
from ddpm_utils.checkpoint import load_checkpoint, save_checkpoint
from ddpm_utils.data import shapes, to_float
from ddpm_utils.diffusion import DDPM, linear_betas, posterior_variances
from ddpm_utils.evaluation import (
    CLASSIFIER,
    STRATA,
    Classifier,
    Judge,
    decoder_nats,
    extrapolated,
    frechet,
    frechet_distance,
    held_out_loss,
    inception_fid,
    load_classifier,
    look_at,
    look_shuffled,
    nearest,
    prior_bits,
    random_order,
    share,
)

ddpm = DDPM(linear_betas())


def normal(n, d, seed, scale=1.0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


def test_frechet_distance_is_scipys():
    a = normal(300, 6, 0) @ normal(6, 6, 1)
    b = normal(400, 6, 2) @ normal(6, 6, 3) + 0.5
    A, B = torch.cov(a.T.double()).numpy(), torch.cov(b.T.double()).numpy()
    root = scipy.linalg.sqrtm(A @ B).real
    expected = (a.mean(0) - b.mean(0)).double().square().sum().item() + (A + B - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_known_gaussians():
    a, b = normal(200_000, 3, 0), normal(200_000, 3, 1, scale=2.0, shift=1.0)
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    assert math.isfinite(frechet_distance(normal(5, 20, 0), normal(500, 20, 1)))


@pytest.mark.parametrize("a, b", [(torch.zeros(5), torch.zeros(5, 2)), (torch.zeros(5, 3), torch.zeros(5, 2))])
def test_frechet_distance_refuses_other_shapes(a, b):
    with pytest.raises(ValueError, match="a and b"):
        frechet_distance(a, b)


def test_the_jackknife_error_is_the_spread_of_repeated_draws():
    reference = normal(20_000, 4, 99)
    measured = [frechet(normal(400, 4, seed, shift=0.3), reference) for seed in range(60)]
    spread = torch.tensor([m.value for m in measured]).std().item()
    assert sum(m.error for m in measured) / 60 == pytest.approx(spread, rel=0.3)


def test_where_classes_take_turns_only_a_random_order_gives_an_honest_error():
    centres = 0.5 * normal(10, 4, 1)  # image i is of class i % 10
    reference = centres.repeat(2000, 1) + normal(20_000, 4, 99)
    sets = [centres.repeat(40, 1) + normal(400, 4, seed, shift=0.3) for seed in range(60)]
    spread = torch.tensor([frechet_distance(x, reference) for x in sets]).std().item()
    order = random_order(400)
    assert order.sort().values.tolist() == list(range(400)) and order.equal(random_order(400))
    assert sum(frechet(x[order], reference).error for x in sets) / 60 == pytest.approx(spread, rel=0.3)
    assert sum(frechet(x, reference).error for x in sets) / 60 > 3 * spread


def test_too_few_samples_look_worse_and_the_extrapolation_mends_it():
    reference = normal(50_000, 20, 99)
    few = [normal(400, 20, seed) for seed in range(20)]  # from the reference's own distribution: the truth is 0
    biased = sum(frechet_distance(x, reference) for x in few) / 20
    mended = sum(extrapolated(x, reference) for x in few) / 20
    assert biased > 0.2 and abs(mended) < 0.15 * biased


def test_share_and_its_error():
    measured = share(torch.tensor([True] * 75 + [False] * 25))
    assert measured.value == 0.75 and measured.error == pytest.approx(math.sqrt(0.75 * 0.25 / 100))
    assert f"{measured:.2f}" == "0.75 ± 0.04"


def test_nearest_is_brute_force():
    a, b = normal(7, 3, 0), normal(11, 3, 1)
    table = torch.tensor([[(x - y).norm() for y in b] for x in a])
    distances, indices = nearest(a, b, batch_size=4)
    torch.testing.assert_close(distances, table.min(1).values)
    assert torch.equal(indices, table.argmin(1))


def test_prior_bits_are_a_kl_divergence():
    images = shapes(3).images
    x0, alpha_bar = to_float(images).double(), ddpm.alpha_bars[-1]
    kl = kl_divergence(Normal(alpha_bar.sqrt() * x0, (1 - alpha_bar).sqrt()), Normal(0.0, 1.0))
    assert prior_bits(ddpm, images).value == pytest.approx(kl.mean().item() / math.log(2), rel=1e-6)


def test_the_decoder_is_a_distribution_over_pixel_values():
    values = to_float(torch.arange(256, dtype=torch.uint8)).view(256, 1, 1, 1)
    for mean in (-1.0, 0.123, 0.99):
        nats = decoder_nats(values, torch.full_like(values, mean), sigma=0.05)
        assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-6)


def test_bits_of_a_model_that_knows_nothing():
    """eps_hat = 0: every loss is E eps^2 = 1, and the KLs are the distances of the two means, without eq. 12."""
    images = shapes(200).images
    rows = held_out_loss(lambda xt, t: torch.zeros_like(xt), ddpm, images)
    assert [row.first for row in rows] == list(STRATA) and rows[-1].last == 999
    for row in rows:
        assert abs(row.loss.value - 1) < 5 * row.loss.error + 0.01
    x0 = to_float(images[:20])
    for row in rows[1:3]:
        kl = 0.0
        for t in range(row.first, row.last + 1):
            times = torch.full((20,), t)
            xt = ddpm.q_sample(x0, times, normal(20, 3072, t).view_as(x0)).double()
            true, variance = ddpm.q_posterior(x0.double(), xt, times)
            guess, _ = ddpm.q_posterior(ddpm.predict_x0(xt, times, torch.zeros_like(xt)), xt, times)
            kl += kl_divergence(Normal(true, variance.sqrt()), Normal(guess, variance.sqrt())).mean().item()
        assert row.bits.error < 0.1 * row.bits.value  # each image draws one of the part's timesteps
        assert row.bits.value == pytest.approx(kl / math.log(2), abs=4 * row.bits.error)


def test_a_model_that_cannot_err_pays_for_the_decoder_alone():
    images = shapes(1).images
    x0 = to_float(images)
    four = images.expand(4, -1, -1, -1)
    rows = held_out_loss(lambda xt, t: ddpm.predict_eps(xt, t, x0.expand_as(xt)), ddpm, four)
    assert max(row.loss.value for row in rows) < 1e-6
    assert sum(row.bits.value for row in rows[1:]) < 1e-3
    sigma = posterior_variances(ddpm)[1].sqrt().item()
    assert rows[0].bits.value == pytest.approx(decoder_nats(x0, x0, sigma).item() / math.log(2), rel=0.01)


def test_look_at_takes_bytes_and_floats_and_refuses_one_image():
    torch.manual_seed(0)
    classifier = Classifier((4, 4, 4, 8)).eval()
    images = shapes(5).images
    seen = look_at(classifier, images, batch_size=2)
    assert seen.features.shape == (5, 8) and seen.labels.shape == (5,)
    torch.testing.assert_close(look_at(classifier, to_float(images)).features, seen.features)
    assert torch.equal(classifier(to_float(images)).argmax(1), seen.labels)
    with pytest.raises(ValueError, match="images must be"):
        look_at(classifier, images[0])


def test_the_judge_knows_a_copy_and_a_wrong_label():
    torch.manual_seed(0)
    classifier = Classifier((4, 4, 4, 8)).eval()
    real = shapes(400)
    judge = Judge(classifier, real, real)
    labels = look_at(classifier, real.images).labels
    figures = judge(*look_shuffled(classifier, real.images, labels))
    assert figures["recognised"] == (1.0, 0.0) and figures["number"] == 400
    assert figures["frechet"][250].value < 0.05 and max(figures["neighbours"]) < 1e-3
    assert judge(*look_shuffled(classifier, real.images, labels + 1))["recognised"].value == 0
    by_class = real.labels.argsort()
    sorted_value = judge(*look_shuffled(classifier, real.images[by_class], labels[by_class]))["frechet"][250].value
    first_classes = frechet(judge.reference[by_class], judge.reference, 250).value
    assert sorted_value < 0.5 * first_classes  # the first n are a fair draw, in whatever order the images come
    other = judge(*look_shuffled(classifier, shapes(400, seed=5).images, labels))
    assert min(other["neighbours"]) > 0 and other["frechet"][250].value > 0


def test_the_shipped_classifier_is_small_and_whole():
    assert CLASSIFIER.stat().st_size < 3e6
    classifier, info = load_classifier()
    assert len(info["class_names"]) == 10 and not classifier.training
    assert look_at(classifier, shapes(2).images).features.shape == (2, 192)


def test_a_file_without_a_classifier(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="does not hold a classifier"):
        load_classifier(tmp_path / "x.safetensors")


def test_fid_without_torchmetrics_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ValueError, match="pip install"):
        inception_fid(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32))


def test_main_evaluate_writes_all_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "load_images", lambda source, split="train": shapes(400, seed=int(split == "test")))
    monkeypatch.setattr(main, "draw_images", lambda model, wish, setup: (to_float(shapes(wish.number).images),
                                                                         torch.arange(wish.number) % 10))  # fmt: skip
    monkeypatch.setattr(main, "held_out_loss", lambda *_: [])
    monkeypatch.setattr(main, "measure_setups", lambda model: {main.Setup(): 1e-3})
    out = tmp_path / "new" / "figures.json"
    kept = tmp_path / "features.safetensors"
    words = ["evaluate", "--number", "1000", "--sweep", "7", "--trained-on", "x", "--output", str(out)]
    assert main.main([*words, "--features", str(kept)]) == 0
    results = json.loads(out.read_text())
    assert list(results["sets"]) == ["real", "real, as trained on", "unguided", "guided", "guided, 7 steps"]
    assert results["sets"]["guided, 7 steps"]["number"] == 250 and results["options"]["sweep"] == "7"
    assert len(results["sets"]["unguided"]["neighbours"]) == 99
    assert "guided: " in capsys.readouterr().out
    tensors, about = load_checkpoint(kept)
    assert about["options"] == results["options"] and about["weights_sha256"] == results["sha256"]
    classifier, _ = load_classifier()
    for name in ("unguided", "guided, 7 steps"):  # what was kept is what was measured
        features, labels = tensors[f"{name}.features"], tensors[f"{name}.labels"]
        hits = classifier.head(features).argmax(1) == labels
        assert share(hits) == tuple(results["sets"][name]["recognised"])
        assert frechet(features, look_at(classifier, shapes(400).images).features, 250) == pytest.approx(
            results["sets"][name]["frechet"]["250"]
        )


def test_the_features_that_notebook_08_reads_are_those_that_were_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(main.__file__).parent / "tools")
    import evaluation_features as tool

    measured = {f"{name}.features": normal(30, 192, seed).relu() for seed, name in enumerate(("unguided", "guided"))}
    measured |= {f"{name}.labels": torch.arange(30) % 10 for name in ("unguided", "guided")}
    save_checkpoint(tmp_path / "measured.safetensors", measured, {"options": {"data": "x"}, "weights_sha256": "abc"})
    monkeypatch.setattr(tool, "load_images", lambda source, split="train": shapes(300, seed=int(split == "test")))
    monkeypatch.setattr(tool, "KEPT", tool.KEPT | {"unguided": 20})
    out = tmp_path / "out.safetensors"
    monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path / "measured.safetensors"), "--output", str(out)])
    tool.main()
    tensors, about = load_checkpoint(out)
    assert about["options"] == {"data": "x"} and about["weights_sha256"] == "abc" and about["reference"][1] == 300
    for name, number in (("unguided", 20), ("guided", 30)):
        features = (tensors[f"{name}.codes"].float() / 255).square() * tensors["scale"]  # as the notebook reads them
        wanted = measured[f"{name}.features"][:number]
        assert features.shape == wanted.shape and (features - wanted).abs().max() < 0.005 * tensors["scale"].max()
        assert tensors[f"{name}.labels"].tolist() == measured[f"{name}.labels"][:number].tolist()
    real = look_at(load_classifier()[0], shapes(300, seed=1).images[random_order(300)]).features
    decoded = (tensors["real.codes"].float() / 255).square() * tensors["scale"]
    assert frechet_distance(decoded, real) < 1e-3 and len(tensors["copies.codes"]) == 80
    assert "out.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [(["--number", "10"], "at least 1000"), (["--sweep", "5;x"], "5,10,50")])
def test_main_evaluate_refuses(words, said, capsys):
    assert main.main(["evaluate", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_model_card_shows_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(Path(main.__file__).parent / "tools")
    from model_card import figures

    torch.manual_seed(0)
    classifier = Classifier((4, 4, 4, 8)).eval()
    judge = Judge(classifier, shapes(400), shapes(400))
    sets = {"real": shapes(1000, seed=1), "unguided": shapes(1000, seed=2), "guided": shapes(1000, seed=3)}
    sets |= {"guided, 5 steps": shapes(250, seed=4), "compared": shapes(1000, seed=5)}
    results = {
        "date": "2026-01-31",
        "machine": "a test",
        "options": {"sampler": "ddim", "steps": 25, "seed": 0, "guidance": 2.0},
        "data": ["folder a", 400, 1000, "folder b", 400],
        "models": {"compared": {"parameters": 123_456, "images_seen": 7_890}},
        "sets": {name: judge(*look_shuffled(classifier, x.images, x.labels)) for name, x in sets.items()},
        "held_out": [{"first": 0, "last": 999, "loss": (0.03125, 0.001), "bits": (3.5, 0.01)}],
        "prior_bits": (0.25, 0.001),
        "seconds_64_guided": 12.34,
    }
    card = figures(json.loads(json.dumps(results)))  # as it comes from the file
    guided, few = results["sets"]["guided"], results["sets"]["guided, 5 steps"]
    for expected in (
        f"| this model, guided (w = 2) | {guided['recognised']:.3f} | {guided['frechet'][1000]:.2f} |",
        f"| Frechet distance | {few['frechet'][250]:.2f} | {guided['frechet'][250]:.2f} |",
        "| 0...999 | 0.0312 ± 0.0010 | 3.5000 ± 0.0100 |",
        "| sum (error: at most) | | 3.75 ± 0.01 |",
        f"123,456 parameters after 7,890 images, unguided | {results['sets']['compared']['recognised']:.3f} |",
        "took 12.3 s",
    ):
        assert expected in card, (expected, card)
