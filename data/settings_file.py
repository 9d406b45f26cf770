"""Settings for a file that was looked at, as YAML with comments: what ``pal init`` writes."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from pal.data.proposal import ROWS, Proposal
from pal.data.sources.columns import quoted
from pal.errors import ConfigError
from pal.files import atomic_file
from pal.items import is_unicode


def write_settings(found: Proposal, file: Path, force: bool = False) -> Path:
    """Write settings as YAML with comments; raises ConfigError where the file is there already."""
    if file.exists() and not force:
        raise ConfigError(
            f"{file} is there already and is not replaced; say --force, or put under its data: "
            f"{found.name}: {_in_one_line(found)}"
        )
    text = as_yaml(found)
    if not is_unicode(text):
        raise ConfigError(
            f"{found.source} has columns whose names are no text; rename them, or convert the file"
        )
    read = yaml.safe_load(text)["data"][found.name]
    assert read.get("columns", {}) == dict(found.columns), "what was written is what is read"
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def as_yaml(found: Proposal) -> str:
    """Return the settings as YAML, with what was recognised as comments."""
    what = ROWS.get(found.kind, f"the export of a {found.kind} conversation")
    lines = [
        f"# Written by pal init, which looked at {_plain(str(found.source))}. Every line may be "
        "changed;",
        "# pal config prints all settings, pal doctor says what is wrong with which row.",
        "",
        f"dataset: {_quoted(found.name)}    # the default of --dataset",
        f"encoder: {found.encoder}    # a small one; pal config lists others under embed",
        "",
        "data:",
        f"  {_quoted(found.name)}:",
        f"    kind: {found.kind}    # {what}",
        f"    source: {_quoted(str(found.source))}",
    ]
    if found.columns:
        lines.append("    columns:    # our name: the name in the file")
        for ours, theirs in found.columns.items():
            doubt = "    # likely, please check" if ours in found.doubts else ""
            lines.append(f"      {ours}: {_quoted(theirs)}{doubt}")
    for key, value in found.further.items():
        lines.append(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
    if found.kind in ("votes", "pairs") and "values" not in found.further:
        ours = "vote" if found.kind == "votes" else "label"
        lines.append(f"    # values: {{{ours}: {{yes: 1, no: 0}}}}    # if answers have own words")
    lines += [f"    # {_plain(note)}" for note in found.notes]
    lines += [
        "    # min_answers: 10    # leave out people with fewer answers",
        "",
        "train:",
        "  head: auto    # as many tastes as the answers show; pal-a and pal-b have a K of yours",
        "  # k: 4",
        "",
        "# adapt: {shots: [0, 5, 20]}    # answers of new people; else as many as half can give",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    plain = quoted(text)
    return plain if plain == text else json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """Return a text that ends no comment."""
    return " ".join(text.split())


def _in_one_line(found: Proposal) -> str:
    columns = ", ".join(f"{ours}: {_quoted(own)}" for ours, own in found.columns.items())
    middle = f", columns: {{{columns}}}" if columns else ""
    middle += "".join(
        f", {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.further.items()
    )
    return f"{{kind: {found.kind}, source: {_quoted(str(found.source))}{middle}}}"
