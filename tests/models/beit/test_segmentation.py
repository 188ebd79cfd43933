"""BEiT's segmentation and backbone against transformers' and the authors' numbers, and against their own definition."""

import pytest

from conftest import golden_cases
from golden_cases import check_case

CASES = [case for case in golden_cases("transformers", "beit") if case.startswith(("BeitForSemantic", "BeitBackbone"))]


@pytest.mark.parametrize("case", CASES)
def test_transformers_numbers(case):
    check_case("beit", case, 1e-5 if case.startswith("BeitBackbone") else 1e-4)  # the decoder's sums are reordered
