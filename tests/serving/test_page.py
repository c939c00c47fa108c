"""The page, in a headless Chromium: images in, classes out."""

import base64
import io
import json
import os
import re
import subprocess
from time import monotonic

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browsing import wait_for_results
from tests.server_process import DEADLINE_S, NEWT, ROOT, TENCH
from tests.serving.pages import KEY, choose, drag, file, give_key, rows

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def facts(page: Page) -> dict[str, str]:
    """Return the timing that the page shows for the first image."""
    groups = page.locator(".facts").first.locator("div").all()
    return {group.locator("dt").inner_text(): group.locator("dd").inner_text() for group in groups}


# -- as it is served ------------------------------------------------------------------------------------------------


def test_only_the_page_may_run_scripts(served):
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
def test_style_and_script_need_no_key(locked, name, kind):
    response = locked.get(f"/page/{name}")
    assert response.content == (ROOT / "serving" / "page" / name).read_bytes()
    assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
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
    response = served.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert response.startswith(b"HTTP/1.1 404 ")


def test_page_needs_no_key_but_requests_do(locked):
    assert locked.get("/").status_code == 200
    head = requests.head(locked.url, timeout=DEADLINE_S)
    assert (head.status_code, head.content) == (200, b"")
    assert locked.post("/", data=TENCH.read_bytes()).status_code == 401
    assert requests.put(locked.url, timeout=DEADLINE_S).status_code == 401


def test_page_names_no_other_host():
    files = sorted((ROOT / "serving" / "page").iterdir())
    urls = [url for file in files for url in re.findall(r"[a-z]+://[^\s'\"]+", file.read_text(encoding="utf-8"))]
    assert urls == ["http://www.w3.org/2000/svg"]  # which is a name, and is not fetched


# -- images in, classes out -----------------------------------------------------------------------------------------


def test_image_is_shown_with_classes_and_timing(served, opened):
    expected = served.post(data=TENCH.read_bytes(), headers={"Content-Type": "image/jpeg"}).json()
    health = served.get("/healthcheck").json()
    with opened(served) as page:
        choose(page, TENCH)
        assert [name for name, _ in rows(page)] == [each["class_name"] for each in expected["predictions"]]
        assert rows(page)[0] == ["tench", f"{expected['probability'] * 100:.1f} %"]
        ids = [f"class {each['class_id']}" for each in expected["predictions"]]
        expect(page.locator("tbody th small")).to_have_text(ids)
        bars = page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.style.getPropertyValue('--share'))")
        assert [float(bar) for bar in bars] == pytest.approx([each["probability"] for each in expected["predictions"]])
        expect(page.get_by_role("heading", name=f"{TENCH.name} · 500 \u00d7 375 · 29 kB")).to_be_visible()
        assert page.get_by_role("img", name=TENCH.name).evaluate("image => image.naturalWidth") == 500
        assert facts(page).keys() == {"Round trip", "Server", "Decoding", "Model"}
        assert all(re.fullmatch(r"\d+(\.\d)? ms", value) for value in facts(page).values())
        provider = health["execution_provider"].removesuffix("ExecutionProvider")
        status = page.get_by_role("status")
        expect(status).to_have_text(f"{health['model']} · {provider} · {health['precision']}")
        for term in (provider, health["precision"]):  # explained
            expect(status.get_by_text(term, exact=True)).to_have_attribute("title", re.compile(r"\w+"))
        expect(page.get_by_role("log")).to_have_text(f"{TENCH.name}: tench, {rows(page)[0][1]}")


def test_small_probabilities_have_a_visible_bar(served, opened):
    body = {
        "predictions": [{"class_id": 0, "class_name": "tench", "probability": 0.0001}],
        "timing_ms": {"decode": 1, "model": 1, "total": 2},
    }
    with opened(served, reduced_motion="reduce") as page:
        page.route(served.url + "/", lambda route: route.fulfill(json=body))
        choose(page, TENCH)
        width = page.locator("tbody tr").evaluate("row => getComputedStyle(row).backgroundSize")
        assert width.startswith("max(0.01%, 4px) 4px")


