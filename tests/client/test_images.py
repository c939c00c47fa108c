"""Many images: which are found, and their results from an endpoint that is slow, wrong or unavailable."""

import os
import re
import threading
import tracemalloc

import pytest

from client.endpoint import RequestRejected
from client.images import SUFFIXES, classify_in_order, find_images, print_many
from runtime.decoding import FORMATS
from tests.server_process import DEADLINE_S


class FakeEndpoint:
    """Returns the number in the image as the class and its time; calls `act` first, which may raise."""

    url = "url"

    def __init__(self, act=lambda number: None):
        self.act = act

    def classify(self, image):
        number = int(image)
        self.act(number)
        return {"class_id": number, "class_name": str(number), "probability": 0.5, "request_ms": float(number)}


def numbered(folder, count):
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(str(number))
    return paths


def classes(outcomes):
    return [outcome.get("class_id", outcome.get("error")) for outcome in outcomes]


def test_folder_is_searched_at_any_depth_and_sorted(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a/x.webp", "z.jpeg", "a/notes.txt", "a/._x.webp", ".cache/y.jpg", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = [tmp_path / "missing.jpg", tmp_path / "README", tmp_path / "missing.jpg"]  # kept, whatever they are
    found, ignored = find_images([*named, tmp_path])
    assert found == [*named, *(tmp_path / name for name in ("z.jpeg", "a/x.webp", "b/10.JPG", "b/2.png"))]
    assert sorted(ignored) == [tmp_path / name for name in ("README", "a/._x.webp", "a/notes.txt")]


def test_every_format_of_the_server_has_its_suffix():
    assert {f".{name.lower()}" for name in FORMATS} | {".jpg"} <= SUFFIXES


def test_exactly_the_given_number_of_requests_is_in_flight(tmp_path):
    all_there = threading.Barrier(3, timeout=DEADLINE_S)
    running = []
    most = []

    def act(number):
        running.append(number)
        most.append(len(running))
        all_there.wait()
        running.remove(number)

    outcomes = classify_in_order(FakeEndpoint(act), numbered(tmp_path, 30), 3)
    assert classes(outcomes) == list(range(30))
    assert max(most) == 3


def test_results_are_in_order_even_if_a_later_one_is_faster(tmp_path):
    last = threading.Event()

    def act(number):
        if number == 0:
            assert last.wait(DEADLINE_S)
        if number == 9:
            last.set()

    assert classes(classify_in_order(FakeEndpoint(act), numbered(tmp_path, 10), 2)) == list(range(10))


@pytest.mark.parametrize("status", [408, 413, 422])
def test_rejected_image_does_not_stop_the_others(tmp_path, status):
    def act(number):
        if number == 1:
            raise RequestRejected(status, "why")

    paths = numbered(tmp_path, 3)
    outcomes = list(classify_in_order(FakeEndpoint(act), paths, 2))
    assert [outcome["image"] for outcome in outcomes] == list(map(str, paths))
    assert classes(outcomes) == [0, f"rejected with {status}: why", 2]


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_rejection_not_about_the_image_ends_the_run(tmp_path, status):
    def act(number):
        raise RequestRejected(status, "no")

    with pytest.raises(RequestRejected, match=f"rejected with {status}"):
        list(classify_in_order(FakeEndpoint(act), numbered(tmp_path, 3), 2))


def test_many_images_need_little_memory(tmp_path):
    path = tmp_path / "0.jpg"
    path.write_text(f"{0:1000000}")
    tracemalloc.start()
    try:
        assert len([None for _ in classify_in_order(FakeEndpoint(), [path] * 1000, 4)]) == 1000
        assert tracemalloc.get_traced_memory()[1] < 50_000_000  # the files are 1,000 MB
    finally:
        tracemalloc.stop()


def test_summary_has_the_total_and_the_latency(tmp_path, capsys):
    paths = [*numbered(tmp_path, 100), tmp_path / "missing.jpg"]
    assert not print_many(FakeEndpoint(), paths, 4, as_json=False)
    *_, summary, latency = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"url: 100 of 101 images classified in \d+\.\d\d s \(\d+\.\d/s\)", summary)
    assert latency == "latency: median 49.5 ms, 95th percentile 94.0, max 99.0"
    assert not print_many(FakeEndpoint(), paths[-1:], 4, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1].startswith("url: 0 of 1 images classified in ")


def test_file_that_is_not_sent_has_its_reason(tmp_path):
    large, pipe, good = (tmp_path / name for name in ("large.jpg", "pipe.jpg", "z.jpg"))
    with large.open("wb") as file:
        file.truncate(5 * 10**9)
    os.mkfifo(pipe)
    good.write_text("7")
    outcomes = classify_in_order(FakeEndpoint(), [large, pipe, tmp_path, tmp_path / "missing.jpg", good], 1)
    reasons = ["larger than 50 MB", "not a regular file", "not a regular file", "No such file or directory"]
    assert classes(outcomes) == [*(f"cannot be read: {reason}" for reason in reasons), 7]
