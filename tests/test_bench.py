"""`make bench`: that every contestant still runs, that ratios are computed right, and that the README tells them."""

import copy
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import main
from ddpm_utils import hardware
from ddpm_utils.unet import TINY, Attention, UNet

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "tests" / "benchmarks" / "bench.py"
sys.path.append(str(BENCH.parent))

import bench  # noqa: E402 (it lies in the folder above)
import peers  # noqa: E402
import rows  # noqa: E402

LISTED = [(name, contestant) for name, row in rows.ROWS.items() for contestant in row.contestants]


@pytest.fixture(autouse=True)
def leaves_this_process_as_it_is(monkeypatch):
    monkeypatch.setattr(rows, "keep_freed_memory", lambda: False)


def run(*arguments):
    command = [sys.executable, str(BENCH), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


# ---- that it runs ------------------------------------------------------------------------------------------------


def test_a_quick_run_stores_what_it_measured_and_keeps_the_rest(tmp_path):
    stored = {"cpu": {"start": {"kept": 1}}, "cuda": {"batches": {"kept": 2}}}
    (tmp_path / "results.json").write_text(json.dumps(stored))
    result = run("--quick", "--rows", "batches", "--threads", "1", "--output", tmp_path / "results.json")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    measured = found["cpu"].pop("batches")
    assert found == stored
    assert [c["name"] for c in measured["contestants"]] == [c.name for c in rows.ROWS["batches"].contestants]
    for contestant in measured["contestants"]:
        assert len(contestant["seconds"]) == 1 and contestant["seconds"][0] > 0 and contestant["memory_mb"] >= 0
    assert measured["threads"] == 1 and measured["versions"]["torch"] and measured["cores"] and measured["date"]


@pytest.mark.parametrize(
    "name, contestant",
    [pytest.param(*listed, id=f"{listed[0]}: {listed[1].name}") for listed in LISTED if listed[0] != "start"],
)
def test_every_contestant_runs(name, contestant):
    pytest.importorskip(contestant.needs)
    work = contestant.build(rows.Sizes(**rows.QUICK))
    work.run()
    assert 0 < work.share <= 1 and (work.share < 1) == (name == "sample" and contestant.name != "ours")


@pytest.mark.parametrize("contestant", rows.ROWS["start"].contestants, ids=lambda c: c.name)
def test_a_fresh_process_tells_its_memory(contestant):
    pytest.importorskip(contestant.needs)
    assert contestant.build(rows.Sizes(steps=1)).run() > 50  # MB: Python and torch alone take more


def test_a_failure_in_a_contestants_process_is_told():
    sizes = rows.Sizes(**{**rows.QUICK, "images": -1})
    args = Namespace(device="cpu", threads=1)
    with (
        pytest.raises(bench.Unfit, match=r"(?s)ours.*negative"),
        bench.processes("batches", ["ours"], args) as connections,
    ):
        bench.ask(connections["ours"], "build", sizes)


@pytest.mark.parametrize("arguments", [["--rows", "nonsense"], ["--quick"], ["--threads", "0"], ["--turns", "0"]])
def test_bad_options_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert arguments[0] in capsys.readouterr().err or "nonsense" in arguments


# ---- that what is compared is comparable -------------------------------------------------------------------------


def test_the_networks_are_of_the_same_size():
    ours = sum(p.numel() for p in UNet(TINY).parameters())
    for peer in peers.PEERS:
        pytest.importorskip(peer.package)
        theirs = sum(p.numel() for p in peer.network(TINY).parameters())
        assert theirs == ours if peer.name == "diffusers" else abs(theirs / ours - 1) < 0.1


def test_the_ceiling_is_all_the_products_of_a_forward_pass():
    model = UNet(TINY)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    with FlopCounterMode(display=False) as wanted, rows.Recorder() as recorder:
        model(x, t)
    with FlopCounterMode(display=False) as found:
        for function, args, kwargs in recorder.calls:
            function(*args, **kwargs)
    assert found.get_total_flops() == wanted.get_total_flops() > 1e8
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | Attention)]
    assert len(recorder.calls) == len(layers)


