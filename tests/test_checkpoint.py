"""What is saved comes back, and whatever is not a whole checkpoint is refused in one sentence."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ddpm_utils.checkpoint import export_model, load_checkpoint, load_model, model_info, save_checkpoint
from ddpm_utils.diffusion import linear_betas
from ddpm_utils.unet import TINY, UNet


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = UNet(replace(TINY, num_classes=2))
    torch.nn.init.normal_(model.conv_out.weight)
    tensors = {f"ema.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {**tensors, "betas": linear_betas()}, {**model_info(model, ("cat", "dog")), "step": 7})
    return path, model


def test_a_model_comes_back_as_it_was(saved):
    path, model = saved
    trained = load_model(path)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 999]), torch.tensor([0, 2])
    assert torch.equal(trained.model(x, t, y), model.eval()(x, t, y))
    assert trained.class_names == ("cat", "dog") and trained.info["step"] == 7
    assert torch.equal(trained.ddpm.betas, linear_betas()) and not trained.model.training


def test_sampling_uses_the_average_and_not_the_last_weights(tmp_path):
    """A training checkpoint holds both."""
    average, latest = UNet(TINY).eval(), UNet(TINY)
    for model, bias in ((average, 1.0), (latest, 2.0)):
        torch.nn.init.constant_(model.conv_out.bias, bias)  # what a new network answers
    tensors = {f"ema.{name}": value for name, value in average.state_dict().items()}
    tensors |= {f"model.{name}": value for name, value in latest.state_dict().items()}
    save_checkpoint(tmp_path / "run", {**tensors, "betas": linear_betas()}, model_info(average, ()))
    model = load_model(tmp_path / "run").model
    assert (model(torch.randn(1, 3, 32, 32), torch.tensor([7])) == 1).all()


def test_the_exported_file_is_small_and_close(saved, tmp_path):
    path, model = saved
    slim = tmp_path / "slim.safetensors"
    export_model(path, slim)
    assert slim.stat().st_size < 0.55 * path.stat().st_size
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([500])
    expected = model.eval()(x, t)
    assert (load_model(slim).model(x, t) - expected).abs().max() < 0.01 * expected.abs().max()
    assert torch.equal(load_model(slim).ddpm.betas, linear_betas())  # the schedule is not rounded


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
            load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file(saved, keep):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        load_checkpoint(path)


def test_a_file_that_is_something_else(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("not a checkpoint at all, but long enough to hold a header's length")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(path)


def test_a_flipped_byte_is_found(saved):
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_any_flipped_bit_is_found(tmp_path):
    """In the numbers, their names, and what the file says of itself: step, settings, classes."""
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, {"x": torch.arange(3.0)}, {"step": 7, "data": ["CIFAR-10", 50000]})
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):  # two or three of every byte
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"small\.safetensors (is|was) "):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert load_checkpoint(path)[1]["step"] == 7


def test_a_file_from_before_the_texts_hash_can_still_be_read(saved):
    path, _ = saved
    tensors, info = load_checkpoint(path)
    with safe_open(path, "pt") as file:
        text = file.metadata()["ddpm_utils"]
    save_file(tensors, path, metadata={"ddpm_utils": text})
    assert load_checkpoint(path)[1] == info


def test_a_newer_format_says_so(saved):
    path, _ = saved
    tensors, _ = load_checkpoint(path)
    with safe_open(path, "pt") as file:
        info = json.loads(file.metadata()["ddpm_utils"])
    save_file(tensors, path, metadata={"ddpm_utils": json.dumps({**info, "format": 99})})
    with pytest.raises(ValueError, match="newer version"):
        load_checkpoint(path)


def test_a_checkpoint_without_a_model_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    unet = {"unet": {"channels": 32, "groups": 2}}
    for info in ({"anything": 1}, unet, {"unet": {"channels": "wide"}}, {"unet": 3}):
        save_checkpoint(path, {"ema.x": torch.zeros(1), "betas": linear_betas()}, info)
        with pytest.raises(ValueError, match="does not hold a complete model"):
            load_model(path)


def test_a_full_disk_leaves_the_previous_checkpoint(saved):
    """A limit on the size of files stands for the full disk: the write fails in the operating system, midway."""
    path, _ = saved
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be saved .* unchanged"):
            save_checkpoint(path, {"x": torch.zeros(1_000_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="could not be saved"):
        save_checkpoint(tmp_path / "file" / "model.safetensors", {"x": torch.zeros(1)}, {})
