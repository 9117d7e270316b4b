"""The plot of when speculative sampling pays: its formula gives back the seconds that were measured."""

import pytest

from edlm_hf.benchmarks.speculative_figure import measured_round, plot, speed_up

DECODING = {"rule": "autoregressive", "calls": {"value": 250.0}, "seconds_per_sample": 0.5}


def speculative(seconds: float) -> dict:
    return {"rule": "speculative", "calls": {"value": 100.0}, "seconds_per_sample": seconds}


@pytest.mark.parametrize("seconds", [0.25, 0.5, 2.0])
def test_the_formula_gives_the_measured_speed_up(seconds):
    measured = measured_round([DECODING, speculative(seconds)], length=250)
    assert measured.tokens_per_round == 2.5
    assert speed_up(*measured) == pytest.approx(0.5 / seconds)


def test_rounds_that_cost_less_than_a_call_count_as_nearly_free_drafts():
    measured = measured_round([DECODING, speculative(0.1)], length=250)
    assert 0 < measured.ratio < 0.1


def test_a_study_without_both_has_no_plot(tmp_path):
    for samples in ([], [DECODING], [speculative(1.0)]):
        assert plot({"samples": samples}, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_plot_is_written_where_the_study_lies(tmp_path):
    pytest.importorskip("matplotlib")
    assert plot({"samples": [DECODING, speculative(2.0)]}, tmp_path) == ["speculative.png"]
    assert (tmp_path / "speculative.png").read_bytes().startswith(b"\x89PNG")
