"""Value formulas: Python's own arithmetic in float32, and nothing else of Python."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.schema.formula import MAX_CHARACTERS, Formula, FormulaError

NAMES = ("click", "a_1", "ret")
numbers = st.sampled_from(["0", "2", "0.5", ".25", "3.", "1e3", "2.5E-2", "7e+1"])
formulas = st.recursive(
    st.sampled_from(NAMES) | numbers,
    lambda part: st.one_of(
        st.builds("({} {} {})".format, part, st.sampled_from("+-*/"), part),
        st.builds("{}{}{}".format, part, st.sampled_from(["+", " - ", "*\n", " /"]), part),
        st.builds("-{}".format, part),
    ),
    max_leaves=12,
).filter(lambda text: len(text) <= MAX_CHARACTERS)


class Single:
    """A float32 in Python's own arithmetic: of numbers, too, which stand in a formula."""

    def __init__(self, value: object) -> None:
        self.value = np.float32(value)

    def __add__(self, other: "Single") -> "Single":
        return Single(self.value + other.value)

    def __sub__(self, other: "Single") -> "Single":
        return Single(self.value - other.value)

    def __mul__(self, other: "Single") -> "Single":
        return Single(self.value * other.value)

    def __truediv__(self, other: "Single") -> "Single":
        return Single(self.value / other.value)

    def __neg__(self) -> "Single":
        return Single(-self.value)


def in_python(text: str, of: dict[str, np.float32]) -> np.float32:
    part = re.compile(r"[a-z]\w*|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
    code = part.sub(lambda m: f"of[{m[0]!r}]" if m[0] in of else f"Single({m[0]})", text)
    values = {name: Single(value) for name, value in of.items()}
    with np.errstate(all="ignore"):
        return eval(f"({code})", {"Single": Single, "of": values}).value


@given(formulas, st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3))
def test_a_formula_is_pythons_arithmetic_in_float32_for_every_element(
    text: str, values: list[float]
) -> None:
    first = dict(zip(NAMES, map(np.float32, values), strict=True))
    second = dict(zip(NAMES, map(np.float32, reversed(values)), strict=True))
    arrays = {name: np.array([first[name], second[name]]) for name in NAMES}
    formula = Formula(text)
    got = np.broadcast_to(formula(arrays), 2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [in_python(text, first), in_python(text, second)])
    assert sorted(formula.names) == sorted(name for name in NAMES if name in text)


@given(formulas, st.floats(0, 1e12), st.data())
def test_a_formula_that_stays_finite_within_bounds_does(
    text: str, bound: float, data: st.DataObject
) -> None:
    formula = Formula(text)
    within = st.sampled_from([bound, -bound, 0.0]) | st.floats(-bound, bound)
    of = {name: np.float32(data.draw(within)) for name in NAMES}
    if formula.stays_finite(dict.fromkeys(NAMES, bound * (1 + 1e-7))):  # a float32 is rounded
        with np.errstate(all="raise", under="ignore"):
            assert np.isfinite(formula.evaluate(of))


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("a * (1 + 100 * a)", True),
        ("-a / 4 - a", True),
        ("a * a * a * a", False),
        ("0 * (a * a * a * a)", False),
        ("1 / a", False),
        ("a / (1 + 1)", False),  # true, but nobody looks so far
        ("a / 1e-60", False),
    ],
)
def test_what_cannot_leave_float32_is_known(text: str, stays: bool) -> None:
    assert Formula(text).stays_finite({"a": 1e12}) is stays


def test_names_stand_in_the_order_of_their_first_use() -> None:
    assert Formula("b * (a + b) - _c").names == ("b", "a", "_c")


def test_words_of_python_are_names_like_others() -> None:
    formula = Formula("return - True * None / lambda")
    assert formula.names == ("return", "True", "None", "lambda")
    of = {name: np.float32(i) for i, name in enumerate(formula.names, 1)}
    assert formula(of) == 1 - 2 * 3 / 4


def test_division_by_zero_is_not_finite_and_raises_nothing() -> None:
    zero = np.zeros(2, np.float32)
    got = Formula("(a - 1) / a")({"a": zero})
    assert got.tolist() == [-np.inf, -np.inf]
    assert np.isnan(Formula("a / a")({"a": zero})).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no arithmetic"),
        ("a b", "no arithmetic"),
        ("a ** 2", "no arithmetic"),
        ("a // 2", "no arithmetic"),
        ("a if b else c", "no arithmetic"),
        ("not a", "no arithmetic"),
        ("lambda: a", "':'"),
        ("(a := 2)", "':'"),
        ("007 * a", "no arithmetic"),
        ("0x10 * a", "'0x10'"),
        ("1_000 * a", "'1_000'"),
        ("2j * a", "'2j'"),
        ("1if a else 2", "'1if'"),
        ("1e30 * a", "not below 1e+30"),
        ("1e400 * a", "not below"),
        ("9" * 50, "not below"),
        ("a.b", "'.b'"),
        ("a % b", "'%'"),
        ("a < b", "'<'"),
        ("a[0]", "'['"),
        ("'a'", '"\'"'),
        ("a # b", "'#'"),
        ("a\\\n+ b", r"'\\'"),
        ("a, b", "','"),
        ("ﬁ", "'ﬁ'"),  # Python takes it for fi
        ("a * ٣", "'٣'"),
        ("f(a)", "parentheses"),
        ("()", "parentheses"),
        ("+a", "a + has nothing"),
        ("(" * 199 + "a" + ")" * 201, "more than 400 characters"),
        ("a" * 401, "more than 400 characters"),
        ("f(" * 130 + ")" * 130, "parentheses"),
    ],
)
def test_what_is_no_arithmetic_is_refused_with_a_reason(text: str, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormulaError, match=re.escape(reason)):
            Formula(text)


@pytest.mark.parametrize("text", ["-" * 399 + "a", "(" * 190 + "a" + ")" * 190, "a" + "+a" * 199])
def test_as_deep_as_a_formula_can_be_it_has_a_value(text: str) -> None:
    assert np.isfinite(Formula(text)({"a": np.float32(1)}))
