"""Put the figures that `main.py evaluate` measured into the model card, between its markers, and draw its picture.

    python tools/model_card.py      from evaluation.json in ddpm_utils/weights to README.md and neighbours.png there

The text between the markers is made from the file alone: a test compares them.
"""

import json
from pathlib import Path

from ddpm_utils.checkpoint import WEIGHTS
from ddpm_utils.evaluation import Measured, load_classifier
from notebooks import between_markers, write

RESULTS = WEIGHTS / "evaluation.json"
CARD = WEIGHTS / "README.md"
CURVES = {"real, as trained on": "real test images", "unguided": "unguided", "guided": "guided"}


def main() -> None:
    results = json.loads(RESULTS.read_text())
    write(CARD, between_markers(CARD.read_text(encoding="utf-8"), figures(results), "figures"))
    draw_neighbours(results["sets"], WEIGHTS / "neighbours.png")
    print(f"{CARD.name} and neighbours.png in {WEIGHTS.name}/ now show {RESULTS.name}.")


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
        "compared": "TINY after a minute of training, unguided",
    }
    lines = [
        f"Measured {results['date']} on {results['machine']}, by {options['sampler']} in {options['steps']} steps, "
        f"seed {options['seed']}. Frechet distances are taken between the 192 features of our own classifier "
        f"({classifier['epochs']:g} epochs), to the {references:,} images of {source}'s train split; they compare with "
        "each other, not with any paper's FID. ± is one standard error.",
        "",
        "| 1,000 images | recognised as intended | Frechet distance | times real | at infinitely many |",
        "|---|--:|--:|--:|--:|",
    ]
    for key, name in names.items():
        if key in sets:
            row = sets[key]
            distance = at(row, 1000)
            lines.append(
                f"| {name} | {Measured(*row['recognised']):.3f} | {distance:.2f} | {distance.value / base.value:.1f} | "
                f"{row['frechet_limit']:.2f} |"
            )
    sizes = [n for n in sets["guided"]["frechet"]]
    lines += ["", "The same distance with other numbers of images (few images look worse than they are):", ""]
    lines += ["| images | " + " | ".join(f"{int(n):,}" for n in sizes) + " |", "|---|" + "--:|" * len(sizes)]
    for key in ("real", "unguided", "guided"):
        cells = [f"{at(sets[key], n):.2f}" if n in sets[key]["frechet"] else "" for n in sizes]
        lines.append(f"| {names[key]} | " + " | ".join(cells) + " |")
    sweep = {name.split()[1]: row for name, row in sets.items() if name.startswith("guided, ")}
    sweep[str(options["steps"])] = sets["guided"]
    n = max(int(n) for n in sets["guided"]["frechet"] if all(n in row["frechet"] for row in sweep.values()))
    steps = sorted(sweep, key=int)
    lines += ["", f"Fewer steps, guided, Frechet distance of {n:,} images:", ""]
    lines += ["| steps | " + " | ".join(steps) + " |", "|---|" + "--:|" * len(steps)]
    lines.append("| recognised | " + " | ".join(f"{Measured(*sweep[s]['recognised']):.3f}" for s in steps) + " |")
    lines.append("| Frechet distance | " + " | ".join(f"{at(sweep[s], n):.2f}" for s in steps) + " |")
    lines += ["", f"Held-out loss and bits per dimension on the {tests:,} test images, unconditional, EMA weights:", ""]
    lines += ["| timesteps | mean (eps - eps_hat)^2 | bits per dimension |", "|---|--:|--:|"]
    total = 0.0
    for row in results["held_out"]:
        total += row["bits"][0]
        lines.append(
            f"| {row['first']}...{row['last']} | {Measured(*row['loss']):.4f} | {Measured(*row['bits']):.4f} |"
        )
    lines.append(f"| end of the chain (L_T) | | {Measured(*results['prior_bits']):.4f} |")
    lines.append(f"| sum | | {total + results['prior_bits'][0]:.2f} |")
    lines += [
        "",
        f"64 guided images in {options['steps']} steps took {results['seconds_64_guided']:.1f} s.",
        "",
        f"Memorisation: distance to the nearest of the {known:,} training images ({trained_on}), in feature space, of",
        "1,000 images each. Copies would lie left of the real test images' curve, near 0.",
        "",
        "| share of images nearer than | 1% | 10% | 50% | 90% |",
        "|---|--:|--:|--:|--:|",
    ]
    for key, name in CURVES.items():
        if key in sets:
            cells = [f"{sets[key]['neighbours'][p - 1]:.2f}" for p in (1, 10, 50, 90)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
