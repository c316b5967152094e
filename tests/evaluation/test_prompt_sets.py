"""Prompts from files, published sets and data sets, with their columns and real images."""

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.evaluation.prompt_sets import PromptSet, open_prompts

# The published file's form, with a few rows of ours.
PARTI = """Prompt\tCategory\tChallenge\tNote
a tree\tOutdoor Scenes\tBasic\t
an oil painting of a cat\tAnimals\tStyle & Format\tstyle
a "logo" of a bakery\tIllustrations\tBasic\t
three cups\tFood & Beverage\tQuantity
"""


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_text(text, encoding)
    return str(path)


def test_a_text_file_has_one_prompt_per_line(tmp_path):
    file = write(tmp_path, "prompts", "a fox\n\n  a red | disc \n")
    assert open_prompts(file) == PromptSet(("a fox", "a red | disc"))


def test_a_table_keeps_its_other_columns(tmp_path):
    quoted = 'a sign that says "Fly, now"'
    text = f"Prompt\tShort Note\n{quoted}\tone\n\ttwo\nein grüner Ball\n"
    tsv = write(tmp_path, "p.tsv", text, "utf-8-sig")
    found = open_prompts(tsv)
    assert found.prompts == (quoted, "ein grüner Ball")
    assert found.columns == {"short_note": ("one", "")}
    found = open_prompts(tsv, "Short Note")
    assert (found.prompts, found.columns) == (("one", "two"), {"prompt": (quoted, "")})
    csv = write(tmp_path, "p.CSV", 'id,prompt\n1,"a fox, red"\n2,"two\nlines"\n')
    assert open_prompts(csv).prompts == ("a fox, red", "two\nlines")


def test_parti_prompts_say_which_are_stylised(tmp_path):
    found = open_prompts("parti:" + write(tmp_path, "p.tsv", PARTI))
    assert found.columns["stylised"] == ("no", "yes", "yes", "no")
    assert found.columns["note"] == ("", "style", "", "")
    chosen = open_prompts(f"parti:{tmp_path}/p.tsv", select="stylised == yes")
    assert chosen.prompts == ("an oil painting of a cat", 'a "logo" of a bakery')
    assert found.select("category == Animals|Food & Beverage").columns["challenge"] == (
        "Style & Format",
        "Quantity",
    )
    assert found.categories() == "category" and found.categories("note") == "note"


def test_sur_has_fifteen_prompts_of_each_type():
    found = open_prompts("sur")
    assert len(set(found.prompts)) == 45 and found.categories() == "type"
    for kind in ("action", "color", "counting"):
        one = found.select(f"type == {kind}")
        assert len(one) == 15 and len(one.select("published == yes")) == 3


def test_a_data_set_gives_prompts_columns_and_real_images(pictures):
    found = open_prompts("folder/tiny:width == 72", data_dir=pictures)
    manifest = found.real.source.manifest
    captions = manifest.column("captions")
    assert len(found) == len(manifest) == 24
    assert list(found.prompts) == [own[0] for own in captions]
    assert found.columns["width"] == ("72",) * 24
    assert found.lists("captions") == [list(own) for own in captions]
    chosen = found.select("height >= 64 and prompt == a red disc")
    assert len(chosen) == 4 and set(chosen.prompts) == {"a red disc"}
    for image, record in zip(chosen.real.read((64, 72)), chosen.real.records, strict=True):
        assert captions[record][0] == "a red disc" and image.shape == (64, 72, 3)
        red = image[..., 0].astype(int) - image[..., 1]
        assert red.max() > 200 and np.mean(red > 200) < 0.5
    keys = open_prompts("folder/tiny", "key", data_dir=pictures)
    assert keys.prompts == tuple(manifest.column("key"))


def test_rows_are_chosen_spread_and_joined(pictures):
    numbers = PromptSet(tuple("abcdef"), {"n": tuple("012345")})
    halves = PromptSet(numbers.prompts, {"half": ("a", "b", "b", "b", "b", "a")[: len(numbers)]})
    assert [*map(halves.prompts.index, halves.spread(2, "half").prompts)] == [0, 1, 3, 5]
    twice = numbers.repeated(2)
    assert twice.prompts[::2] == twice.prompts[1::2] == numbers.prompts and twice.repeats == 2
    assert numbers.spread(3).columns["n"] == ("0", "2", "4") and numbers.spread(9) is numbers
    assert numbers.rows([5, 0]).prompts == ("f", "a")
    both = PromptSet(("z",), {"kind": ("x",)}) + numbers.rows([1])
    assert both == PromptSet(("z", "b"), {"kind": ("x", ""), "n": ("", "1")})
    real = open_prompts("folder/tiny", data_dir=pictures)
    assert (PromptSet(()) + real).real is real.real and (numbers + real).real is None
    with pytest.raises(ValueError, match="n has 1 rows for 2 prompts"):
        PromptSet(("a", "b"), {"n": ("1",)})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "id,text\n1,a fox\n", "no column 'prompt'; its columns are id, text: name one"),
        ("p.csv", "id,prompt\n1,a fox, red\n", "line 2 has 3 values for 2 columns"),
        ("p.csv", "prompt,a,A\nfox,1,2\n", "has two columns 'a'"),
        ("p.csv", "prompt\n \n", "The column 'prompt' of .* has no prompts"),
        ("p.tsv", "", "its columns are none"),
        ("p.txt", "\n", "has no prompts: write one prompt per line"),
        ("parti:p.tsv", "prompt\tcategory\nx\ty\n", "no column 'challenge'"),
    ],
)
def test_what_is_no_set_of_prompts_is_said(name, content, said, tmp_path):
    form, _, name = name.rpartition(":")
    file = write(tmp_path, name, content)
    with pytest.raises(UserError, match=said):
        open_prompts(f"{form}:{file}" if form else file)


def test_what_is_missing_is_said(tmp_path, pictures):
    for text, said in {
        "nothing.txt": "There is no file of prompts nothing.txt; --prompts takes FILE",
        "folder/none": "is neither a file of prompts nor a data set",
        "folder/none:width == 1": "There is no data set folder/none",
        "parti:": "use --prompts=parti:FILE",
        "folder/tiny:width == 1": "No record of folder/tiny matches",
    }.items():
        with pytest.raises(UserError, match=said):
            open_prompts(text, data_dir=pictures)
    with pytest.raises(UserError, match="has no column 'nothing'"):
        open_prompts("folder/tiny", "nothing", data_dir=pictures)
    with pytest.raises(UserError, match="leave --prompt_column out"):
        open_prompts(write(tmp_path, "p.txt", "a fox"), "text")
    for condition, said in {
        "type == none": "No prompt matches",
        "kind == x": "has no column 'kind'",
        "type": "is invalid: write it as",
    }.items():
        with pytest.raises(UserError, match=said):
            open_prompts("sur", select=condition)
    listed = PromptSet(("a", "b"), {"things": ("fox|car", "car")})
    with pytest.raises(UserError, match="things contains lists"):
        listed.select("things == car")