def test_both_loaders_give_the_same_pixels():
    images = rows.synthetic(16)
    theirs = torch.cat([batch for batch, _ in peers.torchvision_loader(images, 8)])
    ours = rows.to_float(images.images)
    either = torch.cat([ours, ours.flip(-1)])
    nearest = (theirs.flatten(1)[:, None] - either.flatten(1)).abs().amax(2).min(1)
    assert nearest.values.max() < 1e-6 and len(set((nearest.indices % 16).tolist())) == 16


def test_everyone_takes_every_place():
    places = np.array([bench.order(["a", "b", "c"], turn) for turn in range(3)])
    assert all(sorted(line) == ["a", "b", "c"] for line in [*places, *places.T])


# ---- the figures and the table -----------------------------------------------------------------------------------


def stored(ours, theirs, row="batches", images=None):
    """Results with made-up seconds for the first contestant beside ours."""
    other = rows.ROWS[row].contestants[1].name
    context = {"date": "2026-01-02", "cpu": "a processor", "cores": 2, "flags": ["avx2"], "gpu": "", "threads": 2}
    context |= {"load": 0.1, "versions": {"torch": "2.9"}, "title": "a title", "images": images}
    seconds = {"ours": ours, other: theirs}
    contestants = [{"name": n, "note": "so", "seconds": s, "memory_mb": 1500} for n, s in seconds.items()]
    return {"cpu": {row: {**context, "contestants": contestants}}}


def line_of(results, title="a title"):
    """The cells of the first line of that title: the others leave out what they share with it."""
    return cells(next(line for line in bench.table(results).splitlines() if title in line))


def test_ratios_are_taken_turn_by_turn():
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(0.5, 2, (2, 5))
    expected = np.exp(np.log(theirs) - np.log(ours))
    assert np.allclose(bench.ratios(list(ours), list(theirs)), expected)
    low, middle, high = np.quantile(expected, [0, 0.5, 1])
    told = line_of(stored(list(ours), list(theirs)))[4].strip("*").split(":")[0]
    assert told == f"{middle:.2f} ({low:.2f}–{high:.2f})"


def test_the_table_tells_speed_in_images_or_seconds():
    _, ours, _, theirs, ratio, memory, gpu = line_of(stored([2.0, 2.0, 4.0], [8.0, 8.0, 8.0], images=32))
    assert (ours, theirs) == ("16.0 images/s (so)", "4.00 images/s")
    assert (ratio, memory, gpu) == ("4.00 (2.00–4.00)", "1.5 GB / 1.5 GB", "–")
    assert line_of(stored([2.0], [250.0]))[1::2] == ["2.00 s (so)", "250 s", "1.5 GB / 1.5 GB"]


def test_a_slower_row_stands_out():
    assert line_of(stored([1.0, 1.0, 1.0], [0.9, 0.8, 1.1]))[4] == "**0.90 (0.80–1.10): slower**"
    assert "slower" not in bench.table(stored([1.0], [1.01])).split("\n\n")[0]


def test_a_bound_is_no_peer():
    assert line_of(stored([1.0], [0.8], row="train-small"))[4] == "80% of it (80%–80%)"


def test_a_gpu_has_its_own_column_and_conditions():
    results = stored([1.0], [2.0])
    results["cuda"] = copy.deepcopy(results["cpu"])
    results["cuda"]["batches"] |= {"gpu": "a large one", "date": "2026-03-04"}
    results["cuda"]["batches"]["contestants"][0]["seconds"] = [0.5]
    assert line_of(results)[4:] == ["2.00 (2.00–2.00)", "1.5 GB / 1.5 GB", "4.00 (4.00–4.00)"]
    assert "measured 2026-01-02 on a processor, 2 cores (avx2), 2 threads" in bench.table(results)
    assert "measured 2026-03-04 on a large one, a processor" in bench.table(results)


