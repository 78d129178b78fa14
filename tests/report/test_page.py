"""The page: well formed, self-contained, escaped, the same each time, and written whole or not at all."""

import base64
import hashlib
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torchslim.errors import CheckpointError
from torchslim.report import render, texts, write
from torchslim.report.record import Record

LIMIT = 150_000
VOID = {"meta", "link", "img", "br"}
# What may name another place, and the only places that are named.
LINKS = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction"}


class Page(HTMLParser):
    """Every element with its attributes, its parents and its text; fails where tags do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"{tag} is closed and was not open"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [found for name, found, _ in self.elements
                if name == tag and all(found.get(key) == value for key, value in attributes.items())]

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))


def chart(page: str, name: str) -> Page:
    """One chart of the page, by its id."""
    start = page.index(f'<svg id="{name}"')
    depth = 0
    for match in re.compile(r"<svg\b[^>]*?(/?)>|</svg>").finditer(page, start):
        depth += -1 if match[0] == "</svg>" else 0 if match[1] else 1
        if depth == 0:
            return Page(page[start:match.end()])
    raise AssertionError(f"{name} is not closed")


def check(text: str) -> Page:
    """What must hold for every page."""
    page = Page(text)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), "no handler stands in an attribute"
            assert name not in LINKS or value.startswith("data:"), f"{name}={value}"
            if name == "aria-labelledby":
                assert set(value.split()) <= set(ids)
    assert len(page.all("script")) == 1
    assert not re.search(r"@import|url\(|https?:|//[a-z]", page.text("style"))
    assert not re.search(r"\b(nan|inf|None)\b", "".join(page.texts.get("text", [])), re.IGNORECASE)
    places = ("x", "y", "width", "height", "d", "cx", "x1", "x2", "y1")
    for tag, attributes, _ in page.elements:
        if tag in {"rect", "line", "path", "circle", "text", "svg"}:
            assert not re.search(r"nan|inf|e[-+]?\d", " ".join(attributes.get(key, "") for key in places))
            assert not attributes.get("width", "").startswith("-")
            assert not attributes.get("height", "").startswith("-")
    return page


def test_the_page_is_well_formed_and_asks_for_nothing(record):
    page = check(render(record))
    assert page.elements[0][0] == "html"
    assert [len(page.all(tag)) for tag in ("html", "head", "body", "main", "h1")] == [1] * 5


def test_extremes_make_good_pages(extreme):
    check(render(extreme))


def test_the_headline_says_the_result(record):
    text = re.search(r"<h1>(.*?)</h1>", render(record), re.DOTALL)
    words = " ".join(re.sub(r"<[^>]+>", "", text[1]).split())
    assert words == ("1.4\N{MULTIPLICATION SIGN} faster (eager), 60% fewer MACs, accuracy 98.6% → 98.3%, "
                     "proven equal to 3e-15")


def test_pages_stay_small(record, extreme):
    assert len(render(record).encode()) < 60_000
    assert len(render(extreme).encode()) < LIMIT


def test_equal_records_give_equal_pages(record):
    again = Record.from_json(record.to_json())
    assert again == record
    assert render(record) == render(record) == render(again)


def test_names_are_text_and_nothing_else(record):
    name = "<b onclick=x>&\"'</b><script>alert(1)</script>"
    hostile = render(replace(record, title=name, command=name, notes=(name,), settings={name: name},
                             layers=(replace(record.layers[0], name=name, kind=name),) * 3,
                             left_alone=(replace(record.left_alone[0], name=name, reason=name),)))
    page = check(hostile)
    assert not page.all("b", onclick="x")
    assert name in page.text("title")
    assert page.texts["code"].count(name) == 2


def test_the_policy_allows_this_script_and_nothing_else(record):
    page = Page(render(record))
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    digest = base64.b64encode(hashlib.sha256(page.text("script").encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")


@pytest.mark.parametrize("name", ["channels", "macs"])
def test_each_layer_has_two_bars_its_name_and_its_values(record, name):
    page = render(record)
    bars = chart(page, name)
    assert len(bars.all("rect")) == 2 * len(record.layers)
    assert len(bars.all("text")) == 2 * len(record.layers)
    for layer in record.layers:
        assert layer.name in bars.text("text")


def test_bars_are_as_long_as_the_numbers(record):
    bars = chart(render(record), "channels")
    widths = [float(rect["width"].rstrip("%")) for rect in bars.all("rect")]
    most = max(layer.channels_before for layer in record.layers)
    wanted = [layer.channels_before for layer in record.layers]
    wanted += [layer.channels_after for layer in record.layers]
    assert widths == pytest.approx([100 * value / most for value in wanted], abs=0.01)


def test_a_layer_that_grew_shows_its_old_length_on_top(record):
    grown = replace(record.layers[0], channels_after=2 * record.layers[0].channels_before)
    page = chart(render(replace(record, layers=(grown, *record.layers[1:]))), "channels")
    groups = [attributes["class"] for tag, attributes, _ in page.elements if tag == "g"]
    assert groups == ["before", "after", "before"]
    assert page.all("rect")[-1]["width"] == "50%"


def test_very_many_layers_are_charted_by_size_and_all_in_the_table(record):
    one = record.layers[0]
    many = tuple(replace(one, name=f"block.{at}.conv", channels_before=8 + at) for at in range(300))
    page = render(replace(record, layers=many))
    assert len(chart(page, "channels").all("rect")) == 2 * texts.MOST_BARS
    assert "block.299.conv" in chart(page, "channels").text("text")
    assert all(f">{layer.name}</th>" in page for layer in many)


def test_long_names_keep_their_end_and_are_told_in_full(record):
    name = "features.denseblock3.denselayer24.conv2"
    bars = chart(render(replace(record, layers=(replace(record.layers[0], name=name),))), "channels")
    assert "…" + name[-23:] in bars.texts["text"]
    assert bars.texts["title"][-1] == name


def test_the_histogram_has_a_bar_for_each_count_and_the_threshold(record):
    bars = chart(render(record), "histogram")
    heights = {kind: [float(rect["height"]) for rect in bars.all("rect", **{"class": f"{kind} bin"})]
               for kind in ("after", "removed")}
    assert len(heights["after"]) == sum(count > 0 for count in record.scores.kept)
    assert len(heights["removed"]) == sum(count > 0 for count in record.scores.removed)
    assert heights["after"][0] / heights["after"][1] == pytest.approx(30 / 20, abs=0.01)
    assert len(bars.all("line", **{"class": "rule"})) == 1
    assert "threshold 0.6" in bars.text("text")


def test_curves_have_a_point_for_each_epoch(record):
    for name in ("score", "loss"):
        page = chart(render(record), name)
        lines = [path for path in page.all("path") if path["class"].startswith("line")]
        dots = [path for path in page.all("path") if path["class"].startswith("dots")]
        assert [path["d"].count("L") + 1 for path in lines] == [3, 2]
        assert [path["d"].count("h0") for path in dots] == [3, 2]


def test_a_gap_stands_where_a_value_is_no_number(record):
    curve = replace(record.curves[0], loss=(1.0, 0.8, float("nan"), 0.5, 0.4), score=())
    page = chart(render(replace(record, curves=(curve,))), "loss")
    [line] = [path["d"] for path in page.all("path") if path["class"].startswith("line")]
    assert re.sub(r"[^ML]", "", line) == "MLML"


def test_pictures_are_there_with_what_they_show(record):
    page = Page(render(record))
    images = page.all("img")
    assert [image["alt"] for image in images] == [f"Picture of {sample.label}" for sample in record.samples]
    assert base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert len(page.all("li", **{"class": "differs"})) == 1


def test_reasons_are_told_once_with_all_their_names(record):
    page = render(record)
    assert page.count("its outputs are the model&#39;s") == 1
    assert "14 channels" in page
    for entry in record.left_alone:
        assert f"<code>{entry.name}</code>" in page


def test_write_makes_folders_and_returns_the_path(record, tmp_path):
    path = write(record, str(tmp_path / "a" / "b" / "report.html"))
    assert path == tmp_path / "a" / "b" / "report.html"
    assert path.read_text(encoding="utf-8") == render(record)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_what_utf8_cannot_hold_is_no_reason_to_fail(record, tmp_path):
    path = write(replace(record, title="x\ud800y"), tmp_path / "report.html")
    assert "x?y" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_page_and_nothing_else(record, tmp_path, monkeypatch, broken):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if broken == "replace" else os, broken, fail)
    with pytest.raises(CheckpointError, match=r"report\.html: could not be written: OSError: .*No space"):
        write(record, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_page_and_nothing_else(record, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(record, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_refused(record, tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        write(record, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        write(record, Path(tmp_path / "file" / "report.html"))
