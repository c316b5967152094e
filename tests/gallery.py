"""The images of docs/use.md and docs/control.md: ``python tests/gallery.py FOLDER``. Not a test.

FOLDER has the files of the Debian packages tuxpaint-stamps-default and mate-backgrounds:

    apt-get download tuxpaint-stamps-default mate-backgrounds
    for package in *.deb; do dpkg -x $package FOLDER; done

Every image is what ``emu-jax restyle``, ``backdrop`` or ``sticker`` draws with the same options and
seed 0; each model is opened once. Only the inputs of the overview are selected by hand.
"""

import sys
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from emu_jax.assembly.cascade import Cascade, conditioning, open_generator
from emu_jax.assembly.generator import Generator
from emu_jax.assembly.given import NOTHING
from emu_jax.assembly.starting import StartImage, draw_from, read_image, to_pixels
from emu_jax.assembly.stickers import sticker
from emu_jax.assembly.subject import Subject
from emu_jax.errors import UserError
from emu_jax.evaluation.grids import grid
from emu_jax.evaluation.prompt_sets import PromptSet

OUT = Path(__file__).parents[1] / "docs" / "images"
STAMPS, NATURE = "usr/share/tuxpaint/stamps", "usr/share/backgrounds/mate/nature"
SIDE = 128
# File, what it shows, a backdrop for it, and where its subject is.
INPUTS = (
    (f"{STAMPS}/animals/amphibians/frog.png", "a frog", "a national park", None),
    (f"{STAMPS}/animals/mammals/elephant.png", "an elephant", "a desert", None),
    (f"{STAMPS}/animals/mammals/hedgehog.png", "a hedgehog", "camping", None),
    (f"{STAMPS}/food/fruit/strawberry.png", "a strawberry", "a rainbow", None),
    (f"{STAMPS}/household/rubberduck.png", "a duck", "a beach with umbrella", None),
    (f"{STAMPS}/food/fruit/cartoon/apple.png", "a red apple", "a desert island", None),
    (f"{STAMPS}/food/dessert/cartoon/birthday_cake.png", "a birthday cake", "fireworks", None),
    (f"{STAMPS}/town/houses/cartoon/fairytale_castle.png", "a castle", "sunrise", None),
    (f"{NATURE}/LadyBird.jpg", "a lady beetle", "a sunflower", (1650, 720, 1940, 1030)),
    (f"{NATURE}/YellowFlower.jpg", "a sunflower", "night with stars", (540, 0, 2560, 1600)),
)
FAMILIES = {
    "latent": "builtin:latent_diffusion_64",
    "masked": "builtin:masked_64",
    "pixel": "builtin:pixel_diffusion_32+builtin:pixel_super_64",
}
RESTYLED = {"latent": (0.4, 0.6), "masked": (0.6,), "pixel": (0.6,)}
STICKERS = ("a happy hedgehog riding a motorcycle", "a red fox", "a slice of pizza", "a rocket")


def restyle(folder: Path) -> None:
    sources = [to_pixels(read_image(epath.Path(folder / file))) for file, *_ in INPUTS]
    columns = [[(shown(image), what) for image, (_, what, *_) in zip(sources, INPUTS, strict=True)]]
    for family, strengths in RESTYLED.items():
        model = open_generator(FAMILIES[family], batch_size=1)
        for strength in strengths:
            columns.append([])
            for image, (_, what, *_) in zip(sources, INPUTS, strict=True):
                (drawn,) = draw_from(model, StartImage(image, strength), [what], [0])
                columns[-1].append((shown(drawn), f"{family}, {strength:g}"))
                print(family, strength, what, flush=True)
    save(columns, "use_restyle.webp")


def backdrop(folder: Path) -> None:
    images, sources = [], []
    for file, _, _, box in INPUTS:
        image = read_image(epath.Path(folder / file))
        keep = Subject(box=box).of(image, file)
        images.append(to_pixels(image))
        source = StartImage(images[-1], 1.0, keep)
        sources.append(source if box else source.widened(0.4))  # stamps have no room of their own
    columns = [[(shown(x), row[1]) for x, row in zip(images, INPUTS, strict=True)]]
    columns.append([(shown(cut(x)), "subject") for x in sources])
    for family in ("latent", "masked"):
        model = open_generator(FAMILIES[family], batch_size=1)
        columns.append([])
        for source, (_, _, behind, _) in zip(sources, INPUTS, strict=True):
            (drawn,) = draw_from(model, source, [behind], [0])
            columns[-1].append((shown(drawn), f"{behind}, {family}"))
            print(family, behind, flush=True)
    save(columns, "use_backdrop.webp")


def cut(source: StartImage) -> np.ndarray:
    assert source.keep is not None
    alpha = np.rint(255 * source.keep[..., None]).astype(np.uint8)
    return np.concatenate([source.image, alpha], axis=-1)


