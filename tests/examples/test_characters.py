"""Characters, with the typefaces that matplotlib ships: families, blanks, splits, a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

pytest.importorskip("fontTools")
pytest.importorskip("PIL")

from examples.characters import __main__ as characters
from examples.characters import data, fonts, training
from examples.evidence.study import Arm

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
FILES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10")
LETTERS = "ABCDEFGH"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fonts")
    for file in (*FILES, "LastResortHE-Regular"):
        (folder / f"{file}.ttf").symlink_to(FONTS / f"{file}.ttf")
    return folder


@pytest.fixture(scope="module")
def faces(folder: Path) -> list[fonts.Face]:
    return fonts.find(folder, LETTERS)


def test_faces_without_the_characters_are_left_out(folder, faces):
    assert {face.path.stem for face in faces} == {*FILES}, "one of last resort has boxes only"
    assert fonts.find(folder, "亜唖娃阿") == []
    assert len(fonts.find(folder, "ABCDЖ")) == len(FILES)
    found = [face for face in fonts.find(folder, "AЖ亜") if "DejaVu" in face.name]
    assert [face.characters for face in found] == [{*"AЖ"}] * 3


def test_files_that_are_no_fonts_are_left_out(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    (tmp_path / "readme.txt").write_text("text")
    assert fonts.find(tmp_path, LETTERS) == []


def test_a_character_is_drawn_in_the_middle(faces):
    (face,) = (face for face in faces if face.name == "DejaVu Sans")
    face = replace(face, characters=frozenset("H "))
    (h, space, missing) = fonts.render(face, ["H", " ", "亜"])
    assert not space.any()
    assert not missing.any(), "no box in place of a character that is missing"
    rows, columns = np.nonzero(h)
    for places in (rows, columns):
        assert places.min() >= 1
        assert abs((places.min() + places.max()) / 2 - (fonts.SIZE - 1) / 2) <= 1
    assert h.max() == 255


def test_families_are_kept_together(faces):
    drawn = [fonts.render(face, LETTERS) for face in faces]
    groups = dict(zip((face.name for face in faces), fonts.families(faces, drawn), strict=True))
    assert groups["DejaVu Sans"] == groups["DejaVu Sans Bold"] == groups["DejaVu Serif"]
    assert groups["DejaVu Sans"] != groups["STIXGeneral-Regular"]


def test_one_drawing_under_two_names_is_one_family():
    """Three faces: the second draws 3 of 10 characters as the first does, the third none."""
    images = np.random.default_rng(0).integers(0, 255, (3, 10, 32, 32)).astype(np.uint8)
    images[1, :3] = images[0, :3]
    faces = [fonts.Face(Path(), 0, name, frozenset()) for name in ("One", "Two", "Three")]
    one, two, three = fonts.families(faces, list(images))
    assert one == two != three
    assert fonts.alike(images[0], images[1]) == pytest.approx(0.3)
    images[0, 0] = 0  # blank in one of the two: not common
    assert fonts.alike(images[0], images[1]) == pytest.approx(2 / 9)
    assert fonts.copies(list(images)) == [False, False, False]
    assert fonts.copies([images[0], images[2], images[0]]) == [False, False, True]


def test_a_family_is_in_one_part_alone():
    groups = [at % 9 for at in range(40)]
    parts = data.split(groups)
    assert sorted(at for those in parts.values() for at in those) == list(range(40))
    families = {part: {groups[at] for at in those} for part, those in parts.items()}
    assert all(families.values())
    assert sum(len(those) for those in families.values()) == 9
    assert data.split(groups) == parts


def test_blank_images_are_left_out(faces):
    found = data.images(faces[:2], "A B")
    assert found.characters.tolist() == [0, 2, 0, 2]
    assert found.pixels.shape == (4, 1, fonts.SIZE, fonts.SIZE)
    assert found.pixels.flatten(1).any(dim=1).all()


def test_the_characters_are_those_of_the_standard():
    assert len(set(data.JIS_LEVEL_1)) == len(data.JIS_LEVEL_1) == 2965
    assert (data.JIS_LEVEL_1[0], data.JIS_LEVEL_1[-1]) == ("亜", "腕")


def test_too_few_families_are_told(tmp_path):
    with pytest.raises(SystemExit, match=r"has 0 families of typefaces .* name a folder with --f"):
        data.load(tmp_path, LETTERS)


@pytest.mark.parametrize("kind", training.NETWORKS)
def test_networks(kind):
    size = training.Size(characters=5, width=4, batch=2, epochs=1)
    network = training.character_network(kind, size).eval()
    images = torch.randint(256, (3, 1, fonts.SIZE, fonts.SIZE), dtype=torch.uint8)
    assert network(images).shape == (3, 5)
    normalised = any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert normalised == (kind == "BatchNorm")


def test_arms_of_a_seed_are_pairs(monkeypatch):
    seen = []
    monkeypatch.setattr(
        training,
        "fit",
        lambda network, inputs, labels, order, **how: seen.append(
            (network.state_dict(), torch.stack(order), how["alpha"])
        ),
    )
    images = data.Images(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20) % 5)
    parts = dict.fromkeys(("train", "validation", "test"), images)
    size = training.Size(characters=5, width=4, batch=4, epochs=2)
    for alpha, seed in ((0.25, 1), (1.0, 1), (1.0, 2)):
        training.measure(parts, size, Arm("BatchNorm", alpha), 0.1, seed, "test")
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=0, atol=0)
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][1], seen[2][1])
    assert [alpha for _, _, alpha in seen] == [0.25, 1.0, 1.0]


def test_the_whole_command(monkeypatch, folder, tmp_path, capsys):
    """On six letters in five families of typefaces."""
    monkeypatch.setattr(characters, "JIS_LEVEL_1", "ABCDEF")
    monkeypatch.setattr(characters, "QUICK", training.Size(6, width=4, batch=6, epochs=1))
    output = ["--quick", "--fonts", str(folder), "--output", str(tmp_path)]
    outcomes = characters.command.run(characters.EXPERIMENT, output)
    assert {arm.network for arm in outcomes} == set(training.NETWORKS)
    assert (tmp_path / "results.png").exists()
    assert "accuracy, %" in capsys.readouterr().out
