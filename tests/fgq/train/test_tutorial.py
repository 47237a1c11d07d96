import re
from pathlib import Path

TUTORIAL = Path(__file__).parents[3] / "docs" / "tutorial-finetune.md"


def test_the_scripts_of_the_tutorial_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(first, str(TUTORIAL), "exec"), names)
    assert (tmp_path / "tuned.onnx").is_file()
    names["untrained"] = names["model"].train()
    exec(compile(second.replace("steps=500", "steps=5"), str(TUTORIAL), "exec"), names)
    assert (tmp_path / "scratch.onnx").is_file()
