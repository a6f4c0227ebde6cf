"""The page in a browser: it runs without errors, sorts, changes colours, and fits a phone."""

import io
import re
import shutil
import subprocess

import pytest
from page_records import record
from PIL import Image

from experiments import claims, page
from experiments.paper_numbers import VISION
from experiments.record_files import Found, Picture

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

SORTED = "#theme=dark&sort=experiment-vision-1:1:ascending"
# Says how wide the page is and what lies beyond its edge, where a dump can see it.
PROBE = """<script>
const beyond = [...document.querySelectorAll("body *")].filter((e) =>
  !e.closest(".box, figure, .skip") && e.getBoundingClientRect().right > innerWidth + 1);
document.body.dataset.beyond = beyond.map((e) => e.tagName + "." + e.className).join(" ");
document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of two records on a disk."""
    found = [
        record("vision", VISION["ViT-B-32", 8], seeds=2),
        record("discrepancy", {"individual": 95.0, "symerge": 90.0}),
    ]
    rows = [Found(f"/{i}.json", one, [wide_picture()]) for i, one in enumerate(found)]
    verdicts = claims.judge(found)
    path = tmp_path_factory.mktemp("site") / "index.html"
    path.write_text(page.page(rows, verdicts, claims.as_json(verdicts)), encoding="utf-8")
    return path


def wide_picture():
    png = io.BytesIO()
    Image.new("RGB", (1500, 400), "#0072B2").save(png, "PNG")
    return Picture("scores per task", png.getvalue())


def browse(path, *options, fragment=""):
    """What the browser prints: (stdout, what the page said on its console)."""
    words = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={path.parent / 'profile'}", "--enable-logging=stderr", *options,
        f"{path.as_uri()}{fragment}",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def picture(path, width, theme, tmp_path):
    target = tmp_path / "screen.png"
    _, console = browse(
        path, f"--screenshot={target}", f"--window-size={width},1400", fragment=f"#theme={theme}"
    )
    assert console == []
    return Image.open(io.BytesIO(target.read_bytes())).convert("RGB")


def test_the_page_runs_sorts_and_changes_colours(site):
    dump, console = browse(site, "--dump-dom", fragment=SORTED)
    assert console == []
    assert 'data-theme="dark"' in dump
    for name in ("overview", "not-reproduced", "claims", "experiments", "runs"):
        assert f'<section id="{name}">' in dump
    table = re.search(r'<table[^>]* id="experiment-vision-1">.*?</table>', dump, re.S)[0]
    headers = re.findall(r"<th [^>]*>", table.partition("<tbody>")[0])
    assert ['aria-sort="ascending"' in header for header in headers[:3]] == [False, True, False]
    rows = re.findall(r"<tr.*?</tr>", table.partition("<tbody>")[2], re.S)
    means = [float(re.search(r'data-value="([\d.]+)"', row)[1]) for row in rows]
    assert means == sorted(means)
    assert len(means) == len(VISION["ViT-B-32", 8])
    assert 'id="theme" type="button"' in dump
    assert "hidden" not in re.search(r'<button[^>]*id="theme"[^>]*>', dump)[0]


@pytest.mark.parametrize("width", [500, 1200])
def test_only_boxes_scroll_sideways(site, width, tmp_path):
    # The probe is no part of the page, whose policy would refuse it.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", site.read_text())
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", PROBE))
    dump, console = browse(probed, "--dump-dom", f"--window-size={width},900")
    assert console == []
    assert 'data-beyond=""' in dump, re.search('data-beyond="[^"]*"', dump)[0]
    assert 'data-wide="false"' in dump


@pytest.mark.parametrize(("theme", "bright"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("width", [400, 1200])
def test_light_and_dark_are_drawn(site, width, theme, bright, tmp_path):
    screen = picture(site, width, theme, tmp_path)
    assert screen.size == (width, 1400)
    corner = sum(screen.getpixel((2, 2))) / 3
    assert (corner > 200) == bright
    assert len(screen.resize((width // 4, 350)).getcolors(10**6)) > 20
