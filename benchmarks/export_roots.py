"""How far a network's outputs move when its square root is computed in matrix products.

For each iteration and dtype: the outputs of the network on test images against those with its own
method, and the time of the pooling alone. It is what `covpool export` chose its substitute by.

    python benchmarks/export_roots.py RUN [--number 256] [--output FILE.json]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from covpool.linalg.forwards.base import Steps
from covpool.linalg.forwards.coupled import SHIFT_FLOAT32
from covpool.linalg.products import root_in_products
from covpool.linalg.sign import NEWTON_SCHULZ_STEP, sign_steps
from covpool.pooling import CovPool2d, triu_vector
from covpool.publish.export import deviation, in_products, logits_of
from covpool.publish.images import sample_of_run
from covpool.train.config import RunConfig
from covpool.train.prediction import load_model

ITERATIONS = (5, 10, 15, 20, 30)
RESOLVED = (1e-2, 1e-3, 1e-4, 1e-6)
ROUNDS = 7


class ProductsPool(nn.Module):
    """A layer's reduction and triangle around a root by other steps."""

    def __init__(self, pool: CovPool2d, steps: Steps, dtype: torch.dtype) -> None:
        super().__init__()
        self.reduction = pool.reduction
        self.steps, self.dtype = steps, dtype
        self.shift = SHIFT_FLOAT32 if dtype == torch.float32 else 0.0

    def forward(self, x: Tensor) -> Tensor:
        features = self.reduction(x).flatten(2).to(self.dtype)
        return triu_vector(root_in_products(features, self.steps, self.shift)).to(x.dtype)


def candidates(dtype: torch.dtype) -> dict[str, Steps]:
    """Names and steps of iterations to the root."""
    found = {f"Newton-Schulz, {count} steps": [NEWTON_SCHULZ_STEP] * count for count in ITERATIONS}
    for least in RESOLVED:
        steps = sign_steps(least, dtype)
        found[f"minimax, {len(steps)} steps (to {least:g})"] = steps
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run directory, or a published model")
    parser.add_argument("--number", type=int, default=256, help="images (default: 256)")
    parser.add_argument("--output", type=Path, help="JSON file")
    given = parser.parse_args()
    trained = load_model(given.run)
    model = trained.model
    if not isinstance(model.pool, CovPool2d):
        sys.exit(f"{given.run} pools by {model.method}, which has no root")
    config = RunConfig.from_dict(trained.metadata["config"])
    images = sample_of_run(config, trained.preprocessing, given.number).images
    reference = logits_of(model, images)
    with torch.no_grad():
        features = model.forward_features(images[:16])
    channels, positions = model.pool.channels, features[0, 0].numel()
    print(f"{model.method}, {channels} channels, {positions} positions, {len(images)} images")
    print("| root | dtype | largest change of a logit | of a probability | same top-1 | ms |")
    print("|---|---|---|---|---|---|")
    rows = []
    for dtype in (torch.float64, torch.float32):
        for name, steps in candidates(dtype).items():
            network, pool = in_products(model), ProductsPool(model.pool, steps, dtype)
            network.add_module("pool", pool)
            measured = deviation(logits_of(network, images), reference)
            row = {"root": name, "dtype": str(dtype).removeprefix("torch."), **measured}
            row["milliseconds"] = 1e3 * seconds(pool, features)
            rows.append(row)
            print(
                f"| {name} | {row['dtype']} | {row['max_logit']:.1e} "
                f"| {row['max_probability']:.1e} | {row['top1_agreement']:.2%} "
                f"| {row['milliseconds']:.1f} |",
                flush=True,
            )
    print(f"largest magnitude of a logit: {rows[0]['logit_scale']:.3g}")
    if given.output is not None:
        about = {"method": model.method, "channels": channels, "positions": positions}
        text = json.dumps({**about, "torch": torch.__version__, "rows": rows}, indent=2)
        given.output.write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def seconds(pool: nn.Module, features: Tensor) -> float:
    """Median time of the pooling, of a batch of 16."""
    pool(features)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        pool(features)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
    sys.exit()