def test_images_keep_their_order_and_new_ones_come_first(served, opened):
    with opened(served) as page:
        choose(page, *[NEWT, TENCH] * 5)
        expect(page.get_by_label("Choose images")).to_have_value("")  # else it would not notice the same choice again
        assert [rows(page, card)[0][0] for card in range(10)] == ["common newt", "tench"] * 5
        choose(page, TENCH)
        assert [rows(page, card)[0][0] for card in range(3)] == ["tench", "common newt", "tench"]


def test_images_can_be_dropped_anywhere(served, opened):
    with opened(served) as page:
        drag(page, "dragEnter", NEWT, TENCH)
        expect(page.locator("body")).to_have_class("dragging")
        for kind in ("dragOver", "drop"):
            drag(page, kind, NEWT, TENCH)
        wait_for_results(page, 2)
        assert [rows(page, card)[0][0] for card in range(2)] == ["common newt", "tench"]
        expect(page.locator("body")).to_have_class("used")


def test_image_can_be_pasted_and_text_is_not_an_image(served, opened):
    png = io.BytesIO()
    Image.open(TENCH).save(png, "PNG")
    with opened(served, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate("navigator.clipboard.writeText('a text')")
        page.keyboard.press("Control+V")
        expect(page.locator("#note")).to_have_text("The clipboard holds no image.")
        page.evaluate(
            """async text => {
                const bytes = Uint8Array.from(atob(text), character => character.charCodeAt());
                const image = new Blob([bytes], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
            }""",
            base64.b64encode(png.getvalue()).decode(),
        )
        page.keyboard.press("Control+V")
        wait_for_results(page, 1)
        assert rows(page)[0][0] == "tench"
        expect(page.locator("#note")).to_be_hidden()


def test_page_fits_phones_and_offers_their_camera(served, opened):
    with opened(served, **PHONE) as page:
        camera = page.get_by_label("Take a photo")
        assert camera.get_attribute("capture") == "environment"
        camera.set_input_files([TENCH])
        wait_for_results(page, 1)
        for width in (390, 320):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            box = page.locator("tbody tr").first.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("name", ["pick", "photograph", "image"])
def test_file_inputs_accept_the_five_formats_by_name(name):
    """So that iOS converts HEIC, which `image/*` would let through."""
    page = (ROOT / "serving" / "page" / "index.html").read_text(encoding="utf-8")
    [accept] = re.findall(rf'<input[^>]* id="{name}"[^>]* accept="([^"]+)"', page)
    assert set(accept.split(",")) == {f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "bmp")}


def test_keyboard_reaches_everything(served, opened):
    with opened(served) as page:
        with page.expect_file_chooser() as choosing:  # which comes to nothing if Enter comes at once
            page.keyboard.press("Tab")
            expect(page.get_by_label("Choose images")).to_be_focused()
            page.keyboard.press("Enter")
        choosing.value.set_files([TENCH])
        wait_for_results(page, 1)
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Clear")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".card")).to_have_count(0)
        expect(page.get_by_label("Choose images")).to_be_focused()
        for _ in range(2):  # the command, which scrolls
            page.keyboard.press("Tab")
        link = page.get_by_role("link", name="openapi.json")
        expect(link).to_be_focused()
        assert requests.get(link.evaluate("link => link.href"), timeout=DEADLINE_S).json()["openapi"]


def test_clear_removes_images_that_wait(served, opened):
    with opened(served) as page:
        held: list[Route] = []
        page.route(served.url + "/", lambda route: held.append(route))
        page.get_by_label("Choose images").set_input_files([TENCH] * 6)
        page.wait_for_function("document.querySelectorAll('.card').length == 6")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(".card")).to_have_count(0)
        wait_until_held(page, held, 4)
        for route in held:
            route.continue_()
        page.unroute(served.url + "/")
        choose(page, NEWT)
        assert rows(page)[0][0] == "common newt"
        expect(page.get_by_role("log")).to_have_text(re.compile(f"^{NEWT.name}: [^:]+$"))


def test_at_most_four_requests_are_in_flight(served, opened):
    with opened(served) as page:
        held: list[Route] = []
        page.route(served.url + "/", lambda route: held.append(route))
        page.get_by_label("Choose images").set_input_files([TENCH] * 9)
        expect(page.get_by_text("Classifying …")).to_have_count(4)
        expect(page.get_by_text("Waiting.")).to_have_count(5)
        for done in range(9):
            wait_until_held(page, held, min(done + 4, 9))
            held[done].continue_()
        wait_for_results(page, 9)


