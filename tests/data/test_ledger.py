import pytest

from emu_jax.data.ledger import Ledger
from emu_jax.errors import UserError

MADE_FROM = dict(model="a", prompt="")


def test_rows_stay_and_an_unfinished_one_is_dropped(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    ledger = Ledger(path, MADE_FROM)
    ledger.append([dict(file_name="a", text="ä"), dict(file_name="b", text="2")])
    ledger.append([dict(file_name="a", text="3")])
    with path.open("a") as file:
        file.write('{"file_name": "c", "te')
    again = Ledger(path, MADE_FROM)
    want = dict(a=dict(file_name="a", text="3"), b=dict(file_name="b", text="2"))
    assert again.rows == ledger.rows == want
    again.append([dict(file_name="c", text="4")])
    assert len(path.read_text().splitlines()) == 4
    with pytest.raises(UserError, match=r"rows of another prompt \(, now a\)"):
        Ledger(path, MADE_FROM | dict(prompt="a"))


def test_a_file_of_something_else_is_not_touched(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    with pytest.raises(UserError, match="was not written by this command"):
        Ledger(path, MADE_FROM)
    assert path.read_text() == "{}"
