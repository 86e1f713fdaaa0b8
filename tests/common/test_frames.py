import pandas as pd

from safemax_pl.common.frames import write_csv


def test_whole_numbers_stay_whole_and_formulas_become_text(tmp_path):
    lines = [{"seed": 0, "=a": 0.1 + 0.2, "text": "=1+1", "best": True}, {"seed": None, "=a": None, "text": "x,y"}]
    write_csv(tmp_path / "a.csv", pd.DataFrame(lines, dtype=object))
    text = "seed,'=a,text,best\r\n0,0.30000000000000004,'=1+1,True\r\n,,\"x,y\",\r\n"
    assert (tmp_path / "a.csv").read_bytes().decode() == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
