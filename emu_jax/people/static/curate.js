"use strict";
// The stages of curation: a wall of images, one image with a rubric, one image with a caption.

const READ = "read " + main.dataset.session;
let current = []; // the tasks on the page: a wall has several
let since = 0;
const loaded = new Map(); // images that were loaded ahead

const source = (task) => "/image/" + task.id + "/a";

function preload(tasks) {
  for (const task of tasks) {
    if (!loaded.has(task.id)) {
      const image = new Image();
      image.src = source(task);
      loaded.set(task.id, image);
    }
  }
  for (const id of [...loaded.keys()].slice(0, Math.max(0, loaded.size - 60))) loaded.delete(id);
}

async function next() {
  let tasks = open();
  if (!tasks.length) {
    await flush();
    await refresh();
    tasks = open();
  }
  progress();
  for (const id of ["instructions", "wall", "stage", "done"]) at(id).hidden = true;
  current = [];
  if (!tasks.length) return finish();
  const wall = tasks[0].question === "recall";
  current = wall ? tasks : tasks.slice(0, 1);
  preload(tasks);
  let read = null;
  try {
    read = localStorage.getItem(READ);
  } catch (error) { /* private windows see the instructions again */ }
  if (!read && !main.dataset.read) return instruct();
  show();
}

function instruct() {
  const own = strings[current[0].question];
  at("instructions").querySelector("h1").textContent = own.question;
  at("instructions").querySelector("ul").replaceChildren(
    ...own.instructions.map((text) => element("li", text)));
  for (const id of ["wall", "stage"]) at(id).hidden = true;
  at("instructions").hidden = false;
  at("begin").focus();
}

function begin() {
  main.dataset.read = "yes";
  try {
    localStorage.setItem(READ, "yes");
  } catch (error) { /* private windows */ }
  at("instructions").hidden = true;
  show();
}

function show() {
  const question = current[0].question;
  if (question === "recall") return showWall();
  at("question").textContent = strings[question].question;
  at("image").src = source(current[0]);
  at("zoom").classList.remove("zoomed");
  for (const id of ["precision", "captions"]) at(id).hidden = id !== question;
  at("precision").reset();
  at("caption").value = "";
  at("before").textContent = (current[0].captions || []).join(" / ");
  at("stage").hidden = false;
  if (question === "captions") at("caption").focus();
  since = performance.now();
  main.dataset.shown = current[0].id;
}

function showWall() {
  at("grid").replaceChildren(...current.map((task, number) => {
    const button = element("button", "");
    const image = document.createElement("img");
    image.src = source(task);
    image.alt = strings.image + " " + (number + 1);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(image);
    button.addEventListener("click", () => mark(button));
    return button;
  }));
  at("wall").hidden = false;
  at("grid").firstChild.focus();
  since = performance.now();
  main.dataset.shown = current[0].id;
}

function mark(button) {
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
}

// Moves the focus on the wall; a step down is as many images as the first row has.
function move(key) {
  const buttons = [...at("grid").children];
  const columns = buttons.filter((one) => one.offsetTop === buttons[0].offsetTop).length;
  const sign = document.documentElement.dir === "rtl" ? -1 : 1;
  const step = { ArrowLeft: -sign, ArrowRight: sign, ArrowUp: -columns, ArrowDown: columns }[key];
  const target = buttons[buttons.indexOf(document.activeElement) + step];
  if (target) target.focus();
}

function submit() {
  if (!current.length) return;
  const seconds = (performance.now() - since) / 1000 / current.length;
  const marks = [...at("grid").children].map((one) => one.getAttribute("aria-pressed") === "true");
  current.forEach((task, i) => keep(task, marks[i] ? "bad" : "good", seconds));
  given();
}

function give(answer) {
  if (!current.length) return;
  keep(current[0], answer, (performance.now() - since) / 1000);
  given();
}

function given() {
  current = [];
  progress();
  flush();
  next();
}

function judge(kept) {
  const faults = [...at("precision").elements.fault].filter((one) => one.checked);
  give({ keep: kept, faults: faults.map((one) => one.value) });
}

function save() {
  const caption = at("caption").value.trim();
  if (caption) give({ caption });
}

async function undo() {
  if (at("undo").disabled) return;
  at("undo").disabled = true;
  current = [];
  await takeBack();
  await next();
}

document.addEventListener("keydown", (event) => {
  const press = (action) => {
    event.preventDefault();
    if (!event.repeat || event.key.startsWith("Arrow")) action();
  };
  const writing = event.target === at("caption");
  if (writing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return press(save);
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Enter" && !at("instructions").hidden) return press(begin);
  if (key === "u" || key === "Backspace") return press(undo);
  if ((key === "?" || key === "h") && current.length) return press(instruct);
  if (!at("wall").hidden) {
    if (key === "Enter") return press(submit);
    if (key.startsWith("Arrow")) return press(() => move(key));
    if (key === "x" && document.activeElement.parentNode === at("grid")) {
      return press(() => mark(document.activeElement)); // space does the same
    }
  } else if (!at("stage").hidden && !at("precision").hidden) {
    const box = at("precision").elements.fault[Number(key) - 1];
    if (box) return press(() => { box.checked = !box.checked; });
    if (key === "k" || key === "l") return press(() => judge(key === "k"));
    if (key === "z") return press(() => at("zoom").classList.toggle("zoomed"));
  }
});
at("image").addEventListener("load", () => {
  at("image").classList.toggle("small", at("image").naturalWidth < 256);
});
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", () => current.length && instruct());
at("begin").addEventListener("click", begin);
at("submit").addEventListener("click", submit);
at("zoom").addEventListener("click", () => at("zoom").classList.toggle("zoomed"));
for (const button of document.querySelectorAll("[data-keep]")) {
  button.addEventListener("click", () => judge(button.dataset.keep === "yes"));
}
at("captions").addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});

(async () => {
  await flush();
  await refresh();
  await next();
})();
