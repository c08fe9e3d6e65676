"""Menus: what folders offer, and what is said about a wrong name."""

import sys

import pytest

from tetravit.registry import discover, pick, suggestion


def test_rows_of_all_modules_are_merged(tmp_path, monkeypatch):
    _package(tmp_path, monkeypatch, one="ROWS = {'a': 1}", two="ROWS = {'b': 2}", three="")
    assert discover("menu_of_a_test", "ROWS") == {"a": 1, "b": 2}


def test_a_name_offered_twice_names_both_files(tmp_path, monkeypatch):
    _package(tmp_path, monkeypatch, one="ROWS = {'a': 1}", two="ROWS = {'a': 2}")
    with pytest.raises(ValueError) as error:
        discover("menu_of_a_test", "ROWS")
    assert str(error.value) == "'a' is offered twice: by menu_of_a_test.one and by menu_of_a_test.two."


def test_a_wrong_name_suggests_the_nearest():
    menu = {"xcit_nano_12_p16": 1, "xcit_tiny_12_p16": 2}
    assert pick(menu, "xcit_tiny_12_p16", "model") == 2
    with pytest.raises(ValueError) as error:
        pick(menu, "xcit_nano_p16", "model")
    assert str(error.value) == "Unknown model 'xcit_nano_p16'. Did you mean 'xcit_nano_12_p16'?"


def test_where_nothing_is_near_a_short_menu_is_told():
    assert suggestion("zebra", ["b", "a"]) == " Known: a, b."
    assert suggestion("zebra", [str(i) for i in range(50)]) == ""


def _package(tmp_path, monkeypatch, **modules):
    folder = tmp_path / "menu_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [m for m in sys.modules if m.startswith("menu_of_a_test")]:
        monkeypatch.delitem(sys.modules, name)
