"""The examples that ship are right as they are."""

import re
from pathlib import Path

import pytest

from apf_elastic.config import load

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("example", sorted((TOP / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_an_example_loads_without_a_doubt(example: Path) -> None:
    config = load(example)
    assert config.warnings == ()
    assert config.settings.queues


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted((TOP / "docs").glob("*.md")))])
def test_every_whole_configuration_in_the_documentation_loads(page: str, tmp_path: Path) -> None:
    for number, text in enumerate(
        re.findall(r"^```toml\n(.*?)^```", (TOP / page).read_text(), re.DOTALL | re.MULTILINE)
    ):
        if "[factory]" in text:
            file = tmp_path / f"{number}.toml"
            file.write_text(text)
            assert load(file).settings.queues
