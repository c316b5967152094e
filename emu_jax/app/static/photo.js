// The photograph and the brush. Both leave the browser as data URLs, with the event that uses them.
const area = element.querySelector(".photo");
const file = area.querySelector("input[type=file]");
const [image, canvas] = [area.querySelector("img"), area.querySelector("canvas")];
const size = area.querySelector("input[type=range]");
const note = area.querySelector(".note");
const pen = canvas.getContext("2d");
let photo = "";
let painted = false;
let last = null;

function clear() {
	pen.clearRect(0, 0, canvas.width, canvas.height);
	painted = false;
}

function show(url) {
	photo = "";
	image.onload = () => {
		photo = url;
		canvas.width = image.naturalWidth;
		canvas.height = image.naturalHeight;
		clear();
		note.textContent = `${canvas.width} x ${canvas.height} pixels`;
		area.classList.add("shown");
	};
	image.onerror = () => {
		area.classList.remove("shown");
		note.textContent = "This file is no image that the browser can show.";
	};
	image.src = url;
}

function place(event) {
	const box = canvas.getBoundingClientRect();
	const scale = canvas.width / box.width;
	return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, scale];
}

function stroke(event) {
	const [x, y, scale] = place(event);
	pen.globalCompositeOperation = area.querySelector(".erase").checked ? "destination-out" : "source-over";
	pen.strokeStyle = "rgb(255, 64, 129)";
	pen.lineWidth = size.value * scale;
	pen.lineCap = pen.lineJoin = "round";
	pen.beginPath();
	pen.moveTo(...(last || [x, y]));
	pen.lineTo(x, y);
	pen.stroke();
	last = [x, y];
	painted = true;
}

canvas.addEventListener("pointerdown", (event) => {
	canvas.setPointerCapture(event.pointerId);
	stroke(event);
});
canvas.addEventListener("pointermove", (event) => last && stroke(event));
for (const end of ["pointerup", "pointercancel"]) {
	canvas.addEventListener(end, () => {
		last = null;
	});
}
area.querySelector(".clear").addEventListener("click", clear);
file.addEventListener("change", () => {
	const reader = new FileReader();
	reader.onload = () => show(reader.result);
	if (file.files.length) reader.readAsDataURL(file.files[0]);
});
area.addEventListener("dragover", (event) => event.preventDefault());
area.addEventListener("drop", (event) => {
	event.preventDefault();
	file.files = event.dataTransfer.files;
	file.dispatchEvent(new Event("change"));
});

window.emuPhoto = () => [photo, painted ? canvas.toDataURL("image/png") : ""];
window.emuShow = show;
