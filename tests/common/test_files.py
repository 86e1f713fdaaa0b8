import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safemax_pl.common import files
from safemax_pl.common.files import atomic, digest, file_digest, remove_scratch, write_csv, write_json


def write_folder(folder: Path, **files: str) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with atomic(target) as part:
        part.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"


def test_a_file_is_replaced(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic(target) as part:
        write_folder(part, a="1", b="2")
        assert not target.exists()
    assert contents(target) == {"a": "1", "b": "2"}


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path):
    target = tmp_path / "folder"
    write_folder(target, a="old", only_old="old")
    with atomic(target) as part:
        write_folder(part, a="new")
    assert contents(target) == {"a": "new"}


def test_the_temporary_path_has_the_name_of_the_target(tmp_path):
    with atomic(tmp_path / "weights.safetensors") as part:
        assert part.name == "weights.safetensors"
        part.touch()


def test_no_scratch_is_left_behind(tmp_path):
    for _ in range(2):
        with atomic(tmp_path / "folder") as part:
            write_folder(part, a="1")
        with atomic(tmp_path / "file") as part:
            part.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_scratch(tmp_path, failure):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(failure), atomic(target) as part:
        part.write_text("half of the n")
        raise failure
    assert contents(tmp_path) == {"file.txt": "old"}


def test_a_failure_leaves_the_old_folder_and_no_scratch(tmp_path):
    target = tmp_path / "folder"
    write_folder(target, a="old")
    with pytest.raises(ZeroDivisionError), atomic(target) as part:
        write_folder(part, a="half of the n")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert contents(target) == {"a": "old"}


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "file.txt") as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_block_that_writes_nothing_leaves_the_old_folder(tmp_path):
    target = tmp_path / "folder"
    write_folder(target, a="old")
    with pytest.raises(FileNotFoundError), atomic(target):
        pass
    assert contents(target) == {"a": "old"}


def test_what_a_killed_process_was_writing_is_removed(tmp_path, monkeypatch):
    write_folder(tmp_path / "unet", a="old")
    (tmp_path / ".other").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing
        with pytest.raises(ZeroDivisionError), atomic(tmp_path / "unet") as part:
            write_folder(part, a="half")
            raise ZeroDivisionError
    assert len(list(tmp_path.iterdir())) == 3
    remove_scratch(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"unet", ".other"}
    assert contents(tmp_path / "unet") == {"a": "old"}


def test_two_threads_that_write_one_target_always_show_a_whole_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("a" * 100_000)

    def write(letter: str) -> None:
        for _ in range(100):
            with atomic(target) as part:
                part.write_text(letter * 100_000)

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, letter) for letter in "ab"]
        seen = set()
        while not all(future.done() for future in writing):
            seen.add(target.read_text())
    for future in writing:
        future.result()
    assert seen | {target.read_text()} <= {"a" * 100_000, "b" * 100_000}
    assert list(tmp_path.iterdir()) == [target]


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"scores": {"w=0": [1.5, None, "é"]}, "name": "run"}
    write_json(tmp_path / "metrics.json", content)
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == content
    assert text.endswith("}\n") and '\n  "name"' in text


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "metrics.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "metrics.json", {"a": object()})
    assert contents(tmp_path) == {"metrics.json": "1\n"}


def test_a_table_has_a_column_per_key_of_any_line(tmp_path):
    write_csv(tmp_path / "a.csv", [{"a": 1, "b": None}, {"c": "x,y", "a": 2.5}])
    assert (tmp_path / "a.csv").read_bytes() == b'a,b,c\r\n1,,\r\n2.5,,"x,y"\r\n'


def test_a_digest_is_the_start_of_the_sha256_of_bytes_and_json():
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()[:12]
    assert (
        digest("a", {"c": 2, "b": [1, None]}, b"z") == hashlib.sha256(b'"a"{"b": [1, null], "c": 2}z').hexdigest()[:12]
    )


def test_a_digest_ignores_the_order_of_keys_and_nothing_else():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    others = [{"a": 1, "b": 3}, {"a": "1", "b": 2}, {"a": 1}, [["a", 1], ["b", 2]], None]
    assert len({digest(other) for other in [{"a": 1, "b": 2}, *others]}) == 6


def test_a_digest_takes_what_json_cannot_write():
    assert digest(Path("a")) == digest("a")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    assert file_digest(tmp_path / "file") == digest(bytes(range(256)) * 1000)
