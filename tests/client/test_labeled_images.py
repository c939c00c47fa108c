"""The preset images, and the argument of `--expect`."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from client import labeled_images
from client.labeled_images import CLASSES, LabeledImage, parse_expectation, presets
from tests.server_process import TENCH


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with only the illustrations."""
    monkeypatch.setattr(labeled_images, "ROOT", tmp_path)
    (tmp_path / "images" / "photos").mkdir(parents=True)
    for name in CLASSES:
        (tmp_path / "images" / name).touch()
    return tmp_path


def test_presets_are_the_photographs_if_both_exist(repository):
    for name in CLASSES:
        assert [image.name for image in presets()] == [f"images/{illustration}" for illustration in CLASSES]
        (repository / "images" / "photos" / name).touch()
    assert [(image.name, image.class_id) for image in presets()] == [
        ("images/photos/n01440764_tench.jpeg", 0),
        ("images/photos/n01632777_axolotl.jpeg", 26),
    ]


@pytest.mark.parametrize(
    ("folder", "name", "unproven"),
    [("images", "tench", True), ("images/photos", "tench", False), ("images", None, False)],  # without a name: --expect
)
def test_failed_illustration_is_unproven_for_other_models(repository, folder, name, unproven):
    image = LabeledImage(repository / folder / "n01440764_tench.jpeg", 0, name)
    with pytest.raises(AssertionError, match="expected 0") as raised:
        image.check({"class_id": 7, "class_name": "cock", "probability": 0.5})
    assert ("for another model" in str(raised.value)) == unproven


@pytest.mark.parametrize("name", ["cat.jpg", "a=b.jpg", "=", "x=1=2.json=3.jpg", "with space.jpg"])
def test_expectation_is_split_at_the_last_equals_sign(tmp_path, name):
    image = tmp_path / name
    image.touch()
    assert parse_expectation(f"{image}=7") == LabeledImage(image, 7)


UNREADABLE = [f"{TENCH}", "=7", "nowhere.jpg=7", f"{TENCH.parent}=7", "known.json", "a" * 300 + "=7"]


@pytest.mark.parametrize(
    "argument", [*UNREADABLE, *(f"{TENCH}={class_id}" for class_id in ("", "-1", "1.0", "²", "tench", "9" * 5000))]
)
def test_invalid_expectation_is_rejected(argument):
    with pytest.raises(ArgumentTypeError, match="a readable file and a non-negative integer"):
        parse_expectation(argument)


def test_class_name_is_compared_only_if_it_is_known():
    cat, dog = ({"class_name": name, "probability": 0.9876} for name in ("cat", "dog"))
    assert LabeledImage(Path("cat.jpg"), 7).check(cat | {"class_id": 7}) == "7 cat, probability 0.988"
    with pytest.raises(AssertionError, match=r"^expected 7, got 0 dog$"):
        LabeledImage(Path("cat.jpg"), 7).check(dog | {"class_id": 0})
    with pytest.raises(AssertionError, match=r"^expected 7 cat, got 7 dog$"):
        LabeledImage(Path("cat.jpg"), 7, "cat").check(dog | {"class_id": 7})
