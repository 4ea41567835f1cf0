"""`covpool` commands in several processes, as torchrun or Slurm starts them.

Forked from one process that has imported everything, so that a start takes a second, not ten.
"""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["covpool.cli.train", "covpool.train.engine"])


def torchrun_variables(rank, world):
    return {
        "TORCHELASTIC_RUN_ID": "none",
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }


def slurm_variables(rank, world):
    return {
        "SLURM_JOB_ID": 1,
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": world,
        "SLURM_NTASKS_PER_NODE": world,
        "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": 1,
        "SLURM_NODEID": 0,
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
    }


def start(arguments, log, *, world=2, variables=torchrun_variables, prepare=None):
    """Processes that run the command; `log.RANK` gets what each prints.

    `prepare(rank)` is called in each of them before.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **variables(rank, world)}
        names = {name: str(value) for name, value in names.items()}
        process = CONTEXT.Process(
            target=_run, args=(arguments, names, rank, f"{log}.{rank}", prepare)
        )
        process.start()
        processes.append(process)
    return processes


def run(arguments, log, **options):
    """The exit statuses of the processes, and what the first one printed."""
    processes = start(arguments, log, **options)
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes], Path(f"{log}.0").read_text()


def _run(arguments, variables, rank, log, prepare):
    os.environ.update(variables)
    multiprocessing.set_start_method("fork", force=True)  # of the loaders, as without us
    with open(log, "w", buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)

    from lightning.fabric.utilities.rank_zero import rank_zero_only

    import covpool.cli

    rank_zero_only.rank = rank  # read from the environment when Lightning was imported
    if prepare is not None:
        prepare(rank)
    status = covpool.cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
