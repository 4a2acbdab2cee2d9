from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from bootc_core.hooks import specs

ROOT = Path(__file__).parents[2]


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hooks_md_is_what_the_code_says():
    found = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    assert found == generator().hooks_md(), "run: python docs/generate.py"


def test_every_hook_is_in_it_once_in_order():
    text = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    wanted = [name for name in vars(specs) if name.startswith("bootc_")]
    assert re.findall(r"^### `(bootc_\w+)`$", text, re.MULTILINE) == wanted


def test_check_tells_by_its_status(tmp_path, capsys):
    module = generator()
    assert module.main(["--check"]) == 0
    module.TARGET = tmp_path / "hooks.md"
    assert module.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0
