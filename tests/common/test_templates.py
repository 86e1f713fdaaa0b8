import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from safemax_pl.common import escaping
from safemax_pl.common.templates import environment, line

TEXT = "<b> | $x$ \x1b"


@pytest.mark.parametrize("escape", [escaping.html, escaping.markdown])
def test_every_value_is_escaped_once_also_in_macros_and_loops(escape):
    template = "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice(a) }}{% for one in b %}{{ one }}{% endfor %}"
    shown = environment("reports", escape).from_string(template).render(a=TEXT, b=[TEXT])
    assert shown == 3 * escape(TEXT) != 3 * TEXT


def test_markup_stays_and_unknown_names_raise():
    env = environment("reports", escaping.html, line=line)
    assert env.from_string("{{ a }}").render(a=Markup("<b>")) == "<b>"
    assert env.from_string("{{ [a, 1] | line }}").render(a="x|y") == r"| x\|y | 1 |"
    with pytest.raises(UndefinedError, match="'b' is undefined"):
        env.from_string("{{ b }}").render(a=1)
