"""The benchmark against the authors' SalUn needs their code, which this repository does not have."""

import pytest

from benchmarks.original_salun import main
from safemax_pl.errors import UserError


def test_without_the_authors_code_it_is_said_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match="git clone https://") as error:
        main(checkout=str(tmp_path / "nowhere"), folder=str(tmp_path))
    assert str(tmp_path / "nowhere") in str(error.value) and not list(tmp_path.iterdir())
