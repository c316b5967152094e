"""The data set of prompts without images."""

import pytest

from emu_jax.data.builder import build
from emu_jax.errors import UserError


def test_prompts_become_records_with_a_white_image(tmp_path):
    (tmp_path / "a.txt").write_text("a fox\n\n a red\u2028car \n")
    (tmp_path / "b.tsv").write_text('prompt\tinformation\na "big" fox\t2\n\t1\n')
    lines = build("prompts/lines", tmp_path / "data", path=tmp_path / "a.txt")
    table = build("prompts/table", tmp_path / "data", path=tmp_path / "b.tsv")
    assert [list(x) for x in lines.manifest.column("captions")] == [["a fox"], ["a red\u2028car"]]
    assert [list(x) for x in table.manifest.column("captions")] == [['a "big" fox']]
    assert lines.read(0) == table.read(0)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "needs a file of prompts"),
        ("empty.txt", "\n \n", "has no prompts"),
        ("other.csv", "text\na fox\n", "has no column 'prompt'"),
        ("commas.csv", "id,prompt\n1,a fox, red\n", "line 2 has 3 values for 2 columns"),
    ],
)
def test_what_is_no_file_of_prompts_is_named(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        build("prompts/mine", tmp_path / "data", path=tmp_path / name)
