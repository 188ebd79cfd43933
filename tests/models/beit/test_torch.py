"""BEiT against transformers' and the authors' numbers, and against its own definition."""

import pytest

from conftest import golden_cases
from golden_cases import check_case

CASES = [case for case in golden_cases("transformers", "beit") if not case.startswith(("BeitForSemantic", "BeitBackbone"))]


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    check_case("beit", case)
