"""The README's figures are those of the committed results, and so are its plots."""

from __future__ import annotations

import pytest
from matplotlib.image import imread
from PIL import Image

from bench import readme


def test_figures_are_those_of_the_results() -> None:
    written = readme.README.read_text().split(readme.BEGIN)[1].split(readme.END)[0]
    assert written == readme.text(readme.RESULTS), "run python bench/readme.py"


def test_figures_of_a_gpu_are_those_of_its_results() -> None:
    written = readme.README.read_text().split(readme.BEGIN_GPU)[1].split(readme.END_GPU)[0]
    assert written == readme.gpu_text(readme.GPU_RESULTS), "run python bench/readme.py"


@pytest.mark.parametrize("name", readme.SOURCES)
def test_plots_are_drawn_from_the_results(name: str) -> None:
    drawn_from = readme.fingerprint(readme.RESULTS, readme.SOURCES[name])
    path = readme.RESULTS / name
    with Image.open(path.with_suffix(".png")) as image:
        assert image.text["Description"] == drawn_from, "run python bench/readme.py"
    assert drawn_from in path.with_suffix(".svg").read_text()
    assert imread(path.with_suffix(".png")).std() > 0.01, "an empty picture"
