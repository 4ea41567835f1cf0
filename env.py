#!/usr/bin/env python3
"""Run a command in this checkout's own environment, making the environment first if need be.

    python3 env.py covpool train
    python3 env.py pytest

Needs Python ≥ 3.11 with pip and venv, and nothing else. The environment lives in `.venv` beside
this file, with the versions that `constraints.txt` pins; it is made once and again whenever
`pyproject.toml` or `constraints.txt` change.
"""

import hashlib
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


def fingerprint() -> str:
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def install() -> None:
    started = time.monotonic()
    print("covpool: installing into .venv (once; several GB with PyTorch) ...", file=sys.stderr)
    STAMP.unlink(missing_ok=True)
    python = SCRIPTS / "python"
    same_python = [
        str(python),
        "-c",
        f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})",
    ]
    if not python.exists() or subprocess.run(same_python).returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    subprocess.run(
        [
            *(str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"),
            *("--constraint", "constraints.txt", "--editable", ".[dev]"),
        ],
        cwd=ROOT,
        check=True,
    )
    STAMP.write_text(fingerprint())
    print(f"covpool: installed in {time.monotonic() - started:.0f} s", file=sys.stderr)


def main() -> int:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"covpool needs Python 3.11 or newer; {sys.executable} is {found}", file=sys.stderr)
        return 2
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    if not STAMP.exists() or STAMP.read_text() != fingerprint():
        try:
            install()
        except subprocess.CalledProcessError as error:
            print(f"covpool: the installation failed at: {error.cmd}", file=sys.stderr)
            return error.returncode or 1
    name, *arguments = sys.argv[1:]
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
