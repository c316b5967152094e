"use strict";
// One pair of images after another.

const questions = JSON.parse(main.dataset.questions);
const READ = "read " + main.dataset.session + " ";
const KEYS = {
  appeal: { a: ["ArrowLeft", "a", "1"], tie: ["ArrowDown", "t", "2"], b: ["ArrowRight", "b", "3"] },
  faithfulness: {
    a: ["ArrowLeft", "a", "1"], both: ["ArrowUp", "o", "2"],
    neither: ["ArrowDown", "n", "3"], b: ["ArrowRight", "b", "4"],
  },
};
const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

let current = null; // the task on the stage
let ready = false; // its images are visible
let since = 0; // when they became visible
const loaded = new Map(); // images that were loaded ahead

const source = (task, side) => "/image/" + task.id + "/" + side;

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

function instruct() {
  const own = strings[current.question];
  const section = at("instructions");
  section.querySelector("h1").textContent = own.question;
  section.querySelector("ul").replaceChildren(...own.instructions.map((text) => element("li", text)));
  section.querySelector("dl").replaceChildren(
    ...questions[current.question].flatMap((answer) => [
      keys(KEYS[current.question][answer], "dt"), element("dd", own[answer]),
    ]),
    keys(["u", "Backspace"], "dt"), element("dd", strings.undo_long),
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
  keep(task, answer, seconds);
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
  await takeBack();
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
(async () => {
  await flush();
  await refresh();
  await next();
})();
