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
let held = null; // the answer whose button has the focus
let ready = false; // its images are visible
let since = 0; // when they became visible

const source = (task, side) => "/image/" + task.id + "/" + side;

function preload() {
  for (const task of open()) for (const side of ["a", "b"]) image(source(task, side));
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
  at("begin").focus({ preventScroll: true });
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
  const both = await Promise.all(
    ["a", "b"].map((side) => arrived(source(task, side), () => task === current)));
  if (task !== current) return;
  place("a", both[0], strings.image_a);
  place("b", both[1], strings.image_b);
  at("pair").style.visibility = "visible"; // both at once
  at("loading").hidden = true;
  since = performance.now();
  ready = true;
  enable(true);
  const button = held && at("answers").querySelector(`[data-answer="${held}"]`);
  if (button) button.focus();
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
  held = document.activeElement.dataset.answer;
  keep(task, answer, seconds);
  progress();
  const sent = flush();
  if (!task.training) return next();
  enable(false);
  const { right, expected } = await sent;
  if (right === null || task !== current) return next();
  const answers = expected.map((one) => strings[task.question][one]).join(" / ");
  at("feedback").className = right ? "right" : "wrong";
  at("feedback").querySelector("p").textContent = right
    ? strings.right : strings.wrong.replace("{answers}", answers);
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
  if (large) return; // arrows scroll it
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
