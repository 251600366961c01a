"""`python -m hack.chart`: writes the generated files of the chart, and removes generated ones that are no more."""

from . import CHART, generated

wanted = generated()
for path, text in wanted.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(CHART.parents[1])}")
for path in (CHART / "files").rglob("*.*"):
    if path not in wanted:
        path.unlink()
        print(f"removed {path.relative_to(CHART.parents[1])}")
