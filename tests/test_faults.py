"""What can go wrong outside the program: it is killed, the disk is read-only, a file is damaged or means harm.

DDPM_KILLS sets how many times a run is killed at a random moment.
"""

import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import killable
import numpy as np
import pytest
import torch
from PIL import Image

import main
from ddpm_utils.checkpoint import export_model, load_checkpoint, load_model, save_checkpoint
from ddpm_utils.data import load_images, shapes
from ddpm_utils.diffusion import DDPM, linear_betas
from ddpm_utils.training import TrainConfig, load_run

KILLS = int(os.environ.get("DDPM_KILLS", "20" if killable.FORKS else "3"))
STEPS = 20
OPTIONS = ("--steps", str(STEPS), "--save-every", "1")


def write_images(folder):
    drawn = shapes(10)
    for image, name in zip(drawn.images, drawn.class_names, strict=True):
        (folder / name).mkdir(parents=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / "a.png")
    return str(folder)


# ---------------------------------------------------------------- killed


def finish(process):
    process.join(120)
    assert process.exitcode == 0, process.said.read_text()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What to train on; how long an undisturbed run takes; and {step: hash of everything saved then} of that run."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = write_images(folder / "images")
    finish(killable.start(folder / "first", "--steps", "1", "--data", data))  # the server of processes is up
    start = time.perf_counter()
    finish(killable.start(folder / "run", *OPTIONS, "--data", data, note=True))
    seconds = time.perf_counter() - start
    rows = [line.split() for line in (folder / "run/saved.txt").read_text().splitlines()]
    hashes = {int(step): digest for step, digest in rows}
    assert list(hashes) == list(range(1, STEPS + 1)) and len(set(hashes.values())) == STEPS
    return data, seconds, hashes


def check_the_end(folder, hashes):
    assert killable.saved_in(folder) == (STEPS, hashes[STEPS])
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.safetensors"]
    rows = (folder / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(10, STEPS + 1, 10))]


def test_killed_at_random_moments_a_run_goes_on_to_the_same_weights(unbroken, tmp_path):
    """After each kill, what lies on the disk is what the unbroken run had at that step, to the last bit."""
    data, seconds, hashes = unbroken
    folder, chance = tmp_path / "run", random.Random(0)
    kills = within_a_save = 0
    while kills < KILLS:
        process = killable.start(folder, *OPTIONS, "--data", data)
        time.sleep(chance.uniform(0, seconds))
        if kills % 2:  # every other time the moment is within a save
            until = time.perf_counter() + 1
            while time.perf_counter() < until and not any((folder / "checkpoints").glob("*.partial")):
                pass
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was faster: check its end, and take a new one
            check_the_end(folder, hashes)
            shutil.rmtree(folder)
            continue
        assert process.exitcode < 0, process.said.read_text()
        kills += 1
        if (folder / "checkpoints").exists():
            within_a_save += any((folder / "checkpoints").glob("*.partial"))
            if (folder / "checkpoints/last.safetensors").exists():
                step, digest = killable.saved_in(folder)
                assert digest == hashes[step]
    finish(killable.start(folder, *OPTIONS, "--data", data))
    check_the_end(folder, hashes)
    print(f"{kills} kills, {within_a_save} of them while a checkpoint was being written")


@pytest.mark.parametrize(
    "moment, step", [("halfway fsync", 4), ("before fsync", 4), ("before replace", 4), ("after replace", 5)]
)
def test_killed_at_each_stage_of_saving(moment, step, unbroken, tmp_path):
    data, _, hashes = unbroken
    process = killable.start(tmp_path / "run", *OPTIONS, "--data", data, die=moment)
    process.join(120)
    assert process.exitcode < 0 or not killable.FORKS, process.said.read_text()
    assert killable.saved_in(tmp_path / "run") == (step, hashes[step])
    assert len(list((tmp_path / "run/checkpoints").glob("*.partial"))) == (step == 4)
    finish(killable.start(tmp_path / "run", *OPTIONS, "--data", data))
    check_the_end(tmp_path / "run", hashes)


