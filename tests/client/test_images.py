"""Many pictures: which are found, and how their answers come through an endpoint that is slow, wrong or gone."""

import threading
from pathlib import Path

import pytest

from client.endpoint import Answer, EndpointDown, Refused
from client.images import AHEAD, GIVE_UP_AFTER, SUFFIXES, Outcome, Tally, classify_in_order, find
from runtime.decoding import DECODERS
from tests.server_process import DEADLINE_S


class FakeEndpoint:
    """Answers with the number in the picture as the class; `act` is called before, and may raise."""

    def __init__(self, act=lambda number: None, healthy=True):
        self.act = act
        self.healthy = healthy
        self.asked = []

    def classify(self, picture):
        number = int(picture)
        self.asked.append(number)
        self.act(number)
        return Answer(number, str(number), 1.0, 1.0, 1.0)

    def health(self):
        if self.healthy:
            return {"state": "healthy"}
        raise EndpointDown("no health")


def numbered(folder, count):
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(str(number))
    return paths


def classes(outcomes):
    return [outcome.answer.class_id if outcome.answer else outcome.error for outcome in outcomes]


def test_a_folder_stands_for_its_pictures_at_any_depth_sorted(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a/x.webp", "z.jpeg", "a/notes.txt", "a/._x.webp", ".cache/y.jpg", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, ignored = find([tmp_path / "README", tmp_path])
    assert found == [tmp_path / name for name in ("README", "z.jpeg", "a/x.webp", "b/10.JPG", "b/2.png")]
    assert sorted(ignored) == [tmp_path / name for name in (".cache", "README", "a/._x.webp", "a/notes.txt")]


def test_what_is_named_is_taken_whatever_it_is_in_the_order_given(tmp_path):
    paths = [tmp_path / "missing.jpg", Path(__file__), tmp_path / "missing.jpg"]
    assert find(paths) == (paths, [])


def test_every_format_that_the_server_decodes_is_found_by_its_suffix():
    assert {f".{decoder.format.lower()}" for decoder in DECODERS} | {".jpg"} <= SUFFIXES


def test_as_many_calls_as_asked_for_are_in_flight_and_never_more(tmp_path):
    all_there = threading.Barrier(3, timeout=DEADLINE_S)
    lock = threading.Lock()
    now, most = 0, 0

    def act(number):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        all_there.wait()
        with lock:
            now -= 1

    outcomes = classify_in_order(FakeEndpoint(act), numbered(tmp_path, 30), 3)
    assert classes(outcomes) == list(range(30))
    assert most == 3


def test_answers_come_in_order_although_a_later_picture_is_quicker(tmp_path):
    last = threading.Event()

    def act(number):
        if number == 0:
            assert last.wait(DEADLINE_S)
        if number == 9:
            last.set()

    assert classes(classify_in_order(FakeEndpoint(act), numbered(tmp_path, 10), 2)) == list(range(10))


def test_a_slow_picture_lets_a_bounded_number_go_ahead(tmp_path):
    ahead = threading.Semaphore(0)
    release = threading.Event()

    def act(number):
        if number == 0:
            assert release.wait(DEADLINE_S)
        ahead.release()

    endpoint = FakeEndpoint(act)
    outcomes = classify_in_order(endpoint, numbered(tmp_path, AHEAD + 50), 2)
    reader = threading.Thread(target=list, args=(outcomes,))
    reader.start()
    for _ in range(AHEAD - 1):
        assert ahead.acquire(timeout=DEADLINE_S)
    assert sorted(endpoint.asked) == list(range(AHEAD))
    release.set()
    reader.join()
    assert len(endpoint.asked) == AHEAD + 50


def test_a_bad_picture_is_an_error_of_its_own(tmp_path):
    def act(number):
        if number == 1:
            raise Refused(422, "not a picture")

    paths = [*numbered(tmp_path, 3), tmp_path / "missing.jpg", tmp_path]
    outcomes = list(classify_in_order(FakeEndpoint(act), paths, 2))
    assert [outcome.path for outcome in outcomes] == paths
    refused, missing, folder = "refused with 422: not a picture", "No such file or directory", "Is a directory"
    assert classes(outcomes) == [0, refused, 2, f"cannot be read: {missing}", f"cannot be read: {folder}"]


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_a_refusal_that_is_not_about_the_picture_ends_it(tmp_path, status):
    def act(number):
        raise Refused(status, "no")

    with pytest.raises(Refused, match=f"refused with {status}"):
        list(classify_in_order(FakeEndpoint(act), numbered(tmp_path, 3), 2))


def test_an_endpoint_that_fails_on_one_picture_goes_on_with_the_next(tmp_path):
    def act(number):
        if number % 3:
            raise EndpointDown(f"failed on {number}")

    outcomes = classify_in_order(FakeEndpoint(act), numbered(tmp_path, 7), 2)
    assert classes(outcomes) == [0, "failed on 1", "failed on 2", 3, "failed on 4", "failed on 5", 6]


@pytest.mark.parametrize(("healthy", "errors"), [(False, 0), (True, GIVE_UP_AFTER - 1)])
def test_an_endpoint_that_goes_away_ends_it_and_nothing_more_is_sent(tmp_path, healthy, errors):
    stopped = threading.Event()

    def act(number):
        if number >= 5 + GIVE_UP_AFTER:
            stopped.wait(DEADLINE_S)  # as calls in flight do that never get an answer
        if number >= 5:
            raise EndpointDown("gone")

    endpoint = FakeEndpoint(act, healthy)
    outcomes = []
    with pytest.raises(EndpointDown, match="gone"):
        for outcome in classify_in_order(endpoint, numbered(tmp_path, 100), 4):
            outcomes.append(outcome)
    stopped.set()
    assert classes(outcomes) == [*range(5), *["gone"] * errors]
    assert len(endpoint.asked) <= 5 + GIVE_UP_AFTER + 4


def test_one_picture_without_an_answer_is_an_endpoint_that_is_down(tmp_path):
    def act(number):
        raise EndpointDown("failed")

    with pytest.raises(EndpointDown, match="failed"):
        list(classify_in_order(FakeEndpoint(act), numbered(tmp_path, 1), 4))


def test_the_tally_has_the_median_the_95th_percentile_and_the_worst():
    tally = Tally()
    for call_ms in range(1, 101):
        tally.add(Outcome(Path("a.jpg"), Answer(0, "a", 1.0, float(call_ms), 1.0)))
    tally.add(Outcome(Path("b.jpg"), error="refused"))
    assert tally.failed == 1
    assert str(tally).startswith("100 of 101 pictures classified in ")
    assert str(tally).endswith("a call took 50.5 ms in the median, 95.0 at the 95th percentile, 100.0 at worst")


def test_a_tally_without_an_answer_has_no_times():
    tally = Tally()
    tally.add(Outcome(Path("b.jpg"), error="refused"))
    assert str(tally).startswith("0 of 1 pictures classified in ")
    assert "a call took" not in str(tally)
