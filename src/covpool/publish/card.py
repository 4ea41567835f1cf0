"""The model card of a published model: YAML for hubs, then Markdown for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from covpool.linalg.methods import METHODS
from covpool.poolings import POOLINGS
from covpool.text import markdown, quantity

TAGS = ("image-classification", "global-covariance-pooling", "pytorch")


def model_card(
    metadata: Mapping[str, Any],
    *,
    title: str,
    licence: str | None = None,
    exports: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card's text.

    Args:
        metadata: of the published model: what its config.json holds.
        title: the heading.
        licence: a hub's identifier of the licence of the weights ("apache-2.0", "cc-by-nc-4.0").
            None leaves it out: whoever publishes decides.
        exports: rows of export.json.
    """
    data = ModelCardData(
        library_name="covpool", tags=list(TAGS), license=licence, pipeline_tag=TAGS[0]
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {markdown(title)}",
        _summary(metadata),
        "## Use",
        _use(),
        "## Data",
        _data(metadata),
        "## Method",
        _method(metadata),
        "## Scores",
        _scores(metadata),
    ]
    if exports:
        parts += ["## Exported files", _exports(exports)]
    if licence is None:
        parts += ["## Licence", "The publisher has stated no licence for these weights."]
    return "\n\n".join(parts) + "\n"


def _summary(metadata: Mapping[str, Any]) -> str:
    model = metadata["config"]["model"]
    origin = metadata.get("converted_from")
    made = (
        f"converted by covpool {metadata['version']} from {origin}"
        if origin
        else f"trained with covpool {metadata['version']}"
    )
    return (
        f"An image classifier of {len(metadata['classes'])} classes: backbone "
        f"`{model['backbone']}`, pooling `{metadata['schedule']}`; {made}."
    )


def _use() -> str:
    return (
        "```python\n"
        "import covpool\n\n"
        'trained = covpool.load_model("PATH_OF_THIS_DIRECTORY")\n'
        'print(trained.predict("image.jpg")[0].likeliest)\n'
        "```\n\n"
        "or `covpool predict PATH_OF_THIS_DIRECTORY image.jpg`. `trained.model` is an ordinary "
        "`torch.nn.Module`, and the weights are those of `covpool.create_model`."
    )


def _data(metadata: Mapping[str, Any]) -> str:
    preprocessing = metadata["preprocessing"]
    images = metadata["images"]
    lines = []
    if metadata.get("data"):
        lines.append(f"Trained on: {markdown(metadata['data'])}.")
    if images:
        lines.append(
            f"{images['train']['number']:,} training and {images['test']['number']:,} "
            f"{_evaluated(metadata)} images."
        )
    colour = "grey" if preprocessing["channels"] == 1 else "colour"
    size, resize = preprocessing["image_size"], preprocessing["resize"]
    resized = (
        f"the shorter side to {resize}"
        if isinstance(resize, int)
        else f"to {resize[0]}×{resize[1]}"
    )
    lines.append(
        f"Input: {colour} images, resized ({resized} pixels), the centre {size}×{size} of them, "
        f"values in [0, 1] minus {preprocessing['mean']}, divided by {preprocessing['std']}."
    )
    return " ".join(lines)


def _evaluated(metadata: Mapping[str, Any]) -> str:
    """test or validation."""
    return metadata["config"].get("data", {}).get("evaluate", "test")


def _method(metadata: Mapping[str, Any]) -> str:
    model, optim = metadata["config"]["model"], metadata["config"]["optim"]
    names = [part.rpartition(":")[2] for part in metadata["schedule"].split(",")]
    lines = [
        f"- `{name}`: {POOLINGS[name].description}. {POOLINGS[name].paper}."
        for name in dict.fromkeys(names)
    ]
    if names[0] in METHODS:
        lines.append(
            f"- Channels before the pooling: {model['reduced_channels']} (auto: 256, or the "
            "backbone's own where it has fewer). The pooled vector is the upper triangle, layout "
            f"`{metadata['vector_layout']}`."
        )
    if not metadata.get("converted_from"):
        lines.append(
            f"- {quantity(metadata['config']['train']['epochs'], 'epoch')} of SGD, learning rate "
            f"{optim['learning_rate']:g}, weight decay {optim['weight_decay']:g}; the weights are "
            f"of epoch {metadata['epoch'] + 1}. `config.json` has every option."
        )
    return "\n".join(lines)


def _scores(metadata: Mapping[str, Any]) -> str:
    scores = metadata.get("scores") or {}
    if not scores:
        if metadata.get("converted_from"):
            return (
                "None were measured here: the conversion is checked against the authors' code on "
                "random weights, not on the data set. `covpool evaluate` measures them on yours."
            )
        return "None are known."
    rows = [
        f"| {name.capitalize()} | {row['epoch']} | {100 * row['test_top1']:.2f} "
        f"| {100 * row['test_top5']:.2f} | {row['test_loss']:.4f} |"
        for name, row in scores.items()
    ]
    split = f"{_evaluated(metadata)} split"
    weights = metadata.get("checkpoint")
    which = f" The weights here are those of {weights.capitalize()}." if weights else ""
    views = metadata["preprocessing"].get("views", "center")
    if views != "center":
        which += f" Logits are averaged over views of each image ({views})."
    return (
        f"| {split} | epoch | top-1 % | top-5 % | loss |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nFinal is the last epoch; Best is the epoch of the highest top-1.{which}\n\n"
        f"What they are not: Best was chosen on the {split} itself, so it flatters. Both are of "
        f"one run (seed {metadata['config']['train']['seed']}); the spread over seeds is not "
        "known from it. They say nothing of images that were collected in another way than these."
    )


def _exports(exports: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| `{row['file']}` | {row['format']} | {row['pooling']} | {row['dtype']} "
        f"| {row['max_logit']:.1e} | {row['max_probability']:.1e} | {row['top1_agreement']:.2%} |"
        for row in exports
    ]
    first = exports[0]
    return (
        "Input `images` (batch, channels, height, width), float32, preprocessed as above; output "
        "`logits` (batch, classes); the batch may have any size.\n\n"
        "| file | format | pooling | its dtype | largest change of a logit | of a "
        "probability | same top-1 |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nMeasured on {quantity(first['images'], 'image')} ({markdown(first['source'])}): "
        f"the file, read back and run, against the network in PyTorch with its own method "
        f"`{first['method']}`. "
        f"The largest magnitude of a logit was {first['logit_scale']:.3g}."
    )
