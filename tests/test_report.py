"""A page to look at: complete in itself, true to what was read, harmless whatever people wrote."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from pal import pipeline
from pal.cli.app import app
from pal.config import Config, load
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.cross_fit import read_folds
from pal.evaluate.records import Metrics
from pal.report.audit import parts_of
from pal.report.charts import Value, forest, simplex, versus
from pal.report.page import Page, Picture, Table, Text
from pal.report.render import as_html
from pal.report.subjects import all_of
from pal.report.tastes import disagreement_blocks
from pal.report.write import file_name

EVIL = '<script>alert("&quot;")</script>'
PICTURE = "![x](http://elsewhere/x.png) [y](javascript:alert(1))"
VOID = {"meta", "link", "img", "br", "use", "path"}


class Reader(HTMLParser):
    """Reads a page as a browser would: its elements, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def require_harmless(html: str) -> Reader:
    """Assert that a page has no script, asks nobody for anything, and can be walked through."""
    page = Reader(html)
    assert not page.open
    headings = []
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "link", "form", "base"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert (value or "").startswith(("#", "data:image/png;base64,")), value
        if tag == "img":
            assert attributes["alt"]
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if re.fullmatch("h[1-6]", tag):
            headings.append(int(tag[1]))
    assert headings[0] == 1
    assert all(later <= before + 1 for before, later in itertools.pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes.get("aria-labelledby") for _, attributes in page.elements} - {None}
    assert named <= set(ids)
    regions = [at["aria-label"] for _, at in page.elements if at.get("role") == "region"]
    assert len(regions) == len(set(regions)) == html.count("<table>")
    assert not re.search(r"@import|url\((?!#)", html)
    assert html.count("<table>") == html.count("<caption")
    assert "default-src 'none'" in html
    return page


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Config]
) -> tuple[Config, Path]:
    """Return a folder with a dataset of hostile texts and people, two runs, a sweep and an
    audit."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    lines = []
    for user in range(14):
        name = EVIL if user == 0 else f"person {user} & <b>"
        for n in range(30):
            left, right = f"{EVIL} likes tea {n}", f"{PICTURE} likes |coffee| {n}"
            tea = (rng.random() < 0.85) == (user % 2 == 0)
            chosen, rejected = (left, right) if tea else (right, left)
            lines.append(
                {"user_id": name, "prompt": f"Drink {n}? {EVIL}", "chosen": chosen,
                 "rejected": rejected}
            )  # fmt: skip
    lines.append({"user_id": None, "prompt": "x", "chosen": EVIL, "rejected": "b"})
    source = folder / "answers.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    paths = {f"paths.{name}": f"{folder}/{name}" for name in
             ("data", "cache", "runs", "sweeps", "audits", "reports", "exports")}  # fmt: skip
    options = {
        "dataset": "pairs", "data.pairs.source": str(source), "encoder": "tiny-text",
        "train.epochs": 3, "train.head": "pal-a", "audit.overlap_draws": 19,
        "audit.features": False, "sweep.head": ["pal-a"], "sweep.k": [1, 2], "sweep.seed": [0],
        "adapt.shots": [0, 1],
    }  # fmt: skip
    config = configure({**options, **paths})
    quiet = lambda line: None  # noqa: E731
    pipeline.embed(config, tell=quiet)
    for k in (1, 3):
        update = {"train": config.train.model_copy(update={"k": k})}
        pipeline.train(config.model_copy(update=update), f"of-{k}", tell=quiet)
    pipeline.adapt(config, "of-3", tell=quiet)
    pipeline.sweep(config, "many", report=quiet)
    pipeline.audit(config, "asked", tell=quiet)
    return config, folder


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pairs"], ["People", "no-user", "What divides people most", "tiny-text", "of-1", "of-3"]),
        (["of-3"], ["People among the prototypes", "Prototype 2 likes least", "prototype 0",
                    "worse off", "share that is right", "pal train --dataset pairs", "untrained"]),
        (["many"], ["Best by validation", "Run many-best"]),
        (["asked"], ["Audit asked", "What limits this"]),
        (["of-1", "of-3"], ["Paired differences", "of-3 - of-1"]),
    ],
)  # fmt: skip
def test_a_page_is_complete_and_shows_what_people_wrote_as_text(
    made: tuple[Config, Path], names: list[str], words: list[str]
) -> None:
    config, _ = made
    found = pipeline.report(config, names)
    assert found.names == names
    html = Path(found.file).read_text(encoding="utf-8")
    page = require_harmless(html)
    for word in words:
        assert word in page.text, word
    assert "Where every number comes from" in page.text
    if names in (["pairs"], ["of-3"], ["asked"]):
        assert EVIL in page.text  # with its quote and its ampersand, as it was written
        assert PICTURE in page.text


def test_the_page_has_the_numbers_of_the_record(made: tuple[Config, Path]) -> None:
    config, folder = made
    page = Reader(Path(pipeline.report(config, ["of-3"]).file).read_text(encoding="utf-8"))
    metrics = Metrics.read(folder / "runs" / "of-3")
    assert metrics.test_seen is not None
    assert metrics.test_seen.macro_ci95 is not None
    low, high = metrics.test_seen.macro_ci95
    assert f"{metrics.test_seen.macro_accuracy:.3f} [{low:.3f}, {high:.3f}]" in page.text
    assert metrics.head_seal[:16] in page.text
    for shots in ("0", "1"):
        assert f"new people, {shots} answers" in page.text
        assert f"{metrics.test_unseen[shots].macro_accuracy:.3f}" in page.text


def test_what_divides_people_is_counted_from_their_answers(made: tuple[Config, Path]) -> None:
    _, folder = made
    first, *_ = disagreement_blocks(PreparedDataset.open(folder / "data" / "pairs"))
    assert isinstance(first, Table)
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    text, share, people = first.rows[0]
    wanted = next(
        item
        for line in lines
        for item in (line["chosen"], line["rejected"])
        if f"{line['prompt']} → {item}" == text
    )
    won = [line["chosen"] == wanted for line in lines if wanted in line.values()]
    assert share == f"{np.mean(won):.0%}"
    assert people == f"{len(won)}"


def test_prompts_with_the_same_two_answers_are_what_is_judged(
    configure: Callable[..., Config],
) -> None:
    """Also where the answers stand behind their prompts: then no two items are the same."""
    config = configure({"dataset": "demo"})
    dataset = pipeline.prepare(config, tell=lambda line: None)
    assert dataset.item_text == "{prompt}{response}"
    first, _ = disagreement_blocks(dataset)
    assert isinstance(first, Table)
    assert first.header[1] == "share of “Yes”"
    pairs = dataset.pairs().with_columns(pl.col("prompt_id").bin.encode("hex"))
    several = pairs.group_by("prompt_id").agg(pl.col("user_id").n_unique()).filter(
        pl.col("user_id") >= 5
    )  # fmt: skip
    assert f"of {len(several):,} things" in first.caption
    items = dict(zip(*(dataset.items([name]).column(name).to_pylist()
                       for name in ("item_id", "text")), strict=True))  # fmt: skip
    text, share, _ = first.rows[0]
    of_it = [
        (row["label"] == 1.0) == items[row["first_id"]].endswith(" Yes")
        for row in pairs.iter_rows(named=True)
        if " ".join(items[row["first_id"]].split()).startswith(text)
    ]
    assert f"{np.mean(of_it):.0%}" == share


def test_a_damaged_run_is_one_sentence_and_the_page_stays(made: tuple[Config, Path]) -> None:
    config, folder = made
    file = folder / "runs" / "of-1" / "metrics.json"
    whole, before = file.read_bytes(), Path(pipeline.report(config, ["of-1"]).file).read_bytes()
    file.write_bytes(whole.replace(b'"n_users"', b'"n_usurs"', 1))
    try:
        with pytest.raises(EvaluationError, match="pal evaluate --run of-1"):
            pipeline.report(config, ["of-1"])
        assert (folder / "reports" / "of-1.html").read_bytes() == before
        beside = pipeline.report(config, ["of-1", "of-3"])
        assert "of-1 is not shown" in Path(beside.file).read_text(encoding="utf-8")
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("runs/of-1/head.json", ["Run of-1 is not shown: "]),
        ("runs/many-best/head.json", ["Run many-best is not shown: "]),
        ("runs/of-1/metrics.json", ["of-1 is not shown: "]),
        ("runs/of-1/predictions.parquet", ["Answer by answer, of-1 is not shown: ", "Differences"]),
        ("sweeps/many/summary.json", ["Sweep many is not shown: "]),
        ("sweeps/many/results.parquet", ["Sweep many", "It cannot be shown: "]),
        ("audits/asked/plan.json", ["Audit asked is not shown: "]),
        ("audits/asked/audit.json", ["Audit asked", "It cannot be shown: "]),
    ],
)
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_what_is_damaged_is_named_on_the_page_of_its_dataset(
    made: tuple[Config, Path], file: str, words: list[str], harm: str
) -> None:
    config, folder = made
    path = folder / file
    whole = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    try:
        page = Path(pipeline.report(config, ["dataset:pairs"]).file).read_text(encoding="utf-8")
        for word in words:
            assert word in page
    finally:
        path.write_bytes(whole)


def test_a_sweep_whose_best_head_is_damaged_says_so(made: tuple[Config, Path]) -> None:
    config, folder = made
    path = folder / "runs" / "many-best" / "head.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    try:
        page = Path(pipeline.report(config, ["sweep:many"]).file).read_text(encoding="utf-8")
        assert "It is not shown: " in page
    finally:
        path.write_bytes(whole)


def test_folds_whose_numbers_cannot_be_read_are_named(made: tuple[Config, Path]) -> None:
    config, folder = made
    folds = folder / "runs" / "of-3" / "folds" / "of-2"
    folds.mkdir(parents=True)
    try:
        beside = Path(pipeline.report(config, ["of-1", "of-3"]).file).read_text(encoding="utf-8")
        assert "run: pal evaluate of-3 --folds 2." in beside
    finally:
        folds.rmdir()
        folds.parent.rmdir()


def test_numbers_of_folds_that_are_not_of_the_heads_beside_them_are_not_believed(
    made: tuple[Config, Path],
) -> None:
    config, folder = made
    pipeline.evaluate(config, ["of-1"], 2, tell=lambda line: None)
    place = folder / "runs" / "of-1" / "folds" / "of-2"
    metrics = (place / "metrics.json").read_bytes()
    try:
        shutil.copy(folder / "runs" / "of-3" / "metrics.json", place / "metrics.json")
        with pytest.raises(EvaluationError, match="metrics.json is not of the heads beside it"):
            read_folds(place)
        page = Path(pipeline.report(config, ["of-1", "of-3"]).file).read_text(encoding="utf-8")
        assert "is not of the heads beside it" in page
        remedy = "; run: pal evaluate of-1 --folds 2$"
        (place / "metrics.json").write_bytes(metrics)
        (place / "1" / "head.json").unlink()
        with pytest.raises(EvaluationError, match=f"1 holds no head that can be trusted{remedy}"):
            read_folds(place)
        (place / "metrics.json").write_text("{}")
        with pytest.raises(EvaluationError, match=f"is missing, damaged .*{remedy}"):
            read_folds(place)
        answers = place.rename(place.with_name("of-2-answers"))
        with pytest.raises(EvaluationError, match=f"{remedy[:-1]} --over answers$"):
            read_folds(answers)
    finally:
        shutil.rmtree(place.parent)


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_damaged_run_is_found_by_its_name(made: tuple[Config, Path], harm: str) -> None:
    config, folder = made
    path = folder / "runs" / "of-1" / "head.json"
    whole = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(whole[:40])
    try:
        with pytest.raises(EvaluationError, match="pal train --run of-1"):
            pipeline.report(config, ["of-1"])
    finally:
        path.write_bytes(whole)


def test_names_that_nothing_has_and_files_of_others_are_refused(made: tuple[Config, Path]) -> None:
    config, folder = made
    with pytest.raises(EvaluationError, match="nothing is called nobody"):
        pipeline.report(config, ["nobody"])
    with pytest.raises(EvaluationError, match="cannot be the name"):
        pipeline.report(config, ["../runs"])
    with pytest.raises(EvaluationError, match="say dataset:, run:, sweep: or audit:"):
        pipeline.report(config, ["model:of-1"])
    mine = folder / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(EvaluationError, match="is no page of pal report"):
        pipeline.report(config, ["of-1"], mine)
    assert mine.read_text() == "<p>mine</p>"


def test_a_page_without_a_name_is_of_the_dataset(made: tuple[Config, Path]) -> None:
    found = pipeline.report(made[0])
    assert (Path(found.file).name, found.names) == ("pairs.html", ["pairs"])


def test_the_command_prints_the_file_and_the_names(made: tuple[Config, Path]) -> None:
    _, folder = made
    places = [f"--set=paths.{name}={folder}/{name}" for name in ("data", "runs", "reports")]
    done = CliRunner().invoke(app, ["report", "of-1", "--json", *places])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"file": f"{folder}/reports/of-1.html", "names": ["of-1"]}


def test_every_text_is_escaped_wherever_it_stands() -> None:
    table = Table.of(EVIL, [EVIL, "n"], [[EVIL, "1"]])
    drawn = forest(EVIL, {EVIL: Value(0.5, (0.4, 0.6)), "b": Value(0.6, None)}, EVIL)
    points = versus(EVIL, [EVIL, "b"], np.array([0.5, 0.6]), np.array([0.4, 0.9]), EVIL, EVIL)
    people = simplex(EVIL, [EVIL, "b"], np.eye(3)[:2])
    page = Page(EVIL, EVIL)
    page.add(EVIL, [Text(EVIL), table, drawn, points, people, Picture(EVIL, EVIL, png="AAAA")])
    read = require_harmless(as_html(page))
    assert read.text.count(EVIL) > 8


def test_a_drawing_takes_its_colours_from_the_page_and_names_its_points() -> None:
    drawn = simplex("people", ["ann", "bob"], np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]))
    assert "var(--series-0)" in drawn.svg
    assert "#0102" not in drawn.svg
    assert "bob: 0.20, 0.30, 0.50" in drawn.svg
    assert drawn.table is not None
    assert ["bob", "0.200", "0.300", "0.500"] in drawn.table.rows


def test_harmed_people_are_counted() -> None:
    drawn = versus(
        "c", ["a", "b", "c"], np.array([0.5, 0.5, 0.5]), np.array([0.4, 0.5, 0.9]), "one", "many"
    )
    assert "1 are worse off" in drawn.alt
    assert drawn.table is not None
    assert drawn.table.rows[0][0] == "a"


def test_of_very_many_people_some_are_drawn_and_all_are_counted() -> None:
    now = np.arange(5000) / 5000
    drawn = versus("c", [f"p{n}" for n in range(5000)], np.full(5000, 0.5), now, "one", "many")
    assert "2500 are worse off" in drawn.alt
    assert drawn.svg.count('class="point"') == 2000
    assert drawn.table is not None
    assert [drawn.table.rows[0][0], drawn.table.rows[-1][0]] == ["p0", "p4999"]


def test_what_another_command_has_not_finished_is_on_no_page(made: tuple[Config, Path]) -> None:
    config, folder = made
    unfinished = folder / "runs" / ".inflight-0a-1-b"
    shutil.copytree(folder / "runs" / "of-1", unfinished)
    folds = folder / "runs" / "of-3" / "folds" / ".inflight-0a-1-b"
    folds.mkdir(parents=True)
    try:
        assert unfinished.name not in [one.name for one in all_of(config.paths, "run")]
        page = Path(pipeline.report(config, ["of-1", "of-3"]).file).read_text(encoding="utf-8")
        assert "inflight" not in page
    finally:
        shutil.rmtree(unfinished)
        shutil.rmtree(folds.parent)


def test_markdown_that_people_wrote_stays_text() -> None:
    rows = f"| more | text |\n|--|--|\n| 60% (5) | {PICTURE} \\| {EVIL} |\n"
    (part,) = parts_of(
        f"# Audit\n\n**plural**\n\n## Groups\n\nMore than others:\n\n{rows}", {"x.png": ""}
    )
    assert isinstance(part.blocks[0], Table)
    assert part.blocks[0].caption == "More than others."
    assert part.blocks[0].rows == [["60% (5)", f"{PICTURE} | {EVIL}"]]


def test_the_page_of_an_audit_is_text_to_every_reader_of_markdown(
    made: tuple[Config, Path],
) -> None:
    _, folder = made
    page = (folder / "audits" / "asked" / "audit.md").read_text(encoding="utf-8")
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = reader.parse(page)
    assert not [token for token in tokens if token.type.startswith("html")]
    inline = [one for token in tokens for one in token.children or ()]
    assert {one.attrs["src"] for one in inline if one.type == "image"} == {"users.png", "null.png"}
    others = {one.type for one in inline} - {"text", "softbreak", "image"}
    assert others == {"strong_open", "strong_close"}
    rows = [one.content for one in inline if f"{PICTURE} likes |coffee|" in one.content]
    assert rows


def test_file_names_are_short_and_safe() -> None:
    assert file_name(["run:a", "b"]) == "run-a-and-b"
    assert len(file_name(["x" * 90, "y" * 90])) < 100


def test_reports_have_a_folder_of_their_own() -> None:
    assert str(load().config.paths.reports) == "reports"
