const MAX_IN_FLIGHT = 4; // requests; a browser opens at most six connections
const MAX_TRIES = 5; // of an image that the server has no room for
const MAX_RETRY_AFTER_S = 30; // if the server names more
const RESPONSE_TIMEOUT_S = 120; // from the start of the upload
const HEALTH_INTERVAL_S = 2; // while the server is not healthy
const KEY = "BANANA_API_KEY"; // its name in sessionStorage

const byId = id => document.getElementById(id);
const base = new URL(".", location.href);
const storage = (() => {
  try {
    return sessionStorage;
  } catch {
    return {}; // in a browser that refuses to store anything
  }
})();
const heldKey = () => storage[KEY];
const sleep = seconds => new Promise(done => setTimeout(done, seconds * 1000));

/* -- the server ----------------------------------------------------------------------------------------------- */

/** An error response of the server; `retryAfter` in seconds if the request may be sent again. */
class ErrorResponse extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

/** Return the JSON of a response. Throws an ErrorResponse, or an Error if the server cannot be reached. */
async function request(path, options = {}) {
  const key = heldKey();
  const headers = { ...options.headers };
  if (key) headers["X-Banana-API-Key"] = String.fromCharCode(...new TextEncoder().encode(key)); // sent as Latin-1
  const signal = AbortSignal.timeout(RESPONSE_TIMEOUT_S * 1000);
  let response, text;
  try {
    response = await fetch(new URL(path, base), { ...options, headers, signal });
    text = await response.text();
  } catch (error) {
    if (error.name === "TimeoutError") throw new Error(`No response within ${RESPONSE_TIMEOUT_S} s.`);
    throw new Error("The server cannot be reached. Is it running, and are you online?");
  }
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // A proxy in front of the server responds in its own words.
  }
  if (response.ok) return body;
  const message = body?.error?.message;
  const retryAfter = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 1), MAX_RETRY_AFTER_S);
  throw new ErrorResponse(
    response.status,
    typeof message === "string" && message ? message : unexpected(response.status),
    response.status === 503 ? retryAfter : undefined,
  );
}

const unexpected = status => `Unexpected response${status ? ` (${status})` : ""}. Is this URL the classifier's?`;

/** Return whether a response to an image is what this server documents. */
function isClassification(body) {
  const { predictions, timing_ms } = body ?? {};
  return (
    Array.isArray(predictions) &&
    predictions.length > 0 &&
    predictions.every(each => typeof each?.class_name === "string" && Number.isFinite(each.probability)) &&
    ["total", "decode", "model"].every(name => Number.isFinite(timing_ms?.[name]))
  );
}

// What the model, the execution provider and the precision in the header mean.
const TITLES = {
  OpenVINO: "Intel's OpenVINO runs the ONNX file, on the CPU",
  CPU: "ONNX Runtime runs the ONNX file, on the CPU",
  CUDA: "ONNX Runtime runs the ONNX file, on an NVIDIA GPU",
  f32: "32-bit floating point: exact",
  bf16: "bfloat16, 16-bit floating point: faster than f32, and probabilities may differ by some hundredths",
  tf32: "TensorFloat-32, 19-bit floating point: faster than f32, and nearly as exact",
};

let nextHealthCheck;

/** Show in the header what runs on the server, or what is wrong; then check again until it is healthy. */
async function showHealth() {
  clearTimeout(nextHealthCheck);
  try {
    const { model, execution_provider, precision } = (await request("healthcheck")) ?? {};
    const parts = [model, execution_provider?.replace(/ExecutionProvider$/, ""), precision].filter(Boolean);
    if (!parts.length) throw new Error(unexpected());
    setHealth("good", parts.flatMap(part => [" · ", withTitle(part)]).slice(1));
  } catch (error) {
    setHealth("bad", [asSentence(error.message)]);
    clearTimeout(nextHealthCheck); // of a check at the same time
    nextHealthCheck = setTimeout(showHealth, HEALTH_INTERVAL_S * 1000);
  }
}

function withTitle(text) {
  return TITLES[text] ? Object.assign(element("abbr", text), { title: TITLES[text] }) : text;
}

