"""Pictures of a run: whatever classes are called."""

import torch

from covpool.train.figures import draw_confusion


def test_class_names_are_text(tmp_path):
    """Dollar signs are no formulas, and a script that the font lacks is no warning."""
    classes = ["$a_$", "100% & <b>", "[red]x", "中文"]
    path = tmp_path / "confusion.png"
    draw_confusion(torch.eye(4, dtype=torch.long) * 3 + 1, classes, path)
    assert path.read_bytes().startswith(b"\x89PNG")
