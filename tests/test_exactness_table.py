"""The table of what is exact: each row says for which dtype and input, and names the test that proves it."""

import re
from pathlib import Path

import pytest
from conftest import Figure

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs" / "exactness.md"
ROWS = [line.strip("| ").split(" | ") for line in re.findall(r"^\| .+ \|$", DOCS.read_text(), re.MULTILINE)]
TABLE = [row for row in ROWS if len(row) == 5 and "::" in row[4]]


def test_there_are_rows() -> None:
    assert len(TABLE) > 20


@pytest.mark.parametrize("row", TABLE, ids=[row[4].strip("`") for row in TABLE])
def test_a_row_names_its_dtype_its_input_and_a_test_that_there_is(row: list[str], record_figure: Figure) -> None:
    what, against, given, how, test = row
    file, _, name = test.strip("`").partition("::")
    assert f"def {name}(" in (TESTS / file).read_text()
    assert given
    record_figure(f"{what} = {against}: {how} ({given}; {name})".replace("`", ""))