function setHealth(health, parts) {
  const shown = element("span", "", ...parts);
  byId("runs").dataset.health = health;
  if (byId("runs").textContent !== shown.textContent) byId("runs").replaceChildren(shown);
}

/* -- the key -------------------------------------------------------------------------------------------------- */

const WRONG_KEY = "The server rejected this key. Is it complete?";
let askingForKey = false;

function askForKey(wrong) {
  byId("key-wrong").textContent = wrong;
  byId("key").setAttribute("aria-invalid", String(wrong !== ""));
  if (askingForKey && !wrong) return;
  askingForKey = true;
  byId("key-form").hidden = false;
  byId("key").focus();
}

/** Ask for a key unless the one held, if any, is the server's; then go on. */
async function tryKey() {
  try {
    await request("_k/status");
  } catch (error) {
    if (error.status === 401) return askForKey(heldKey() ? WRONG_KEY : "");
    if (askingForKey && !error.status) return askForKey(error.message);
  }
  askingForKey = false;
  if (byId("key-form").contains(document.activeElement)) byId("pick").focus(); // hiding the form would lose the focus
  byId("key-form").hidden = true;
  byId("key").value = "";
  classifyWaiting();
}

byId("key-form").addEventListener("submit", event => {
  event.preventDefault();
  storage[KEY] = byId("key").value;
  tryKey();
});

/* -- images in ------------------------------------------------------------------------------------------------ */

for (const input of [byId("pick"), byId("photograph")]) {
  input.addEventListener("change", () => {
    add(input.files, "");
    input.value = ""; // so that the same image can be chosen again
  });
}

document.addEventListener("paste", event => {
  if (event.target === byId("key")) return;
  event.preventDefault();
  add(event.clipboardData.files, "The clipboard holds no image.");
});

const setDragging = dragging => document.body.classList.toggle("dragging", dragging);
document.addEventListener("dragenter", () => setDragging(true));
document.addEventListener("dragleave", event => setDragging(Boolean(event.relatedTarget)));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => {
  event.preventDefault();
  setDragging(false);
  add(event.dataTransfer.files, "That is not a file. Save the image first, then drop its file.");
});

/** Add a card for every file, and classify them; show `none` if there are no files. */
function add(files, none) {
  byId("note").textContent = none;
  byId("note").hidden = files.length > 0 || !none;
  if (!files.length) return;
  const added = [...files].map(file => new Card(file));
  byId("results").prepend(...added.map(card => card.element));
  cards.push(...added);
  retry(added);
}

/* -- all images ----------------------------------------------------------------------------------------------- */

let cards = [];
let waiting = []; // cards
let inFlight = 0;

/** Classify the cards, as soon as there is room. */
function retry(some) {
  showHealth();
  for (const card of some) card.wait("Waiting.");
  waiting.push(...some);
  showButtons();
  classifyWaiting();
}

function classifyWaiting() {
  while (!askingForKey && inFlight < MAX_IN_FLIGHT && waiting.length) {
    inFlight += 1;
    waiting
      .shift()
      .classify()
      .finally(() => {
        inFlight -= 1;
        showButtons();
        classifyWaiting();
      });
  }
  if (askingForKey) for (const card of waiting) card.wait("Waiting for the API key.");
}

const failed = () => cards.filter(card => card.canRetry);

function showButtons() {
  document.body.classList.toggle("used", cards.length > 0);
  byId("all").hidden = !cards.length;
  byId("retry-all").hidden = failed().length < 2;
}

byId("retry-all").addEventListener("click", () => {
  byId("clear").focus();
  retry(failed());
});

byId("clear").addEventListener("click", () => {
  for (const card of cards) card.remove();
  cards = [];
  waiting = [];
  showButtons();
  byId("pick").focus();
});

/* -- one image ------------------------------------------------------------------------------------------------ */

class Card {
  constructor(file) {
    this.file = file;
    this.canRetry = false;
    this.element = byId("card").content.firstElementChild.cloneNode(true);
    this.in("h2").textContent = this.describe();
    this.in(".again").addEventListener("click", () => {
      this.in("h2").focus();
      retry([this]);
    });
    this.preview = URL.createObjectURL(file);
    const image = this.in("img");
    image.alt = file.name;
    image.addEventListener("load", () => {
      this.in("h2").textContent = this.describe(`${image.naturalWidth} × ${image.naturalHeight}`);
    });
    image.addEventListener("error", () => this.in(".preview").remove());
    image.src = this.preview;
  }

