import re
from pathlib import Path

TUTORIAL = Path(__file__).parents[3] / "docs" / "tutorial-finetune.md"


def test_the_script_of_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(script, str(TUTORIAL), "exec"), {})
    assert (tmp_path / "tuned.onnx").is_file()
