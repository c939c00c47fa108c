const AT_ONCE = 4; // requests in flight; a browser opens six connections at most
const TRIES = 5; // of a picture that the server has no room for
const LONGEST_WAIT_S = 30; // between two tries, whatever Retry-After says
const ANSWER_TIMEOUT_S = 120; // from the start of the upload to the answer
const HEALTH_EVERY_S = 2; // while the server is not healthy
const KEY = "BANANA_API_KEY"; // its name in sessionStorage

const at = id => document.getElementById(id);
const here = new URL(".", location.href);
const sleep = seconds => new Promise(done => setTimeout(done, seconds * 1000));

/* -- the server ----------------------------------------------------------------------------------------------- */

/** What the server says is the matter; `retryAfter` in seconds where it says to come again. */
class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

/** Return the server's JSON. Throws a Refusal, or an Error where there is no answer. */
async function ask(path, options = {}) {
  const key = heldKey();
  // A header holds bytes, and fetch takes them as Latin-1.
  const headers = {
    ...options.headers,
    ...(key && { "X-Banana-API-Key": String.fromCharCode(...new TextEncoder().encode(key)) }),
  };
  let response, body;
  try {
    response = await fetch(new URL(path, here), {
      ...options,
      headers,
      signal: AbortSignal.timeout(ANSWER_TIMEOUT_S * 1000),
    });
    body = await response.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Error(
      late
        ? `The server has not answered within ${ANSWER_TIMEOUT_S} s.`
        : "The server cannot be reached. Is it running, and is there a network?",
    );
  }
  let answer = null;
  try {
    answer = JSON.parse(body);
  } catch {
    // Something between here and the server has answered, in its own words.
  }
  if (response.ok && answer) return answer;
  const message =
    answer?.error?.message ??
    `The answer is no JSON, but ${response.status} ${response.statusText}: is something else in front of the server?`;
  const retryAfter = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 1), LONGEST_WAIT_S);
  throw new Refusal(response.status, message, response.status === 503 ? retryAfter : undefined);
}

let runs = ""; // the model and the execution provider, where known
let looked; // a promise, kept when the last look is over
let nextLook;

function lookAtHealth() {
  looked = showHealth();
}

/** Show what runs here; where the server is not healthy, look again until it is. */
async function showHealth() {
  try {
    const health = await ask("healthcheck");
    runs = [health.model, health.execution_provider?.replace(/ExecutionProvider$/, ""), health.precision]
      .filter(Boolean)
      .join(" · ");
    sayHealth("good", runs);
  } catch (error) {
    runs = "";
    sayHealth("bad", sentence(error.message));
    clearTimeout(nextLook);
    nextLook = setTimeout(lookAtHealth, HEALTH_EVERY_S * 1000);
  }
}

function sayHealth(health, text) {
  at("runs").dataset.health = health;
  if (at("runs").textContent !== text) at("runs").textContent = text;
}

/* -- the key -------------------------------------------------------------------------------------------------- */

const WRONG_KEY = "The server does not take this key. Is it complete?";
let unstoredKey = null; // for a browser that refuses to store anything
let askingForKey = false;

function heldKey() {
  try {
    return sessionStorage.getItem(KEY) ?? unstoredKey;
  } catch {
    return unstoredKey;
  }
}

function holdKey(given) {
  unstoredKey = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // It is kept until the page is left, then.
  }
}

function askForKey(wrong) {
  at("key-wrong").textContent = wrong;
  at("key").setAttribute("aria-invalid", String(wrong !== ""));
  if (askingForKey && !wrong) return;
  askingForKey = true;
  at("key-form").hidden = false;
  at("key").focus();
}

/** Ask for the key where the one that is held, if any, is not the server's; go on where it is. */
async function tryKey() {
  try {
    await ask("_k/status");
  } catch (error) {
    if (error.status === 401) return askForKey(heldKey() ? WRONG_KEY : "");
    if (askingForKey && !error.status) return askForKey(error.message);
  }
  askingForKey = false;
  if (at("key-form").contains(document.activeElement)) at("pick").focus(); // what is hidden loses it to the body
  at("key-form").hidden = true;
  at("key").value = "";
  startWaiting();
}

at("key-form").addEventListener("submit", event => {
  event.preventDefault();
  holdKey(at("key").value);
  tryKey();
});

