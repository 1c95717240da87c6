"""What the documentation shows is true: its recommenders validate, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipelines.config import load
from recsys_moe.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
YAML_BLOCK = re.compile(r"^```ya?ml\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def _pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


def recommenders(text: str) -> list[str]:
    """The YAML blocks of a page that are whole recommenders: those with a name."""
    blocks = [match[1] for match in YAML_BLOCK.finditer(text)]
    return [block for block in blocks if isinstance(raw := yaml.safe_load(block), dict) and "name" in raw]


def broken_links(page: Path) -> list[str]:
    """Links of a page to files that are not there."""
    targets = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    return [target for target in local if not (page.parent / target).exists()]


SHOWN = [(page, block) for page in _pages() for block in recommenders(page.read_text(encoding="utf-8"))]


def _check(block: str, folder: Path) -> None:
    path = folder / "shown.yaml"
    path.write_text(block, encoding="utf-8")
    load(path)


@pytest.mark.parametrize(("page", "block"), SHOWN, ids=[f"{page.name}-{n}" for n, (page, _) in enumerate(SHOWN)])
def test_every_recommender_shown_is_valid(page: Path, block: str, tmp_path: Path) -> None:
    _check(block, tmp_path)


def test_recommenders_are_shown() -> None:
    """Or the test above would look at nothing."""
    assert {page.name for page, _ in SHOWN} >= {"bring_your_own_data.md"}


def test_a_wrong_recommender_is_seen(tmp_path: Path) -> None:
    page = "# Title\n\n```yaml\nname: shop\nstorrage: var/shop\n```\n\n```yaml\ntasks: []\n```\n"
    (block,) = recommenders(page)
    with pytest.raises(UserError, match="shown"):
        _check(block, tmp_path)


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md) [b](gone.md#x) [c](https://example.org) `[d](code.md)`", encoding="utf-8")
    assert broken_links(page) == ["gone.md"]
