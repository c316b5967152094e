"use strict";
// What the pages of annotators share: answers wait in this browser's storage until the server has
// acknowledged them, so that neither a reload nor a lost connection loses one.

const main = document.querySelector("main");
const strings = JSON.parse(main.dataset.strings);
const QUEUE = "answers " + main.dataset.session;
const at = (id) => document.getElementById(id);

let known = { tasks: [], done: 0, total: 0, seconds: null, stopped: false };
let answered = new Set(); // tasks that this page has answered
let sending = null;
let memory = []; // stands in where the browser has no storage

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
      const sent = waiting.slice(0, 60);
      const response = await insist("/answer", sent);
      const body = response.ok ? await response.json() : null;
      const keys = new Set(sent.map((one) => one.key));
      queue((all) => all.filter((one) => !keys.has(one.key)));
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
  const saved = waiting ? strings.waiting.replace("{count}", waiting) : done ? strings.saved : "";
  at("saved").textContent = saved && " · " + saved;
  at("undo").disabled = !done || known.stopped;
}

// Puts the answer to a task into the queue.
function keep(task, answer, seconds) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0")).join("");
  queue((all) => [...all, { task: task.id, answer, key, seconds }]);
  answered.add(task.id);
}

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

function finish() {
  const [title, text] = known.stopped ? ["stopped_title", "stopped"] : ["done_title", "done"];
  at("done").querySelector("h1").textContent = strings[title];
  at("done").querySelector("p").textContent = strings[text];
  at("done").hidden = false;
}

// Takes the last answer back on the server, once everything has been sent.
async function takeBack() {
  await flush();
  const response = await insist("/undo", {});
  if (response.ok) known = await response.json();
  answered = new Set();
}

addEventListener("online", () => { if (queue().length) flush(); });
addEventListener("beforeunload", (event) => {
  if (queue().length) event.preventDefault();
});
