"""`covpool export`."""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from covpool.cli import say
from covpool.cli.parsing import users_input
from covpool.publish.export import export_model, get_formats
from covpool.publish.images import sample_of_files, sample_of_run
from covpool.text import encodable, quantity
from covpool.train.config import RunConfig
from covpool.train.metadata import IMAGES, refuse_external
from covpool.train.prediction import load_model
from covpool.train.published import PublishedDirectory
from covpool.train.run_directory import RunDirectory, refuse_existing

FEWEST_SAME = 0.99
"""Share of images with the same top-1 below which the command warns."""


def run(given: argparse.Namespace) -> int:
    """Export, print the deviations, and return the exit status."""
    console = Console(stderr=True)
    with users_input(), console.status("loading the network") as status:
        if given.number < 1:
            raise ValueError(f"--number must be at least 1, not {given.number}")
        formats = get_formats([name.strip() for name in given.formats.split(",")])
        source, scores = _find(given.run, given.checkpoint)
        output = given.output or _beside(given.run)
        refuse_existing(output)
        if formats and encodable(str(output)) != str(output):
            raise ValueError(
                f"--output {output} is not UTF-8, as PyTorch and ONNX need it; choose another, or "
                "--formats safetensors"
            )
        trained = load_model(source, allow_external=given.allow_external)
        trained.metadata.update(scores)
        sample = None
        if formats:
            status.update("reading images")
            if given.images:
                sample = sample_of_files(given.images, trained.preprocessing, given.number)
            else:
                config = RunConfig.from_dict(trained.metadata["config"])
                if PublishedDirectory.is_at(given.run) and not given.allow_external:
                    refuse_external(config, given.run, images=IMAGES)
                sample = sample_of_run(config, trained.preprocessing, given.number)
        rows = export_model(
            trained,
            output,
            formats,
            sample,
            title=given.title or given.run.resolve().name,
            licence=given.licence,
            root_dtype=getattr(torch, given.root_dtype),
            progress=status.update,
        )
    for row in rows:
        say(
            f"{row['file']}: pooling {row['pooling']}; on "
            f"{quantity(row['images'], 'image')} ({row['source']}) "
            f"logits change by up to {row['max_logit']:.1e} (of {row['logit_scale']:.3g}), "
            f"probabilities by {row['max_probability']:.1e}, top-1 is the same for "
            f"{row['top1_agreement']:.2%}"
        )
        if row["top1_agreement"] < FEWEST_SAME:
            say(
                f"covpool: warning: {row['file']} is not the network that was trained: pooling "
                f"{row['method']!r} has another result than the file; fine-tune with isqrt-cov or "
                "exact before exporting, or use the other formats",
                error=True,
            )
    say(f"model, card and exported files: {output}")
    return 0


def _find(path: Path, checkpoint: str | None) -> tuple[Path, dict[str, object]]:
    """What to load, and what the run's directory knows of it beyond the checkpoint itself."""
    if PublishedDirectory.is_at(path):
        if checkpoint is not None:
            raise ValueError(f"--checkpoint {checkpoint}: {path} is a published model, not a run")
        return path, {}
    if path.suffix == ".ckpt":
        raise ValueError(f"{path} is a checkpoint; give its run directory, and --checkpoint")
    directory = RunDirectory.open(path)
    name = checkpoint or "best"
    file = directory.best if name == "best" else directory.last
    if not file.is_file():
        raise ValueError(
            f"run {path} has no {file.name} yet; go on with it: covpool train --resume"
        )
    summary = directory.read_summary() or {}
    known = {
        "checkpoint": "best" if name == "best" else "final",
        "data": summary.get("data"),
        "scores": {key: summary[key] for key in ("final", "best") if key in summary},
    }
    return file, known


def _beside(path: Path) -> Path:
    if PublishedDirectory.is_at(path):
        raise ValueError(f"{path} is a published model already; name another folder by --output")
    return path / "export"