  in(selector) {
    return this.element.querySelector(selector);
  }

  describe(...more) {
    return [this.file.name, ...more, formatSize(this.file.size)].join(" · ");
  }

  remove() {
    this.element.remove();
    URL.revokeObjectURL(this.preview);
  }

  /** Classify the image and show its classes, or the error. */
  async classify() {
    this.wait("Classifying …");
    try {
      await this.file.slice(0, 1).arrayBuffer();
    } catch {
      return this.fail("This cannot be read. Is it a folder?", false);
    }
    const sentKey = heldKey();
    try {
      this.show(await this.send());
    } catch (error) {
      if (error.status !== 401) return this.fail(asSentence(error.message), !(error.status < 500));
      if (this.element.isConnected) waiting.unshift(this);
      if (sentKey === heldKey()) askForKey(sentKey ? WRONG_KEY : "");
    }
  }

  /** Return the response with the milliseconds of the round trip; try again some times if the server has no room. */
  async send() {
    for (let tries = 1; ; tries += 1) {
      const started = performance.now();
      try {
        const headers = { "Content-Type": "application/octet-stream" }; // the server recognizes images by their bytes
        const body = await request("", { method: "POST", body: this.file, headers });
        if (!isClassification(body)) throw new Error(unexpected());
        return { ...body, roundTrip: performance.now() - started };
      } catch (error) {
        if (!error.retryAfter || tries === MAX_TRIES || !this.element.isConnected) throw error;
        this.wait(`${asSentence(error.message)} Next try in ${error.retryAfter} s.`);
        await sleep(error.retryAfter);
      }
    }
  }

  wait(text) {
    this.canRetry = false;
    this.in(".again").hidden = true;
    this.element.setAttribute("aria-busy", "true");
    this.setState("waiting", text);
  }

  fail(text, canRetry) {
    this.canRetry = canRetry;
    this.in(".again").hidden = !canRetry;
    this.element.setAttribute("aria-busy", "false");
    this.setState("bad", text);
    if (canRetry) showHealth();
    this.say(text);
  }

  setState(state, text) {
    this.element.classList.toggle("failed", state === "bad");
    this.in(".state").className = `state ${state}`;
    this.in(".state").textContent = text;
  }

  show({ predictions, timing_ms, roundTrip }) {
    this.element.setAttribute("aria-busy", "false");
    this.in(".state").hidden = true;
    this.in("tbody").replaceChildren(
      ...predictions.map(({ class_id, class_name, probability }) => {
        const name = element("th", class_name, " ", element("small", `class ${class_id}`));
        const row = element("tr", "", name, element("td", formatPercent(probability)));
        name.scope = "row";
        row.style.setProperty("--share", Math.min(Math.max(probability, 0), 1));
        return row;
      }),
    );
    const facts = { "Round trip": roundTrip, Server: timing_ms.total, Decoding: timing_ms.decode, Model: timing_ms.model };
    this.in(".facts").replaceChildren(
      ...Object.entries(facts).map(([name, ms]) => element("div", "", element("dt", name), element("dd", formatMs(ms)))),
    );
    this.in("table").hidden = this.in(".facts").hidden = false;
    this.say(`${predictions[0].class_name}, ${formatPercent(predictions[0].probability)}`);
  }

  /** Have screen readers announce it, unless the card has been cleared. */
  say(text) {
    if (this.element.isConnected) byId("said").append(element("p", `${this.file.name}: ${text}`));
  }
}

function element(name, text, ...children) {
  const made = document.createElement(name);
  made.append(text, ...children);
  return made;
}

/* -- words and numbers ---------------------------------------------------------------------------------------- */

const asSentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
const formatPercent = share => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`);
const formatMs = ms => `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
const formatSize = bytes =>
  bytes < 1e3 ? `${bytes} bytes` : bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

byId("paste-keys").textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ V" : "Ctrl V";
byId("url").textContent = `'${base.href.replaceAll("'", "%27")}'`;
byId("drop").hidden = false;
setHealth("", ["Contacting the server …"]);
showHealth();
tryKey();
