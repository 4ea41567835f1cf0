"""The README's Python examples run, in order, in one namespace."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import covpool

README = Path(__file__).parents[1] / "README.md"


def test_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    torch.manual_seed(0)
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["pool"](namespace["x"]).shape == (8, 32896)
    assert namespace["root"].isfinite().all()
    assert namespace["eigenvectors"].shape == (4, 32, 32)


def test_table_of_the_comparison_is_that_of_the_results():
    table = (README.parent / "results" / "typefaces-compare" / "comparison.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "±" in line]
    assert len(rows) == 4
    text = README.read_text(encoding="utf-8")
    assert all(row in text for row in rows)


def test_table_of_methods_is_that_of_the_package():
    text = README.read_text(encoding="utf-8")
    for name, row in covpool.METHODS.items():
        constants = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.constants.items()
        )
        cells = (f"`{name}`", row.paper_name or "", row.forward.title, row.gradient.title)
        assert f"| {' | '.join(cells)} | {constants} | {row.description} |" in text


def covpool_command(arguments, folder):
    """As a user types it: a process of its own, at the default number of threads."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-m", "covpool.cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"covpool {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_commands_one_after_the_other(tmp_path):
    """The default network's batches are decomposed by several threads, in evaluation too."""
    covpool_command(["train", "--train.epochs", "1", "--output", "runs/one"], tmp_path)
    summary = json.loads((tmp_path / "runs/one/summary.json").read_text())
    found = covpool_command(["evaluate", "runs/one"], tmp_path)
    assert f"{100 * summary['best']['test_top1']:.2f}" in found
    Image.new("L", (28, 28), 255).save(tmp_path / "white.png")
    assert "white.png" in covpool_command(["predict", "runs/one", "white.png"], tmp_path)
    covpool_command(["train", "--resume", "runs/one", "--train.epochs", "2"], tmp_path)
    compare = ["compare", "--methods", "gap,exact", "--seeds", "2", "--jobs", "2"]
    found = covpool_command([*compare, "--train.epochs", "1", "--output", "runs/two"], tmp_path)
    assert "| gap | 2/2 |" in found
    assert "| exact | 2/2 |" in found
    covpool_command(["export", "runs/one", "--number", "32"], tmp_path)
    assert (tmp_path / "runs/one/export/model.onnx").exists()
    covpool_command(["report", "runs/two"], tmp_path)
    assert (tmp_path / "runs/two/report.html").exists()
