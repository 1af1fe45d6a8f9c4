"""The symbol table of notebook 00: every name exists, every shape is what the code gives."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

import ddpm_utils
from ddpm_utils import diffusion, embedding, evaluation, sampling, unet
from ddpm_utils.diffusion import DDPM, linear_betas
from ddpm_utils.sampling import noise_model, sample_ddim, sample_ddpm
from ddpm_utils.unet import UNet, UNetConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "00_start_here.ipynb"
HEADER = ["symbol", "meaning", "name in code", "shape", "Ho et al. 2020", "chapter"]
PARAMETER = re.compile(r"parameter `(\w+)` of `([\w.]+)`")
VALUE = re.compile(r"value (\d) of `([\w.]+)`")
NAME = re.compile(r"`([\w.]+)`")
SIZES = {"B": 2, "T": 7, "dim": 6, "steps": 3, "N": 4}

# What each chapter's file defines; a symbol must come from one of them.
MODULES = {
    "01": (embedding,),
    "02": (diffusion,),
    "03": (unet,),
    "04": (diffusion, unet),
    "05": (sampling, diffusion),
    "06": (sampling,),
    "07": (sampling,),
    "08": (evaluation,),
}


def read_table() -> list[list[str]]:
    """The rows of the table, without its head: one list of cells each."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    lines = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "markdown").splitlines()
    tables = [[part.strip() for part in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    start = tables.index(HEADER)
    rows = []
    for row in tables[start + 2 :]:
        if len(row) != len(HEADER):  # the next table of the notebook
            break
        rows.append(row)
    return rows


ROWS = read_table()
IDS = [f"{i}-{re.sub(r'[^A-Za-z0-9_.]+', '-', row[2]).strip('-')}" for i, row in enumerate(ROWS)]


def resolve(dotted: str) -> object:
    """The object that a name such as UNet.forward stands for: a public name of a chapter's file, and its members."""
    first, *members = dotted.split(".")
    homes = [module for modules in MODULES.values() for module in modules if hasattr(module, first)]
    assert homes, f"no chapter's file has {first}"
    found = getattr(homes[0], first)
    for member in members:
        if found is DDPM and not hasattr(DDPM, member):
            found = DDPM(linear_betas(3))  # tables are attributes of an instance
        assert hasattr(found, member) or member in getattr(found, "_fields", ()), f"{dotted} does not exist"
        found = getattr(found, member)
    return found


def parse(cell: str) -> tuple[str, str, str]:
    """("parameter", argument, owner), ("value", index, owner) or ("name", "", name)."""
    for kind, pattern in (("parameter", PARAMETER), ("value", VALUE)):
        if match := pattern.fullmatch(cell):
            return kind, *match.groups()
    match = NAME.fullmatch(cell)
    assert match, f"{cell} is not a name in the form that the text above the table describes"
    return "name", "", match.group(1)


@pytest.fixture(scope="module")
def shapes() -> dict[tuple[str, str, str], object]:
    """What every row is about, by its parsed name, taken from calls of the code with SIZES."""
    g = torch.Generator().manual_seed(0)
    B, T, dim = SIZES["B"], SIZES["T"], SIZES["dim"]
    ddpm = DDPM(linear_betas(T, 0.01, 0.3))
    model = UNet(UNetConfig(8, (1, 2), 1, (False, True), groups=2, num_classes=10)).eval()
    x0, xt, eps, noise, x_T = torch.randn(5, B, 3, 32, 32, generator=g)
    t, y = torch.tensor([0, T - 1]), torch.tensor([3, 10])
    guidance, eta = 2.0, 0.5
    variances = diffusion.beta_variances(ddpm)
    eps_model = noise_model(model, y, guidance)
    drawn = list(sample_ddpm(eps_model, ddpm, x_T, steps=2, generator=g))
    ddim = list(sample_ddim(eps_model, ddpm, x_T, steps=2, eta=eta, generator=g))
    assert drawn[-1].xt.shape == ddim[-1].xt.shape == x_T.shape
    posterior = ddpm.q_posterior(x0, xt, t)
    images = torch.randint(256, (SIZES["N"], 3, 32, 32), generator=g, dtype=torch.uint8)
    seen = evaluation.look_at(evaluation.load_classifier()[0], images)
    found = {
        ("parameter", "t", "DDPM.q_sample"): t,
        ("parameter", "x0", "DDPM.q_sample"): x0,
        ("parameter", "eps", "DDPM.q_sample"): eps,
        ("parameter", "xt", "UNet.forward"): xt,
        ("parameter", "y", "UNet.forward"): y,
        ("parameter", "x_T", "sample_ddpm"): x_T,
        ("parameter", "noise", "DDPM.p_sample"): noise,
        ("parameter", "variances", "DDPM.p_sample"): variances,
        ("parameter", "guidance", "noise_model"): guidance,
        ("parameter", "eta", "sample_ddim"): eta,
        ("value", "0", "DDPM.q_posterior"): posterior[0],
        ("value", "1", "DDPM.q_posterior"): posterior[1],
        ("name", "", "DDPM.T"): ddpm.T,
        ("name", "", "DDPM.betas"): ddpm.betas,
        ("name", "", "DDPM.alphas"): ddpm.alphas,
        ("name", "", "DDPM.alpha_bars"): ddpm.alpha_bars,
        ("name", "", "DDPM.q_sample"): ddpm.q_sample(x0, t, eps),
        ("name", "", "DDPM.predict_x0"): ddpm.predict_x0(xt, t, eps),
        ("name", "", "DDPM.p_sample"): ddpm.p_sample(x0, xt, t, noise, variances),
        ("name", "", "DDPM.loss"): ddpm.loss(eps_model, x0, t, eps),
        ("name", "", "sinusoidal_embedding"): embedding.sinusoidal_embedding(t, dim),
        ("name", "", "UNet.forward"): model(xt, t, y),
        ("name", "", "Step.x0_hat"): drawn[0].x0_hat,
        ("name", "", "spaced_timesteps"): sampling.spaced_timesteps(T, SIZES["steps"]),
        ("name", "", "log_snr_timesteps"): sampling.log_snr_timesteps(ddpm, SIZES["steps"]),
        ("name", "", "Seen.features"): seen.features,
        ("name", "", "frechet_distance"): evaluation.frechet_distance(seen.features, seen.features.flip(1)),
        ("name", "", "beta_variances"): variances,
        ("name", "", "posterior_variances"): diffusion.posterior_variances(ddpm),
    }
    # Were a call to accept any shape for an argument, the values above would prove nothing: each rejects another.
    with pytest.raises(ValueError):
        ddpm.q_sample(x0, t[:1], eps)
    with pytest.raises(ValueError):
        ddpm.q_sample(x0, t, eps[:1])
    with pytest.raises(ValueError):
        ddpm.p_sample(x0, xt, t, noise[:1], variances)
    with pytest.raises(ValueError):
        ddpm.p_sample(x0, xt, t, noise, variances[:1])
    with pytest.raises(ValueError):
        model(xt, t, y[:1])
    return found


def test_the_table_is_there_and_no_row_is_twice():
    assert len(ROWS) >= 20
    names = [row[2] for row in ROWS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_name_exists(row):
    kind, part, owner = parse(row[2])
    found = resolve(owner)
    if kind == "parameter":
        assert part in inspect.signature(found).parameters, f"{owner} has no parameter {part}"
    if kind == "value":
        assert str(inspect.signature(found).return_annotation).count("Tensor") > int(part)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_shape_is_what_the_code_gives(row, shapes):
    key = parse(row[2])
    assert key in shapes, f"{row[2]} is new: add what it stands for to the shapes of this test"
    value = shapes[key]
    if row[3] == "number":
        assert isinstance(value, int | float)
        return
    assert re.fullmatch(r"`\((\w+, ?)+(\w+)?\)`", row[3]), f"{row[3]} is not a shape"
    wanted = tuple(SIZES[part] if part in SIZES else int(part) for part in re.findall(r"\w+", row[3]))
    assert tuple(value.shape) == wanted


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_equation_is_the_one_that_the_code_states(row):
    form = r"eq\. \d+|Algorithm [12], lines? \d( and \d)?|section \d(\.\d)?|appendix [A-D]|not there"
    assert re.fullmatch(form, row[4]), f"{row[4]} is not a place in the paper"
    kind, _, owner = parse(row[2])
    text = inspect.getdoc(resolve(owner)) or ""
    stated = {number for group in re.findall(r"\beqs?\. ([\d, and]*\d)", text) for number in re.findall(r"\d+", group)}
    if kind != "parameter" and stated and row[4].startswith("eq."):  # a parameter has its own place in the paper
        assert row[4].removeprefix("eq. ") in stated
    if kind == "name" and "Algorithm" in text and row[4].startswith("Algorithm"):
        assert row[4] in text


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_chapter_exists(row):
    for chapter in row[5].split(", "):
        assert list((ROOT / "notebooks").glob(f"{chapter}_*.ipynb")), f"there is no notebook {chapter}"


def test_what_the_symbols_say_is_so():
    ddpm = DDPM(linear_betas(50, 0.001, 0.2))
    assert torch.equal(ddpm.alphas, 1 - ddpm.betas)
    product = 1.0
    for t in range(ddpm.T):
        product *= 1 - ddpm.betas[t].item()  # alpha_0 ... alpha_t
        assert ddpm.alpha_bars[t].item() == pytest.approx(product, rel=1e-12)
    assert linear_betas().shape == (1000,)


def test_the_series_own_names_are_all_in_the_table():
    text = " ".join(row[2] for row in ROWS)
    for name in ("x0", "xt", "eps", "x_T", "t", "y", "noise", "variances"):
        assert f"`{name}`" in text
    methods = {name for name, _ in inspect.getmembers(DDPM, inspect.isfunction) if not name.startswith("_")}
    # predict_eps is predict_x0 turned round; shortened makes another DDPM. Neither has a symbol of its own.
    for name in methods - {"predict_eps", "shortened"}:
        assert f"`DDPM.{name}`" in text, f"DDPM.{name} is missing from the table"


def test_every_file_in_the_map_exists():
    text = NOTEBOOK.read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([\w./]+\.(?:py|md|ipynb))\)", text))
    assert len([link for link in links if link.startswith("../ddpm_utils/")]) >= 7
    for link in links:
        assert (NOTEBOOK.parent / link).resolve().is_file(), f"{link} does not exist"
    assert Path(ddpm_utils.__file__).parent == ROOT / "ddpm_utils"
