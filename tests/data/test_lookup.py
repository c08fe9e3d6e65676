"""Files by the names that annotations give them, and texts as tools write them."""

import pytest

from tetravit.data.lookup import Lookup
from tetravit.data.text import read_text, read_yaml


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", "one/c.png", "two/c.png", ".hidden/d.png", "v1.2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.jpg", "a.jpg"),
        ("A.JPEG", "a.jpg"),
        ("a", "a.jpg"),
        ("x\\y\\a.jpg", "a.jpg"),
        ("sub\\b.png", "sub/b.PNG"),
        ("b.png", "sub/b.PNG"),
        ("other/b.png", None),  # of another folder
        ("two/c.jpg", "two/c.png"),
        ("v1.2", "v1.2.png"),
        ("v1", None),
        ("d.png", None),
        ("/data/local-files/?d=photos/a.jpg", "a.jpg"),
    ],
)
def test_a_file_is_looked_up(folder, name, file):
    assert Lookup(folder).find(name) == file


def test_a_name_that_fits_several_files_is_refused(folder):
    with pytest.raises(ValueError) as error:
        Lookup(folder).find("c.png")
    assert str(error.value) == (
        f"'c.png' fits 2 files in {str(folder)!r}: 'one/c.png' and 'two/c.png'; rename one."
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_lose_their_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "classes.txt"
    file.write_text("café\r\nblue\n", encoding=encoding, newline="")
    assert read_text(file) == "café\r\nblue\n"


def test_a_text_in_another_encoding_is_refused(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_bytes("café\n".encode("cp1252"))
    with pytest.raises(ValueError) as error:
        read_text(file)
    assert str(error.value) == (
        f"Cannot read {str(file)!r}: it is not UTF-8 (byte 0xe9 at position 3); save it as UTF-8."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [red\n", "data.yaml is not YAML, line 2: expected ',' or ']', but got '<stream end>'."),
        ("- red\n", "data.yaml is not a mapping of YAML, with keys such as names."),
        ("nc: 1\nnc: 2\n", "data.yaml gives the key 'nc' twice."),
        ("names: !!python/name:os.system [x]\n", None),
    ],
)
def test_what_is_no_yaml_of_texts(tmp_path, text, message):
    file = tmp_path / "data.yaml"
    file.write_text(text)
    if message is None:
        assert read_yaml(file) == {"names": ["x"]}  # no object of Python is made
        return
    with pytest.raises(ValueError) as error:
        read_yaml(file)
    assert str(error.value) == message
