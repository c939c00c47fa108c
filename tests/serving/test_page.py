"""The page for a browser, in a headless Chromium: pictures in, classes out, what goes wrong in words."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browsing import CHROMIUM, NO_CHROMIUM, browsing, wait_for_answers
from tests.clients import begin_call
from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH, Served, is_ready, ready, serving, wait_until

KEY = "the 'key' of $HOME"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
Open = Callable[..., AbstractContextManager[Page]]

expect.set_options(timeout=DEADLINE_S * 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all these tests."""
    if not CHROMIUM:
        pytest.skip(NO_CHROMIUM)
    with browsing() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser) -> Open:
    """Open the server's page; fail if it then asks anyone else for anything, or if the console has an error.

    The browser's own line about an answer that is none of 200 is no error of the page's.
    """

    @contextmanager
    def opened(served: Served, **options) -> Iterator[Page]:
        errors: list[str] = []
        asked: set[str] = set()
        with browser.new_context(**options) as context:
            context.set_default_timeout(DEADLINE_S * 1000)
            context.on("request", lambda request: asked.add(request.url))
            page = context.new_page()
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(served.url)
            yield page
        assert [error for error in errors if not error.startswith("Failed to load resource")] == []
        assert served.url + "/" in asked
        assert [url for url in asked if not url.startswith((served.url + "/", f"blob:{served.url}/"))] == []

    return opened


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server, with a key."""
    with ready(tmp_path_factory.mktemp("locked"), BANANA_API_KEY=KEY, MAX_BODY_MB="1") as served:
        yield served


def choose(page: Page, *pictures: Path | dict) -> None:
    """Choose files as with the button, and wait until each has its answer."""
    shown = page.locator(".card").count()
    files = [file(each.name, each.read_bytes()) if isinstance(each, Path) else each for each in pictures]
    page.get_by_label("Choose pictures").set_input_files(files)
    wait_for_answers(page, shown + len(pictures))


def file(name: str, content: bytes, kind: str = "image/jpeg") -> dict:
    """Return a file as Playwright takes it."""
    return {"name": name, "mimeType": kind, "buffer": content}


def rows(page: Page, card: int = 0) -> list[list[str]]:
    """Return a picture's classes and probabilities as the page shows them."""
    return [
        [row.locator("th").inner_text(), row.locator("td").inner_text()]
        for row in page.locator(".card").nth(card).locator("tbody tr").all()
    ]


def facts(page: Page) -> dict[str, str]:
    """Return what the page says of the answer to the first picture."""
    groups = page.locator(".facts").first.locator("div").all()
    return {group.locator("dt").inner_text(): group.locator("dd").inner_text() for group in groups}


# -- as it is served ------------------------------------------------------------------------------------------------


def test_only_the_page_has_a_policy_that_lets_anything_run(served):
    response = served.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "trusted-types 'none'"} <= set(policy)
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    for other in (served.get("/healthcheck"), served.get("/index.html"), served.post("/")):
        assert other.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(("name", "kind"), [("style.css", "text/css"), ("script.js", "text/javascript")])
def test_the_pages_style_and_script_need_no_key_and_come_with_their_types(locked, name, kind):
    response = locked.get(f"/page/{name}")
    assert response.content == (ROOT / "serving" / "page" / name).read_bytes()
    assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    head = requests.head(f"{locked.url}/page/{name}", timeout=DEADLINE_S)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == response.headers["Content-Type"]
    assert locked.post(f"/page/{name}").status_code == 405


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/../server.py", "/page/..%2Fopenapi.json", "/page/%2e%2e/openapi.json"]
)
def test_no_other_file_is_served(served, path):
    answer = served.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_the_page_needs_no_key_and_a_call_does(locked):
    assert locked.get("/").status_code == 200
    head = requests.head(locked.url, timeout=DEADLINE_S)
    assert (head.status_code, head.content) == (200, b"")
    assert locked.post("/", data=TENCH.read_bytes()).status_code == 401
    assert requests.put(locked.url, timeout=DEADLINE_S).status_code == 401


def test_the_page_names_no_other_host():
    files = sorted((ROOT / "serving" / "page").iterdir())
    urls = [url for file in files for url in re.findall(r"[a-z]+://[^\s'\"]+", file.read_text(encoding="utf-8"))]
    assert urls == ["http://www.w3.org/2000/svg"]  # which is a name, and is not fetched


# -- pictures in, classes out ---------------------------------------------------------------------------------------


