"""What `--expect` takes: one's own images with their classes, each wrong form refused in words."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from client.labeled_images import LabeledImage, parse_expectation, presets
from tests.server_process import TENCH


def test_the_preset_images_are_there_under_the_names_that_a_report_shows():
    assert [preset.name for preset in presets()][:2] == [
        "images/n01440764_tench.jpeg",
        "images/n01632777_axolotl.jpeg",
    ]
    assert all(preset.path.is_file() for preset in presets())


@pytest.mark.parametrize("name", ["cat.jpg", "a=b.jpg", "=", "x=1=2.json=3.jpg", "with space.jpg"])
def test_an_image_and_its_class_are_split_at_the_last_equals_sign(tmp_path, name):
    image = tmp_path / name
    image.touch()
    assert parse_expectation(f"{image}=7") == LabeledImage(image, 7)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (f"{TENCH}", "expected IMAGE=CLASS_ID"),
        (f"{TENCH}=", "non-negative integer"),
        (f"{TENCH}=-1", "non-negative integer"),
        (f"{TENCH}=1.0", "non-negative integer"),
        (f"{TENCH}=²", "non-negative integer"),
        (f"{TENCH}=tench", "non-negative integer"),
        (f"{TENCH}={'9' * 5000}", "non-negative integer"),
        ("=7", "expected IMAGE=CLASS_ID"),
        ("nowhere.jpg=7", "readable file"),
        (f"{TENCH.parent}=7", "readable file"),
        ("known.json", "expected IMAGE=CLASS_ID"),
    ],
)
def test_a_wrong_form_is_refused_with_the_right_one(argument, says):
    with pytest.raises(ArgumentTypeError, match=says):
        parse_expectation(argument)


def test_a_class_without_a_name_may_have_any_and_one_with_a_name_only_that():
    cat, dog = ({"class_name": name, "probability": 0.9876} for name in ("cat", "dog"))
    assert LabeledImage(Path("cat.jpg"), 7).check(cat | {"class_id": 7}) == "7 cat, probability 0.988"
    with pytest.raises(AssertionError, match=r"^expected 7, got 0 dog$"):
        LabeledImage(Path("cat.jpg"), 7).check(dog | {"class_id": 0})
    with pytest.raises(AssertionError, match=r"^expected 7 cat, got 7 dog$"):
        LabeledImage(Path("cat.jpg"), 7, "cat").check(dog | {"class_id": 7})
