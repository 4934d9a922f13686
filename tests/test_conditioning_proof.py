"""What is fed from a cache determines the hole where it can be determined, and broken conditioning does not."""

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "conditioning_proof.py"


def test_a_solve_finds_the_hole_of_images_of_one_colour_exactly_and_from_no_broken_conditioning(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("conditioning_proof", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["conditioning_proof"] = bench
    spec.loader.exec_module(bench)
    errors = bench.exact_errors(tmp_path, 300)
    assert max(errors[bench.OURS]) < 1e-12  # float32's rounding, squared
    for control in bench.CONTROLS:
        assert max(errors[control]) > 0.05, control
    assert f"| ours | {errors[bench.OURS][0]:.1e} |" in bench.exact_table(errors)
