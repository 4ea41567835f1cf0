"""The README's Python examples and its commands run, each in order."""

import json
import os
import re
import shlex
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
    assert namespace["vectors"].shape == (8, 32896)
    assert namespace["root"].isfinite().all()
    assert namespace["eigenvectors"].shape == (4, 32, 32)


QUICKER = {
    "train": "--epochs 1",
    "train photos": "--epochs 1 --data.image_size 64 --model.pretrained false",
    "train --resume": "--epochs 2",
    "compare photos": "--epochs 1 --data.image_size 64 --seeds 1",
    "probe photos": "--model.pretrained false --model.init_from runs/first --data.image_size 64 "
    "--epochs 1 --seeds 2 --rates 0.1 --decays 0.005 --poolings isqrt-cov --jobs 1",
    "export": "--number 8",
}
"""What is added to the README's commands, by their first words, so that they take seconds and need
no weights from the network."""


def readme_commands() -> list[str]:
    """The commands that README shows, without their comments."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    assert all(line.startswith("$ ") for line in lines)
    return [re.sub(r"\s{2,}#.*", "", line[2:]) for line in lines]


def draw_photos(folder: Path) -> None:
    """A folder for each class, as README's own images are: stripes of a width of their own."""
    generator = torch.Generator().manual_seed(0)
    for width, name in enumerate(("robin", "wren", "finch"), start=2):
        (folder / name).mkdir(parents=True)
        stripes = (torch.arange(96) // width % 2 * 160).expand(96, 96)
        for number in range(1, 11):
            noise = torch.randint(0, 96, (96, 96), generator=generator)
            image = Image.fromarray((stripes + noise).to(torch.uint8).numpy())
            image.save(folder / name / f"{number}.jpg")


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
    """Every command of README as a user types it, in its order, in one folder."""
    draw_photos(tmp_path / "photos")
    printed = {}
    for command in readme_commands():
        program, *arguments = shlex.split(command)
        if program == "pip":  # what it would install is here already
            continue
        assert program == "covpool", command
        firsts = [" ".join(arguments[:2]), arguments[0]]
        quicker = next((QUICKER[first] for first in firsts if first in QUICKER), "")
        printed[command] = covpool_command([*arguments, *quicker.split()], tmp_path)
    summary = json.loads((tmp_path / "runs/first/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["epochs"] == 2  # resumed
    (predicted,) = (text for command, text in printed.items() if "predict" in command)
    assert "photos/robin/1.jpg" in predicted
    (compared,) = (text for command, text in printed.items() if "compare" in command)
    for method in ("gap", "isqrt-cov", "exact"):
        assert re.search(rf"^\| {method} \| \S+ \| 1 \| ", compared, re.MULTILINE)
    (probed,) = (text for command, text in printed.items() if "probe" in command)
    assert "isqrt-cov − gap-matched" in probed
    assert (tmp_path / "runs/first/report.html").exists()
    assert (tmp_path / "runs/first/export/model.onnx").exists()


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert {"docs/pictures/gradient.svg", "docs/which.md"} <= set(links)
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_citation_is_of_this_version():
    assert f"Version {covpool.__version__}" in README.read_text(encoding="utf-8")