/* -- pictures in ---------------------------------------------------------------------------------------------- */

for (const input of [at("pick"), at("photograph")]) {
  input.addEventListener("change", () => {
    take(input.files, "");
    input.value = ""; // so that the same picture can be chosen again
  });
}

document.addEventListener("paste", event => {
  if (event.target === at("key")) return;
  event.preventDefault();
  take(event.clipboardData.files, "There is no picture in what was pasted.");
});

let depth = 0; // dragenter and dragleave come for every element that the pointer crosses
const dragged = change => {
  depth = Math.max(0, depth + change);
  document.body.classList.toggle("dragging", depth > 0);
};
document.addEventListener("dragenter", () => dragged(1));
document.addEventListener("dragleave", () => dragged(-1));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => {
  event.preventDefault();
  dragged(-depth);
  take(event.dataTransfer.files, "There is no file in what was dropped. Save the picture first, then drop its file.");
});

/** Show a card for every file, and classify them; say `none` where there are none. */
function take(files, none) {
  at("note").textContent = none;
  at("note").hidden = files.length > 0 || !none;
  if (!files.length) return;
  document.body.classList.add("used");
  const cards = [...files].map(file => new Card(file));
  at("answers").prepend(...cards.map(card => card.element));
  lookAtHealth();
  waiting.push(...cards);
  startWaiting();
}

const waiting = []; // cards
let inFlight = 0;

function startWaiting() {
  while (!askingForKey && inFlight < AT_ONCE && waiting.length) {
    inFlight += 1;
    waiting
      .shift()
      .classify()
      .finally(() => {
        inFlight -= 1;
        startWaiting();
      });
  }
  if (askingForKey) for (const card of waiting) card.wait("Waiting for the API key.");
}

/* -- a picture and its answer --------------------------------------------------------------------------------- */

class Card {
  constructor(file) {
    this.file = file;
    this.element = at("card").content.firstElementChild.cloneNode(true);
    this.in("h2").textContent = this.describe();
    this.wait("Waiting.");
    this.in(".again").addEventListener("click", () => {
      this.in("h2").focus();
      this.in(".again").hidden = true;
      this.wait("Waiting.");
      lookAtHealth();
      waiting.push(this);
      startWaiting();
    });
    this.showPicture();
  }

  in(selector) {
    return this.element.querySelector(selector);
  }

  describe(...more) {
    return [this.file.name, ...more, size(this.file.size)].join(" · ");
  }

  showPicture() {
    const image = this.in("img");
    image.alt = this.file.name;
    image.addEventListener("load", () => {
      this.in("h2").textContent = this.describe(`${image.naturalWidth} × ${image.naturalHeight}`);
    });
    image.addEventListener("error", () => image.replaceWith("No preview"));
    image.src = URL.createObjectURL(this.file);
  }

  /** Get and show the answer; what goes wrong is shown as well. */
  async classify() {
    this.wait("Classifying …");
    try {
      await this.file.slice(0, 1).arrayBuffer();
    } catch {
      return this.fail("This cannot be read. Is it a folder?", false);
    }
    const sentKey = heldKey();
    let answer;
    try {
      answer = await this.answer();
    } catch (error) {
      if (error.status !== 401) return this.fail(sentence(error.message), !(error.status < 500));
      waiting.unshift(this);
      if (sentKey === heldKey()) askForKey(sentKey ? WRONG_KEY : "");
      return;
    }
    await looked; // which was asked first
    this.show(answer);
  }

  /** Return the server's answer with the round trip's milliseconds. Where there is no room, try again some times. */
  async answer() {
    for (let tries = 1; ; tries += 1) {
      const started = performance.now();
      try {
        const answer = await ask("", { method: "POST", body: this.file, headers: { "Content-Type": kind(this.file) } });
        return { ...answer, roundTrip: performance.now() - started };
      } catch (error) {
        if (!error.retryAfter || tries === TRIES) throw error;
        this.wait(`${sentence(error.message)} Next try in ${error.retryAfter} s.`);
        await sleep(error.retryAfter);
      }
    }
  }

  wait(text) {
    this.element.setAttribute("aria-busy", "true");
    this.state("waiting", text);
  }