def test_a_picture_is_shown_with_its_classes_its_times_and_what_answered(served, opened):
    answer = served.post(data=TENCH.read_bytes(), headers={"Content-Type": "image/jpeg"}).json()
    health = served.get("/healthcheck").json()
    with opened(served) as page:
        choose(page, TENCH)
        assert [name for name, _ in rows(page)] == [each["class_name"] for each in answer["predictions"]]
        assert rows(page)[0] == ["tench", f"{answer['probability'] * 100:.1f} %"]
        bars = page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.style.getPropertyValue('--share'))")
        assert [float(bar) for bar in bars] == pytest.approx([each["probability"] for each in answer["predictions"]])
        expect(page.get_by_role("heading", name=f"{TENCH.name} · 500 \u00d7 375 · 29 kB")).to_be_visible()
        assert page.get_by_role("img", name=TENCH.name).evaluate("image => image.naturalWidth") == 500
        assert facts(page).keys() == {"Round trip", "In the server", "Decoding", "Model", "Answered by"}
        assert all(re.fullmatch(r"\d+(\.\d)? ms", value) for name, value in facts(page).items() if name[-2:] != "by")
        provider = health["execution_provider"].removesuffix("ExecutionProvider")
        assert facts(page)["Answered by"] == f"{health['model']} · {provider} · {health['precision']}"
        expect(page.get_by_role("status")).to_have_text(facts(page)["Answered by"])
        expect(page.get_by_role("log")).to_have_text(f"{TENCH.name}: tench, {rows(page)[0][1]}")


def test_several_pictures_are_shown_in_their_order_and_the_next_ones_above(served, opened):
    with opened(served) as page:
        choose(page, *[NEWT, TENCH] * 5)
        assert [rows(page, card)[0][0] for card in range(10)] == ["common newt", "tench"] * 5
        choose(page, TENCH)
        assert [rows(page, card)[0][0] for card in range(3)] == ["tench", "common newt", "tench"]


def test_the_same_picture_can_be_chosen_again(served, opened):
    with opened(served) as page:
        choose(page, TENCH)
        expect(page.get_by_label("Choose pictures")).to_have_value("")  # else the browser would see no change


def test_pictures_can_be_dropped_anywhere(served, opened):
    with opened(served) as page:
        session = page.context.new_cdp_session(page)

        def drag(kind: str, *pictures: Path) -> None:
            data = {"items": [], "files": [str(picture) for picture in pictures], "dragOperationsMask": 1}
            session.send("Input.dispatchDragEvent", {"type": kind, "x": 30, "y": 700, "data": data})

        drag("dragEnter", NEWT, TENCH)
        expect(page.locator("body")).to_have_class("dragging")
        for kind in ("dragOver", "drop"):
            drag(kind, NEWT, TENCH)
        wait_for_answers(page, 2)
        assert [rows(page, card)[0][0] for card in range(2)] == ["common newt", "tench"]
        expect(page.locator("body")).to_have_class("used")


def test_a_picture_can_be_pasted_and_text_is_said_to_be_none(served, opened):
    png = io.BytesIO()
    Image.open(TENCH).save(png, "PNG")
    with opened(served, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate("navigator.clipboard.writeText('a text')")
        page.keyboard.press("Control+V")
        expect(page.locator("#note")).to_have_text("There is no picture in what was pasted.")
        page.evaluate(
            """async text => {
                const bytes = Uint8Array.from(atob(text), character => character.charCodeAt());
                const picture = new Blob([bytes], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
            }""",
            base64.b64encode(png.getvalue()).decode(),
        )
        page.keyboard.press("Control+V")
        wait_for_answers(page, 1)
        assert rows(page)[0][0] == "tench"
        expect(page.locator("#note")).to_be_hidden()


def test_a_phone_offers_its_camera_and_nothing_runs_off_its_screen(served, opened):
    with opened(served, **PHONE) as page:
        camera = page.get_by_label("Take a photo")
        assert camera.get_attribute("capture") == "environment"
        camera.set_input_files([TENCH])
        wait_for_answers(page, 1)
        page.get_by_text("Send this picture from a program").click()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        box = page.locator("tbody tr").first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_all_can_be_done_with_the_keyboard(served, opened):
    with opened(served) as page:
        with page.expect_file_chooser() as choosing:  # which comes to nothing if Enter comes at once
            page.keyboard.press("Tab")
            expect(page.get_by_label("Choose pictures")).to_be_focused()
            page.keyboard.press("Enter")
        choosing.value.set_files([TENCH])
        wait_for_answers(page, 1)
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.localName") != "summary":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Copy the curl code")).to_be_focused()


@pytest.mark.parametrize(("scheme", "device"), [("light", {}), ("dark", PHONE)], ids=["desktop", "phone"])
def test_axe_finds_nothing_that_keeps_anyone_out(served, locked, opened, scheme, device):
    still = {"color_scheme": scheme, "reduced_motion": "reduce"} | device
    with opened(served, **still) as page:
        choose(page, TENCH, file("notes.txt", b"text", "text/plain"))
        page.get_by_text("Send this picture from a program").first.click()
        assert page.locator("tbody tr").first.evaluate("row => getComputedStyle(row).animationName") == "none"
        assert Axe().run(page).violations_count == 0
    with opened(locked, **still) as page:
        expect(page.get_by_label("API key")).to_be_focused()
        assert Axe().run(page).violations_count == 0


