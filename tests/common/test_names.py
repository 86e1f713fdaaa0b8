"""A run's name is one folder inside runs_dir, whatever is typed; every letter of it is shown as it is."""

import io
import sys

import pytest
from omegaconf import OmegaConf
from rich.table import Table

from safemax_pl.common.console import plain_console
from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.common.figures import drawing, legend_name, panels, save_figure
from safemax_pl.config.compose import compose
from safemax_pl.config.locations import run_name
from safemax_pl.runs.run import Run, run_folder

NO_NAMES = {
    "empty": "",
    "space": " ",
    "dot": ".",
    "dots": "..",
    "above": "../x",
    "absolute": "/tmp/x",
    "below": "a/b",
    "trailing slash": "a/",
    "markup": "a[/]",
    "windows": "a\\b",
    "hidden": ".part",
    "padded": " a",
    "padded behind": "a ",
    "newline": "a\nb",
    "null": "a\0b",
    "escape": "\x1b[31mred",
    "turned": "a\u202eb",
    "not decoded": "a\udc80",
    "long": "a" * 300,
    "long in bytes": "犬" * 100,
    "list": ["a"],
    "switch": True,
}
NAMES = ["a", "a$_$b", "cost_$5_to_$9", "[bold]", ":smile:", "_x", "{0}", "%s%d", "-x", "~", "犬", "a b", "x=y", "#1"]


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES)
def test_what_names_no_folder_inside_runs_dir_is_refused_in_one_line(tmp_path, name):
    cfg = OmegaConf.create({"name": name, "runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r"^name=.*can't name a folder: give") as caught:
        run_name(cfg, [])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    with pytest.raises(UserError, match="can't name a folder"):
        run_folder(cfg, name)


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_folders_inside_runs_dir(tmp_path, name):
    cfg = OmegaConf.create({"name": name, "runs_dir": str(tmp_path)})
    assert run_folder(cfg, run_name(cfg, [])).parent == tmp_path


@pytest.mark.parametrize("data_name", ["../../x", "", ".", "a/b"])
def test_a_data_set_s_name_is_part_of_folder_names_and_held_to_the_same(data_name):
    from safemax_pl.data.datamodule import ForgetRetainDataModule

    with pytest.raises(UserError, match=r"data\.name="):
        ForgetRetainDataModule(data_name, "sklearn/digits", 8, 1)


@pytest.mark.parametrize("runs_dir", [None, "", " ", 3])
def test_runs_dir_is_a_folder(runs_dir):
    with pytest.raises(UserError, match=r"runs_dir=.*give a folder"):
        run_folder(OmegaConf.create({"runs_dir": runs_dir}), "a")


def test_a_run_is_made_neither_in_a_run_nor_over_other_things(tmp_path):
    cfg = compose("fit", ["experiment=digits_forget1", f"runs_dir={tmp_path}"])
    there = ["run/config.yaml", "run/metrics.csv", "model/unet", "study/study.journal", "checkpoint/last.ckpt"]
    for path in (tmp_path / one for one in there):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in ("model", "study", "checkpoint"):
        with pytest.raises(UserError, match=rf"{name} holds .* and no run: give another name="):
            Run(tmp_path / name, cfg)
    cfg.runs_dir = str(tmp_path / "run")
    with pytest.raises(UserError, match="is itself a run"):
        run_folder(cfg, "a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "file", cfg)


def test_what_a_run_that_never_began_has_left_is_not_in_the_way(tmp_path):
    cfg = compose("fit", ["experiment=digits_forget1"])
    for name in ("wandb", ".run.abcdefgh.part"):
        (tmp_path / name).mkdir()
    for name in ("wandb_id", "metrics.csv"):
        (tmp_path / name).touch()
    Run(tmp_path, cfg).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "wandb", "wandb_id"]


# -- as they are -------------------------------------------------------------------------------------------------------

NASTY = ["a$_$b", r"\frac{", "%s{0}", "[/]:smile:", "_^x", "犬\\"]


@pytest.mark.parametrize("name", NASTY)
def test_every_name_can_stand_in_a_picture_and_in_a_table(tmp_path, capsys, name):
    figure, (left, right) = panels(2, columns=2)
    left.plot([1, 2], label=legend_name(name))
    left.set(title=name, xlabel=name, ylabel=name)
    left.set_yticks([1, 2])
    left.set_yticklabels([name, name])
    left.legend()
    right.set_xscale("log")
    right.plot([1, 1e6], [1, 2])
    figure.suptitle(name)
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert any("mathdefault" in tick.get_text() and tick.get_parse_math() for tick in right.get_xticklabels())
    table = Table(name, title=name)
    table.add_row(name)
    plain_console().print(table)
    assert name in capsys.readouterr().out


def test_a_picture_that_fails_is_one_line(tmp_path, capsys):
    with drawing(tmp_path / "a.png"):
        raise ValueError("no\nroom")
    assert capsys.readouterr().err == f"warning: {tmp_path}/a.png was not drawn (ValueError: no)\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_letters_gets_their_codes(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
    with clear_errors():
        table = Table("犬")
        table.add_row("Δ†")
        plain_console().print(table)
        print("\udc80 η")
    assert rb"\u72ac" in written.getvalue() and rb"\u2020" in written.getvalue() and rb"\udc80" in written.getvalue()
