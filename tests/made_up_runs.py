"""Run directories as `covpool train` writes them, with figures of the test's choosing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from covpool.train.config import OptimConfig, RunConfig, TrainConfig
from covpool.train.run_directory import RunDirectory, best_row

HOSTILE = (
    "<script>alert('class')</script>",
    "</svg></style><b>\"bold\" & 'quoted'</b>",
    "{{ 7 * 7 }} $a_$ \x1b[31m\x00 中文 \u202eright to left",
    "W" * 90,
)


def make_run(
    path: Path,
    *,
    method: str = "svd",
    schedule: str | None = None,
    seed: int = 0,
    top1: Sequence[float] = (0.2, 0.4, 0.5),
    epochs: int = 3,
    status: str = "finished",
    reason: str | None = None,
    probes: bool = False,
    config: RunConfig | None = None,
) -> Path:
    """A run whose accuracies by epoch are `top1`."""
    config = config or RunConfig(
        optim=OptimConfig(learning_rate=0.1), train=TrainConfig(epochs=epochs)
    )
    config = replace(
        config,
        model=replace(config.model, method=method, schedule=schedule),
        train=replace(config.train, seed=seed),
    )
    directory = RunDirectory.create(path, config)
    switches = [entry.split(":") for entry in (schedule or f"0:{method}").split(",")]
    history: list[dict[str, Any]] = [
        {
            "epoch": epoch,
            "method": [name for first, name in switches if int(first) < epoch][-1],
            "train_loss": 3 - score,
            "train_top1": score,
            "train_top5": score,
            "test_loss": 3.1 - score,
            "test_top1": score,
            "test_top5": (1 + score) / 2,
            "learning_rate": 0.1,
            "seconds": 2.0 + epoch / 10,
            "test_seconds": 0.1,
        }
        for epoch, score in enumerate(top1, start=1)
    ]
    directory.write_metrics(history)
    summary: dict[str, Any] = {
        "status": status,
        **({"reason": reason} if reason else {}),
        "data": "typefaces",
        "backbone": "small-convnet",
        "schedule": schedule or method,
        "seed": seed,
        "epochs": len(history),
        "epochs_planned": config.train.epochs,
        "parameters": 26824,
        "seconds": 6.6,
        "notes": [],
        "covpool": "0.1.0",
        "torch": "2.15",
        "machine": {"processor": "a processor", "cores": 2},
    }
    if history:
        summary |= {"final": history[-1], "best": best_row(history)}
    directory.write_summary(summary)
    directory.write_confusions([[5, 3, 0, 1], [0, 6, 2, 0], [1, 0, 7, 0], [0, 0, 4, 4]], HOSTILE)
    if probes:
        rows = [row for step in range(0, 12, 2) for row in _probe_rows(step, method)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / "analysis.jsonl").write_text(text + '{"probe": "smooth', encoding="utf-8")
    return path


def _probe_rows(step: int, method: str) -> list[dict[str, Any]]:
    about = {"step": step, "epoch": 1 + step // 4, "method": method, "learning_rate": 0.1}

    def spread(middle: float) -> dict[str, Any]:
        quantiles = [middle * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5)]
        return {"count": 8, "infinite": 1, "not_a_number": 0, "quantiles": [*quantiles, "inf"]}

    figures = {
        "condition_number_of_range": spread(1e3 * (1 + step)),
        "condition_number_floored": spread(1e14),
        "effective_rank": spread(9.0),
        "smallest_relative_gap": spread(1e-3),
    }
    kernel = {
        "bound": "inf",
        "ties": 0,
        "nonfinite": 1,
        "largest": {"quantiles": [1.0, 1e6 + step]},
        "log10_edges": [0, 1, 2, 3],
        "histogram": [30, 60, 10],
    }
    distances = {"exact": 0.0, "svd": 1e-14, "svd-taylor": 1e-3 * (1 + step), "isqrt-cov": 0.18}
    fidelity = {
        name: {
            "relative_distance": {"quantiles": [value * f for f in (0.5, 0.6, 0.8, 1, 1, 1, 2)]},
            "angle": {"quantiles": [57.3 * value] * 7},
        }
        for name, value in distances.items()
    }
    smooth = {"smoothness": "nan" if step == 4 else 10.0 + step}
    failed = {"error": HOSTILE[0]}
    return [
        {"probe": "smoothness", **about, **(failed if step == 6 else smooth)},
        {"probe": "conditioning", **about, "channels": 32, "positions": 144}
        | {"of_features": figures, "of_covariance": figures, "kernels": {method: kernel}},
        {"probe": "fidelity", **about, "samples": 8, "methods": fidelity},
    ]


def make_grid(folder: Path) -> Path:
    """Standalone and hybrid runs with probes, one of them diverged, one with no end."""
    for seed in (0, 1, 2):
        rise = 0.01 * seed
        for method, top in (("gap", 0.50), ("svd", 0.60 + rise), ("isqrt-cov", 0.70 - rise)):
            scores = (0.2, top + 0.05, top + rise)
            path = folder / f"{method}-seed{seed}"
            make_run(path, method=method, seed=seed, top1=scores, probes=method != "gap")
        schedule = "0:isqrt-cov,2:svd"
        path = folder / f"hybrid-seed{seed}"
        scores = (0.3, 0.5, 0.82 - rise)
        make_run(path, method="isqrt-cov", schedule=schedule, seed=seed, top1=scores, probes=True)
    reason = f"Training diverged in epoch 2: {HOSTILE[1]}"
    path = folder / "taylor-seed0"
    make_run(path, method="svd-taylor", top1=(0.1,), status="diverged", reason=reason)
    (make_run(folder / "pade", method="svd-pade", top1=(0.2, 0.3)) / "summary.json").unlink()
    return folder
