"""Which checkpoints a finished run keeps, and what can be done with it then."""

import json
import shutil

import pytest

from covpool.cli import main
from covpool.experiments import runs as grid_runs
from covpool.train.checkpoint import keep_checkpoints
from covpool.train.config import RunConfig
from covpool.train.run_directory import RunDirectory
from tiny_images import OPTIONS, make_tiny_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(make_tiny_images(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A finished run of two epochs that keeps all."""
    path = tmp_path_factory.mktemp("whole") / "run"
    options = ["--output", str(path), "--keep", "all", *OPTIONS]
    assert main(["train", "--data.root", images, *options]) == 0
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def checkpoints(path):
    return {file.name for file in path.glob("*.ckpt*")}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ([], {"best.ckpt", "last.ckpt"}),
        (["--keep", "best"], {"best.ckpt"}),
        (["--keep", "all"], {"best.ckpt", "last.ckpt", "previous.ckpt"}),
    ],
)
def test_a_finished_run_keeps_what_it_was_told_to(keep, kept, images, tmp_path):
    path = tmp_path / "run"
    assert main(["train", images, "--output", str(path), *keep, *OPTIONS]) == 0
    assert checkpoints(path) == kept


def test_by_default_a_finished_run_can_be_made_longer(copy):
    command = ["train", "--resume", str(copy), "--keep", "last"]
    assert main([*command, "--epochs", "3"]) == 0
    assert [row["epoch"] for row in RunDirectory(copy).read_metrics()] == [1, 2, 3]
    assert checkpoints(copy) == {"best.ckpt", "last.ckpt"}
    assert main([*command, "--epochs", "4"]) == 0
    assert [row["epoch"] for row in RunDirectory(copy).read_metrics()] == [1, 2, 3, 4]


def test_an_earlier_run_is_reduced_and_its_best_weights_serve(copy, images, capsys):
    before = RunDirectory(copy).read_summary()
    assert before is not None
    assert main(["train", "--resume", str(copy), "--keep", "best"]) == 0
    assert "has finished, and keeps best.ckpt of its checkpoints now" in capsys.readouterr().out
    assert checkpoints(copy) == {"best.ckpt"}
    assert RunDirectory(copy).read_config().train.keep == "best"

    assert main(["evaluate", str(copy)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert f"Best   top-1 {100 * before['best']['test_top1']:.2f}%" in line
    assert main(["predict", str(copy), f"{images}/test/grain/0.png"]) == 0

    files = {file.name: file.read_bytes() for file in copy.iterdir()}
    capsys.readouterr()
    assert main(["train", "--resume", str(copy), "--epochs", "3", "--keep", "last"]) == 2
    error = capsys.readouterr().err
    assert "keeps best.ckpt alone (train.keep best)" in error
    assert "start a new run" in error
    assert error.count("\n") == 1
    options = ["--output", str(copy), "--resume", "auto", *OPTIONS]
    assert main(["train", images, *options]) == 0
    assert "has finished its 2 epochs" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == files


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another epoch"])
def test_nothing_is_removed_while_what_is_kept_is_not_whole(damage, copy, images, caplog):
    best, history = copy / "best.ckpt", RunDirectory(copy).read_metrics()
    wanted = max(history, key=lambda row: row["test_top1"])["epoch"]
    if damage == "of another epoch":
        for row in history:
            row["test_top1"] = float(row["epoch"] != wanted)
        RunDirectory(copy).write_metrics(history)
    elif damage == "damaged":
        best.write_bytes(best.read_bytes()[:-200])
    else:
        best.unlink()
    assert not keep_checkpoints(RunDirectory(copy), "best")
    assert str(best) in caplog.text
    assert {"last.ckpt", "previous.ckpt"} < checkpoints(copy) | {"best.ckpt"}


def test_the_last_checkpoint_is_read_before_the_one_before_it_goes(copy, caplog):
    content = (copy / "last.ckpt").read_bytes()
    (copy / "last.ckpt").write_bytes(content[:-200])
    assert not keep_checkpoints(RunDirectory(copy), "last")
    assert f"{copy / 'last.ckpt'} is damaged" in caplog.text
    assert checkpoints(copy) == {"best.ckpt", "last.ckpt", "previous.ckpt"}


def test_a_comparison_keeps_the_best_alone_and_is_tabulated_again(images, tmp_path, capsys):
    from inline_grid import command as inline

    folder = tmp_path / "comparison"
    options = ["--methods", "gap", "--seeds", "1", "--output", str(folder), *OPTIONS]
    assert inline("compare", images, *options, "--keep", "best") == 0
    assert checkpoints(folder / "gap-seed0") == {"best.ckpt"}
    table = capsys.readouterr().out.splitlines()[-3:]
    summary = json.loads((folder / "gap-seed0" / "summary.json").read_text())
    assert inline("compare", images, *options) == 0  # nothing is trained again
    assert json.loads((folder / "gap-seed0" / "summary.json").read_text()) == summary
    assert capsys.readouterr().out.splitlines()[-3:] == table


def test_a_run_without_its_last_checkpoint_is_no_folder_of_a_comparison(copy):
    for name in ("last.ckpt", "previous.ckpt"):
        (copy / name).unlink()
    with pytest.raises(ValueError, match="exists and is not a comparison"):
        grid_runs.open_folder(copy, RunConfig())
