"""`env.py`: what it installs for which command, and when."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from covpool.cli import COMMANDS

ROOT = Path(__file__).parents[1]
FILES = ("env.py", "pyproject.toml", "constraints.txt")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what `env.py` reads, as a checkout without an environment."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def env(checkout, monkeypatch):
    """The module, of which pip and uv are recorded instead of run, in `env.calls`."""
    spec = importlib.util.spec_from_file_location("covpool_env", checkout / "env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.shutil, "which", lambda name, **options: None)
    monkeypatch.delenv(module.CPU_INDEX, raising=False)
    module.calls = []

    def run(command, **options):
        module.calls.append((command, options))
        if "venv" in command:
            module.SCRIPTS.mkdir(parents=True, exist_ok=True)
            (module.SCRIPTS / "python").touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def installs(env, *arguments):
    """What the command line installs and whether it makes a new environment; then forgotten."""
    env.calls.clear()
    status = main(env, arguments)
    assert status == 127  # there is no command in an environment of the test's
    made = any("venv" in command for command, _ in env.calls)
    found = [command for command, _ in env.calls if "install" in command]
    assert len(found) <= 1
    return (found[0][-1] if found else None), made


def main(env, arguments):
    before, sys.argv = sys.argv, ["env.py", *arguments]
    try:
        return env.main()
    finally:
        sys.argv = before


def test_each_command_has_its_extra(env):
    for name, command in COMMANDS.items():
        assert env.needed(["covpool", name]) == command.extra
    assert env.needed(["covpool"]) == env.needed(["covpool", "--help"]) == "train"
    for name in ("pytest", "ruff", "pyright", "sphinx-build", "python"):
        assert env.needed([name, "train"]) == "dev"


def test_the_extra_of_developers_has_what_tests_need_and_nothing_that_slows_every_start(env):
    everything = env.included({"dev"})
    assert {"train", "models", "report", "docs", "export", "completion"} <= everything
    assert "wandb" not in everything
    assert env.included({"train"}) == {"train", "models", "report"}


def test_what_is_there_is_not_installed_again(env, capfd):
    assert installs(env, "covpool", "train") == (".[train]", True)
    assert installs(env, "covpool", "evaluate", "run") == (None, False)
    assert installs(env, "covpool", "export", "run") == (".[export,train]", False)
    assert installs(env, "pytest", "-m", "") == (".[dev,export,train]", False)
    assert installs(env, "covpool", "completion", "bash") == (None, False)
    assert installs(env, "--with", "wandb,tensorboard", "covpool")[0].count("wandb") == 1
    assert installs(env, "covpool", "train", "--with", "x") == (None, False)  # the command's own
    text = capfd.readouterr()
    assert "installing dev, export, train (several GB" in text.err
    assert "--cpu" in text.err
    assert text.out == ""


@pytest.mark.parametrize("name", FILES[1:])
def test_all_that_was_installed_is_installed_again_where_its_versions_change(name, env):
    installs(env, "pytest")
    (env.ROOT / name).write_text((env.ROOT / name).read_text() + "\n")
    assert installs(env, "covpool", "train") == (".[dev,train]", False)
    assert installs(env, "pytest") == (None, False)


def test_an_environment_of_an_earlier_version_is_brought_up_to_date(env):
    installs(env, "pytest")
    env.STAMP.write_text("0123abcd")
    assert installs(env, "pytest") == (".[dev]", False)
    made = json.loads(env.STAMP.read_text())
    env.STAMP.write_text(json.dumps({**made, "extras": ["dev", "of-earlier"]}))
    assert installs(env, "pytest") == (None, False)


def test_progress_is_shown_and_is_no_part_of_the_output(env):
    installs(env, "covpool")
    command, options = env.calls[-1]
    assert options["stdout"] is sys.stderr
    assert "--quiet" not in command


def test_uv_installs_where_it_is(env, monkeypatch):
    monkeypatch.setattr(env.shutil, "which", lambda name, **rest: "/uv" if name == "uv" else None)
    assert installs(env, "covpool") == (".[train]", True)
    assert env.calls[-1][0][:3] == ["/uv", "pip", "install"]
    assert "--torch-backend" not in env.calls[-1][0]
    # PyTorch is another build, so that torchvision has to be one too.
    assert installs(env, "--cpu", "covpool") == (".[train]", True)
    command = env.calls[-1][0]
    assert command[command.index("--torch-backend") + 1] == "cpu"
    for arguments in (["covpool"], ["--cpu", "covpool"]):
        assert installs(env, *arguments) == (None, False)
    assert installs(env, "pytest") == (".[dev,train]", False)
    assert "--torch-backend" in env.calls[-1][0]


def test_pip_needs_the_index_of_cpu_builds(env, monkeypatch, capfd):
    assert main(env, ["--cpu", "covpool"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "--cpu needs uv on the PATH" in error
    assert env.CPU_INDEX in error
    assert env.calls == []
    monkeypatch.setenv(env.CPU_INDEX, "index")
    assert installs(env, "--cpu", "covpool") == (".[train]", True)
    assert json.loads(env.STAMP.read_text())["cpu"] is True


def test_an_extra_that_there_is_not_is_told(env, capfd):
    assert main(env, ["--with", "wand", "covpool"]) == 2
    assert "there is no extra 'wand'; choose from models, train," in capfd.readouterr().err
    assert env.calls == []


def test_a_failed_installation_is_tried_again(env, monkeypatch, capfd):
    installs(env, "covpool")
    run = env.subprocess.run

    def fails(command, **options):
        if "install" in command:
            raise subprocess.CalledProcessError(3, command)
        return run(command, **options)

    monkeypatch.setattr(env.subprocess, "run", fails)
    assert main(env, ["pytest"]) == 3
    assert "the installation failed at: [" in capfd.readouterr().err
    monkeypatch.setattr(env.subprocess, "run", run)
    assert installs(env, "covpool")[0] is not None


@pytest.mark.skipif(sys.platform == "win32", reason="a script with a shebang")
def test_the_command_runs_in_the_environment(checkout, env):
    installs(env, "covpool")
    program = env.SCRIPTS / "covpool"
    program.write_text('#!/bin/sh\necho "$VIRTUAL_ENV" "$@"; exit 5\n')
    program.chmod(0o755)
    command = [sys.executable, str(checkout / "env.py"), "covpool", "train", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate()
    assert (process.returncode, out) == (5, f"{env.VENV} train --help\n")
