"""Chapter 04: images, as ONE uint8 tensor in memory.

All of CIFAR-10 is 154 MB: small enough to keep whole, index directly, and scale batch by batch.
The images come from CIFAR-10 through torchvision, from any folder of images, or from the built-in
shapes, which need neither disk nor network.
"""

import math
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS

from .guards import _check_floats, _check_generator, _check_int, _check_seed, _check_tensor

SIZE = 32  # pixels, height and width of every image
SHAPES = ("disc", "ring", "square", "triangle", "star", "cross", "diamond", "crescent", "heart", "stripes")
_EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif")  # what ImageFolder reads, and the other usual ones
_TIMEOUT = 15.0  # seconds that a server may be silent; torchvision sets no limit of its own


@dataclass(frozen=True, eq=False)
class ImageSet:
    images: Tensor  # (N, 3, 32, 32) uint8
    labels: Tensor  # (N,) long: indices into class_names
    class_names: tuple[str, ...]
    source: str  # which images these are, to stand in a sentence: "CIFAR-10", "folder birds", "built-in shapes"

    def __post_init__(self):
        _check_tensor("images", self.images)
        _check_tensor("labels", self.labels)
        if self.images.dtype != torch.uint8 or self.labels.dtype != torch.long:
            kinds = f"{self.images.dtype} and {self.labels.dtype}"
            raise TypeError(f"images must be uint8, 0...255, and labels long, not {kinds}.")
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"images must have the shape (N, C, H, W) and labels (N,), not {shapes}.")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(f"labels must lie in 0...{len(self.class_names) - 1}, as class_names has so many.")

    def __len__(self) -> int:
        return len(self.images)


def load_images(source: str | Path = "auto", split: str = "train", root: str | Path = "data") -> ImageSet:
    """The images of one split, "train" or "test".

    source: "cifar10", "shapes" or a folder asks for exactly that. "auto" takes the first to be had of: what
    $DDPM_DATA asks for in the same words; CIFAR-10; the shapes. It prints what it took, and why, if that is the shapes.
    root: where CIFAR-10 lies (torchvision's cifar-10-batches-py), or is put once torchvision has downloaded it.
    A folder holds class subfolders of images, or train/ and test/ which hold class subfolders; any size and
    mode is brought to 32x32 RGB. Files that can't be read are named in one warning and left out.
    Raises ValueError for a bad split or a folder without readable images, FileNotFoundError for a missing
    folder or split, OSError where CIFAR-10 can't be had. A bad $DDPM_DATA is an error too.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}.')
    if source == "":
        raise ValueError('source must be "auto", "cifar10", "shapes" or a folder, not an empty string.')
    if source == "auto":
        return _load_auto(split, Path(root))
    if source == "cifar10":
        return _load_cifar10(split, Path(root))
    if source == "shapes":
        return _load_shapes(split)
    return _load_folder(Path(source).expanduser(), split)


def to_float(images: Tensor) -> Tensor:
    """uint8 0...255 -> float32 in [-1, 1], any shape: what the network sees. Raises TypeError for another dtype."""
    _check_tensor("images", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, 0...255, not {images.dtype}.")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 0...255, any shape: what a screen shows. The exact inverse of to_float.

    Values outside [-1, 1] are clamped. Raises TypeError unless x is floating point, ValueError for NaN.
    """
    _check_floats("x", x)
    if x.isnan().any():
        raise ValueError("x holds NaN, which has no colour.")
    # Clamp BEFORE the cast: 256 as uint8 is 0, so noisy pixels would wrap around to coloured speckles.
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of x, (B, C, H, W), left to right with probability 1/2, drawn on the generator's device."""
    _check_tensor("x", x)
    _check_generator("generator", generator)
    if x.ndim != 4:
        raise ValueError(f"x must have the shape (B, C, H, W), not {tuple(x.shape)}.")
    flip = torch.rand(len(x), generator=generator, device=generator.device) < 0.5  # (B,)
    return torch.where(flip.to(x.device)[:, None, None, None], x.flip(-1), x)


