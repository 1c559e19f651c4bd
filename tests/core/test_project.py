"""The project's own files: links of the README, here and on a package's page; lowest versions."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

from lowest_versions import lowest
from wheels import build_wheel

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "CHANGELOG.md")


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in LINK.findall((ROOT / page).read_text()):
            if not re.match("https?:|#|mailto:", link):
                assert (ROOT / link.partition("#")[0]).exists(), f"{page}: {link}"


def test_links_on_a_packages_page_are_absolute(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        text = archive.read(name).decode()
    (address,) = re.findall(r"^Project-URL: Source, (\S+)$", text, re.MULTILINE)
    _, _, readme = text.partition("\n\n")
    assert f"]({address}/docs/index.md)" in readme
    assert all(link.startswith(("http", "#")) for link in LINK.findall(readme))


def test_lowest_versions_are_those_of_the_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = lowest(project, ["all"])
    assert {"numpy", "scipy", "torch", "POT", "safetensors", "transformers", "matplotlib"} <= set(versions)
    for line in project["dependencies"]:
        name, _, version = line.partition(">=")
        assert versions[name] == version