def test_a_second_process_in_the_same_folder_is_told(unbroken, tmp_path):
    folder, data = tmp_path / "run", unbroken[0]
    first = killable.start(folder, "--steps", "1000000", "--save-every", "1", "--data", data)
    while not (folder / "checkpoints/last.safetensors").exists():
        assert first.is_alive(), first.said.read_text()
        time.sleep(0.02)
    second = killable.start(folder, *OPTIONS, "--data", data)
    second.join(120)
    said = second.said.read_text()
    assert second.exitcode == 2 and "Traceback" not in said
    assert f"another process is training into {folder}. Stop it first, or give another --out." in said
    elsewhere = killable.start(tmp_path / "other", "--steps", "1", "--data", data)
    finish(elsewhere)
    assert first.is_alive()
    first.kill()
    first.join()
    finish(killable.start(folder, *OPTIONS, "--data", data))  # the lock went with its holder


# ---------------------------------------------------------------- a disk that takes nothing


@pytest.fixture
def guest():
    """A folder that all may read, and a way to act as somebody who may not write there, even where the tests are
    root's, for whom nothing is read-only."""
    if sys.platform == "win32":
        pytest.skip("there, a folder's attribute does not keep files from being made in it")
    root = os.geteuid() == 0

    def close(folder):
        folder.chmod(0o755 if root else 0o555)
        if root:
            os.seteuid(65534)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder, close
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


@pytest.mark.parametrize(
    "closed, sentence", [("run", "cannot be written to"), ("run/checkpoints", "could not be saved")]
)
def test_a_read_only_folder_is_one_sentence_and_the_checkpoint_survives(closed, sentence, guest, monkeypatch, capsys):
    folder, close = guest
    monkeypatch.setitem(main.PRESETS, "tiny", main.replace(main.TINY, channels=8, groups=1))
    monkeypatch.setattr(main, "measure_setups", lambda model: {main.Setup(): 1e-3})
    monkeypatch.setattr(main, "write_grid", lambda *arguments: None)
    monkeypatch.setattr(main, "stop_flag", list)

    def train(steps):
        options = ["--data", data, "--out", str(folder / "run"), "--steps", steps, "--save-every", "1"]
        return main.main(["--preset", "tiny", "--batch-size", "4", "--device", "cpu", *options])

    data = write_images(folder / "images")
    assert train("2") == 0
    path = folder / "run/checkpoints/last.safetensors"
    before = path.read_bytes()
    if closed == "run/checkpoints":
        for other in (folder / "run", folder / "run/log.csv", folder / "run/training.lock"):
            other.chmod(0o777)
    close(folder / closed)
    assert train("4") == 1
    said = capsys.readouterr().err
    assert sentence in said and "Permission denied" in said and "Traceback" not in said
    with pytest.raises(OSError, match=r"could not be saved .* unchanged"):
        save_checkpoint(folder / closed / "model.safetensors", {"x": torch.zeros(1)}, {})
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------- files that mean harm


