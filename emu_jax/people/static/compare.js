"use strict";
// One pair of images after another. Answers wait in this browser's storage until the server has
// acknowledged them, so that neither a reload nor a lost connection loses one.

const main = document.querySelector("main");
const strings = JSON.parse(main.dataset.strings);
const questions = JSON.parse(main.dataset.questions);
const QUEUE = "answers " + main.dataset.session;
const READ = "read " + main.dataset.session + " ";
const KEYS = {
  appeal: { a: ["ArrowLeft", "a", "1"], tie: ["ArrowDown", "t", "2"], b: ["ArrowRight", "b", "3"] },
  faithfulness: {
    a: ["ArrowLeft", "a", "1"], both: ["ArrowUp", "o", "2"],
    neither: ["ArrowDown", "n", "3"], b: ["ArrowRight", "b", "4"],
  },
};
const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
const at = (id) => document.getElementById(id);

let known = { tasks: [], done: 0, total: 0, seconds: null, stopped: false };
let answered = new Set(); // tasks that this page has answered
let current = null; // the task on the stage
let ready = false; // its images are visible
let since = 0; // when they became visible
let sending = null;
let memory = []; // stands in where the browser has no storage
const loaded = new Map(); // images that were loaded ahead

function queue(change) {
  let waiting = memory;
  try {
    waiting = JSON.parse(localStorage.getItem(QUEUE) || "[]");
  } catch (error) { /* private windows */ }
  if (change) {
    waiting = memory = change(waiting);
    try {
      localStorage.setItem(QUEUE, JSON.stringify(waiting));
    } catch (error) { /* the page itself still has them */ }
  }
  return waiting;
}

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
      await pause(wait);
    }
  }
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

// Sends what waits, in order. A refused answer can never be accepted: it is dropped.
function flush() {
  sending = sending || (async () => {
    let right = null;
    for (let waiting = queue(); waiting.length; waiting = queue()) {
      const sent = waiting[0];
      const response = await insist("/answer", sent);
      const body = response.ok ? await response.json() : null;
      queue((all) => all.filter((one) => one.key !== sent.key));
      if (body) {
        known = body.state;
        right = body.right;
      } else {
        await refresh();
      }
      progress();
    }
    return right;
  })().finally(() => { sending = null; });
  return sending;
}

async function refresh() {
  const response = await insist("/state");
  if (!response.ok) return location.reload();
  known = await response.json();
}

function progress() {
  const waiting = queue().length;
  const done = Math.min(known.done + waiting, known.total);
  document.querySelector("progress").max = Math.max(known.total, 1);
  document.querySelector("progress").value = done;
  let text = strings.progress.replace("{done}", done).replace("{total}", known.total);
  if (known.seconds !== null && done < known.total) {
    const minutes = Math.max(1, Math.round(known.seconds / 60));
    text += " · " + strings.minutes.replace("{minutes}", minutes);
  }
  at("progress").textContent = text;
  at("saved").textContent =
    waiting ? strings.waiting.replace("{count}", waiting) : done ? strings.saved : "";
  at("undo").disabled = !done || known.stopped;
}

const source = (task, side) => "/image/" + task.id + "/" + side;

function open() {
  const waiting = new Set(queue().map((one) => one.task));
  return known.tasks.filter((task) => !answered.has(task.id) && !waiting.has(task.id));
}

function preload() {
  for (const task of open()) {
    for (const side of ["a", "b"]) {
      const path = source(task, side);
      if (!loaded.has(path)) {
        const image = new Image();
        image.src = path;
        loaded.set(path, image);
      }
    }
  }
  for (const path of [...loaded.keys()].slice(0, Math.max(0, loaded.size - 16))) loaded.delete(path);
}

async function next() {
  let tasks = open();
  if (!tasks.length) {
    current = null;
    await flush();
    await refresh();
    tasks = open();
  }
  progress();
  for (const id of ["instructions", "stage", "done"]) at(id).hidden = true;
  if (!tasks.length) return finish();
  current = tasks[0];
  preload();
  let read = null;
  try {
    read = localStorage.getItem(READ + current.question);
  } catch (error) { /* private windows see the instructions again */ }
  if (read || main.dataset[current.question]) return show();
  instruct();
}

function finish() {
  const [title, text] = known.stopped ? ["stopped_title", "stopped"] : ["done_title", "done"];
  at("done").querySelector("h1").textContent = strings[title];
  at("done").querySelector("p").textContent = strings[text];
  at("done").hidden = false;
}