def test_what_was_not_measured_is_left_empty():
    assert line_of({}, "import and first sample")[1:] == ["–", rows.ROWS["start"].contestants[1].name, *["–"] * 4]


def test_the_readmes_table_is_the_one_of_the_stored_figures():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page == bench.between_markers(page, bench.table(bench.load(bench.RESULTS)), "bench"), (
        "python tests/benchmarks/bench.py --write README.md"
    )


def test_the_stored_figures_are_complete_runs():
    for device in bench.load(bench.RESULTS).values():
        for name, row in device.items():
            assert [c["name"] for c in row["contestants"]] == [c.name for c in rows.ROWS[name].contestants]
            assert all(len(c["seconds"]) >= 5 for c in row["contestants"])


def test_the_sampler_exists():
    chosen = json.loads(bench.SAMPLER.read_text(encoding="utf-8"))
    assert chosen["sampler"] in main.SAMPLERS and chosen["steps"] > 0
    title = rows.ROWS["sample"].title(rows.Sizes(sampler=chosen["sampler"], steps=chosen["steps"]))
    assert all(device["sample"]["title"] == title for device in bench.load(bench.RESULTS).values())


def test_quality_is_told_beside_the_longest_ancestral_chain():
    row = {"sampler": "dpmpp", "steps": 5, "recognised": [0.50, 0.03], "frechet": [2.0, 0.3]}
    short = row | {"sampler": "ddpm-posterior", "recognised": [0.1, 0.1], "frechet": [9.0, 0.1]}
    longest = short | {"steps": 100, "recognised": [0.60, 0.04], "frechet": [1.5, 0.4]}
    measured = {"number": 200, "rows": [row | {"steps": 4}, row, short, longest]}
    told = bench.quality({"sampler": "dpmpp", "steps": 5}, measured)
    assert "200 unguided" in told and "50.0 ± 3.0% after 5 steps" in told and "60.0 ± 4.0% after 100" in told
    assert "2.00 ± 0.30 and 1.50 ± 0.40" in told and "by 2.0 and 1.0 times" in told
    for lacking in ({}, {"number": 200, "rows": [row]}, {"number": 200, "rows": [longest]}):
        assert "not been compared" in bench.quality({"sampler": "dpmpp", "steps": 5}, lacking)
    results = stored([1.0], [2.0], row="sample")
    assert f"a title: {bench.quality(bench.load(bench.SAMPLER), bench.load(bench.QUALITY))}\n" in bench.table(results)


# ---- memory that is kept -----------------------------------------------------------------------------------------

FAULTS = """
import resource, sys, torch
from ddpm_utils.hardware import keep_freed_memory
torch.set_num_threads(1)
agreed = sys.argv[1] == "keep" and keep_freed_memory()
def taken_and_freed():
    for _ in range(10):
        torch.ones(10 * 2**20)  # 40 MB: beyond what glibc ever keeps by itself
taken_and_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
taken_and_freed()
print(agreed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is asked")
def test_kept_memory_is_not_mapped_again():
    def faults(word):
        result = subprocess.run(
            [sys.executable, "-c", FAULTS, word], cwd=ROOT, capture_output=True, text=True, check=True
        )
        agreed, number = result.stdout.split()
        return agreed == "True", int(number)

    (agreed, kept), (_, usual) = faults("keep"), faults("as usual")
    if not agreed:
        pytest.skip("another C library")
    assert kept < usual / 10


@pytest.mark.parametrize("system, library", [("Windows", ""), ("Darwin", ""), ("Linux", "musl")])
def test_other_systems_are_left_alone(monkeypatch, system, library):
    monkeypatch.setattr(hardware.platform, "system", lambda: system)
    monkeypatch.setattr(hardware.platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(hardware.ctypes, "CDLL", None)  # calling it would fail
    assert hardware.keep_freed_memory() is False
