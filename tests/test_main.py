"""main.py as its user meets it: training, continuing, sampling, several processes, and every kind of bad input."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
from ddpm_utils.checkpoint import load_checkpoint, load_model
from ddpm_utils.data import shapes
from ddpm_utils.training import TrainConfig
from ddpm_utils.unet import PAPER, TINY

ROOT = Path(main.__file__).parent


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch, tmp_path):
    """In an empty folder, with a nano network in place of TINY: the commands are real, the work is little."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_DATA", "shapes")
    monkeypatch.setitem(main.PRESETS, "tiny", main.replace(TINY, channels=8, groups=1))
    monkeypatch.setattr(main, "measure_setups", lambda model: {main.Setup(): 1e-3})
    draw = main.write_grid
    few = {"number": 2, "steps": 3}  # instead of a grid of 64 with 50 steps
    monkeypatch.setattr(
        main,
        "write_grid",
        lambda path, trained, options, setup: draw(
            path,
            trained,
            main.replace(options, **few) if (options.number, options.steps) == (64, 50) else options,
            setup,
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def train(*options):
    return main.main(["--preset", "tiny", "--batch-size", "4", "--steps", "3", *options])


def refused(capsys, *options, command=train):
    """The one sentence on stderr. Fails unless the exit status is 2 and there is no traceback."""
    try:
        status = command(*options)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said, said
    return said.strip().splitlines()[-1]


def test_training_leaves_samples_weights_and_a_log(capsys):
    assert train("--sample-every", "2", "--save-every", "1") == 0
    assert sorted(p.name for p in Path("samples").iterdir()) == ["step_000002.png", "step_000003.png"]
    assert Image.open("samples/step_000003.png").size > (64, 32)
    tensors, info = load_checkpoint("checkpoints/last.safetensors")
    assert info["step"] == 3 and any(name.startswith("ema.") for name in tensors)
    said = capsys.readouterr().out
    assert "built-in shapes, 5000 images" in said and "hours here" in said and "Done: 3 steps" in said


def test_a_run_continues_where_it_stopped_and_says_when_it_is_finished(capsys):
    assert train("--steps", "10") == 0
    assert train("--steps", "20") == 0
    assert f"Continuing {Path('checkpoints/last.safetensors')} at step 10" in capsys.readouterr().out
    rows = list(csv.DictReader(Path("log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["10", "20"] and float(rows[0]["loss"]) > 0
    assert train("--steps", "20") == 0
    assert "is finished" in capsys.readouterr().out


def test_ctrl_c_stops_between_two_steps_and_the_run_goes_on_to_the_same_weights(capsys, monkeypatch):
    assert train("--steps", "6", "--out", "whole") == 0
    describe = main.describe

    def press(progress):
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)
        return describe(progress)

    monkeypatch.setattr(main, "describe", press)
    assert train("--steps", "6", "--out", "part") == 130
    assert "Stopped at step 2" in capsys.readouterr().out
    monkeypatch.setattr(main, "describe", describe)
    assert train("--steps", "6", "--out", "part") == 0
    whole, part = (load_checkpoint(f"{out}/checkpoints/last.safetensors")[0] for out in ("whole", "part"))
    assert whole.keys() == part.keys() and all(torch.equal(whole[name], part[name]) for name in whole)


def test_samples_are_the_seeds_and_the_options(capsys):
    train("--steps", "20", "--lr", "0.01", "--warmup-steps", "1")  # enough for the label to matter
    for name, options in {
        "a": [],
        "b": [],
        "c": ["--seed", "1"],
        "d": ["--sampler", "ddpm"],
        "e": ["--label", "3"],
        "f": ["--sampler", "dpmpp"],
    }.items():
        command = ["sample", "--number", "3", "--steps", "4", "--output", f"{name}.png", *options]
        assert main.main(command) == 0
    pictures = {name: Path(f"{name}.png").read_bytes() for name in "abcdef"}
    assert pictures["a"] == pictures["b"] and len(set(pictures.values())) == 5


def test_a_new_run_can_start_from_another_runs_weights():
    train("--out", "first")
    assert train("--out", "second", "--init-from", "first/checkpoints/last.safetensors", "--lr", "1e-9") == 0
    first, second = (load_checkpoint(f"{out}/checkpoints/last.safetensors")[0] for out in ("first", "second"))
    name = "ema.conv_in.weight"
    assert torch.allclose(first[name], second[name], atol=1e-6) and second[name].abs().sum() > 0
    train("--out", "second", "--init-from", "first/checkpoints/last.safetensors", "--lr", "1e-9", "--steps", "5")
    seen = [load_model(f"{out}/checkpoints/last.safetensors").images_seen for out in ("first", "second")]
    assert seen == [3 * 4, 3 * 4 + 5 * 4]  # batches of 4; the second run was continued once


def test_every_option_is_a_field_and_the_help_explains_each(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for field in fields(main.TrainOptions):
        assert "--" + field.name.replace("_", "-") in said
    with pytest.raises(SystemExit):
        main.main(["sample", "--help"])
    assert "--guidance" in capsys.readouterr().out
    assert {field.name for field in fields(TrainConfig)} < {field.name for field in fields(main.TrainOptions)}


def test_the_paper_preset_is_the_papers():
    assert main.PRESETS["paper"] is PAPER


@pytest.mark.parametrize("option", ["--T", "--steps", "--batch-size", "--sample-every", "--save-every"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_numbers_below_one_are_refused(capsys, option, value):
    assert option.strip("-").replace("-", "_") in refused(capsys, option, value)


@pytest.mark.parametrize(
    "options,named",
    [
        (["--preset", "huge"], "preset"),
        (["--schedule", "square"], "schedule"),
        (["--steps", "many"], "--steps"),
        (["--lr", "nan"], "lr"),
        (["--device", "toaster"], "device toaster"),
        (["--no-such-option", "1"], "--no-such-option"),
        (["--data", "nowhere"], "nowhere"),
        (["--init-from", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_impossible_options_are_refused(capsys, options, named):
    assert named in refused(capsys, *options)
    assert not Path("checkpoints").exists()


def test_an_empty_data_folder_is_refused(capsys, tmp_path):
    Path("empty").mkdir()
    assert "empty" in refused(capsys, "--data", "empty")


def test_grey_rgba_and_unreadable_images(capsys):
    """One unreadable image is named, and the others train."""
    Path("pets/cat").mkdir(parents=True)
    Image.new("L", (40, 50), 99).save("pets/cat/grey.png")
    Image.new("RGBA", (32, 32), (10, 20, 30, 40)).save("pets/cat/clear.png")
    Path("pets/cat/broken.png").write_bytes(b"\x89PNG but no more")
    with pytest.warns(UserWarning, match="broken.png"):
        assert train("--data", "pets") == 0
    assert "folder pets, 2 images" in capsys.readouterr().out


def test_a_run_with_another_preset_or_lr_is_not_mixed_up(capsys, monkeypatch):
    train()
    before = Path("checkpoints/last.safetensors").read_bytes()
    assert "lr was" in refused(capsys, "--lr", "0.5")
    assert "another model" in refused(capsys, "--no-labels")
    assert "images were" in refused(capsys, "--data", str(write_folder(Path("other"))))
    assert Path("checkpoints/last.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\x00" * 500, None])
def test_a_damaged_checkpoint_is_refused_and_not_overwritten(capsys, content):
    train()
    path = Path("checkpoints/last.safetensors")
    damaged = path.read_bytes()[:-50] if content is None else content
    path.write_bytes(damaged)
    assert "last.safetensors" in refused(capsys)
    assert "last.safetensors" in refused(capsys, "sample", command=lambda *argv: main.main(list(argv)))
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "options,named",
    [
        (["--label", "10"], "label must lie in 0...9"),
        (["--number", "0"], "number"),
        (["--steps", "1001"], "steps"),
        (["--steps", "0"], "steps"),
        (["--sampler", "ddim", "--eta", "-1"], "eta"),
        (["--eta", "1"], "eta"),
        (["--sampler", "magic"], "sampler"),
        (["--checkpoint", "none.safetensors"], "none.safetensors"),
    ],
)
def test_impossible_samples_are_refused(capsys, options, named):
    train()
    assert named in refused(capsys, "sample", *options, command=lambda *argv: main.main(list(argv)))


def test_a_full_disk_while_saving_is_one_sentence_and_the_checkpoint_survives(capsys, monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    train()
    before = Path("checkpoints/last.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        status = train("--steps", "6", "--save-every", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert status == 1 and "could not be saved" in said and "Traceback" not in said
    assert Path("checkpoints/last.safetensors").read_bytes() == before
    assert train("--steps", "6") == 0  # with room again, it goes on


def write_folder(folder, n=20):
    drawn = shapes(n)
    for i, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
        path = folder / drawn.class_names[label] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def test_a_checkpoint_folder_deleted_in_the_middle_is_made_again(monkeypatch):
    describe = main.describe

    def delete(progress):
        if progress.step == 2:
            shutil.rmtree("checkpoints")
        return describe(progress)

    monkeypatch.setattr(main, "describe", delete)
    assert train("--save-every", "1", "--out", ".") == 0
    assert load_checkpoint("checkpoints/last.safetensors")[1]["step"] == 3


def test_a_run_that_diverges_stops_with_the_step_and_keeps_its_last_good_weights(capsys):
    assert train("--lr", "1e30", "--warmup-steps", "1", "--steps", "20", "--save-every", "1") == 1
    said = capsys.readouterr().err
    step = int(re.search(r"main\.py: step (\d+): the loss is (?:nan|inf), .*Try a smaller lr", said)[1])
    tensors, info = load_checkpoint("checkpoints/last.safetensors")
    assert "Traceback" not in said and info["step"] == step - 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch's torchrun needs libuv, which its Windows builds lack")
@pytest.mark.parametrize("optimizer", ["--no-muon", "--muon"])
def test_two_processes_reach_the_weights_of_one(optimizer, tmp_path):
    """torchrun with two CPU processes (gloo) against a single one, same global batch. No dropout in TINY."""
    folder = write_folder(tmp_path / "images")
    options = ["--preset", "tiny", "--batch-size", "4", "--steps", "3", "--data", str(folder), "--device", "cpu"]
    options += ["--no-bf16", "--warmup-steps", "1", optimizer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = tmp_path / "drawless.py"  # main.py without its grid of samples, which would take most of the time
    script.write_text("import sys, main\nmain.write_grid = lambda *a: None\nsys.exit(main.main())\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, command in {"one": [sys.executable], "two": torchrun}.items():
        command = [*command, str(script), *options, "--out", name]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    one, two = (load_checkpoint(tmp_path / f"{name}/checkpoints/last.safetensors")[0] for name in ("one", "two"))
    for name in one:
        if name.startswith(("model.", "ema.")):
            assert torch.allclose(one[name], two[name], atol=2e-4), name  # Adam's first steps are about lr = 4e-4
    moved = (one["model.conv_in.weight"] - one["ema.conv_in.weight"]).abs().max()
    assert moved > 0
