#!/usr/bin/env python3
"""Run a command in this checkout's own environment, making the environment first if need be.

    python3 env.py covpool train          installs what training needs
    python3 env.py pytest                 and what tests, types and documentation need besides
    python3 env.py --cpu covpool train    PyTorch for the CPU alone, which takes 5 GB less
    python3 env.py --with wandb,tensorboard covpool train …

Needs Python ≥ 3.11 with pip and venv, and nothing else; uv installs where it is on the PATH. The
environment lives in `.venv` beside this file, with the versions that `constraints.txt` pins. It is
made once; more is installed when a command needs more, and all of it anew when `pyproject.toml` or
`constraints.txt` change.
"""

from __future__ import annotations  # an older Python is to reach the message that names it

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "covpool-environment"
OLDEST = (3, 11)

EXTRAS = {"covpool": "train", "covpool completion": "completion", "covpool export": "export"}
"""The extra of pyproject.toml that a command needs; all others have `EVERYTHING`."""

EVERYTHING = "dev"

CPU_INDEX = "PIP_EXTRA_INDEX_URL"


def fingerprint() -> str:
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def needed(command: list[str]) -> str:
    """The extra that the command needs."""
    return EXTRAS.get(" ".join(command[:2]), EXTRAS.get(command[0], EVERYTHING))


def table_of_extras() -> dict[str, list[str]]:
    import tomllib

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["optional-dependencies"]


def included(extras: set[str]) -> set[str]:
    """The extras, and those that they name in turn, as in covpool[train]."""
    table = table_of_extras()
    if unknown := extras - set(table):
        raise ValueError(f"there is no extra {min(unknown)!r}; choose from {', '.join(table)}")
    named = {
        inner
        for extra in extras
        for line in table[extra]
        if line.startswith("covpool[")
        for inner in line[len("covpool[") : -1].split(",")
    }
    return extras if named <= extras else included(extras | named)


def installed() -> dict:
    """What the environment was made of; nothing where there is none."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # earlier versions wrote no JSON
        return {}


def installation(extras: set[str], *, cpu: bool) -> list[str]:
    """The command that installs the extras."""
    python = str(SCRIPTS / "python")
    what = ["--constraint", "constraints.txt", "--editable", f".[{','.join(sorted(extras))}]"]
    if uv := shutil.which("uv"):
        backend = ["--torch-backend", "cpu"] if cpu else []
        return [uv, "pip", "install", "--python", python, *backend, *what]
    if cpu and CPU_INDEX not in os.environ:
        raise ValueError(
            "--cpu needs uv on the PATH, which knows where PyTorch's CPU builds are; or name their "
            f"index, as on PyTorch's page of installation, in {CPU_INDEX}"
        )
    return [python, "-m", "pip", "install", "--disable-pip-version-check", *what]


def install(extras: set[str], *, cpu: bool, anew: bool) -> None:
    """Make the environment where it is not there, or `anew`, and install the extras."""
    started = time.monotonic()
    command = installation(extras, cpu=cpu)
    size = "" if cpu else " (several GB with PyTorch; with uv 5 GB less by python3 env.py --cpu …)"
    print(f"covpool: installing {', '.join(sorted(extras))}{size}", file=sys.stderr, flush=True)
    STAMP.unlink(missing_ok=True)
    python = SCRIPTS / "python"
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if anew or not python.exists() or subprocess.run([str(python), "-c", version]).returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    # Its progress is no part of what the command itself prints.
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    made = {"made_of": fingerprint(), "extras": sorted(extras), "cpu": cpu}
    STAMP.write_text(json.dumps(made) + "\n", encoding="utf-8")
    print(f"covpool: installed in {time.monotonic() - started:.0f} s", file=sys.stderr)


def provide(extras: set[str], *, cpu: bool) -> None:
    """Install what is not there already; what was installed before stays."""
    there = installed()
    had = set(there.get("extras", ())) & set(table_of_extras())
    other_torch = cpu and bool(there) and not there["cpu"]
    if there.get("made_of") != fingerprint() or other_torch or not extras <= included(had):
        install(had | extras, cpu=cpu or bool(there.get("cpu")), anew=other_torch)


def main() -> int:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"covpool needs Python 3.11 or newer; {sys.executable} is {found}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cpu", action="store_true", help="PyTorch for the CPU alone; delete .venv to go back"
    )
    parser.add_argument("--with", dest="more", default="", help="further extras, with commas")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run in it")
    given = parser.parse_args()
    if not given.command:
        parser.print_help(sys.stderr)
        return 2
    try:
        extras = {needed(given.command), *filter(None, given.more.split(","))}
        included(extras)
        provide(extras, cpu=given.cpu)
    except ValueError as error:
        print(f"covpool: error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"covpool: the installation failed at: {error.cmd}", file=sys.stderr)
        return error.returncode or 1
    name, *arguments = given.command
    path = os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", "")])
    program = shutil.which(name, path=path)
    if program is None:
        print(f"covpool: no command {name!r} in .venv or on the PATH", file=sys.stderr)
        return 127
    os.environ.update(PATH=path, VIRTUAL_ENV=str(VENV))
    if os.name != "nt":  # execv on Windows returns to the shell before the program has ended
        os.execv(program, [program, *arguments])
    return subprocess.run([program, *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