  fail(text, worthTrying) {
    this.element.setAttribute("aria-busy", "false");
    this.state("bad", text);
    this.in(".again").hidden = !worthTrying;
    if (worthTrying) lookAtHealth();
    say(`${this.file.name}: ${text}`);
  }

  state(look, text) {
    this.in(".state").className = `state ${look}`;
    this.in(".state").textContent = text;
  }

  show({ predictions, timing_ms, roundTrip }) {
    this.element.setAttribute("aria-busy", "false");
    this.in(".state").hidden = true;
    this.in("tbody").replaceChildren(
      ...predictions.map(({ class_name, probability }) => {
        const row = element("tr", "", element("th", class_name), element("td", percent(probability)));
        row.firstChild.scope = "row";
        row.style.setProperty("--share", Math.min(Math.max(probability, 0), 1));
        return row;
      }),
    );
    const facts = [
      ["Round trip", milliseconds(roundTrip)],
      ["In the server", milliseconds(timing_ms.total)],
      ["Decoding", milliseconds(timing_ms.decode)],
      ["Model", milliseconds(timing_ms.model)],
      ["Answered by", runs || "not known"],
    ];
    this.in(".facts").replaceChildren(
      ...facts.map(([name, value]) => element("div", "", element("dt", name), element("dd", value))),
    );
    this.in(".facts").lastChild.className = "by";
    for (const snippet of this.element.querySelectorAll(".snippet")) {
      const code = snippet.querySelector("code");
      code.textContent = { curl: curl(this.file), Python: python(this.file) }[snippet.querySelector("h3").textContent];
      const button = snippet.querySelector("button");
      button.setAttribute("aria-label", `Copy the ${snippet.querySelector("h3").textContent} code`);
      button.onclick = () => copy(code, button);
    }
    for (const part of this.element.querySelectorAll("table, dl, details")) part.hidden = false;
    say(`${this.file.name}: ${predictions[0].class_name}, ${percent(predictions[0].probability)}`);
  }
}

/** Have a screen reader say it. */
function say(text) {
  at("said").append(element("p", text));
}

function element(name, text, ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

/* -- the same from a program ---------------------------------------------------------------------------------- */

// What does not show, or turns the direction of what does, is written as an escape: a name must not hide what is run.
const UNSEEN = /[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const escaped = character => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Quote for bash and zsh. */
function inShell(text) {
  if (text.search(UNSEEN) < 0) return `'${text.replaceAll("'", "'\\''")}'`;
  return `$'${text.replace(/[\\']/g, "\\$&").replace(UNSEEN, escaped)}'`;
}

/** Quote for Python. */
const inPython = text => JSON.stringify(text).replace(UNSEEN, escaped);

function curl(file) {
  const header = heldKey() ? ' \\\n    -H "X-Banana-API-Key: $BANANA_API_KEY"' : "";
  return `curl -H ${inShell(`Content-Type: ${kind(file)}`)}${header} \\
    --data-binary @${inShell(file.name)} ${inShell(here.href)}`;
}

function python(file) {
  const header = heldKey() ? ', "X-Banana-API-Key": os.environ["BANANA_API_KEY"]' : "";
  return `${heldKey() ? "import os\n\n" : ""}import requests

with open(${inPython(file.name)}, "rb") as picture:
    headers = {"Content-Type": ${inPython(kind(file))}${header}}
    answer = requests.post(${inPython(here.href)}, data=picture, headers=headers, timeout=60)
answer.raise_for_status()
print(answer.json()["class_name"])`;
}

async function copy(code, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Without HTTPS there is no navigator.clipboard, but this.
    getSelection().selectAllChildren(code);
    copied = document.execCommand("copy");
  }
  button.textContent = copied ? "Copied" : "Selected: copy it";
  await sleep(2);
  button.textContent = "Copy";
}

/* -- words and numbers ---------------------------------------------------------------------------------------- */

// What the server takes for a picture's own bytes. What is none, it refuses in better words than a file's type allows.
const kind = file => (/^image\/[\w.+-]+$/.test(file.type) ? file.type : "application/octet-stream");
const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
const percent = share => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`);
const milliseconds = ms => `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
const size = bytes =>
  bytes < 1e3 ? `${bytes} bytes` : bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

at("paste-keys").textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ V" : "Ctrl V";
at("drop").hidden = false;
at("runs").textContent = "Asking the server …";
lookAtHealth();
tryKey();
