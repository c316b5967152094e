"""The page: its fields, what its button does, and how images reach it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import gradio as gr

from emu_jax.app.asking import ACTIONS, ALONE, OF_A_PHOTO, SUBJECTS, Asked, joined
from emu_jax.app.history import History, Record
from emu_jax.app.inline import encoded, in_page, thumbnail
from emu_jax.app.studio import Progress, Studio
from emu_jax.errors import UserError

NONE = "none"
_LISTED = 60  # images of the history that the page shows
SYSTEM_FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
# The photograph and its paint are not in fields: they join the others when the button is pressed.
_WITH_PHOTO = "(...fields) => [...fields.slice(0, -2), ...(window.emuPhoto?.() ?? ['', ''])]"
_STRENGTHS = {"restyle": 0.6, "backdrop": 1.0}


@dataclass(frozen=True)
class Choices:
    """What the page offers: it takes no other model and no other file."""

    checkpoints: Sequence[str]
    adapters: Sequence[str] = ()
    text_adapters: Sequence[str] = ()
    controls: Sequence[str] = ()
    segmenters: Sequence[str] = ()


class Page:
    """What the handlers share."""

    def __init__(self, studio: Studio, history: History, choices: Choices):
        self._studio, self._history, self._choices = studio, history, choices

    def blocks(self) -> gr.Blocks:
        """The page."""
        files = resources.files("emu_jax.app") / "static"
        choices = self._choices
        shipped = list(choices.checkpoints)
        with gr.Blocks(title="emu_jax", analytics_enabled=False) as page:
            with gr.Row():
                with gr.Column(scale=2, min_width=360):
                    prompt = gr.Textbox(label="Prompt", lines=2, placeholder="a red fox")
                    action = gr.Radio(list(ACTIONS), value="draw", label="What to do")
                    with gr.Group(visible="hidden") as photo_group:
                        html = (files / "photo.html").read_text("utf-8")
                        gr.HTML(html, js_on_load=(files / "photo.js").read_text("utf-8"))
                        strength = gr.Slider(0, 1, 0.6, step=0.05, label="Strength")
                        subject = gr.Radio(list(SUBJECTS), value=ALONE, label="What stays")
                        segmenter = _choice(choices.segmenters, "Segmenter")
                    with gr.Row():
                        bounds: dict[str, Any] = dict(
                            precision=0, minimum=0, maximum=2**32 - 1, min_width=120
                        )
                        seed = gr.Number(0, label="Seed of the first", **bounds)
                        count = gr.Slider(1, 16, 4, step=1, label="Images", min_width=120)
                    with gr.Row(elem_id="buttons"):
                        draw = gr.Button("Draw", variant="primary", scale=3, min_width=120)
                        other_seed = gr.Button("New seed", min_width=110)
                        stop = gr.Button("Stop", min_width=80)
                    checkpoint = gr.Dropdown(shipped, value=shipped[0], label="Model")
                    other = gr.Dropdown(
                        shipped, value=shipped[-1], label="Beside it", visible=False
                    )
                    with gr.Accordion("Sampling and adapters", open=False):
                        negative = gr.Textbox(label="Negative prompt")
                        with gr.Row():
                            steps = gr.Number(None, label="Steps", precision=0, minimum=1)
                            scale = gr.Number(None, label="Guidance scale", minimum=0)
                        gr.Markdown("Left empty, they are the model's own.")
                        with gr.Row(visible=bool(choices.adapters)):
                            adapter = _choice(choices.adapters, "LoRA adapter")
                            adapter_scale = gr.Slider(-2, 2, 1, step=0.05, label="its strength")
                        with gr.Row(visible=bool(choices.text_adapters)):
                            text_adapter = _choice(choices.text_adapters, "Text adapter")
                            eta = gr.Number(None, label="its share", minimum=0, maximum=1)
                        with gr.Row(visible=bool(choices.controls)):
                            control = _choice(choices.controls, "ControlNet")
                            control_strength = gr.Slider(0, 2, 1, step=0.05, label="its strength")
                with gr.Column(scale=3, min_width=420):
                    plain: dict[str, Any] = dict(
                        allow_preview=False, object_fit="contain", buttons=[]
                    )
                    gallery = gr.Gallery(label="Images", columns=4, elem_id="images", **plain)
                    said = gr.Textbox(label="Status", interactive=False, elem_id="said")
                    command = gr.Textbox(
                        label="The command that repeats it",
                        interactive=False,
                        buttons=["copy"],
                        lines=2,
                        elem_id="command",
                    )
                    listed = gr.Gallery(label="History", columns=6, elem_id="history", **plain)
            photo, mask = (gr.Textbox(visible=False) for _ in range(2))
            shown, past = gr.State([]), gr.State([])
            fields = [
                *(action, prompt, checkpoint, other, negative, seed, count, steps, scale),
                *(strength, subject, segmenter, adapter, adapter_scale, text_adapter, eta),
                *(control, control_strength, photo, mask),
            ]
            results = [gallery, said, command, listed, shown, past]
            # Without postprocessing: gradio would write the images into a folder that it serves.
            quick: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
            quick |= dict(postprocess=False)
            once: dict[str, Any] = quick | dict(
                concurrency_limit=1, concurrency_id="draw", js=_WITH_PHOTO
            )
            drawing = [draw.click, prompt.submit]
            events: list[Any] = [event(self._draw, fields, results, **once) for event in drawing]
            stop.click(lambda: "Stopped.", None, said, cancels=events, **quick)
            for field_ in (action, control):
                changed = [photo_group, strength, subject, segmenter, other]
                field_.change(self._visible, [action, control], changed, **quick)
            other_seed.click(lambda: random.randrange(2**31), None, seed, **quick)
            reuse = [seed, said, command]
            gallery.select(_chosen, shown, reuse, **quick)
            listed.select(self._reopened, past, [*reuse, prompt, gallery, shown], **quick)
            page.load(self._opened, None, [listed, past], **quick)
        return page

    def _draw(self, *fields: Any) -> Iterator[list[Any]]:
        """Runs what the fields ask for. Each value is that of the outputs, in their order."""
        same = gr.skip()
        try:
            asked, (photo, mask) = _asked(fields[:-2]), fields[-2:]
            if asked.needs_photo and not photo:
                raise UserError("Choose a photograph first.")
            if asked.needs_paint and not mask:
                raise UserError("Paint over the subject with the brush first.")
            folder = self._history.new_folder()
            if asked.needs_photo:
                photo, mask = self._history.keep(folder, photo, mask)
            commands = asked.commands(photo, mask)
            lines, drawn = joined(commands), []
            columns = 2 if len(commands) > 1 else min(asked.count, 4)
            empty = gr.update(value=[], columns=columns)
            yield [empty, "Starting.", lines, same, [], same]
            for i, command in enumerate(commands):
                own = folder if len(commands) == 1 else folder / "ab"[i]
                own.mkdir(exist_ok=True)
                before = self._full(drawn)
                for progress in self._studio.run(command, own):
                    pending = [*before, *_pending(progress)]
                    yield [pending, _step(progress), lines, same, [], same]
                drawn += self._history.add(own, command.line)
            drawn.sort(key=lambda record: record.seed)  # of two models beside each other
            yield [self._full(drawn), _done(drawn), lines, *self._listed(drawn)]
        except UserError as error:
            yield [same, str(error), same, same, same, same]
        except Exception:
            yield [same, "It failed; the terminal says why.", same, same, same, same]
            raise

    def _visible(self, action: str, control: str | None) -> list[Any]:
        """Which fields an action has."""
        photo = action in OF_A_PHOTO or (action == "draw" and control not in (None, NONE))
        backdrop = action == "backdrop"
        return [
            gr.update(visible=photo or "hidden"),  # it stays there, with its paint
            gr.update(visible=action in OF_A_PHOTO, value=_STRENGTHS.get(action, 1.0)),
            gr.update(visible=backdrop),
            gr.update(visible=backdrop and bool(self._choices.segmenters)),
            gr.update(visible=action == "side by side"),
        ]

    def _listed(self, drawn: list[Record]) -> list[Any]:
        """The history as images, ``drawn``, and the history as records."""
        past = self._history.records()[:_LISTED]
        small = [_item(thumbnail(self._history.image(one)), one.prompt) for one in past]
        return [small, drawn, past]

    def _opened(self) -> list[Any]:
        small, _, past = self._listed([])
        return [small, past]

    def _full(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The files themselves, with their metadata."""
        several = len({record.model for record in records}) > 1
        return [
            _item(
                self._history.image(one),
                f"seed {one.seed}, {one.model}" if several else f"seed {one.seed}",
            )
            for one in records
        ]

    def _reopened(self, past: list[Record], event: gr.SelectData) -> list[Any]:
        """What :func:`_chosen` returns, the prompt, and the image alone in the upper gallery."""
        one = _at(past, event)
        if one is None:
            return [gr.skip()] * 6
        large = gr.update(value=self._full([one]), columns=2)
        return [*_reused(one), one.prompt, large, [one]]


