"""What checkpoints and published models say of themselves, checked: they may come from others."""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any, NotRequired, TypedDict

from covpool.data import Preprocessing
from covpool.data.types import check_value
from covpool.models.backbones import SOURCES
from covpool.pooling import VECTOR_LAYOUT
from covpool.train.checkpoint import METADATA_KEYS
from covpool.train.config import RunConfig
from covpool.train.schedule import method_schedule


class ImagesRecord(TypedDict):
    """Which images one split had."""

    number: int
    digest: str


class Score(TypedDict):
    """What was measured after an epoch."""

    epoch: int
    test_top1: float
    test_top5: float
    test_loss: float


class Metadata(TypedDict):
    """The entries by their types; others may stand beside them."""

    version: str
    config: dict[str, dict[str, Any]]
    classes: list[str]
    vector_layout: str
    schedule: str
    preprocessing: dict[str, Any]
    images: dict[str, ImagesRecord]
    epoch: int
    checkpoint: NotRequired[str | None]
    data: NotRequired[str | None]
    converted_from: NotRequired[str | None]
    scores: NotRequired[dict[str, Score]]


EXTERNAL_OPTIONS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments of timm's `create_model` that name files, or where to get them."""


REMEDY = "; get it again, or use the version that wrote it"


def checked_metadata(about: Any, file: object) -> dict[str, Any]:
    """The metadata with every option in it, those that an earlier version lacked by their defaults.

    Args:
        about: as it was read.
        file: for messages.

    Raises:
        ValueError: an entry that is missing, of another type, out of its range, of another version,
            or at odds with another entry.
    """
    missing = [key for key in METADATA_KEYS if not isinstance(about, dict) or key not in about]
    if missing:
        raise ValueError(
            f"{file} is not a published model's, or one of another version: it lacks "
            f"{', '.join(missing)}{REMEDY}"
        )
    try:
        check_value("it", about, Metadata)
        if about["vector_layout"] != VECTOR_LAYOUT:
            raise ValueError(
                f"it has the vector layout {about['vector_layout']!r} of version "
                f"{about['version']}, this version {VECTOR_LAYOUT!r}: its classifier's weights "
                "would mean something else"
            )
        config = RunConfig.from_dict(about["config"])
        schedule = str(method_schedule(config))
        if about["schedule"] != schedule:
            raise ValueError(f"schedule is {about['schedule']!r}, its configuration's {schedule!r}")
        if not about["classes"]:
            raise ValueError("it has no classes")
        if about["epoch"] < 0:
            raise ValueError(f"epoch must be at least 0, not {about['epoch']}")
        if about["images"] and not {"train", "test"} <= set(about["images"]):
            raise ValueError("images must have train and test")
        preprocessing = Preprocessing.from_dict(about["preprocessing"])
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}{REMEDY}") from error
    return {**about, "config": config.to_dict(), "preprocessing": preprocessing.to_dict()}


IMAGES = ("name", "root")
"""Options of data that say which images are opened."""


def refuse_external(config: RunConfig, path: object, *, images: Collection[str] = ()) -> None:
    """Raise a ValueError where a configuration would fetch something, or open files that lie
    elsewhere.

    Args:
        config: of somebody else's model, as it was published.
        path: the model, for the message.
        images: where images are going to be opened too, those of `IMAGES` that it chooses, because
            the user has not.
    """
    model, data = config.model, config.data
    found = [
        f"model.backbone_options.{name} {model.backbone_options[name]!r}"
        for name in EXTERNAL_OPTIONS
        if name in model.backbone_options
    ]
    if model.backbone.startswith(SOURCES):
        found.append(f"model.backbone {model.backbone!r}")
    publishable = without_local_paths({"config": config.to_dict()})["config"]["data"]
    chosen = {name: getattr(data, name) for name in images}
    local = [
        f"data.{name} {value!r}"
        for name, value in chosen.items()
        if value != publishable[name] or (name == "name" and value.startswith("hfds/"))
    ]
    found += local
    if found:
        instead = "name your own images, or, " if local else ""
        raise ValueError(
            f"{path} would take {' and '.join(found)} from a hub or from other files of this "
            f"machine; {instead}if you trust its maker, allow it by --allow-external (in Python, "
            "allow_external=True)"
        )


def without_local_paths(about: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with the last component in place of each path of this machine."""
    config = {group: dict(fields) for group, fields in about["config"].items()}
    data, model = config.get("data", {}), config.get("model", {})
    for group, name in ((data, "root"), (data, "name"), (model, "init_from"), (model, "backbone")):
        if isinstance(group.get(name), str):
            group[name] = _last_component(group[name], anywhere=name in ("root", "init_from"))
    for fields in config.values():
        for name, value in fields.items():
            if isinstance(value, dict):
                fields[name] = _without_paths(value)
    return {**about, "config": config}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return _last_component(value) if isinstance(value, str) else value


def _last_component(text: str, *, anywhere: bool = False) -> str | None:
    """Of a path; other text stays. `anywhere`: the text is a path, even a relative one, and None
    where it has no last component that names a file or folder by itself."""
    prefix = re.match(r"(local-dir:|hfds/|wds/)?", text)
    assert prefix is not None
    place = text[prefix.end() :]
    is_path = anywhere or re.match(r"[~/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]", place) is not None
    if not is_path and prefix.group() != "local-dir:":
        return text
    kind = PureWindowsPath if "\\" in place else PurePath
    name = kind(place).name
    if name == ".." or name.startswith("~"):  # the folder above, or somebody's home
        name = ""
    return prefix.group() + name or (None if anywhere else "")
