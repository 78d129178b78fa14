"""docs/sensitivity.md tells the truth: its example runs, its commands exist, its drawing is one of ours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from helpers import DOCS, Call

PAGE = (DOCS / "sensitivity.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, object] = {}
    exec(compile(code, "sensitivity.md", "exec"), space)
    assert "features.4" in str(space["found"])


def test_the_drawing_and_the_table_say_the_same() -> None:
    said = ["".join(element.itertext()) for element in ET.parse(DOCS / "sensitivity.svg").iter()]
    rows = re.findall(r"^    (\S+) +\d+ +((?:[\d.]+% +)+)[▁-█]", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for name, values in rows:
        assert any(text.endswith(name) for text in said)
        assert all(value in said for value in values.split())


def test_every_option_of_the_page_is_one_of_the_command(call: Call) -> None:
    _, printed, _ = call("sensitivity", "--help")
    _, prune, _ = call("prune", "--help")
    for option in set(re.findall(r"--[a-z]+", PAGE)):
        assert option in printed + prune