def shapes(n: int = 5000, seed: int = 0) -> ImageSet:
    """n drawings in two colours on a soft gradient; the classes take turns: image i shows SHAPES[i % 10].

    Place, size, tilt and colours are drawn from a generator with this seed: equal arguments, equal images.
    """
    _check_int("n", n)
    _check_seed("seed", seed)
    if n < 1:
        raise ValueError(f"n, the number of images, must be at least 1, not {n}.")
    generator = torch.Generator().manual_seed(seed)
    x, y, size, tilt, hue, hue_step, night, slope = torch.rand(n, 8, generator=generator).T  # each (n,), 0...1
    labels = torch.arange(n) % len(SHAPES)

    # Pixel centres in the shape's own frame: the origin in its middle, y upwards, its radius 1, its tilt undone.
    radius = 7.0 + 4.0 * size  # pixels
    angle = (tilt - 0.5) * math.radians(50)
    reach = SIZE / 2 - 1 - 1.2 * radius  # how far its middle may lie from the image's; corners reach 1.2 radii
    pixel = torch.arange(SIZE) + 0.5 - SIZE / 2  # (32,): -15.5 ... 15.5
    dx = pixel[None, None, :] - ((2 * x - 1) * reach)[:, None, None]  # (n, 1, 32)
    dy = -pixel[None, :, None] - ((2 * y - 1) * reach)[:, None, None]  # (n, 32, 1): rows count downwards
    cos, sin = (angle.cos() / radius)[:, None, None], (angle.sin() / radius)[:, None, None]  # (n, 1, 1)
    px, py = cos * dx + sin * dy, cos * dy - sin * dx  # (n, 32, 32)

    # A pixel at distance d (in pixels, negative inside) from the edge is covered by the shape for 1/2 - d: no jaggies.
    distance = torch.empty(n, SIZE, SIZE)
    for label, name in enumerate(SHAPES[:n]):
        distance[label :: len(SHAPES)] = _signed_distance(name, px[label :: len(SHAPES)], py[label :: len(SHAPES)])
    cover = (0.5 - distance * radius[:, None, None]).clamp(0, 1)[:, None]  # (n, 1, 32, 32)

    # Lightness is set apart, and only then hues: so every pair of colours has contrast, yellow on white too.
    is_night = night < 0.4
    hue, hue_back = hue * math.tau, (hue + 0.25 + 0.5 * hue_step) * math.tau  # a quarter to three quarters of a turn
    front = _oklch(torch.where(is_night, 0.80, 0.62), torch.where(is_night, 0.14, 0.19), hue)  # (n, 3)
    back_light, back_chroma = torch.where(is_night, 0.30, 0.92), torch.where(is_night, 0.07, 0.06)
    top = _oklch(back_light + 0.10 * (slope - 0.5), back_chroma, hue_back)
    bottom = _oklch(back_light - 0.10 * (slope - 0.5), back_chroma, hue_back)
    ramp = torch.linspace(0, 1, SIZE)[None, None, :, None]  # (1, 1, 32, 1)
    back = torch.lerp(top[:, :, None, None], bottom[:, :, None, None], ramp)  # (n, 3, 32, 1)
    images = torch.lerp(back, front[:, :, None, None], cover)  # (n, 3, 32, 32), 0...1
    return ImageSet((images * 255).round().to(torch.uint8), labels, SHAPES, "built-in shapes")


