import errno
import os

import pytest

from safemax_pl.common.errors import UserError, clear_errors, unknown


def exit_code_of(error: BaseException) -> int:
    with pytest.raises(SystemExit) as exit_info, clear_errors():
        raise error
    return exit_info.value.code


def test_an_unknown_name_gets_the_nearest_one_and_all_legal_ones():
    message = str(unknown("sampler", "ddin", ["ddpm", "ddim", "dpm_solver"]))
    assert message == "unknown sampler 'ddin': did you mean 'ddim'? legal: ddpm, ddim, dpm_solver"


def test_a_name_that_is_like_no_other_gets_no_suggestion():
    message = str(unknown("sampler", "euler", ["ddpm", "ddim"]))
    assert "did you mean" not in message and "legal: ddpm, ddim" in message


def test_an_unknown_name_may_be_of_any_type():
    assert "unknown class 12: did you mean '1'" in str(unknown("class", 12, [1, 3]))


def test_no_legal_name_at_all_is_said():
    assert str(unknown("run", "a", [])) == "unknown run 'a': legal: (none)"


def test_a_user_error_becomes_one_line_and_exit_code_1(capsys):
    assert exit_code_of(UserError("give a number > 0")) == 1
    assert capsys.readouterr() == ("", "error: give a number > 0\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_becomes_one_line_that_names_the_file(capsys, code):
    assert exit_code_of(OSError(code, "full", "runs/a/last.ckpt")) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: no space left on the device at runs/a/last.ckpt") and "resumes" in err


def test_a_full_disk_without_a_file_name_becomes_one_line(capsys):
    assert exit_code_of(OSError(errno.ENOSPC, "full")) == 1
    assert capsys.readouterr().err.startswith("error: no space left on the device: ")


def test_a_checkpoint_on_a_full_disk_becomes_one_line(capsys):
    assert exit_code_of(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")) == 1
    assert capsys.readouterr().err.startswith("error: no space left on the device: ")


def test_an_interrupt_says_how_to_go_on(capsys):
    assert exit_code_of(KeyboardInterrupt()) == 130
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "goes on" in err


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "no file"), RuntimeError()])
def test_other_errors_pass_through(capsys, error):
    with pytest.raises(type(error)) as caught, clear_errors():
        raise error
    assert caught.value is error
    assert capsys.readouterr() == ("", "")


def test_nothing_happens_without_an_error(capsys):
    with clear_errors():
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("folder", ["file/below", "file"])
def test_a_folder_that_cannot_be_one_is_one_line(tmp_path, capsys, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit), clear_errors():
        (tmp_path / folder).mkdir()
    message = capsys.readouterr().err
    assert message.startswith("error: ") and str(tmp_path / folder) in message and message.count("\n") == 1


@pytest.mark.parametrize(
    "code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOENT, errno.EIO, errno.ELOOP]
)
def test_what_the_file_system_refuses_is_one_line_with_the_path(capsys, code):
    assert exit_code_of(OSError(code, os.strerror(code), "/proc/x")) == 1
    assert capsys.readouterr().err == f"error: {os.strerror(code)}: /proc/x: give another folder, or repair this one\n"


def test_so_it_is_where_a_library_wraps_what_the_system_says(capsys):
    assert exit_code_of(RuntimeError("Error while serializing: I/O error: Read-only (os error 30)")) == 1
    assert capsys.readouterr().err.startswith(f"error: {os.strerror(30)} (Error while serializing")
