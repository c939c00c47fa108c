"""The page for a browser, in a headless Chromium: pictures in, classes out, what goes wrong in words."""

import base64
import io
import re
from pathlib import Path

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browsing import wait_for_answers
from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH
from tests.serving.pages import choose, file, rows

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


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
