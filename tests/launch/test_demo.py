"""What `make demo` prints and leaves once its runs are done."""

from launch import demo
from tests.launch.reporting.runs import make_run


def test_the_demo_ends_with_a_report_of_each_run_and_one_of_both(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []

    def run(arguments):
        asked.append(arguments[1])
        make_run(tmp_path / arguments[arguments.index("--output") + 1])
        return 0

    monkeypatch.setattr(demo, "run_verb", run)
    assert demo.main() == 0
    said = capsys.readouterr().out
    assert asked == [recipe for recipe, _ in demo.DEMOS]
    for recipe, _ in demo.DEMOS:
        assert f"report: runs/{recipe}/report.html" in said
        assert (tmp_path / "runs" / recipe / "report.html").stat().st_size > 10_000
    assert said.rstrip().endswith("both in one report: runs/demo.html")
    page = (tmp_path / "runs" / "demo.html").read_text()
    assert "Side by side" in page
    assert all(recipe in page for recipe, _ in demo.DEMOS)


def test_a_run_that_fails_ends_the_demo_with_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run_verb", lambda arguments: 3)
    assert demo.main() == 3
    assert not (tmp_path / "runs").exists()