def stickers(folder: Path) -> None:
    rows = []
    for family in ("latent", "masked"):
        model = open_generator(FAMILIES[family], batch_size=2)
        for prompt in STICKERS:
            rows.append([])
            for drawn in model.draw_each([prompt] * 2, [0, 1]):
                try:
                    found = shown(sticker(drawn), (205, 221, 232))
                except UserError as error:
                    print(family, prompt, error)
                    found = shown(drawn)
                rows[-1].append((found, f"{prompt}, {family}"))
                print(family, prompt, flush=True)
    save([*zip(*rows, strict=True)], "use_sticker.webp", columns=4)


def control(folder: Path) -> None:
    """What the edges of each input make of its prompt, and of none."""
    rows: list[list] = []
    plain, follows = open_generator(FAMILIES["latent"], batch_size=1), follower()
    for file, what, *_ in INPUTS:
        start = StartImage(to_pixels(read_image(epath.Path(folder / file))), 1.0)
        (drawn,) = draw_from(plain, start, [what], [0])
        edges, followed = along_edges(follows, start, what)
        _, outlined = along_edges(follows, start, "")
        cells = [(start.image, what), (edges, "edges"), (drawn, "the prompt alone")]
        cells += [(followed, "prompt and edges"), (outlined, "edges alone")]
        rows.append([(shown(image), name) for image, name in cells])
    save([*zip(*rows, strict=True)], "use_control.webp")


def follower() -> Generator | Cascade:
    """Guidance away from no text would lead away from the edges too."""
    more = dict(control="builtin:control_64", guidance_scale=1.0)
    return open_generator(FAMILIES["latent"], batch_size=1, **more)


def along_edges(
    model: Generator | Cascade, start: StartImage, prompt: str
) -> tuple[np.ndarray, np.ndarray]:
    """The edges of an image, and what is drawn along them."""
    hints = conditioning(model, NOTHING, PromptSet((prompt,)), start=start)
    (drawn,) = draw_from(model, start, [prompt], [0], images=hints)
    return start.placement(model).cut(hints["canny"][0]), drawn


def overview(folder: Path) -> None:
    """The README's: three inputs for each use, chosen because they show it well."""
    plain, follows = open_generator(FAMILIES["latent"], batch_size=1), follower()
    rows: list[list] = [[], [], [], []]
    for index, strength in ((1, 0.4), (5, 0.4), (7, 0.4)):
        file, what, *_ = INPUTS[index]
        image = to_pixels(read_image(epath.Path(folder / file)))
        (drawn,) = draw_from(plain, StartImage(image, strength), [what], [0])
        rows[0] += [(shown(image), "photograph or drawing"), (shown(drawn), f"restyled: {what}")]
    for index in (0, 3, 4):
        file, _, behind, box = INPUTS[index]
        image = read_image(epath.Path(folder / file))
        source = StartImage(to_pixels(image), 1.0, Subject(box=box).of(image, file)).widened(0.4)
        (drawn,) = draw_from(plain, source, [behind], [0])
        rows[1] += [(shown(to_pixels(image)), "subject"), (shown(drawn), f"backdrop: {behind}")]
    for index in (0, 6, 7):
        file, what, *_ = INPUTS[index]
        start = StartImage(to_pixels(read_image(epath.Path(folder / file))), 1.0)
        edges, drawn = along_edges(follows, start, what)
        rows[2] += [(shown(edges), "edges"), (shown(drawn), f"drawn: {what}")]
    for prompt in STICKERS[1:]:
        for drawn in plain.draw_each([prompt] * 2, [0, 1]):
            rows[3].append((shown(sticker(drawn), (205, 221, 232)), f"sticker: {prompt}"))
    save([*zip(*rows, strict=True)], "use.webp", columns=6)


def shown(pixels: np.ndarray, ground: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """An image in the middle of a square."""
    image = Image.fromarray(pixels).convert("RGBA")
    shape = [max(1, round(n * SIDE / max(image.size))) for n in image.size]
    image = image.resize(shape, Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (SIDE, SIDE), ground)
    sheet.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2), image)
    return np.asarray(sheet)


def save(cells: list, name: str, columns: int = 0) -> None:
    """Columns of images with captions; two inputs beside each other."""
    rows = [cell for row in zip(*cells, strict=True) for cell in row]
    images, captions = zip(*rows, strict=True)
    sheet = grid(np.stack(images), captions, columns=columns or 2 * len(cells), scale=1)
    sheet.save(OUT / name, quality=80, method=6)
    print(OUT / name, (OUT / name).stat().st_size)


if __name__ == "__main__":
    chosen = sys.argv[2:] or ("restyle", "backdrop", "stickers", "control", "overview")
    makers = dict(restyle=restyle, backdrop=backdrop, stickers=stickers, control=control)
    makers |= dict(overview=overview)
    for make in chosen:
        makers[make](Path(sys.argv[1]))
