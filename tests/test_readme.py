"""Every Python block of the README runs by itself, as it stands."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"<block {number} of README.md>", "exec"), {"__name__": "__readme__"})


def test_commands_are_those_that_continuous_integration_runs():
    text = README.read_text()
    script = (README.parent / ".ci" / "run").read_text()
    (marker,) = re.findall(r"\^(<!-- .* -->)\$", script)
    command = text[text.index(marker) :].split("```")[1]
    assert command.startswith("bash\n")
    assert command.rstrip().endswith("-m pytest")
