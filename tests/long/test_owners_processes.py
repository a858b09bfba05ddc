"""The command on the first page with interpreters of its own: half a minute on two cores.

tests/test_owners_command.py runs it with copies, which spares four imports.
"""

from test_owners_command import hub_cache, run

__all__ = ["hub_cache"]


def test_four_interpreters_train_electra_to_its_test_metrics(hub_cache, tmp_path):
    run(hub_cache, tmp_path, {})