class Payload:
    """Unpickled, it makes a folder: it could as well delete one."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["last.pt", "last.safetensors"])
@pytest.mark.parametrize("kind", ["torch", "torch, old", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(kind, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, harm = tmp_path / "run/checkpoints" / name, tmp_path / "harm"
    path.parent.mkdir(parents=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Payload(str(harm))}))
    else:
        torch.save({"model": Payload(str(harm))}, path, _use_new_zipfile_serialization=kind == "torch")
    if kind != "pickle":  # it works where one trusts it
        torch.load(shutil.copy(path, tmp_path / "copy.pt"), weights_only=False)
        harm.rmdir()

    data, ddpm = shapes(10), DDPM(linear_betas())
    for load in (
        load_checkpoint,
        load_model,
        lambda path: export_model(path, tmp_path / "slim.safetensors"),
        lambda path: load_run(path, ddpm, data, TrainConfig(), torch.device("cpu")),
    ):
        with pytest.raises(ValueError, match="not a checkpoint"):
            load(path)
    commands = [["sample", "--checkpoint", str(path)], ["--init-from", str(path), "--out", "new"], ["--out", "run"]]
    for words in commands if path.suffix == ".safetensors" else commands[:2]:
        assert main.main([*words, *(["--data", "shapes"] if words[0] != "sample" else [])]) == 2
        assert f"{name} is truncated or not a checkpoint" in capsys.readouterr().err
    assert not harm.exists() and not (tmp_path / "slim.safetensors").exists()


# ---------------------------------------------------------------- a folder of ten thousand odd files


def prototypes(folder):
    """Good and bad files by name, a few of each kind."""
    rng = np.random.default_rng(0)
    grey, colours = rng.integers(0, 256, (40, 30), np.uint8), rng.integers(0, 256, (40, 30, 3), np.uint8)
    photo = Image.fromarray(colours)
    films = [Image.fromarray(np.full((32, 32, 3), shade, np.uint8)) for shade in (10, 120, 230)]
    good = {
        "plain.png": (photo, {}),
        "plain.jpg": (photo, {}),
        "grey.jpg": (Image.fromarray(grey), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "cmyk.tif": (photo.convert("CMYK"), {}),
        "sixteen bits.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "sixteen bits.tif": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "animated.gif": (films[0], {"save_all": True, "append_images": films[1:]}),
        "animated.png": (films[0], {"save_all": True, "append_images": films[1:]}),
        "palette.gif": (photo.convert("P"), {}),
        "alpha.png": (photo.convert("RGBA"), {}),
        "one pixel.bmp": (photo.crop((0, 0, 1, 1)), {}),
        "progressive.jpg": (photo, {"progressive": True}),
    }
    for name, (picture, options) in good.items():
        picture.save(folder / name, **options)
    photo.resize((200, 200)).save(folder / "cut.png")
    photo.resize((200, 200)).save(folder / "cut.jpg")
    bad = {
        "zero bytes.png": b"",
        "zero bytes.jpg": b"",
        "cut.png": (folder / "cut.png").read_bytes()[:2000],
        "cut.jpg": (folder / "cut.jpg").read_bytes()[:2000],
        "text.png": b"<html>404: no such image</html>",
        "noise.gif": rng.bytes(500),
        "signature alone.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    return sorted(good), sorted(bad)


def test_of_ten_thousand_odd_files_every_good_one_is_loaded_and_every_bad_one_named_once(tmp_path):
    (tmp_path / "kinds").mkdir()
    good, bad = prototypes(tmp_path / "kinds")
    classes = ["cat", "ein Hund", "птица", "馬", "ضفدع", "ship 🚢"]
    stems = ["photo", "my photo (1)", "фото", "写真", "صورة", "été", "a,b", "100%", "%s {}", "🐎"]
    folder, expected = tmp_path / "data", {}  # file -> the prototype it is a copy of
    for name in classes:
        (folder / name).mkdir(parents=True)
    for i in range(10_000):
        kind = (bad if i % 5 == 0 else good)[i // 5 % (len(bad) if i % 5 == 0 else len(good))]
        path = folder / classes[i % len(classes)] / f"{stems[i // 7 % len(stems)]} {i:05d}{Path(kind).suffix}"
        expected[path.relative_to(folder).as_posix()] = kind
        try:
            os.link(tmp_path / "kinds" / kind, path)
        except OSError:  # a disk without hard links
            shutil.copy(tmp_path / "kinds" / kind, path)
    wide = folder / "cat" / "wide.png"  # 20,000 pixels wide, and one 20,000 high too: a decompression bomb
    Image.new("RGB", (20_000, 64), (10, 200, 30)).save(wide)
    Image.new("1", (20_000, 20_000)).save(folder / "cat" / "bomb.png")

    with pytest.warns(UserWarning) as caught:
        found = load_images(folder)
    wrong = [name for name, kind in expected.items() if kind in bad] + ["cat/bomb.png"]
    assert len(caught) == 1 and len(found) == 10_002 - len(wrong) and len(wrong) == 2001
    message = str(caught[0].message)
    assert message.startswith(f"{len(wrong)} of 10002 images")
    assert [name for name in wrong if message.count(name) != 1] == []
    assert message.count(".png") + message.count(".jpg") + message.count(".gif") == len(wrong)

    # each good file became the picture that its prototype becomes alone
    (tmp_path / "alone/kinds").mkdir(parents=True)
    for kind in good:
        shutil.copy(tmp_path / "kinds" / kind, tmp_path / "alone/kinds")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = dict(zip(good, load_images(tmp_path / "alone").images, strict=True))
    names = sorted((Path(name) for name in [*expected, "cat/wide.png"] if name not in wrong), key=lambda p: p.parts)
    order = {name: i for i, name in enumerate(found.class_names)}
    for path, image, label in zip(names, found.images, found.labels.tolist(), strict=True):
        assert label == order[path.parts[0]]
        if path.name == "wide.png":
            assert (image == torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None]).all()
        else:
            assert torch.equal(image, alone[expected[path.as_posix()]]), path