def wait_until_held(page: Page, held: list[Route], count: int) -> None:
    """Return once as many requests as `count` have been sent; fail if there are more."""
    deadline = monotonic() + DEADLINE_S
    while len(held) < count and monotonic() < deadline:
        page.wait_for_timeout(10)  # lets Playwright call the handler of the route
    assert len(held) == count


@pytest.mark.parametrize("server", ["served", "locked"])
def test_curl_command_classifies_an_image(request, opened, tmp_path, server):
    (tmp_path / "image.jpg").write_bytes(TENCH.read_bytes())
    with opened(request.getfixturevalue(server)) as page:
        shown = [page.locator("footer pre"), *([page.locator("footer p code")] if server == "locked" else [])]
        command = " ".join(part.inner_text() for part in shown)
    environment = os.environ | {"BANANA_API_KEY": KEY}
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert json.loads(ran.stdout)["class_name"] == "tench"


@pytest.mark.parametrize(("scheme", "device"), [("light", {}), ("dark", PHONE)], ids=["desktop", "phone"])
def test_axe_finds_nothing(served, locked, opened, scheme, device):
    still = {"color_scheme": scheme, "reduced_motion": "reduce"} | device
    held: list[Route] = []
    with opened(served, **still) as page:
        choose(page, TENCH, *[file(name, b"text", "text/plain") for name in ("notes.txt", "more.txt")])
        assert page.locator("tbody tr").first.evaluate("row => getComputedStyle(row).animationName") == "none"
        assert Axe().run(page).violations_count == 0
        page.route(served.url + "/", lambda route: route.fulfill(json={}))
        choose(page, NEWT, TENCH)
        expect(page.get_by_role("button", name="Retry all")).to_be_visible()
        assert Axe().run(page).violations_count == 0
        page.unroute(served.url + "/")
        page.route(served.url + "/", lambda route: held.append(route))
        page.get_by_role("button", name="Retry all").click()
        expect(page.locator(".state:visible", has_text="Classifying …")).to_have_count(2)
        assert Axe().run(page).violations_count == 0
        page.keyboard.press("Control+V")
        page.get_by_role("button", name="Clear").click()
        assert Axe().run(page).violations_count == 0
    with opened(locked, **still) as page:
        expect(page.get_by_label("API key")).to_be_focused()
        assert Axe().run(page).violations_count == 0
        give_key(page, "wrong")
        expect(page.locator("#key-wrong")).not_to_be_empty()
        assert Axe().run(page).violations_count == 0


# -- without JavaScript ---------------------------------------------------------------------------------------------


def test_image_is_classified_without_javascript(served, opened):
    with opened(served, java_script_enabled=False) as page:
        assert page.get_by_role("status").inner_text() == ""
        expect(page.locator("button:visible")).to_have_text(["Classify"])
        expect(page.get_by_text("Choose images")).to_be_hidden()
        expect(page.locator("#image-hint")).to_contain_text("needs JavaScript, or curl")
        page.locator("#image").set_input_files([TENCH])
        with page.expect_navigation() as navigating:
            page.locator("button:visible").click()  # the locators by role and by text leave out what is in a noscript
        assert navigating.value.status == 200
        assert navigating.value.json()["class_name"] == "tench"


def test_axe_finds_nothing_without_javascript(served, opened):
    """Axe is a script itself, so that this is the page as it is without one, with scripts allowed."""
    with opened(served) as page:
        markup = served.get("/").text.replace("<noscript>", "").replace("</noscript>", "")
        page.route(served.url + "/", lambda route: route.fulfill(response=route.fetch(), body=markup))
        page.route("**/script.js", lambda route: route.abort())
        page.reload()
        expect(page.get_by_label("Image", exact=True)).to_be_visible()
        expect(page.get_by_text("Choose images")).to_be_hidden()
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
def test_policy_stops_what_the_page_does_not_do(served, browser, attempt, directive):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(served.url)
        page.evaluate("addEventListener('securitypolicyviolation', seen => document.title = seen.effectiveDirective)")
        page.evaluate(f"() => {{ try {{ {attempt} }} catch {{}} }}")
        expect(page).to_have_title(directive)
