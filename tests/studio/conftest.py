import pytest
from pages import browser, no_browser


@pytest.fixture(scope="session")
def chromium():
    """A real browser without a window; where there is none, its tests are skipped aloud."""
    if why := no_browser():
        pytest.skip(why)
    with browser() as started:
        yield started


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell of tests that were skipped for want of a browser also where reasons are not."""
    why = no_browser()
    skipped = [
        r for r in terminalreporter.stats.get("skipped", []) if why and why in str(r.longrepr)
    ]
    if skipped:
        line = f"not run for want of a browser: {len(skipped)} tests of mudi.studio; {why}"
        terminalreporter.write_line(line)
