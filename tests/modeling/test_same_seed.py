"""The same seed gives the same tokens from version to version, with and without energies."""

import json

from same_seed import RECORDED, samples


def test_tokens_of_a_seed_are_those_that_were_recorded():
    recorded = json.loads(RECORDED.read_text())
    found = samples()
    assert found.keys() == recorded.keys() and len(found) > 250
    different = [name for name in found if found[name] != recorded[name]]
    assert not different
