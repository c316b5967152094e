import pytest
from etils import epath

from emu_jax.data.textfile import read_lines
from emu_jax.errors import UserError


@pytest.fixture
def file(tmp_path):
    return epath.Path(tmp_path) / "prompts.txt"


def test_lines_end_in_line_feeds_alone(file):
    file.write_bytes("\ufeffa\u2028b\r\nc\x85d\x0ce\nf\rg".encode())
    assert read_lines(file) == ["a\u2028b", "c\x85d\x0ce", "f\rg"]


def test_what_is_not_utf8_is_named_with_its_line(file):
    file.write_bytes(b"one\r\ntwo\nthr\xe9e")
    with pytest.raises(UserError, match=r"prompts\.txt, line 3 is not UTF-8 text \(byte 0xe9\)"):
        read_lines(file)
    file.write_bytes("text".encode("utf-16"))
    with pytest.raises(UserError, match=r"line 1 is not UTF-8 text \(byte 0xff\)"):
        read_lines(file)
    with pytest.raises(UserError, match="none cannot be read: No such file"):
        read_lines(file.parent / "none")
