"use strict";
// The stages of curation: a wall of images, one image with a rubric, one image with a caption.

const READ = "read " + main.dataset.session;
let current = []; // the tasks on the page: a wall has several
let ready = false; // their images are visible
let since = 0; // when they became visible
const PAGE = 48; // images of a wall

const source = (task) => "/image/" + task.id + "/a";

function preload() {
  for (const task of open()) image(source(task));
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
  current = tasks.slice(0, tasks[0].question === "recall" ? PAGE : 1);
  preload();
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
  at("instructions").querySelector(".keys").textContent = own.keys;
  for (const id of ["wall", "stage"]) at(id).hidden = true;
  at("instructions").hidden = false;
  at("begin").focus({ preventScroll: true });
}

function begin() {
  main.dataset.read = "yes";
  try {
    localStorage.setItem(READ, "yes");
  } catch (error) { /* private windows */ }
  at("instructions").hidden = true;
  show();
}

async function show() {
  ready = false;
  const task = current[0];
  if (task.question === "recall") return showWall();
  const before = remembered(task) || {};
  at("question").textContent = strings[task.question].question;
  for (const id of ["precision", "captions"]) at(id).hidden = id !== task.question;
  for (const box of at("precision").elements.fault) {
    box.checked = (before.faults || []).includes(box.value);
  }
  at("caption").value = before.caption || "";
  at("before").textContent = (task.captions || []).join(" / ");
  at("before").parentNode.hidden = !at("before").textContent;
  at("zoom").classList.remove("zoomed");
  at("zoom").style.visibility = "hidden";
  at("stage").hidden = false;
  if (task.question === "captions") at("caption").focus();
  const found = await arrived(source(task), () => task === current[0]);
  if (!found) return;
  place("image", found, strings.image);
  at("zoom").style.visibility = "visible";
  since = performance.now();
  ready = true;
  main.dataset.shown = current[0].id;
}

async function showWall() {
  const wall = current;
  at("submit").disabled = true;
  at("grid").replaceChildren(...current.map((task, number) => {
    const button = element("button", "");
    button.type = "button";
    button.setAttribute("aria-pressed", String(remembered(task) === "bad"));
    button.setAttribute("aria-label", strings.image + " " + (number + 1));
    button.addEventListener("click", () => mark(button));
    return button;
  }));
  at("wall").hidden = false;
  scrollTo(0, 0);
  at("grid").firstChild.focus({ preventScroll: true });
  const buttons = [...at("grid").children];
  await Promise.all(wall.map(async (task, number) => {
    const found = await arrived(source(task), () => wall === current);
    if (found) buttons[number].replaceChildren(found);
  }));
  if (wall !== current) return;
  at("submit").disabled = false;
  ready = true;
  since = performance.now();
  main.dataset.shown = current[0].id;
}

function mark(button) {
  const bad = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(bad));
  remember(current[[...at("grid").children].indexOf(button)], bad ? "bad" : "good");
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
  if (!ready) return;
  const seconds = (performance.now() - since) / 1000 / current.length;
  const marks = [...at("grid").children].map((one) => one.getAttribute("aria-pressed") === "true");
  current.forEach((task, i) => keep(task, marks[i] ? "bad" : "good", seconds));
  given();
}

function give(answer) {
  if (!ready) return;
  keep(current[0], answer, (performance.now() - since) / 1000);
  given();
}

function given() {
  current = [];
  ready = false;
  progress();
  flush();
  next();
}

function faults() {
  const boxes = [...at("precision").elements.fault].filter((one) => one.checked);
  return boxes.map((one) => one.value);
}

const judge = (kept) => give({ keep: kept, faults: faults() });

function begun() {
  if (!current.length) return;
  const caption = current[0].question === "captions";
  remember(current[0], caption ? { caption: at("caption").value } : { faults: faults() });
}

function zoom() {
  if (at("zoom").classList.toggle("zoomed")) at("zoom").focus(); // arrows scroll it
}

function save() {
  const caption = at("caption").value.trim();
  if (caption) give({ caption });
}

async function undo() {
  if (at("undo").disabled) return;
  at("undo").disabled = true;
  current = [];
  ready = false;
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
    if (box) return press(() => { box.click(); });
    if (key === "k" || key === "l") return press(() => judge(key === "k"));
    if (key === "z") return press(zoom);
  }
});
for (const id of ["precision", "captions"]) at(id).addEventListener("input", begun);
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", () => current.length && instruct());
at("begin").addEventListener("click", begin);
at("submit").addEventListener("click", submit);
at("zoom").addEventListener("click", zoom);
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
