"""Put the figures that `main.py evaluate` measured into the model card and the README, and draw the card's picture.

    python tools/model_card.py      from evaluation.json in ddpm_utils/weights to both pages and neighbours.png there

The text between their markers is made from that file and the classifier's alone.
"""

import json
from pathlib import Path

from ddpm_utils.checkpoint import WEIGHTS
from ddpm_utils.evaluation import Measured, load_classifier
from notebooks import ROOT, between_markers, write

RESULTS = WEIGHTS / "evaluation.json"
CARD = WEIGHTS / "README.md"
README = ROOT / "README.md"
CURVES = {"real, as trained on": "real test images", "unguided": "unguided", "guided": "guided"}


def main() -> None:
    results = json.loads(RESULTS.read_text())
    write(CARD, card(CARD.read_text(encoding="utf-8"), results))
    write(README, readme(README.read_text(encoding="utf-8"), results))
    draw_neighbours(results["sets"], WEIGHTS / "neighbours.png")
    print(f"The model card, its neighbours.png and README.md now show {RESULTS.name}.")


def card(text: str, results: dict) -> str:
    """The card with its measured part made anew from the results."""
    return between_markers(text, figures(results), "figures")


def readme(text: str, results: dict) -> str:
    """The repository's first page with its paragraph on quality made anew from the results."""
    return between_markers(text, quality(results), "quality")


def quality(results: dict) -> str:
    """What the first page says of the model, in three sentences."""
    options, sets = results["options"], results["sets"]
    real, guided = sets["real"], sets["guided"]
    percent = {key: Measured(*(100 * part for part in sets[key]["recognised"])) for key in sets}
    n = max(int(n) for n in guided["frechet"] if n in real["frechet"])
    times = {key: at(sets[key], n).value / at(real, n).value for key in ("guided", "unguided")}
    return (
        f"A classifier of our own, which gets {percent['real']:.1f}% of real test images right, assigns "
        f"{percent['guided']:.1f}% of {guided['number']:,} guided samples (w = {options['guidance']:g}) to the class "
        f"that they should show, and {percent['unguided']:.1f}% of as many unguided ones. The Frechet distance to real "
        f"images, in that classifier's features and with {n:,} images, is {times['guided']:.1f} times (guided) and "
        f"{times['unguided']:.1f} times (unguided) that of real test images. Measured {results['date']} on "
        f"{results['machine']}, {options['sampler']} in {options['steps']} steps; ± is one standard error.\n"
    )


def figures(results: dict) -> str:
    """The measured part of the card, as Markdown."""
    options, sets = results["options"], results["sets"]
    source, references, tests, trained_on, known = results["data"]
    _, classifier = load_classifier()
    base = at(sets["real"], 1000)
    names = {
        "real": f"real: {source}, test split",
        "real, as trained on": f"real: {trained_on}, test split",
        "unguided": "this model, unguided (w = 1)",
        "guided": f"this model, guided (w = {options['guidance']:g})",
    }
    if other := results["models"].get("compared"):
        names["compared"] = (
            f"a U-Net of {other['parameters']:,} parameters after {other['images_seen']:,} images, unguided"
        )
    lines = [
        f"Measured {results['date']} on {results['machine']}, by {options['sampler']} in {options['steps']} steps, "
        f"seed {options['seed']}. Frechet distances are taken between the 192 features of our own classifier "
        f"({classifier['epochs']:g} epochs), to the {references:,} images of {source}'s train split; they compare with "
        "each other, not with any paper's FID. ± is one standard error.",
        "",
    ]
    rows = []
    for key, name in names.items():
        if key in sets:
            distance, recognised = at(sets[key], 1000), Measured(*sets[key]["recognised"])
            times, limit = distance.value / base.value, sets[key]["frechet_limit"]
            rows.append([name, f"{recognised:.3f}", f"{distance:.2f}", f"{times:.1f}", f"{limit:.2f}"])
    header = ["1,000 images", "recognised as intended", "Frechet distance", "times real", "at infinitely many"]
    lines += markdown_table(header, rows)
    sizes = list(sets["guided"]["frechet"])
    lines += ["", "The same distance with other numbers of images (few images look worse than they are):", ""]
    rows = [
        [names[key], *(f"{at(sets[key], n):.2f}" if n in sets[key]["frechet"] else "" for n in sizes)]
        for key in ("real", "unguided", "guided")
    ]
    lines += markdown_table(["images", *(f"{int(n):,}" for n in sizes)], rows)
    sweep = {name.split()[1]: row for name, row in sets.items() if name.startswith("guided, ")}
    sweep[str(options["steps"])] = sets["guided"]
    n = max(int(n) for n in sets["guided"]["frechet"] if all(n in row["frechet"] for row in sweep.values()))
    steps = sorted(sweep, key=int)
    lines += ["", f"Fewer steps, guided, Frechet distance of {n:,} images:", ""]
    rows = [
        ["recognised", *(f"{Measured(*sweep[s]['recognised']):.3f}" for s in steps)],
        ["Frechet distance", *(f"{at(sweep[s], n):.2f}" for s in steps)],
    ]
    lines += markdown_table(["steps", *steps], rows)
    lines += ["", f"Held-out loss and bits per dimension on the {tests:,} test images, unconditional, EMA weights:", ""]
    prior = Measured(*results["prior_bits"])
    rows = [
        [f"{row['first']}...{row['last']}", f"{Measured(*row['loss']):.4f}", f"{Measured(*row['bits']):.4f}"]
        for row in results["held_out"]
    ]
    rows.append(["end of the chain (L_T)", "", f"{prior:.4f}"])
    # all parts share their images, so their errors may be correlated: added, they are an upper limit
    total = [sum(parts) for parts in zip(prior, *(row["bits"] for row in results["held_out"]), strict=True)]
    rows.append(["sum (error: at most)", "", f"{Measured(*total):.2f}"])
    lines += markdown_table(["timesteps", "mean (eps - eps_hat)^2", "bits per dimension"], rows)
    lines += [
        "",
        f"64 guided images in {options['steps']} steps took {results['seconds_64_guided']:.1f} s.",
        "",
        f"Memorisation: distance to the nearest of the {known:,} training images ({trained_on}), in feature space, of",
        "1,000 images each. Copies would lie left of the real test images' curve, near 0.",
        "",
    ]
    percents = (1, 10, 50, 90)
    rows = [
        [name, *(f"{sets[key]['neighbours'][p - 1]:.2f}" for p in percents)]
        for key, name in CURVES.items()
        if key in sets
    ]
    lines += markdown_table(["share of images nearer than", *(f"{p}%" for p in percents)], rows)
    return "\n".join(lines) + "\n"


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table: words in the first column, numbers in the others."""
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in (header, *rows)]
    return [lines[0], "|---|" + "--:|" * (len(header) - 1), *lines[1:]]


def at(row: dict, n: int | str) -> Measured:
    return Measured(*row["frechet"][str(n)])


def draw_neighbours(sets: dict, path: Path) -> None:
    """Cumulative distributions of the distance to the nearest training image."""
    import matplotlib.pyplot as plt

    from ddpm_utils import plots

    plots.style()
    figure, axes = plt.subplots(figsize=(7, 2.8))
    for colour, (key, name) in zip((plots.BLUE, plots.GREEN, plots.VERMILION), CURVES.items(), strict=True):
        if key in sets:
            axes.plot(sets[key]["neighbours"], range(1, 100), color=colour, label=name)
    axes.set(xlabel="distance to the nearest training image", ylabel="percent of images nearer", xlim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=96, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
