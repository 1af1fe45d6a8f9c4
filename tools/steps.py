"""Measure quality against the number of steps: three samplers, one model, the same start noises.

    python tools/steps.py --data FOLDER                   200 images per row: about 295,000 passes of one image
    python tools/steps.py --data FOLDER --number 500      smaller error bars, in two and a half times that

At 350 passes per second the first takes 14 minutes, 10 of them for the 1000 ancestral steps. Each row that is finished
is in the file, notebooks/data/06_steps.json, at once: the share of samples that the classifier takes for the class they
were drawn with, and the Frechet distance of its features to the real images', each with one standard error. Frechet
distances of so few images are too large: the row "real" says what real images get.
"""

import argparse
import hashlib
import json
import sys
import time
from datetime import date
from pathlib import Path

from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for main

from ddpm_utils.checkpoint import PRETRAINED, load_model  # noqa: E402
from ddpm_utils.data import load_images  # noqa: E402
from ddpm_utils.evaluation import frechet, load_classifier, look_at, look_shuffled, random_order, share  # noqa: E402
from ddpm_utils.hardware import fastest, measure_setups  # noqa: E402
from main import SampleOptions, draw_images, pick_device  # noqa: E402

OUTPUT = ROOT / "notebooks" / "data" / "06_steps.json"
PLAN = {  # the cheap rows first
    "dpmpp": (5, 8, 10, 15, 20, 50),
    "ddim": (5, 10, 20, 50, 100),
    "ddpm-posterior": (10, 20, 50, 100, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(PRETRAINED), help="by default the model that ships with the module")
    parser.add_argument("--data", default="auto", help="real images to compare with, as main.py takes them")
    parser.add_argument("--number", type=int, default=200, help="images per row")
    parser.add_argument("--longest", type=int, default=1000, help="leave rows of more steps than this out")
    parser.add_argument("--seed", type=int, default=0, help="of the start noises")
    parser.add_argument("--device", default="", help="cpu, cuda, mps; by default the best there is")
    parser.add_argument("--output", default=str(OUTPUT), help="where the figures go")
    args = parser.parse_args()
    trained = load_model(args.checkpoint, pick_device(args.device))
    setup = fastest(measure_setups(trained.model))
    classifier, _ = load_classifier()
    train, test = load_images(args.data), load_images(args.data, "test")
    reference = look_at(classifier, train.images).features

    def measured(images: Tensor, labels: Tensor) -> dict:
        seen, intended = look_shuffled(classifier, images, labels)
        return {"recognised": share(seen.labels == intended), "frechet": frechet(seen.features, reference)}

    some = random_order(len(test))[: args.number]
    results = {
        "date": date.today().isoformat(),
        "sha256": hashlib.sha256(Path(args.checkpoint).read_bytes()).hexdigest(),
        "data": [train.source, len(train)],
        "number": args.number,
        "seed": args.seed,
        "real": measured(test.images[some], test.labels[some]),
        "rows": [],
    }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    for steps, sampler in sorted((n, name) for name, numbers in PLAN.items() for n in numbers):
        if steps > args.longest:
            continue
        start = time.perf_counter()
        wish = SampleOptions(number=args.number, sampler=sampler, steps=steps, seed=args.seed)
        row = {"sampler": sampler, "steps": steps, **measured(*draw_images(trained, wish, setup))}
        results["rows"].append(row)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        spent = f"{sampler:15} {steps:4} steps, {time.perf_counter() - start:4.0f} s"
        print(f"{spent}: {row['recognised']:.3f}, {row['frechet']:.2f}", flush=True)


if __name__ == "__main__":
    main()