def _signed_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance of the points (x, y) to the edge of a shape of radius about 1: negative inside, positive outside."""
    r = torch.hypot(x, y)
    match name:
        case "disc":
            return r - 0.9
        case "ring":
            return (r - 0.72).abs() - 0.24
        case "square":
            return _box(x, y, 0.78, 0.78)
        case "triangle":  # three edges; the third is mirrored by |x|
            return torch.maximum(-y, (math.sqrt(3) * x.abs() + y) / 2) - 0.56
        case "star":  # fold the plane onto half of one of five points, whose edge is a line from tip to notch
            fifth, tip, notch = math.tau / 5, 1.08, 0.52
            fold = (torch.remainder(torch.atan2(x, y) + fifth / 2, fifth) - fifth / 2).abs()  # 0 (tip) ... fifth / 2
            du, dv = notch * math.cos(fifth / 2) - tip, notch * math.sin(fifth / 2)
            return (dv * (r * fold.cos() - tip) - du * r * fold.sin()) / math.hypot(du, dv)
        case "cross":
            return torch.minimum(_box(x, y, 0.95, 0.29), _box(x, y, 0.29, 0.95))
        case "diamond":  # taller than wide: a tilted square must not pass for one
            return (x.abs() + 0.58 * y.abs() - 0.6) / math.hypot(1, 0.58)
        case "crescent":
            return torch.maximum(r - 0.98, 0.78 - torch.hypot(x - 0.46, y - 0.16))
        case "heart":  # a square on its corner, and a disc on each of its upper edges
            half, lift = 0.86, y + 0.1  # half its diagonal
            lobe = torch.hypot(x.abs() - half / 2, lift - half / 2) - half / math.sqrt(2)
            return torch.minimum(lobe, (x.abs() + lift.abs() - half) / math.sqrt(2))
        case "stripes":  # three bars: the plane folded about the two gaps
            return _box(x, (y.abs() - 0.32).abs() - 0.32, 0.9, 0.18)
    raise ValueError(f"no shape is called {name!r}.")


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _oklch(lightness: Tensor, chroma: Tensor, hue: Tensor) -> Tensor:
    """Colours, each (n,), of equal perceived lightness at every hue -> (n, 3) sRGB in 0...1. Ottosson 2020, Oklab."""
    a, b = chroma * hue.cos(), chroma * hue.sin()
    to_lms = torch.tensor([[1, 0.3963378, 0.2158038], [1, -0.1055613, -0.0638542], [1, -0.0894842, -1.2914855]])
    to_rgb = torch.tensor(
        [[4.0767417, -3.3077116, 0.2309699], [-1.2684380, 2.6097574, -0.3413194], [-0.0041961, -0.7034186, 1.7076147]]
    )
    rgb = ((torch.stack([lightness, a, b], dim=1) @ to_lms.T) ** 3 @ to_rgb.T).clamp(0, 1)  # linear light
    return torch.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


def _load_auto(split: str, root: Path) -> ImageSet:
    wanted = os.environ.get("DDPM_DATA", "auto")
    if wanted not in ("", "auto"):
        try:
            found = load_images(wanted, split, root)
        except (OSError, ValueError) as error:
            raise type(error)(f"$DDPM_DATA: {error}") from error
    else:
        try:
            found = _load_cifar10(split, root)
        except OSError as error:
            print(f"NOTICE: these are not photographs but built-in shapes. {error}")
            found = _load_shapes(split)
    print(f"Images: {found.source}, {split} split, {len(found):,} images in {len(found.class_names)} classes.")
    return found


def _load_shapes(split: str) -> ImageSet:
    return shapes(5000, seed=0) if split == "train" else shapes(1000, seed=1)


def _load_cifar10(split: str, root: Path) -> ImageSet:
    tarball = root / CIFAR10.filename
    had_root, had_tarball, timeout = root.exists(), tarball.exists(), socket.getdefaulttimeout()
    cifar = None
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        cifar = CIFAR10(root, train=split == "train", download=True)  # downloads only what is not there
    except (OSError, RuntimeError, HTTPException) as error:
        raise OSError(
            f"CIFAR-10 could not be had, because {_reason(error)}: connect to a network, or put {tarball.name} "
            f'or the folder {CIFAR10.base_folder} into {root}, or ask for load_images("shapes").'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
        if cifar is None:  # torchvision leaves half a download behind, after the Stop button too
            if not had_tarball and tarball.exists():
                tarball.unlink()
            if not had_root:
                with suppress(OSError):
                    root.rmdir()
    images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return ImageSet(images, torch.tensor(cifar.targets), tuple(cifar.classes), "CIFAR-10")


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"its server answered {error.code}"
    if isinstance(getattr(error, "reason", error), TimeoutError):  # URLError holds what went wrong as its reason
        return f"its server was silent for {_TIMEOUT:g} s"
    if isinstance(error, URLError):
        return "its server could not be reached"
    if isinstance(error, RuntimeError):
        return "the file arrived damaged"
    return f"the download failed ({getattr(error, 'strerror', None) or error})"


def _load_folder(folder: Path, split: str) -> ImageSet:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder." if folder.exists() else f"There is no folder {folder}.")
    home, names = folder, _subfolders(folder)
    if not names:
        content = "no class subfolders" if any(folder.iterdir()) else "nothing: it is empty"
        raise ValueError(f"{folder} holds {content}. Images are looked for in class subfolders, such as {folder}/cat.")
    if "train" in names and (train_names := _subfolders(folder / "train")):
        test_names = _subfolders(folder / "test") if "test" in names else []
        if split == "test" and not test_names:
            raise FileNotFoundError(f"{folder} has no test/ with class subfolders, so it has no test split.")
        # Both splits number the classes of both, or a class that one of them lacks would shift the labels.
        home, names = folder / split, sorted({*train_names, *test_names})
    elif split == "test":
        raise FileNotFoundError(f"{folder} has no train/ and test/ with class subfolders, so it has no test split.")

    folders = [(home / name, label) for label, name in enumerate(names) if (home / name).is_dir()]
    files = [(path, label) for class_folder, label in folders for path in _image_files(class_folder)]
    if not files:
        raise ValueError(f"{home} holds no images in its class subfolders (files ending in {' '.join(_EXTENSIONS)}).")
    pictures, labels, bad = [], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's own warnings do not say which file they are about
        for path, label in files:  # one by one: threads, sharing Python's lock, take longer over small images
            picture = _read_image(path)
            if picture is None:
                bad.append(path.relative_to(folder).as_posix())
            else:
                pictures.append(picture)
                labels.append(label)
    if bad:
        message = f"{len(bad)} of {len(files)} images in {folder} can't be read: {', '.join(bad)}."
        if not pictures:
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
    return ImageSet(images, torch.tensor(labels), tuple(names), f"folder {folder.absolute().name}")


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> Iterator[Path]:
    """Images at any depth, in order, as ImageFolder finds them, but none that are hidden (.ipynb_checkpoints)."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in _EXTENSIONS:
            yield path
        elif path.is_dir():
            yield from _image_files(path)


def _read_image(path: Path) -> np.ndarray | None:
    """(32, 32, 3) uint8: the middle square of the picture, scaled down smoothly. None if it can't be read."""
    try:
        with Image.open(path) as picture:
            picture.draft(None, (2 * SIZE, 2 * SIZE))  # let a large JPEG be decoded at a fraction of its size
            picture = ImageOps.exif_transpose(picture)  # a phone stores "this side up" beside the pixels
            if picture.mode.startswith("I"):  # 16 bits of grey; PIL would clip them at 255
                picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).round().astype(np.uint8))
            elif picture.has_transparency_data:  # on white, or invisible pixels would show their hidden colours
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.asarray(ImageOps.fit(picture.convert("RGB"), (SIZE, SIZE), Image.Resampling.BICUBIC))
    except Exception:  # a damaged file makes PIL raise nearly anything: OSError, SyntaxError, a decompression bomb
        return None
