"""Every method in every script, a few steps each: the cells that test_methods.py leaves out."""

import pytest
from settings_values import VALUES
from systems import METHODS
from test_every_setting import FEW, check_setting
from test_methods import CELLS, NAMES, check_cell, plain, systems  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")
OTHERS = [(m, name) for m in METHODS for name in NAMES if (m, name) not in CELLS]


@pytest.mark.parametrize("method, name", OTHERS)
def test_a_method_trains_and_changes_the_weights(method, name, systems, plain, tmp_path):  # noqa: F811
    check_cell(method, name, systems, plain, tmp_path / "run")


SETTINGS = [(name, s) for name in VALUES for s in VALUES[name] if (name, s) not in FEW]


@pytest.mark.parametrize("name, setting", SETTINGS)
def test_a_setting_changes_the_weights(name, setting, systems, plain, tmp_path):  # noqa: F811
    check_setting(name, setting, systems, plain, tmp_path / "run")
