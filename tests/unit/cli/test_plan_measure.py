import json
from pathlib import Path

from aegis_pipe.cli import main

QUICKSTART = Path(__file__).resolve().parents[3] / "manifests" / "quickstart.toml"


def test_measured_segments_add_up_and_say_whom_they_block(capsys) -> None:
    assert main(["plan", str(QUICKSTART), "--measure", "--json"]) == 0
    costs = {each["model"]: each for each in json.loads(capsys.readouterr().out)["segments"]}
    assert costs.keys() == {"digits", "squeezenet", "shufflenet"}
    for cost in costs.values():
        assert 0 < cost["longest_ns"] <= cost["busy_ns"]
        assert cost["overhead_ns"] > 0
        assert (cost["segments"] == 1) == (cost["longest_ns"] == cost["busy_ns"])
    # The urgent model waits for a segment of the others; those for each other's whole requests.
    others = [costs["squeezenet"], costs["shufflenet"]]
    longest_ns = max(each["longest_ns"] for each in others)
    assert costs["digits"]["blocking_ns"] == max(longest_ns, costs["digits"]["busy_ns"])
    assert others[0]["blocking_ns"] == max(each["busy_ns"] for each in others)
