"""The page of errors is made from the code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs/errors_table.py", "--check"], check=False)
    assert done.returncode == 0, "run: python docs/errors_table.py"