function instruct() {
  const own = strings[current.question];
  const section = at("instructions");
  section.querySelector("h1").textContent = own.question;
  section.querySelector("ul").replaceChildren(...own.instructions.map((text) => element("li", text)));
  section.querySelector("dl").replaceChildren(
    ...questions[current.question].flatMap((answer) => [
      keys(KEYS[current.question][answer], "dt"), element("dd", own[answer]),
    ]),
    keys(["u", "Backspace"], "dt"), element("dd", strings.undo),
  );
  at("stage").hidden = true;
  section.hidden = false;
  at("begin").focus();
}

function begin() {
  main.dataset[current.question] = "read";
  try {
    localStorage.setItem(READ + current.question, "yes");
  } catch (error) { /* private windows */ }
  at("instructions").hidden = true;
  show();
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function keys(names, kind) {
  const made = document.createElement(kind);
  made.append(...names.map((name) => element("kbd", NAMES[name] || name.toUpperCase())));
  return made;
}

async function show() {
  const task = current;
  const own = strings[task.question];
  ready = false;
  at("question").textContent = own.question;
  at("training").hidden = !task.training;
  at("prompt").hidden = task.prompt === null;
  at("prompt").textContent = task.prompt || "";
  at("feedback").hidden = true;
  at("answers").hidden = false;
  if (at("answers").dataset.question !== task.question) {
    at("answers").dataset.question = task.question;
    at("answers").replaceChildren(...questions[task.question].map((answer) => {
      const button = element("button", own[answer]);
      button.type = "button";
      button.dataset.answer = answer;
      const key = KEYS[task.question][answer][0];
      button.setAttribute("aria-keyshortcuts", KEYS[task.question][answer].join(" "));
      button.append(element("kbd", NAMES[key]));
      button.addEventListener("click", () => give(answer));
      return button;
    }));
  }
  enable(false);
  at("stage").hidden = false;
  at("loading").hidden = false;
  at("pair").style.visibility = "hidden";
  for (const figure of document.querySelectorAll("figure.large")) figure.classList.remove("large");
  for (const side of ["a", "b"]) {
    for (let wait = 0.5; task === current; wait = Math.min(10, 2 * wait)) {
      at(side).src = source(task, side);
      try {
        await at(side).decode();
        if (!at("notice").hidden && !queue().length) notice("");
        break;
      } catch (error) {
        if (task !== current) return;
        notice(strings.offline);
        at(side).removeAttribute("src");
        await pause(wait);
      }
    }
    if (task !== current) return;
    at(side).classList.toggle("small", at(side).naturalWidth < 256);
  }
  at("pair").style.visibility = "visible"; // both at once
  at("loading").hidden = true;
  since = performance.now();
  ready = true;
  enable(true);
  main.dataset.shown = task.id;
}

function enable(on) {
  for (const button of at("answers").children) button.disabled = !on;
}

async function give(answer) {
  if (!ready || !current) return;
  const task = current;
  ready = false;
  const seconds = (performance.now() - since) / 1000;
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0")).join("");
  queue((all) => [...all, { task: task.id, answer, key, seconds }]);
  answered.add(task.id);
  progress();
  const sent = flush();
  if (!task.training) return next();
  enable(false);
  const right = await sent;
  if (right === null || task !== current) return next();
  at("feedback").className = right ? "right" : "wrong";
  at("feedback").querySelector("p").textContent = right ? strings.right : strings.wrong;
  at("answers").hidden = true;
  at("feedback").hidden = false;
  at("next").focus();
}

async function undo() {
  if (at("undo").disabled) return;
  at("undo").disabled = true;
  current = null;
  ready = false;
  await flush();
  const response = await insist("/undo", {});
  if (response.ok) known = await response.json();
  answered = new Set();
  await next();
}

function enlarge(side) {
  const large = at(side).closest("figure").classList.toggle("large");
  if (large) at(side).closest("button").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const press = (action) => {
    event.preventDefault();
    if (!event.repeat) action();
  };
  const large = document.querySelector("figure.large");
  if (large && event.key === "Escape") return press(() => large.classList.remove("large"));
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "u" || key === "Backspace") return press(undo);
  if ((key === "?" || key === "h") && current) return press(instruct);
  if (key === "Enter" && !at("instructions").hidden) return press(begin);
  if (key === "Enter" && !at("feedback").hidden && !at("stage").hidden) return press(next);
  if (!current || at("stage").hidden || !at("feedback").hidden) return;
  for (const [answer, names] of Object.entries(KEYS[current.question])) {
    if (names.includes(key)) return press(() => give(answer));
  }
});
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", () => current && instruct());
at("begin").addEventListener("click", begin);
at("next").addEventListener("click", next);
for (const button of document.querySelectorAll("figure button")) {
  button.addEventListener("click", () => enlarge(button.dataset.side));
}
addEventListener("online", () => { if (queue().length) flush(); });
addEventListener("beforeunload", (event) => {
  if (queue().length) event.preventDefault();
});

(async () => {
  await flush();
  await refresh();
  await next();
})();
