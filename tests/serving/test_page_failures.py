"""The page, when something goes wrong: it shows the error, and offers to retry."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browsing import wait_for_results
from tests.clients import begin_call
from tests.server_process import NEWT, TENCH, is_ready, ready, serving, wait_until
from tests.serving.pages import KEY, choose, drag, file, give_key, rows


def test_refusals_are_the_servers_and_stop_no_other_image(served, opened):
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    message = served.post(data=content, headers={"Content-Type": "application/octet-stream"}).json()["error"]["message"]
    assert "HEIC" in message and "JPEG" in message
    with opened(served) as page:
        choose(page, file("IMG_0001.HEIC", content, "image/heic"), TENCH)
        refused = page.locator(".card").first
        expect(refused.locator(".state")).to_have_text(re.compile(re.escape(message), re.IGNORECASE))
        expect(refused.get_by_role("button", name="Retry")).to_be_hidden()
        expect(refused.locator(".preview")).to_have_count(0)  # the browser cannot show it either
        expect(page.get_by_role("log")).to_contain_text("IMG_0001.HEIC: ")
        assert rows(page, 1)[0][0] == "tench"


def test_too_large_image_is_refused_in_the_servers_words(locked, opened):
    with opened(locked) as page:
        give_key(page, KEY)
        choose(page, file("large.jpeg", TENCH.read_bytes() + bytes(5_000_000)))
        expect(page.locator(".card")).to_contain_text("over 1 MB")


def test_wrong_key_is_asked_again_and_right_one_kept_for_tab(locked, opened):
    with opened(locked) as page:
        page.get_by_label("Choose images").set_input_files([TENCH])
        expect(page.locator(".card")).to_contain_text("Waiting for the API key.")
        expect(page.locator("#key-wrong")).to_be_empty()
        give_key(page, "another")
        expect(page.locator("#key-wrong")).to_have_text("The server rejected this key. Is it complete?")
        expect(page.get_by_label("API key")).to_be_focused()
        give_key(page, KEY)
        wait_for_results(page, 1)
        assert rows(page)[0][0] == "tench"
        page.reload()
        choose(page, NEWT)
        assert rows(page)[0][0] == "common newt"
        expect(page.get_by_label("API key")).to_be_hidden()
        other_tab = page.context.new_page()
        other_tab.goto(locked.url)
        expect(other_tab.get_by_label("API key")).to_be_visible()


def test_key_that_is_no_longer_accepted_is_asked_for(locked, opened):
    with opened(locked) as page:
        give_key(page, KEY)
        expect(page.get_by_label("API key")).to_be_hidden()
        page.evaluate("sessionStorage.setItem('BANANA_API_KEY', 'yesterday')")
        page.get_by_label("Choose images").set_input_files([TENCH, NEWT])
        expect(page.locator("#key-wrong")).to_have_text("The server rejected this key. Is it complete?")
        give_key(page, KEY)
        wait_for_results(page, 2)
        assert [rows(page, card)[0][0] for card in range(2)] == ["tench", "common newt"]


def test_key_may_have_any_letters(tmp_path, opened):
    with serving(tmp_path, stub=True, BANANA_API_KEY="cl\u00e9 \u2713") as served, opened(served) as page:
        give_key(page, "cl\u00e9")
        expect(page.locator("#key-wrong")).not_to_be_empty()
        give_key(page, "cl\u00e9 \u2713")
        expect(page.get_by_label("API key")).to_be_hidden()
        expect(page.get_by_label("Choose images")).to_be_focused()


RESPONSE = {"predictions": [{"class_id": 7, "class_name": "<b onclick=x>cock</b>", "probability": 0.00001}]}


def test_busy_server_is_asked_again_after_retry_after(tmp_path, opened):
    (tmp_path / "answer.json").write_text(json.dumps(RESPONSE))
    with serving(tmp_path, stub=True, MAX_QUEUE="0") as served, opened(served) as page:
        expect(page.get_by_role("status")).to_have_text("The model is loading: try again.")
        (tmp_path / "loaded").touch()
        expect(page.get_by_role("status")).to_have_text("stub · none")
        begin_call(served, b"x")
        wait_until(lambda: any(tmp_path.glob("began-*")), "a request is running")
        page.get_by_label("Choose images").set_input_files([file("<i>name</i>", b"x")])
        expect(page.locator(".card")).to_contain_text("waiting: try again. Next try in 1 s.")
        (tmp_path / "release").touch()
        wait_for_results(page, 1)
        assert rows(page) == [["<b onclick=x>cock</b>", "< 0.1 %"]]
        expect(page.get_by_role("heading", name="<i>name</i>")).to_be_visible()


def test_server_that_stays_busy_can_be_retried(tmp_path, opened):
    (tmp_path / "answer.json").write_text(json.dumps(RESPONSE))
    with serving(tmp_path, stub=True) as served, opened(served) as page:
        choose(page, file("a", b"x"))
        expect(page.locator(".card")).to_contain_text("The model is loading: try again.")
        assert served.metric('classifier_requests_total{status="503"}') >= 5
        for name in ("loaded", "release"):
            (tmp_path / name).touch()
        wait_until(lambda: is_ready(served), "the server is ready")
        page.get_by_role("button", name="Retry", exact=True).click()
        expect(page.locator("tbody")).to_contain_text("cock")
        expect(page.get_by_role("heading", name="a · 1 bytes")).to_be_focused()


def test_unreachable_server_can_be_retried(tmp_path, opened):
    for life in ("first", "second"):
        (tmp_path / life).mkdir()
    with ready(tmp_path / "first") as served, opened(served) as page:
        expect(page.locator("[data-health=good]")).to_be_visible()
        served.terminate()
        choose(page, TENCH)
        gone = "The server cannot be reached. Is it running, and are you online?"
        expect(page.locator(".card")).to_contain_text(gone)
        expect(page.get_by_role("status")).to_have_text(gone)
        with serving(tmp_path / "second", port=served.port):
            expect(page.locator("[data-health=good]")).to_be_visible()
            page.get_by_role("button", name="Retry", exact=True).click()
            expect(page.locator("tbody tr").first).to_contain_text("tench")


TIMING = {"decode": 1, "model": 1, "total": 2}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "{}"),
        (200, "[1]"),
        (200, "null"),
        (200, "<h1>Welcome</h1>"),
        (200, ""),
        (200, json.dumps(RESPONSE)),  # without timing
        (200, json.dumps({"timing_ms": TIMING})),
        (200, json.dumps({"timing_ms": TIMING, "predictions": []})),
        (200, json.dumps({"timing_ms": TIMING, "predictions": [None]})),
        (200, json.dumps({"timing_ms": TIMING, "predictions": [{"class_name": 1, "probability": "1"}]})),
        (502, "<h1>Bad Gateway</h1>"),
        (500, json.dumps({"error": {"message": {"a": 1}}})),
    ],
)
def test_unexpected_response_is_reported_and_can_be_retried(served, opened, status, body):
    with opened(served) as page:
        page.route(served.url + "/", lambda route: route.fulfill(status=status, body=body))
        choose(page, TENCH)
        expect(page.locator(".card .state")).to_contain_text("Unexpected response")
        if status != 200:
            expect(page.locator(".card .state")).to_contain_text(str(status))
        page.unroute(served.url + "/")
        page.get_by_role("button", name="Retry", exact=True).click()
        expect(page.locator("tbody tr").first).to_contain_text("tench")


@pytest.mark.parametrize("body", ["{}", "[1]", "null", '{"model": 1, "execution_provider": 2}'])
def test_unexpected_health_is_reported(served, opened, body):
    with opened(served) as page:
        page.route("**/healthcheck", lambda route: route.fulfill(body=body))
        page.reload()
        expect(page.locator("[data-health=bad]")).not_to_be_empty()
        page.unroute("**/healthcheck")
        expect(page.locator("[data-health=good]")).to_be_visible()


def test_retry_all_retries_what_failed_and_nothing_else(served, opened):
    with opened(served) as page:
        choose(page, NEWT)
        expect(page.get_by_role("button", name="Retry all")).to_be_hidden()
        page.route(served.url + "/", lambda route: route.abort())
        choose(page, TENCH)
        expect(page.get_by_role("button", name="Retry all")).to_be_hidden()  # one has its own
        choose(page, TENCH)
        page.unroute(served.url + "/")
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        page.get_by_role("button", name="Retry all").click()
        expect(page.locator("table:visible")).to_have_count(3)
        assert [rows(page, card)[0][0] for card in range(3)] == ["tench", "tench", "common newt"]
        assert sent.count("POST") == 2
        expect(page.get_by_role("button", name="Retry all")).to_be_hidden()
        expect(page.get_by_role("button", name="Clear")).to_be_focused()


def test_folder_is_reported(served, opened, tmp_path):
    with opened(served) as page:
        for kind in ("dragEnter", "dragOver", "drop"):
            drag(page, kind, tmp_path)
        expect(page.locator(".card")).to_contain_text("This cannot be read. Is it a folder?")
