"""The page for a browser: what goes wrong is said in words, and can be tried again."""

import json

from playwright.sync_api import expect

from tests.browsing import wait_for_answers
from tests.clients import begin_call
from tests.server_process import NEWT, TENCH, is_ready, ready, serving, wait_until
from tests.serving.pages import KEY, choose, file, give_key, rows


def test_a_file_that_is_no_picture_is_refused_in_the_servers_words_and_does_not_stop_the_others(served, opened):
    with opened(served) as page:
        choose(page, file("notes.txt", b"text", "text/plain"), TENCH)
        expect(page.locator(".card").first).to_contain_text("Not a picture: send one of JPEG, PNG")
        expect(page.locator(".card").first.get_by_role("button", name="Try again")).to_be_hidden()
        expect(page.get_by_role("log")).to_contain_text("notes.txt: Not a picture")
        assert rows(page, 1)[0][0] == "tench"


def test_a_picture_that_is_too_large_is_refused_in_the_servers_words(locked, opened):
    with opened(locked) as page:
        give_key(page, KEY)
        choose(page, file("large.jpeg", TENCH.read_bytes() + bytes(5_000_000)))
        expect(page.locator(".card")).to_contain_text("over 1 MB")


def test_a_wrong_key_is_asked_for_anew_and_the_right_one_kept_for_the_tab(locked, opened):
    with opened(locked) as page:
        page.get_by_label("Choose pictures").set_input_files([TENCH])
        expect(page.locator(".card")).to_contain_text("Waiting for the API key.")
        expect(page.locator("#key-wrong")).to_be_empty()
        give_key(page, "another")
        expect(page.locator("#key-wrong")).to_have_text("The server does not take this key. Is it complete?")
        expect(page.get_by_label("API key")).to_be_focused()
        give_key(page, KEY)
        wait_for_answers(page, 1)
        assert rows(page)[0][0] == "tench"
        page.reload()
        choose(page, NEWT)
        assert rows(page)[0][0] == "common newt"
        expect(page.get_by_label("API key")).to_be_hidden()
        other_tab = page.context.new_page()
        other_tab.goto(locked.url)
        expect(other_tab.get_by_label("API key")).to_be_visible()


def test_a_key_that_is_changed_meanwhile_is_asked_for_when_it_is_refused(locked, opened):
    with opened(locked) as page:
        give_key(page, KEY)
        expect(page.get_by_label("API key")).to_be_hidden()
        page.evaluate("sessionStorage.setItem('BANANA_API_KEY', 'yesterday')")
        page.get_by_label("Choose pictures").set_input_files([TENCH, NEWT])
        expect(page.locator("#key-wrong")).to_have_text("The server does not take this key. Is it complete?")
        give_key(page, KEY)
        wait_for_answers(page, 2)
        assert [rows(page, card)[0][0] for card in range(2)] == ["tench", "common newt"]


def test_a_key_may_have_any_letters(tmp_path, opened):
    with serving(tmp_path, stub=True, BANANA_API_KEY="cl\u00e9 \u2713") as served, opened(served) as page:
        give_key(page, "cl\u00e9")
        expect(page.locator("#key-wrong")).not_to_be_empty()
        give_key(page, "cl\u00e9 \u2713")
        expect(page.get_by_label("API key")).to_be_hidden()
        expect(page.get_by_label("Choose pictures")).to_be_focused()


ANSWER = {"predictions": [{"class_id": 7, "class_name": "<b onclick=x>cock</b>", "probability": 0.00001}]}


def test_a_server_without_room_is_asked_again_when_it_says(tmp_path, opened):
    (tmp_path / "answer.json").write_text(json.dumps(ANSWER))
    with serving(tmp_path, stub=True, MAX_QUEUE="0") as served, opened(served) as page:
        expect(page.get_by_role("status")).to_have_text("The model is loading: try again.")
        (tmp_path / "loaded").touch()
        expect(page.get_by_role("status")).to_have_text("stub · none")
        begin_call(served, b"x")
        wait_until(lambda: any(tmp_path.glob("began-*")), "a call is in work")
        page.get_by_label("Choose pictures").set_input_files([file("<i>name</i>", b"x")])
        expect(page.locator(".card")).to_contain_text("All threads are busy: try again. Next try in 1 s.")
        (tmp_path / "release").touch()
        wait_for_answers(page, 1)
        assert rows(page) == [["<b onclick=x>cock</b>", "< 0.1 %"]]
        expect(page.get_by_role("heading", name="<i>name</i>")).to_be_visible()


def test_a_server_that_stays_without_room_is_given_up_and_can_be_tried_again(tmp_path, opened):
    (tmp_path / "answer.json").write_text(json.dumps(ANSWER))
    with serving(tmp_path, stub=True) as served, opened(served) as page:
        choose(page, file("a", b"x"))
        expect(page.locator(".card")).to_contain_text("The model is loading: try again.")
        assert served.metric('classifier_requests_total{status="503"}') >= 5
        for name in ("loaded", "release"):
            (tmp_path / name).touch()
        wait_until(lambda: is_ready(served), "the server is ready")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("tbody")).to_contain_text("cock")
        expect(page.get_by_role("heading", name="a · 1 bytes")).to_be_focused()


def test_a_server_that_is_gone_is_said_to_be_and_can_be_tried_again(tmp_path, opened):
    for life in ("first", "second"):
        (tmp_path / life).mkdir()
    with ready(tmp_path / "first") as served, opened(served) as page:
        expect(page.locator("[data-health=good]")).to_be_visible()
        served.terminate()
        choose(page, TENCH)
        gone = "The server cannot be reached. Is it running, and is there a network?"
        expect(page.locator(".card")).to_contain_text(gone)
        expect(page.get_by_role("status")).to_have_text(gone)
        with serving(tmp_path / "second", port=served.port):
            expect(page.locator("[data-health=good]")).to_be_visible()
            page.get_by_role("button", name="Try again").click()
            expect(page.locator("tbody tr").first).to_contain_text("tench")


def test_an_answer_that_is_no_json_is_said_to_be_someone_elses(served, opened):
    with opened(served) as page:
        page.route(served.url + "/", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
        choose(page, TENCH)
        expect(page.locator(".card")).to_contain_text("The answer is no JSON, but 502")


def test_a_folder_is_said_to_be_one(served, opened, tmp_path):
    with opened(served) as page:
        session = page.context.new_cdp_session(page)
        for kind in ("dragEnter", "dragOver", "drop"):
            data = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 30, "y": 30, "data": data})
        expect(page.locator(".card")).to_contain_text("This cannot be read. Is it a folder?")
