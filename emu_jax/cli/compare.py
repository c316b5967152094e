"""``emu-jax compare A B ...``: the same prompts and the same noise, drawn by several models.

Writes one self-contained HTML report, a JSON file with the same figures, and an image of the grid.
Without ``--prompts`` the prompts are kept concepts: pre-training has shown them, quality-tuning
never does. The judge measures every model; its intervals are 95 %, over prompts. ``--judge=""``
compares without it, and reads no emoji set. Where ``--prompts`` has a column category, challenge,
kind or type, every figure is also broken down by its values; ``--by`` names another column.

Where a model was trained on a data set of your own, the prompts are the captions of its held-out
images, the loss is measured on these images, and no judge is used unless ``--judge`` names one.
"""

from collections.abc import Sequence
from dataclasses import fields

from emu_jax.assembly.arguments import Parser, counted, path, positive
from emu_jax.cli.arguments import (
    adapter_changes,
    add_adapters,
    add_control,
    add_given,
    add_out,
    add_prompt_arguments,
    add_sampling_arguments,
    given_images,
    named_prompts,
    names_of,
    sampling_changes,
)
from emu_jax.data.places import DEFAULT_DATA_DIR
from emu_jax.errors import UserError
from emu_jax.evaluation.references import Sets
from emu_jax.evaluation.registry import METRICS

JUDGE = "builtin:judge_64"
WEIGHTS = "$EMU_JAX_WEIGHTS, else ~/emu_jax_weights"


def main(argv: Sequence[str]) -> int:
    return report(argv, "compare", __doc__, "runs/report")


def report(argv: Sequence[str], program: str, description: str | None, default_out: str) -> int:
    """The commands ``compare`` and ``evaluate``."""
    parser = Parser(f"emu-jax {program}", description=description)
    parser.add_argument(
        "models", nargs="+", type=path, help="runs, exported models or builtin:NAME"
    )
    add_adapters(parser, "every model")
    add_control(parser, "every model", "the images of the prompts' data set")
    add_given(parser)
    add_prompt_arguments(parser, "default all of --prompts, without it 100", of_each="models")
    parser.add_argument(
        "--count_each", type=positive, help="number of prompts of each value of --by"
    )
    parser.add_argument(
        "--images_per_prompt", type=positive, default=1, help="each with a seed of its own"
    )
    parser.add_argument(
        "--by", default="", help="column of --prompts by which figures are broken down"
    )
    parser.add_argument(
        "--label",
        default="",
        help="part of the models' names, such as '4 steps', where emu-jax claims reads several "
        "comparisons of one model",
    )
    parser.add_argument(
        "--judge", type=path, help=f"default {JUDGE} for emoji models; empty: no judge"
    )
    parser.add_argument(
        "--parser",
        type=path,
        help="reads whether images show what prompts with the columns kind and things ask for; "
        "default builtin:parser_64 for prompts of scenes; empty: none",
    )
    parser.add_argument(
        "--metrics", type=names_of(METRICS), default=(), help=f"some of {', '.join(METRICS)}"
    )
    parser.add_argument(
        "--weights", type=path, default="", help=f"networks of metrics; default {WEIGHTS}"
    )
    parser.add_argument(
        "--data_dir", type=path, help=f"folder of the data sets; default {DEFAULT_DATA_DIR}"
    )
    for name, what in (
        ("captions", "images whose captions are the prompts, without --prompts"),
        ("needles", "images of quality-tuning"),
        ("haystack", "images in the style of pre-training"),
        ("kept", "images for the loss, as in validation"),
        ("references", "images, or .npz statistics, to compare with; empty: the needles"),
    ):
        default = getattr(Sets, name)
        said = f"{what}; for emoji models default {default}" if default else what
        parser.add_argument(f"--{name}", help=said)
    parser.add_argument(
        "--blind", type=counted, default=0,
        help="number of images on blind.png, for a person: numbered, without their models, which "
        "are in blind_key.json",
    )  # fmt: skip
    add_out(parser, default_out, "folder for the report")
    add_sampling_arguments(parser)
    arguments = parser.parse_args(argv)

    columns = arguments.prompt_column.split(",")
    arguments.prompt_column = columns[0]
    prompts = named_prompts(arguments)
    if arguments.count_each:
        by = prompts.categories(arguments.by) if prompts else ""
        if not (prompts and by):
            raise UserError("--count_each needs --prompts with the column of --by: name one.")
        prompts = prompts.spread(arguments.count_each, by)

    from emu_jax.assembly.cascade import named_with
    from emu_jax.assembly.comparing import compare
    from emu_jax.assembly.standards import standards

    given = {field.name: getattr(arguments, field.name) for field in fields(Sets)}
    models = [named_with(model, arguments.text_adapter) for model in arguments.models]
    sets, judge = standards(models, given, arguments.judge, prompts)
    index = compare(
        models,
        arguments.out,
        sets,
        name=program,
        label=arguments.label,
        prompts=prompts,
        columns=columns if len(columns) > 1 else (),
        count=arguments.count,
        images_per_prompt=arguments.images_per_prompt,
        by=arguments.by,
        judge=judge,
        parser=arguments.parser,
        metrics=arguments.metrics,
        weights=arguments.weights,
        seed=arguments.seed,
        blind=arguments.blind,
        given=given_images(arguments),
        changes=adapter_changes(arguments) | sampling_changes(arguments),
    )
    print(f"report: {index}")
    return 0