# -- the same from a program ----------------------------------------------------------------------------------------

NASTY_NAMES = ["tench.jpeg", 'it\'s "a" $(touch ran) `touch ran` \\ ;!.jpeg', "- \u00fc \u202e\n\t.jpeg", "@;type=x,y"]


@pytest.mark.parametrize("name", NASTY_NAMES)
@pytest.mark.parametrize("snippet", ["curl", "Python"])
def test_what_is_copied_runs_and_gets_the_class(served, opened, tmp_path, name, snippet):
    (tmp_path / name).write_bytes(TENCH.read_bytes())
    with opened(served, permissions=["clipboard-read", "clipboard-write"]) as page:
        choose(page, file(name, TENCH.read_bytes()))
        run_copied(page, snippet, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("snippet", ["curl", "Python"])
def test_what_is_copied_has_the_key_from_the_environment(locked, opened, tmp_path, snippet):
    (tmp_path / "picture").write_bytes(TENCH.read_bytes())
    with opened(locked, permissions=["clipboard-read", "clipboard-write"]) as page:
        give_key(page, KEY)
        choose(page, file("picture", TENCH.read_bytes(), ""))
        assert KEY not in run_copied(page, snippet, tmp_path, BANANA_API_KEY=KEY)


def run_copied(page: Page, snippet: str, folder: Path, **environment: str) -> str:
    """Copy the code with the button, run it in `folder`, and see that it gets the class; return it."""
    page.get_by_text("Send this picture from a program").click()
    page.get_by_role("button", name=f"Copy the {snippet} code").click()
    expect(page.locator(".snippet", has_text=snippet).get_by_text("Copied")).to_be_visible()
    code = page.evaluate("navigator.clipboard.readText()")
    command = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}[snippet]
    environment = os.environ | {"LC_ALL": "C.UTF-8"} | environment
    ran = subprocess.run([*command, code], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (json.loads(ran.stdout)["class_name"] if snippet == "curl" else ran.stdout.strip()) == "tench"
    return code


# -- without JavaScript ---------------------------------------------------------------------------------------------


def test_an_image_is_classified_without_javascript(served, opened):
    with opened(served, java_script_enabled=False) as page:
        assert page.get_by_role("status").inner_text() == ""
        expect(page.locator("button:visible")).to_have_text(["Classify"])
        expect(page.get_by_text("Choose pictures")).to_be_hidden()
        expect(page.locator("#image-hint")).to_contain_text("An endpoint with a key needs JavaScript, or curl.")
        page.locator("#image").set_input_files([TENCH])
        with page.expect_navigation() as navigating:
            page.locator("button:visible").click()  # the locators by role and by text leave out what is in a noscript
        assert navigating.value.status == 200
        assert navigating.value.json()["class_name"] == "tench"


def test_axe_finds_nothing_in_the_page_without_javascript(served, opened):
    """Axe is a script itself, so that this is the page as it is without one, with scripts allowed."""
    with opened(served) as page:
        markup = served.get("/").text.replace("<noscript>", "").replace("</noscript>", "")
        page.route(served.url + "/", lambda route: route.fulfill(response=route.fetch(), body=markup))
        page.route("**/script.js", lambda route: route.abort())
        page.reload()
        expect(page.get_by_label("Image")).to_be_visible()
        expect(page.get_by_text("Choose pictures")).to_be_hidden()
        assert Axe().run(page).violations_count == 0


# -- what goes wrong ------------------------------------------------------------------------------------------------


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
        expect(page.locator(".card")).to_contain_text("The request is over 1 MB: send a smaller picture.")


def give_key(page: Page, key: str) -> None:
    """Fill in the key and send it."""
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


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


@pytest.mark.parametrize(
    ("attempt", "directive"),
    [
        ("document.body.innerHTML = '<p>'", "require-trusted-types-for"),
        ("document.body.append(Object.assign(new Image(), { src: 'https://example.org/' }))", "img-src"),
        ("document.body.appendChild(document.createElement('style')).textContent = 'p {}'", "style-src-elem"),
        ("document.body.setAttribute('style', 'color: red')", "style-src-attr"),
        ("fetch('https://example.org/').catch(() => 0)", "connect-src"),
    ],
)
def test_the_policy_stops_what_the_page_does_not_do(served, browser, attempt, directive):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(served.url)
        page.evaluate("addEventListener('securitypolicyviolation', seen => document.title = seen.effectiveDirective)")
        page.evaluate(f"() => {{ try {{ {attempt} }} catch {{}} }}")
        expect(page).to_have_title(directive)
