import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder

from ddpm_utils import data
from ddpm_utils.data import SHAPES, load_images, random_flip, shapes, to_float, to_uint8


@pytest.fixture(autouse=True)
def _no_real_network(monkeypatch, tmp_path):
    """Every test starts in an empty folder, with CIFAR-10's address on a port of this machine where nobody answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDPM_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(data, "_TIMEOUT", 5.0)


# ---------------------------------------------------------------- conversions


def test_every_byte_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    x = to_float(every)
    assert x.dtype == torch.float32
    assert x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), every)
    assert torch.equal(to_uint8(x.double()), every)


def test_to_uint8_clamps_before_the_cast_and_rounds():
    x = torch.tensor([-1e9, -1.01, 1.01, 1e9, float("inf"), -float("inf"), 0.0, 1 / 127.5 * 0.6])
    assert to_uint8(x).tolist() == [0, 0, 255, 255, 255, 0, 128, 128]


def test_conversions_name_the_argument_that_is_wrong():
    with pytest.raises(TypeError, match="images must be uint8"):
        to_float(torch.zeros(2))
    with pytest.raises(TypeError, match="x must hold floats"):
        to_uint8(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_random_flip_mirrors_whole_images_about_half_of_the_time():
    x = torch.rand(1000, 3, 4, 5)
    y = random_flip(x, torch.Generator().manual_seed(0))
    same = (y == x).flatten(1).all(1)
    mirrored = (y == x[:, :, :, [4, 3, 2, 1, 0]]).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 430 < mirrored.sum() < 570
    assert torch.equal(y, random_flip(x, torch.Generator().manual_seed(0)))
    assert random_flip(x.to(torch.uint8), torch.Generator()).dtype == torch.uint8


# ---------------------------------------------------------------- shapes


def test_shapes_are_balanced_interleaved_and_deterministic():
    torch.manual_seed(5)
    global_state = torch.get_rng_state()
    a = shapes(60, seed=3)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert a.images.shape == (60, 3, 32, 32) and a.images.dtype == torch.uint8 and a.images.is_contiguous()
    assert a.labels.tolist() == list(range(10)) * 6 and a.labels.dtype == torch.long
    assert a.class_names == SHAPES and len(set(SHAPES)) == 10 and len(a) == 60
    assert torch.equal(a.images, shapes(60, seed=3).images)
    assert not torch.equal(a.images, shapes(60, seed=4).images)
    assert len(a.images.flatten(1).unique(dim=0)) == 60
    assert len(shapes(3)) == 3
    with pytest.raises(ValueError, match="n, the number of images"):
        shapes(0)


def test_shapes_lie_wholly_inside_and_stand_out_from_the_background():
    images = shapes(1000, seed=9).images.float()
    border = images[:, :, :, :1]  # the background depends on the row alone
    assert (images[:, :, :, 31:] == border).all(), "a shape touches the left or right edge"
    assert (images[:, :, [0, 31]] == border[:, :, [0, 31]]).all(), "a shape touches the top or bottom edge"
    luma = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    contrast = ((images - border) * luma).sum(1).abs().flatten(1).amax(1)  # (n,), of 255
    assert contrast.min() > 80
    share = ((images - border).abs().amax(1) > 20).float().mean((1, 2))
    assert share.min() > 0.03 and share.max() < 0.6


def test_shape_areas_match_geometry():
    drawn = shapes(1000, seed=2)
    images = drawn.images.float()
    border, middle = images[:, :, :, :1], images.flatten(2)
    far = (images - border).abs().sum(1).flatten(1).argmax(1)  # a pixel that the shape covers wholly
    front = middle[torch.arange(len(images)), :, far][:, :, None, None]
    cover = ((images - border) * (front - border)).sum(1) / ((front - border) ** 2).sum(1)  # (n, 32, 32), 0...1
    area = cover.sum((1, 2))
    # A ring of radii a > b and a disc of radius r: area over bounding box squared is pi/4 (1 - b^2/a^2), and pi/4.
    width = (cover.sum(1) > 0.02).sum(1)
    fill = [(area[drawn.labels == k] / width[drawn.labels == k] ** 2).mean() for k in range(10)]
    assert fill[SHAPES.index("disc")] == pytest.approx(np.pi / 4, abs=0.09)
    assert fill[SHAPES.index("ring")] == pytest.approx(np.pi / 4 * (1 - (0.48 / 0.96) ** 2), abs=0.07)


def test_a_nearest_neighbour_tells_the_classes_apart():
    def silhouettes(drawn):
        images = drawn.images.float()
        masks = (images - images[:, :, :, :1]).abs().sum(1) > 60  # (n, 32, 32)
        found = []
        for mask in masks:
            y, x = mask.nonzero().T
            crop = mask[y.min() : y.max() + 1, x.min() : x.max() + 1].float()[None, None]
            found.append(torch.nn.functional.interpolate(crop, (16, 16), mode="bilinear").flatten())
        return torch.stack(found)

    known, asked = shapes(1000, seed=0), shapes(200, seed=1)
    guess = known.labels[torch.cdist(silhouettes(asked), silhouettes(known)).argmin(1)]
    assert (guess == asked.labels).float().mean() > 0.95


def test_load_shapes_takes_other_drawings_for_the_test_split(capsys):
    train, test = load_images("shapes"), load_images("shapes", split="test")
    assert (len(train), len(test)) == (5000, 1000)
    assert torch.equal(train.images, shapes(5000, 0).images) and torch.equal(test.images, shapes(1000, 1).images)
    assert train.source == "built-in shapes" and capsys.readouterr().out == ""


# ---------------------------------------------------------------- folders


def save(path, colour=(200, 100, 50), size=(32, 32), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def random_picture(seed, size=(32, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_a_folder_is_read_as_imagefolder_reads_it(tmp_path):
    for i, name in enumerate(["dog/b.png", "cat/a.png", "dog/deeper/c.png", "cat/Z.PNG", "emu/x.bmp"]):
        (tmp_path / "birds" / name).parent.mkdir(parents=True, exist_ok=True)
        random_picture(i).save(tmp_path / "birds" / name)
    (tmp_path / "birds/dog/notes.txt").write_text("not an image")
    (tmp_path / "birds/README.md").write_text("not an image")
    found, wanted = load_images(tmp_path / "birds"), ImageFolder(tmp_path / "birds")
    assert found.class_names == tuple(wanted.classes)
    assert found.labels.tolist() == wanted.targets and found.labels.dtype == torch.long
    for image, (picture, _) in zip(found.images, wanted, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
    assert found.images.is_contiguous() and found.source == "folder birds"
    assert torch.equal(load_images("birds").images, found.images)  # relative, as a string


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    save(tmp_path / "cat/a.png")
    save(tmp_path / "cat/.ipynb_checkpoints/a-checkpoint.png")
    save(tmp_path / ".ipynb_checkpoints/b.png")
    (tmp_path / "cat/._a.png").write_bytes(b"what a Mac leaves on a stick")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_images(tmp_path)
    assert len(found) == 1 and found.class_names == ("cat",)


@pytest.mark.parametrize("size", [(96, 32), (300, 100), (32, 96), (900, 300)])
def test_the_middle_square_is_kept(tmp_path, size):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    parts = np.array_split(pixels, 3, axis=0 if size[1] > size[0] else 1)
    for channel, part in enumerate(parts):
        part[..., channel] = 255
    (tmp_path / "c").mkdir()
    Image.fromarray(pixels).save(tmp_path / "c/a.png")
    image = load_images(tmp_path).images[0]
    assert (image[:, 4:-4, 4:-4] == torch.tensor([0, 255, 0])[:, None, None]).all()


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_fine_pattern_is_averaged_not_sampled(tmp_path, ending):
    (tmp_path / "c").mkdir()
    checks = np.indices((320, 320)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / f"c/a.{ending}", quality=100)
    assert (load_images(tmp_path).images[0].float() - 127.5).abs().max() < 12


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (1, 400), (2000, 7)])
def test_odd_sizes_are_resized(tmp_path, size):
    save(tmp_path / "c/a.png", (10, 20, 30), size)
    assert torch.equal(load_images(tmp_path).images[0, :, 16, 16], torch.tensor([10, 20, 30], dtype=torch.uint8))


def test_every_mode_becomes_rgb(tmp_path):
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    cases = {  # file -> (picture, colour wanted)
        "grey.png": (Image.new("L", (32, 32), 100), (100, 100, 100)),
        "bits.png": (Image.new("1", (32, 32), 1), (255, 255, 255)),
        "grey16.png": (Image.fromarray(np.full((40, 40), 200 * 257, np.uint16)), (200, 200, 200)),
        "grey16.tif": (Image.fromarray(np.full((40, 40), 200 * 257, np.uint16)), (200, 200, 200)),
        "clear.png": (Image.new("RGBA", (32, 32), (255, 0, 0, 0)), (255, 255, 255)),
        "half.png": (Image.new("RGBA", (32, 32), (255, 0, 0, 128)), (255, 127, 127)),
        "opaque.png": (Image.new("RGBA", (32, 32), (1, 2, 3, 255)), (1, 2, 3)),
        "grey_alpha.png": (Image.new("LA", (32, 32), (0, 0)), (255, 255, 255)),
        "palette.png": (palette, (255, 0, 0)),
        "palette.gif": (palette, (255, 0, 0)),
        "cmyk.jpg": (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), (254, 0, 0)),
        "cmyk.tif": (Image.new("CMYK", (32, 32), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (picture, _) in cases.items():
        (tmp_path / "c" / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / "c" / name)
    palette.save(tmp_path / "c/palette_clear.png", transparency=1)
    cases["palette_clear.png"] = (palette, (255, 255, 255))
    found = load_images(tmp_path)
    assert len(found) == len(cases)
    for name, image in zip(sorted(cases), found.images, strict=True):
        wanted = torch.tensor(cases[name][1])[:, None, None]
        assert (image.int() - wanted).abs().max() <= 2, name


def test_a_phone_photo_stands_upright(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left; turned a quarter clockwise, white is on top
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "c").mkdir()
    Image.fromarray(pixels).save(tmp_path / "c/a.png", exif=exif)
    image = load_images(tmp_path).images[0]
    assert (image[:, :16] == 255).all() and (image[:, 16:] == 0).all()


def test_unreadable_images_are_each_named_once_and_the_others_loaded(tmp_path):
    buffer = io.BytesIO()
    random_picture(0, (64, 64)).save(buffer, "jpeg")
    jpeg = buffer.getvalue()
    for name in ["a/1.png", "a/3.png", "b/2.png"]:
        save(tmp_path / name)
    save(tmp_path / "b/cut.png", size=(200, 200))
    png = (tmp_path / "b/cut.png").read_bytes()
    damaged = {"a/2.png": b"", "a/text.jpg": b"hello", "b/cut.jpg": jpeg[:-300], "b/cut.png": png[: len(png) // 2]}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning) as caught:
        found = load_images(tmp_path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "4 of 7 images" in message
    for name in damaged:
        assert message.count(name) == 1
    for name in ["a/1.png", "a/3.png", "b/2.png"]:
        assert name not in message
    assert found.labels.tolist() == [0, 0, 1] and len(found) == 3
    assert caught[0].filename == __file__


def test_a_decompression_bomb_is_an_unreadable_image(tmp_path, monkeypatch):
    save(tmp_path / "a/good.png", size=(8, 8))
    save(tmp_path / "a/bomb.png", size=(64, 64))
    save(tmp_path / "a/large.png", size=(12, 12))  # PIL only warns about this one
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(UserWarning) as caught:
        found = load_images(tmp_path)
    assert len(caught) == 1 and "1 of 3" in str(caught[0].message) and "a/bomb.png" in str(caught[0].message)
    assert len(found) == 2


def test_a_folder_with_train_and_test(tmp_path):
    save(tmp_path / "train/cat/a.png", (1, 1, 1))
    save(tmp_path / "train/dog/b.png", (2, 2, 2))
    save(tmp_path / "test/dog/c.png", (3, 3, 3))  # no cat here: dog must stay number 1
    train, test = load_images(tmp_path), load_images(tmp_path, split="test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [1]
    assert train.images[:, 0, 0, 0].tolist() == [1, 2] and test.images[:, 0, 0, 0].tolist() == [3]


def test_a_folder_without_a_test_split_says_so(tmp_path):
    save(tmp_path / "flat/cat/a.png")
    save(tmp_path / "half/train/cat/a.png")
    save(tmp_path / "half/test/a.png")
    save(tmp_path / "names/train/a.png")  # two classes that happen to be called train and test
    save(tmp_path / "names/test/a.png")
    assert load_images("half").class_names == ("cat",)
    assert load_images("names").class_names == ("test", "train")
    for name in ["flat", "half", "names"]:
        with pytest.raises(FileNotFoundError, match=f"{name} has no .*no test split"):
            load_images(name, split="test")


def test_bad_folders_and_arguments(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes/cat").mkdir(parents=True)
    save(tmp_path / "loose/a.png")
    (tmp_path / "broken/cat").mkdir(parents=True)
    (tmp_path / "broken/cat/a.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="There is no folder nowhere"):
        load_images("nowhere")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_images("loose/a.png")
    with pytest.raises(ValueError, match="empty"):
        load_images("empty")
    with pytest.raises(ValueError, match="no class subfolders"):
        load_images("loose")
    with pytest.raises(ValueError, match="no images"):
        load_images("classes")
    with pytest.raises(ValueError, match=r"1 of 1 images .* can't be read: cat/a\.png"):
        load_images("broken")
    with pytest.raises(ValueError, match="split must be"):
        load_images("shapes", split="val")
    with pytest.raises(ValueError, match="source must be"):
        load_images("")


# ---------------------------------------------------------------- CIFAR-10


class Server:
    """An HTTP server on this machine that answers every GET by `answer(handler)`."""

    def __init__(self, answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                self.end_headers()

            def do_GET(self):
                answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/cifar-10-python.tar.gz"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


def send(handler, content, promised):
    handler.send_response(200)
    handler.send_header("Content-Length", str(promised))
    handler.end_headers()
    handler.wfile.write(content)
    handler.wfile.flush()


@pytest.fixture
def tarball(monkeypatch):
    """A tiny CIFAR-10 in torchvision's layout, 5 x 3 training and 4 test images; torchvision takes it for real."""
    rng = np.random.default_rng(0)
    md5 = {}
    pixels, labels = {}, {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:

        def add(name, content):
            packed = pickle.dumps(content)
            md5[name] = hashlib.md5(packed).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(packed)
            archive.addfile(info, io.BytesIO(packed))

        for name, n in [*((f"data_batch_{i}", 3) for i in range(1, 6)), ("test_batch", 4)]:
            pixels[name] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            labels[name] = rng.integers(0, 10, n).tolist()
            add(name, {"data": pixels[name], "labels": labels[name]})
        add("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    content = buffer.getvalue()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return content, pixels, labels


def check_pixels(found, rows, labels):
    assert found.images.shape == (len(rows), 3, 32, 32) and found.images.dtype == torch.uint8
    assert found.images.is_contiguous()
    for n, channel, y, x in [(0, 0, 0, 0), (1, 1, 0, 7), (2, 2, 31, 5), (len(rows) - 1, 1, 13, 30)]:
        assert found.images[n, channel, y, x] == rows[n, channel * 1024 + y * 32 + x]  # CIFAR-10's own description
    assert np.array_equal(found.images.flatten(1).numpy(), rows)
    assert found.labels.tolist() == labels and found.labels.dtype == torch.long
    assert found.class_names == tuple(f"class{i}" for i in range(10)) and found.source == "CIFAR-10"


def test_cifar10_is_downloaded_once_and_arrives_in_order(tarball, monkeypatch, tmp_path, capsys):
    content, pixels, labels = tarball
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    rows, wanted = np.concatenate([pixels[b] for b in batches]), [k for b in batches for k in labels[b]]
    with Server(lambda handler: send(handler, content, len(content))) as server:
        monkeypatch.setattr(CIFAR10, "url", server.url)
        check_pixels(load_images("cifar10", root="data"), rows, wanted)
    # The server is gone: what lies under root is used, by "cifar10" and by "auto", which says so.
    assert capsys.readouterr().out == ""
    check_pixels(load_images("cifar10", split="test"), pixels["test_batch"], labels["test_batch"])
    check_pixels(load_images("auto"), rows, wanted)
    said = capsys.readouterr().out
    assert said == "Images: CIFAR-10, train split, 15 images in 10 classes.\n"
    assert str(tmp_path) not in said


def test_a_tarball_put_in_place_by_hand_is_unpacked(tarball, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cifar-10-python.tar.gz").write_bytes(tarball[0])
    check_pixels(load_images("cifar10", "test"), tarball[1]["test_batch"], tarball[2]["test_batch"])


def test_a_batch_that_was_tampered_with_is_not_unpickled(tarball, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cifar-10-python.tar.gz").write_bytes(tarball[0])
    load_images("cifar10", "test")
    (tmp_path / "data/cifar-10-python.tar.gz").unlink()

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    for name in ("test_batch", "batches.meta"):
        whole = (tmp_path / "data/cifar-10-batches-py" / name).read_bytes()
        (tmp_path / "data/cifar-10-batches-py" / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(OSError, match="could not be had"):
            load_images("cifar10", "test")
        assert not (tmp_path / "harm").exists()
        (tmp_path / "data/cifar-10-batches-py" / name).write_bytes(whole)


def not_found(handler):
    handler.send_error(404)


def truncated(handler):
    send(handler, b"\x1f\x8b" + bytes(50_000), promised=170_498_071)


def falls_silent(handler):
    truncated(handler)
    time.sleep(1.0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (not_found, "its server answered 404"),
        (truncated, "the file arrived damaged"),
        (falls_silent, r"its server was silent for 0\.3 s"),
        (None, "its server could not be reached"),
    ],
)
def test_a_failed_download_is_told_and_leaves_nothing_behind(answer, reason, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "_TIMEOUT", 0.3)
    with Server(answer) as server:
        if answer:
            monkeypatch.setattr(CIFAR10, "url", server.url)
        with pytest.raises(OSError, match=f"could not be had, because {reason}: connect to a network, or put"):
            load_images("cifar10", root="data")
        assert not (tmp_path / "data").exists()
        assert socket.getdefaulttimeout() is None
        (tmp_path / "data").mkdir()  # one that was there stays
        found = load_images("auto", split="test")
    assert list((tmp_path / "data").iterdir()) == []
    assert found.source == "built-in shapes" and len(found) == 1000
    notice, said = capsys.readouterr().out.splitlines()
    assert notice.startswith("NOTICE: ") and "CIFAR-10 could not be had" in notice and "connect to a network" in notice
    assert said == "Images: built-in shapes, test split, 1,000 images in 10 classes."


def test_a_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(data, "_TIMEOUT", 0.2)
    socket.setdefaulttimeout(33.0)
    try:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{mute.getsockname()[1]}/x.tar.gz")
            start = time.monotonic()
            with pytest.raises(OSError, match=r"silent for 0\.2 s"):
                load_images("cifar10")
            assert time.monotonic() - start < 5
        assert socket.getdefaulttimeout() == 33.0
    finally:
        socket.setdefaulttimeout(None)


def test_a_damaged_tarball_of_the_readers_own_is_not_deleted(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cifar-10-python.tar.gz").write_bytes(b"half a download")
    with pytest.raises(OSError, match="could not be reached"):
        load_images("cifar10")
    assert (tmp_path / "data/cifar-10-python.tar.gz").exists()


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"the download failed \(.+\)"):
        load_images("cifar10")
    assert (tmp_path / "data").read_text() == "a file, not a folder"


# ---------------------------------------------------------------- auto


def test_auto_takes_the_folder_named_in_the_environment(tmp_path, monkeypatch, capsys):
    save(tmp_path / "mine/cat/a.png")
    monkeypatch.setenv("DDPM_DATA", str(tmp_path / "mine"))
    assert load_images().source == "folder mine"
    said = capsys.readouterr().out
    assert said == "Images: folder mine, train split, 1 images in 1 classes.\n"
    assert load_images("shapes").source == "built-in shapes"  # exactly one was asked for: no other is looked at


def test_the_environment_can_ask_for_the_shapes(monkeypatch, capsys):
    monkeypatch.setenv("DDPM_DATA", "shapes")
    assert load_images().source == "built-in shapes"
    assert "NOTICE" not in capsys.readouterr().out  # they were asked for


@pytest.mark.parametrize(("name", "error"), [("nowhere", FileNotFoundError), ("empty", ValueError)])
def test_a_bad_folder_in_the_environment_is_an_error_not_a_fallback(name, error, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DDPM_DATA", str(tmp_path / name))
    with pytest.raises(error, match=r"\$DDPM_DATA: .*" + name):
        load_images()
    assert capsys.readouterr().out == ""


def test_an_image_set_cannot_be_changed_by_mistake():
    drawn = shapes(10)
    with pytest.raises(AttributeError):
        drawn.images = None
