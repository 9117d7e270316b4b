"""Kill -9 twenty times."""

from killing import check_killed_runs


def test_twenty_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    check_killed_runs(tmp_path, count=20, seed=1)
