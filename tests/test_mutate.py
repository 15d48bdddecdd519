"""The planted faults still fit the source; `make mutate` plants them. Cannot see: whether a test notices one."""

import pytest

from mutate import FAULTS, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_its_place_and_has_its_test(fault):
    source = (ROOT / "src" / "edgewise" / fault.file).read_text(encoding="utf-8")
    assert source.count(fault.old) == 1
    assert fault.new != fault.old
    assert (ROOT / "tests" / fault.test).exists()
