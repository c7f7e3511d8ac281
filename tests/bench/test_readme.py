"""Every figure that is shown is that of the committed results, and so are the plots."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread
from PIL import Image

from bench import readme

each_machine = pytest.mark.parametrize("folder", readme.cpu_folders(), ids=lambda path: path.name)


def test_figures_of_the_readme() -> None:
    assert readme.written(readme.README) == readme.text(readme.SHOWN), "run python bench/readme.py"


def test_figures_of_the_last_layer() -> None:
    assert readme.written(readme.LAST_LAYER) == readme.linear_text(readme.WITH_LAST_LAYER), (
        "run python bench/readme.py"
    )


def test_figures_of_a_gpu() -> None:
    page = readme.GPU / "README.md"
    assert readme.written(page) == readme.gpu_text(readme.GPU / "run.jsonl"), (
        "run python bench/readme.py"
    )


@each_machine
def test_figures_of_each_machine(folder: Path) -> None:
    assert (folder / "README.md").read_text() == readme.page(folder), "run python bench/readme.py"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        pytest.param(folder, name, id=f"{folder.name}-{name}")
        for folder in readme.cpu_folders()
        for name, sources in readme.SOURCES.items()
        if readme.records_of(folder, sources)
    ],
)
def test_plots_are_drawn_from_the_results(folder: Path, name: str) -> None:
    drawn_from = readme.fingerprint(folder, readme.SOURCES[name])
    path = folder / name
    with Image.open(path.with_suffix(".png")) as image:
        assert image.text["Description"] == drawn_from, "run python bench/readme.py"
    assert drawn_from in path.with_suffix(".svg").read_text()
    assert imread(path.with_suffix(".png")).std() > 0.01, "an empty picture"


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(readme.README.read_text().splitlines()) <= 130
