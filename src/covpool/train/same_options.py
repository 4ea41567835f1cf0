"""Which options may differ between runs, and the first one in which two configurations do."""

from collections.abc import Collection, Mapping
from typing import Any

from covpool.train.config import RunConfig

MACHINE_KEYS = (
    ("data", "workers"),
    ("train", "accelerator"),
    ("train", "devices"),
    ("train", "nodes"),
    ("train", "strategy"),
    ("train", "threads"),
    ("train", "checkpoint_steps"),
    ("train", "keep"),
    ("train", "probes"),
    ("train", "probe_every"),
)
"""What may differ between the runs of one comparison: where they run, what is measured along them,
and what is kept of them."""

GRID_KEYS = (("model", "method"), ("train", "seed"))
"""What a comparison varies."""

RESUME_KEYS = (
    *(("data", name) for name in ("name", "root", "check", "skip_damaged")),
    *(("train", name) for name in ("epochs", "on_nonfinite", "loggers")),
    *MACHINE_KEYS,
)
"""What may differ between a run and its resumption: where it runs, for how long, and what is
measured along it."""

Options = Mapping[str, Mapping[str, Any]]
"""A configuration as plain values, by group and name."""


def difference(
    there: RunConfig | Options, here: RunConfig, *, free: Collection[tuple[str, str]]
) -> tuple[str, Any, Any] | None:
    """The first option, as group.name, in which two configurations differ, with both its values.

    Args:
        there: one of them; what an older version wrote lacks the options that are newer than it,
            which were at their defaults.
        here: the other one.
        free: (group, name) of the options that may differ.
    """
    known = with_defaults(there.to_dict() if isinstance(there, RunConfig) else there)
    for group, fields in here.to_dict().items():
        for name, value in fields.items():
            if (group, name) not in free and known[group].get(name) != value:
                return f"{group}.{name}", known[group].get(name), value
    return None


def shared_options(options: Options) -> dict[tuple[str, str], Any]:
    """The options that all runs of a comparison share, by (group, name)."""
    return {
        (group, name): value
        for group, fields in with_defaults(options).items()
        for name, value in fields.items()
        if (group, name) not in (*MACHINE_KEYS, *GRID_KEYS)
    }


def with_defaults(options: Options) -> dict[str, dict[str, Any]]:
    """The groups of options of a config.yaml; what an older version lacked was at its default."""
    defaults = RunConfig().to_dict()
    return {
        group: {**defaults.get(group, {}), **options.get(group, {})}
        for group in (*defaults, *options)
    }
