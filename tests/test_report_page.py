"""The report as a page: what it says, that all of it is inside, that names from data are text."""

import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from scipy import stats

from covpool.cli import main
from covpool.experiments.sheet import Sheet, Table
from covpool.report.groups import group
from covpool.report.page import render
from covpool.report.sources import find_runs, find_sheets
from covpool.report.svg import SERIES
from covpool.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from made_up_runs import HOSTILE, make_run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """Elements, attributes, and text by element of a page; nesting checked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def row(self, first: str) -> list[str]:
        """The first row of a table whose first cell begins so."""
        return next(row for row in self.rows if row[0].startswith(first))


@pytest.fixture(scope="module")
def text(report_of_made_up_runs):
    return report_of_made_up_runs


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_accuracies_and_differences_are_those_of_scipy(page):
    gap, svd = (50.0, 51.0, 52.0), (60.0, 62.0, 64.0)
    row = page.row("svd MPN-COV")
    assert row[1] == "3 of 3"
    assert row[2] == f"{sum(svd) / 3:.2f} ± {stats.tstd(svd):.2f}"
    assert row[3] == "66.00 ± 1.00"  # its second epoch: 65, 66, 67
    pairs = [own - base for own, base in zip(svd, gap, strict=True)]
    interval = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    assert row[5] == f"+{sum(pairs) / 3:.2f} [+{interval.low:.2f}, +{interval.high:.2f}]"
    assert page.row("gap")[5] == "baseline"
    assert page.row("svd MPN-COV")[6] == "2.20"


def test_the_headline_names_who_is_ahead_and_what_went_wrong(page):
    assert (
        "Of the 4 methods with 3 seeds, isqrt-cov → svd has the highest top-1 in the last epoch, "
        "81.00 ± 1.00%, by more than the 95% interval of its difference to each other method."
    ) in page.text
    assert "1 diverged, 1 unfinished, of 14 runs" in page.text


@pytest.mark.parametrize(
    ("finals", "text"),
    {
        "a tie": (
            {"svd": (0.5, 0.6, 0.7), "gap": (0.5, 0.6, 0.7)},
            "Of the 2 methods with 3 seeds none is ahead in the last epoch: gap and svd, with 60% "
            "top-1, are not told apart by these seeds.",
        ),
        "within the interval": (
            {"svd": (0.5, 0.6, 0.7), "gap": (0.6, 0.5, 0.75), "exact": (0.3, 0.2, 0.46)},
            "Of the 3 methods with 3 seeds none is ahead in the last epoch: gap and svd, with 60% "
            "to 61.67% top-1, are not told apart by these seeds; exact is below.",
        ),
        "a tie behind": (
            {"svd": (0.5, 0.6, 0.71), "gap": (0.3, 0.4, 0.5), "exact": (0.3, 0.4, 0.5)},
            "svd has the highest top-1 in the last epoch, 60.33 ± 10.50%, by more",
        ),
        "one seed": (
            {"svd": (0.5,), "gap": (0.6,)},
            "Of the 2 methods with 1 seed none is ahead in the last epoch: gap and svd, with 50% "
            "to 60% top-1, are not told apart by one seed.",
        ),
        "the same difference in all seeds": (
            {"svd": (0.5, 0.6), "gap": (0.3, 0.4)},
            "Of the 2 methods with 2 seeds none is ahead in the last epoch: gap and svd, with 35% "
            "to 55% top-1, are not told apart by these seeds.",
        ),
    }.values(),
)
def test_the_headline_names_no_winner_within_the_interval(finals, text, tmp_path):
    for method, scores in finals.items():
        for seed, score in enumerate(scores):
            make_run(tmp_path / f"{method}{seed}", method=method, seed=seed, top1=(0.1, score))
    assert text in Page(render(find_runs([tmp_path]))).text


def test_runs_without_an_end_are_named_with_the_reason_and_enter_no_mean(page):
    assert "svd-taylor, seed 0: diverged, after 1 epoch. Training diverged in epoch 2" in page.text
    assert "svd-pade, seed 0: unfinished, after 2 epochs. it is still running" in page.text
    assert page.row("svd-taylor")[1:4] == ["0 of 1", "–", "–"]


def test_every_figure_that_has_data_is_drawn(page, text):
    titles = re.findall(r'<figure id="([^"]+)"', text)
    training = ("curves", "accuracy", "smoothness", "conditioning", "kernels", "gradients")
    assert titles == [f"s1-{name}" for name in training]
    assert "No data for" not in page.text
    assert page.text.count("Not shown.") == len(titles)
    assert "3 measurements failed" not in page.text
    assert "9 measurements failed and are left out; the first: <script>alert" in page.text


def test_fidelity_on_real_covariances_is_told_in_numbers(page):
    # Steps 0 to 10: the distance of svd-taylor is 0.1% to 1.1%.
    assert "Medians over all measurements: svd-taylor 0.006; isqrt-cov 0.18." in page.text
    assert "Not drawn, as within 10⁻⁹ throughout: exact and svd." in page.text


def test_sizes_of_k_stand_beside_their_bounds(page):
    assert "svd: largest 1.00·10⁶, bound ∞" in page.text
    assert "54 entries that are not finite" in page.text


def test_switches_are_marked(text):
    """A dotted line in the panels of what was switched; none in the others."""
    count = {
        name: figure.split("</figure>")[0].count("stroke-dasharray: 1.2")
        for name, figure in re.findall(r'<figure id="([^"]+)"(.*?</figure>)', text, re.DOTALL)
    }
    dotted = {"s1-curves": 2, "s1-conditioning": 4, "s1-gradients": 1}
    assert {name: found for name, found in count.items() if found} == dotted


def test_what_has_no_data_is_said(tmp_path):
    make_run(tmp_path / "run", method="svd")
    found = Page(render(find_runs([tmp_path / "run"])))
    assert "No data for" in found.text
    assert "trained without the smoothness probe" in found.text
    assert "svd reaches 50.00% top-1 in the last epoch (1 seed)." in found.text
    assert "one seed gives no interval" in found.text


def test_names_from_data_are_text(page):
    assert "script" not in page.tags
    assert "b" in page.tags  # of ours: "Not shown."
    assert not {"i", "img", "iframe", "object"} & set(page.tags)
    for name in HOSTILE[:2]:
        assert name in page.text
    assert r"{{ 7 * 7 }} $a_$ \x1b[31m\x00 中文" in page.text
    assert "a <i>grid</i> & 'more'" in page.text
    assert "\x00" not in page.text


def test_nothing_comes_from_outside(page, text):
    outside = [
        (name, value)
        for name, value in page.attributes
        if name in ("src", "href", "action", "data", "srcset") and not value.startswith("#")
    ]
    assert outside == []
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert len(text) < 600_000


def test_ids_are_unique_and_references_meet(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [value for name, value in page.attributes if name == "href"]
    named += [value[4:-1] for name, value in page.attributes if name == "clip-path"]
    assert {value.removeprefix("#") for value in named} <= set(ids)


def test_drawings_are_well_formed_and_have_names(text):
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    labels = []
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("viewBox")
        labels.append(root.get("aria-label"))
    assert len([label for label in labels if label]) == len({label for label in labels if label})


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_told_from_the_ground_in_light_dark_and_print(text):
    """WCAG 2.1: 4.5 for text, 3 for lines."""
    assert not re.search("#0102[0-9a-f]{2}", text)  # a sentinel that the page does not replace
    themes = [
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    assert len(themes) == 3
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", text))
    for theme in themes:
        assert used <= set(theme)
        ground = luminance(theme["surface"])

        def contrast(name: str, theme: dict = theme, ground: float = ground) -> float:
            low, high = sorted([ground, luminance(theme[name])])
            return (high + 0.05) / (low + 0.05)

        assert all(contrast(name) >= 4.5 for name in ("ink", "muted", "link", "warn"))
        assert all(contrast(f"series-{i}") >= 3 for i in range(SERIES))


def test_settings_that_differ_get_tables_of_their_own(tmp_path):
    make_run(tmp_path / "short", epochs=3)
    make_run(tmp_path / "long", epochs=4, top1=(0.1, 0.2, 0.3, 0.4))
    found = Page(render(find_runs([tmp_path])))
    assert "1. typefaces, small-convnet, 4 epochs" in found.text
    assert "2. typefaces, small-convnet, 3 epochs" in found.text
    assert "train.epochs = 3" in found.text


def test_options_that_an_older_version_lacked_make_no_setting_of_their_own(tmp_path):
    older = make_run(tmp_path / "older", method="svd")
    make_run(tmp_path / "newer", method="exact")
    lines = (older / "config.yaml").read_text().splitlines(keepends=True)
    left = [line for line in lines if not line.startswith("  drop_duplicates:")]
    assert len(left) == len(lines) - 1
    (older / "config.yaml").write_text("".join(left))
    found = Page(render(find_runs([tmp_path])))
    assert "2. typefaces" not in found.text


def test_figures_of_held_out_training_images_are_not_called_test_figures(tmp_path):
    make_run(tmp_path / "run", config=RunConfig(data=DataConfig(evaluate="validation")))
    text = Page(render(find_runs([tmp_path]))).text
    assert "on the validation split" in text
    assert "on the test split" not in text


def test_the_same_run_twice_counts_once(tmp_path):
    one = make_run(tmp_path / "one")
    assert len(find_runs([one, tmp_path])) == 1
    make_run(tmp_path / "two")
    found = Page(render(find_runs([tmp_path])))
    assert "left out, as another run has the same options and seed" in found.text
    assert found.row("svd MPN-COV")[1] == "1 of 1"


def test_a_run_without_a_summary_is_known_by_its_configuration(tmp_path):
    optim = OptimConfig(decay="step", milestones=(1, 2))
    config = RunConfig(model=ModelConfig(hybrid="svd-pade"), optim=optim)
    run = make_run(tmp_path / "run", method="isqrt-cov", config=config, top1=(0.1,))
    (run / "summary.json").unlink()
    (found,) = find_runs([run])
    assert (found.label, found.status, found.seed) == ("isqrt-cov → svd-pade", "unfinished", 0)
    assert found.switches == ((0, "isqrt-cov"), (2, "svd-pade"))


def test_many_methods_get_a_panel_each(tmp_path):
    methods = ["exact", "svd", "svd-topn", "svd-trunc", "svd-pi", "svd-newton", "svd-taylor"]
    for method in methods:
        make_run(tmp_path / method, method=method)
    found = render(find_runs([tmp_path]))
    figure = found.split('id="s1-curves"')[1].split("</figure>")[0]
    assert figure.count("<svg") == len(methods)


def test_a_comparison_has_its_own_order(tmp_path):
    for method in ("gap", "exact"):
        make_run(tmp_path / f"{method}-seed0", method=method)
    assert [run.method for run in find_runs([tmp_path])] == ["gap", "exact"]
    runs = [{"path": f"{method}-seed0"} for method in ("exact", "gap")]
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": runs}))
    assert [run.method for run in find_runs([tmp_path])] == ["exact", "gap"]


def test_the_arms_of_a_study_or_a_probe_are_one_chapter(tmp_path):
    heads = {
        "gap": {},
        "gap-matched": {"hidden_features": "matched"},
        "gap-reduced": {"gap_reduction": True},
        "gap-reduced-matched": {"gap_reduction": True, "hidden_features": "matched"},
        "exact": {},
    }
    for folder in ("one", "other"):
        for number, (label, options) in enumerate(heads.items()):
            method = label.partition("-")[0]
            config = RunConfig(
                model=ModelConfig(method=method, **options),
                optim=OptimConfig(learning_rate=0.1 + number / 100, weight_decay=number / 1000),
            )
            for seed in (0, 1):
                path = tmp_path / folder / "runs" / f"{label}-seed{seed}"
                make_run(path, method=method, seed=seed, config=config)
        (tmp_path / folder / "rates.json").write_text("{}")
    settings = group(find_runs([tmp_path / "one"]))
    assert [[row.label for row in own.rows] for own in settings] == [[*heads]]
    assert (settings[0].baseline, settings[0].duplicates) == ("gap", [])
    found = Page(render(find_runs([tmp_path / "one"])))
    assert [found.row(label)[:2] for label in heads] == [[label, "2 of 2"] for label in heads]
    # Those of two studies are two chapters, which tell whose they are.
    both = group(find_runs([tmp_path]))
    assert [[row.label for row in own.rows] for own in both] == [[*heads]] * 2
    assert [own.options for own in both] == [
        [("study", str(tmp_path / folder))] for folder in ("one", "other")
    ]


def test_the_sheets_of_an_experiment_are_sections(tmp_path):
    make_run(tmp_path / "runs" / "run")
    rows = [("(1) <b>worse</b>", "shown", "by 13 [9, 17]"), ("(2) smooth", "not shown", "×1.1")]
    columns = ("observation of the paper", "here", "from")
    for name, heading in (("table4", "ResNet-50"), ("observations", "Recipe <i>")):
        Sheet(
            name=name,
            title=f"What {name} says",
            scale="On made up images.",
            tables=[Table(heading=heading, columns=columns, rows=rows)],
            data={},
            notes=["**Few** seeds of `gap`."],
        ).write(tmp_path)
    (tmp_path / "rates.json").write_text('{"gap": {"rate": 0.1}}')
    (tmp_path / "other.json").write_text("[1]")
    text = render(find_runs([tmp_path]), sheets=find_sheets([tmp_path]))
    found = Page(text)
    assert text.index("What observations says</h2>") < text.index("What table4 says</h2>")
    assert text.index("What table4 says</h2>") < text.index("<h3>Accuracy</h3>")
    assert "Of the paper's 2 observations: 1 shown, 1 not shown" in found.text
    assert ["(1) <b>worse</b>", "shown", "by 13 [9, 17]"] in found.rows
    assert "Few seeds of gap." in found.text
    assert "Recipe <i>" in found.text


def test_a_comparison_is_not_told_twice(tmp_path):
    Sheet(name="comparison", title="", tables=[], data={}).write(tmp_path)
    assert find_sheets([tmp_path]) == []


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (None, ["{}/none"], "no directory {}/none"),
        (None, ["{}"], "holds no run of covpool train"),
        (make_run, ["{}/run", "--baseline", "svd-pade"], "none of the methods found; choose from"),
        (make_run, ["{}/run", "--output", "{}"], "is a directory"),
        (make_run, ["{}/run", "--output", "{}/no/page.html"], "no directory {}/no; make it first"),
        (make_run, ["{}/run", "--output", "{}/run/config.yaml"], "must end in .html or .htm"),
        (make_run, ["{}/run", "--output", "{}/page.html"], "is no report of covpool"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, prepare, options, message):
    if prepare is not None:
        prepare(tmp_path / "run")
    (tmp_path / "page.html").write_text("mine")
    assert main(["report", *(option.format(tmp_path) for option in options)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("covpool: error: ")
    assert message.format(tmp_path) in error


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "- 1", "is not a run's configuration"),
        ("config.yaml", "model: {}", "is not a run's configuration"),
        ("metrics.jsonl", '{"epoch": 1}\n', "line 1 has method None"),
        ("metrics.jsonl", "no\n{}\n", "line 1 cannot be read"),
        ("summary.json", '{"status": "finished"}', "it has no data"),
        ("confusions.csv", "class,called,images,share\na,b,many,1\n", "is not what covpool train"),
        ("analysis.jsonl", "[]\n{}\n", "line 1 is no record"),
        ("observations.json", '{"tables": 1, "name": ""}', "the same command again writes it"),
    ],
)
def test_files_that_are_damaged_are_named(tmp_path, file, content, message):
    run = make_run(tmp_path / "run")
    (run / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        find_sheets(find_runs([run]) and [run])
    assert str(run / file) in str(caught.value)


def test_confusions_show_pictures_of_both_classes(tmp_path):
    path = make_run(tmp_path / "run")
    plain = Page(render(find_runs([path])))
    assert "img" not in plain.tags
    (path / "examples.json").write_text(
        json.dumps({HOSTILE[0]: ["AAAA", "BBBB"], HOSTILE[1]: ["CCCC"]})
    )
    text = render(find_runs([path]))
    page = Page(text)
    pictures = re.findall(r'src="data:image/jpeg;base64,(\w+)"', text)
    # Of the pairs 0→1, 3→2, 1→2, 0→3 and 2→0, each with the pictures of both its classes.
    row = page.row("<script>")
    assert row[0] == HOSTILE[0]
    counts = [pictures.count(each) for each in ("AAAA", "BBBB", "CCCC")]
    assert (
        counts[0] == counts[1] == sum(HOSTILE[0] in row[:2] for row in page.rows if len(row) == 3)
    )
    assert counts[2] == sum(HOSTILE[1] in row[:2] for row in page.rows if len(row) == 3) > 0
    assert "img-src data:" in text


@pytest.mark.parametrize(
    "content", ['{"a": ["\\" onerror=\\"x"]}', '["a"]', '{"a": 3}', '{"a": [3]}', "{", "[" * 20000]
)
def test_pictures_that_are_none_are_refused(content, tmp_path):
    path = make_run(tmp_path / "run")
    (path / "examples.json").write_text(content)
    with pytest.raises(ValueError, match=r"examples\.json is not what covpool train writes"):
        find_runs([path])


def test_accuracy_stands_before_the_machine_and_notes_are_no_warnings(tmp_path):
    make_run(tmp_path / "run", method="gap")
    file = tmp_path / "run" / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps({**summary, "notes": ["held out 5 of 20 images"]}))
    text = render(find_runs([tmp_path]))
    assert text.index('<table class="cards') < text.index('<dl class="facts">')
    assert '<li class="note">held out 5 of 20 images</li>' in text
