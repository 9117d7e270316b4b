"""The notebooks as they are committed. That they run is tested by nbmake, in the same `make test`."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_the_outputs_of_one_clean_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    assert not any("execution" in cell["metadata"] for cell in code), "times of execution: run `make notebooks`"

    outputs = [output for cell in code for output in cell["outputs"]]
    for output in outputs:
        assert output["output_type"] != "error" and output.get("name") != "stderr", output
        assert len(json.dumps(output)) < 150_000
        text = json.dumps({kind: data for kind, data in output.get("data", output).items() if kind != "image/png"})
        assert not re.search(r"site-packages|(?<![\w.<])/(home|root|tmp|usr|Users)/|Warning:", text), text

    assert outputs and len(json.dumps(outputs)) < 300_000
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", prose):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