def _chosen(shown: list[Record], event: gr.SelectData) -> list[Any]:
    """The seed of the image that is selected, a sentence, and its command."""
    one = _at(shown, event)
    return [gr.skip()] * 3 if one is None else _reused(one)


def _reused(record: Record) -> list[Any]:
    return [record.seed, f"Seed {record.seed} is the first of the next images.", record.command]


def _at(records: list[Record], event: gr.SelectData) -> Record | None:
    index = event.index
    return records[index] if isinstance(index, int) and 0 <= index < len(records) else None


def _choice(names: Sequence[str], label: str) -> gr.Dropdown:
    """One of several files, or none."""
    return gr.Dropdown([NONE, *names], value=NONE, label=label)


def _asked(fields: Sequence[Any]) -> Asked:
    names = (
        *("action", "prompt", "checkpoint", "other", "negative", "seed", "count", "steps"),
        *("guidance_scale", "strength", "subject", "segmenter", "adapter", "adapter_scale"),
        *("text_adapter", "eta", "control", "control_strength"),
    )
    given = dict(zip(names, fields, strict=True))
    for name in ("segmenter", "adapter", "text_adapter", "control"):
        given[name] = "" if given[name] in (None, NONE) else given[name]
    for name in ("prompt", "negative"):  # a browser may send half of a character
        given[name] = (given[name] or "").encode(errors="replace").decode()
    return Asked(**{**given, "seed": int(given["seed"] or 0), "count": int(given["count"])})


def _pending(progress: Progress) -> list[dict[str, Any]]:
    return [_item(encoded(image), "") for image in progress.images]


def _item(png: bytes, caption: str) -> dict[str, Any]:
    """An image of a gallery, as gradio's page expects it."""
    return {"image": {"path": "", "url": in_page(png)}, "caption": caption}


def _step(progress: Progress) -> str:
    return f"After {progress.done} of {progress.steps} steps."


def _done(drawn: Sequence[Record]) -> str:
    return f"{len(drawn)} images. Click on one to use its seed again."
