"""Every Python block of the README runs as it stands, in order, in one session."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for number, block in enumerate(blocks):
        try:
            exec(compile(block, f"README block {number}", "exec"), {"__name__": "__readme__"})
        except Exception as error:
            error.add_note(f"in this block of README.md:\n{block}")
            raise


def test_commands_are_those_that_continuous_integration_runs():
    commands = re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    script = (README.parent / ".ci" / "run").read_text()
    assert "README.md" in script
    assert any("pytest" in command for command in commands)


if __name__ == "__main__":
    pytest.main([__file__])
