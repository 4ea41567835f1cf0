"""The README's Python examples run, in order, in one namespace."""

import re
from pathlib import Path

import torch

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
