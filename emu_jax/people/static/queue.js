"use strict";
// What the pages of annotators share: answers wait in this browser's storage until the server has
// acknowledged them, so that neither a reload nor a lost connection loses one.

const main = document.querySelector("main");
const strings = JSON.parse(main.dataset.strings);
const QUEUE = "answers " + main.dataset.session;
const BEGUN = "begun " + main.dataset.session;
const at = (id) => document.getElementById(id);

let known = { tasks: [], done: 0, total: 0, seconds: null, stopped: false };
let answered = new Set(); // tasks that this page has answered
let sending = null;
const memory = {}; // stands in where the browser has no storage

// A value in this browser's storage, after a change of it.
function stored(name, change) {
  let value = memory[name] || [];
  try {
    value = JSON.parse(localStorage.getItem(name) || "[]");
  } catch (error) { /* private windows */ }
  if (change) {
    value = memory[name] = change(value);
    try {
      localStorage.setItem(name, JSON.stringify(value));
    } catch (error) { /* the page itself still has it */ }
  }
  return value;
}

const queue = (change) => stored(QUEUE, change);

async function call(path, body) {
  const options = { headers: { "X-CSRF-Token": main.dataset.csrf }, cache: "no-store" };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.status === 429 || response.status >= 500) throw new Error("busy");
  return response;
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Calls until there is an answer; says so while there is none.
async function insist(path, body) {
  for (let wait = 0.5; ; wait = Math.min(15, 2 * wait)) {
    try {
      const response = await call(path, body);
      notice("");
      return response;
    } catch (error) {
      notice(strings.offline);
      progress();
      await pause(wait);
    }
  }
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

// The link has been renewed, or another annotator's has been opened in this browser. What waits is
// sent when this annotator's link is opened again.
function leave() {
  removeEventListener("beforeunload", warn);
  location.reload();
  return new Promise(() => {});
}

// Sends what waits, in order. A refused answer can never be accepted: it is dropped.
function flush() {
  sending = sending || (async () => {
    let judged = { right: null };
    for (let waiting = queue(); waiting.length; waiting = queue()) {
      const sent = waiting.slice(0, 48); // a page of the recall stage
      const response = await insist("/answer", sent);
      const body = await response.json().catch(() => null);
      if (response.status === 401 || (body && body.error === "csrf")) return leave();
      const keys = new Set(sent.map((one) => one.key));
      queue((all) => all.filter((one) => !keys.has(one.key)));
      if (response.ok) {
        known = body.state;
        judged = body;
        preload();
      } else {
        await refresh();
        if (known.stopped) finish();
      }
      progress();
    }
    return judged;
  })().finally(() => { sending = null; });
  return sending;
}

async function refresh() {
  const response = await insist("/state");
  if (!response.ok) return leave();
  known = await response.json();
}

function progress() {
  const waiting = queue().length;
  const done = Math.min(known.done + waiting, known.total);
  document.querySelector("progress").max = Math.max(known.total, 1);
  document.querySelector("progress").value = done;
  let text = strings.progress.replace("{done}", done).replace("{total}", known.total);
  if (known.seconds !== null && done < known.total && !known.stopped) {
    const minutes = Math.max(1, Math.round(known.seconds / 60));
    text += " · " + strings.minutes.replace("{minutes}", minutes);
  }
  at("progress").textContent = text;
  const late = waiting && !at("notice").hidden; // others are on their way: no word of them
  const saved = late ? strings.waiting.replace("{count}", waiting)
    : done && !waiting ? strings.saved : "";
  at("saved").textContent = saved && " · " + saved;
  at("undo").disabled = !done || known.stopped;
}

// Puts the answer to a task into the queue.
function keep(task, answer, seconds) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0")).join("");
  queue((all) => [...all, { task: task.id, answer, key, seconds }]);
  answered.add(task.id);
  remember(task, answer);
}

// Answers, and what was begun of them, so that neither a reload nor taking one back loses them.
const remember = (task, answer) => stored(BEGUN, (all) =>
  [...all.filter(([id]) => id !== task.id), [task.id, answer]].slice(-200));
const remembered = (task) => (stored(BEGUN).find(([id]) => id === task.id) || [])[1];

// The tasks that are still to be answered.
function open() {
  const waiting = new Set(queue().map((one) => one.task));
  return known.tasks.filter((task) => !answered.has(task.id) && !waiting.has(task.id));
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// The image of a path, which is decoded ahead; the latest are kept.
const images = new Map();
function image(path) {
  if (!images.has(path)) {
    const made = new Image();
    made.src = path;
    made.decode().catch(() => images.delete(path));
    images.set(path, made);
    const kept = Math.max(16, 1.5 * known.tasks.length);
    if (images.size > kept) images.delete(images.keys().next().value);
  }
  return images.get(path);
}

// The same, once it is there; null if ``wanted`` ends before.
async function arrived(path, wanted) {
  for (let wait = 0.5; wanted(); wait = Math.min(10, 2 * wait)) {
    try {
      const found = image(path);
      await found.decode();
      if (!at("notice").hidden && !queue().length) notice("");
      return wanted() ? found : null;
    } catch (error) {
      images.delete(path);
      if (wanted()) notice(strings.offline);
      await pause(wait);
    }
  }
  return null;
}

// Puts an image, which was loaded ahead, in the place of another.
function place(id, found, text) {
  found.id = id;
  found.alt = text;
  found.classList.toggle("small", found.naturalWidth < 256);
  if (at(id) !== found) at(id).replaceWith(found);
}

function finish() {
  for (const section of document.querySelectorAll("section")) section.hidden = true;
  const [title, text] = known.stopped ? ["stopped_title", "stopped"] : ["done_title", "done"];
  at("done").querySelector("h1").textContent = strings[title];
  at("done").querySelector("p").textContent = strings[text];
  at("done").hidden = false;
}

// Takes the last answer back on the server, once everything has been sent.
async function takeBack() {
  await flush();
  const response = await insist("/undo", {});
  if (!response.ok) return leave();
  known = await response.json();
  answered = new Set();
}

addEventListener("online", () => { if (queue().length) flush(); });
function warn(event) {
  if (queue().length) event.preventDefault();
}
addEventListener("beforeunload", warn);
// The second click of a double click would answer the next task.
addEventListener("click", (event) => {
  if (event.detail > 1) {
    event.preventDefault();
    event.stopPropagation();
  }
}, true);
