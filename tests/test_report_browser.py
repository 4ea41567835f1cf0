"""The report in a real browser: nothing overflows, no drawing is empty, text is not cut off.

One page of the test's own holds the report in frames of several widths and measures them; the
report itself is shown as it is, and has no scripts.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
WIDTHS = (360, 800, 1400)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

MEASURE = """
const measured = [];
function overlap(a, b) {
  return Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5;
}
function measure(frame) {
  const page = frame.contentDocument, width = page.documentElement.clientWidth;
  const found = {width, scroll: page.documentElement.scrollWidth, wide: [], drawings: []};
  for (const element of page.body.querySelectorAll('*:not(svg *)')) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > width + 1 || box.left < -1))
      found.wide.push(element.tagName + ' ' + element.textContent.slice(0, 40));
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
      found.wide.push('within ' + element.tagName + ' ' + element.textContent.slice(0, 40));
  }
  for (const drawing of page.querySelectorAll('.panel svg')) {
    const box = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll('text')];
    const boxes = texts.map(each => each.getBoundingClientRect());
    const cut = texts.filter((each, i) => boxes[i].left < box.left - 1 ||
      boxes[i].right > box.right + 1 || boxes[i].top < box.top - 1 ||
      boxes[i].bottom > box.bottom + 1);
    const over = texts.filter((each, i) => boxes.some((b, k) => k < i && overlap(boxes[i], b)));
    const view = drawing.viewBox.baseVal;
    let marks = 0;
    for (const each of drawing.querySelectorAll('path, use')) {
      if (each.closest('defs')) continue;
      const style = frame.contentWindow.getComputedStyle(each);
      const series = [style.fill, style.stroke].some(c => frame.series.has(c));
      const mark = each.getBoundingClientRect();
      if (series && mark.width + mark.height > 0) marks += 1;
    }
    found.drawings.push({name: drawing.getAttribute('aria-label'), width: box.width,
      height: box.height, marks, scale: box.width / view.width,
      cut: cut.map(each => each.textContent), over: over.map(each => each.textContent)});
  }
  const style = frame.contentWindow.getComputedStyle(page.body);
  found.ink = style.color;
  found.ground = style.backgroundColor;
  return found;
}
function colours(frame) {
  const page = frame.contentDocument, probe = page.createElement('span'), found = new Set();
  page.body.append(probe);
  for (let i = 0; i < 7; i++) {
    probe.style.color = `var(--series-${i})`;
    found.add(frame.contentWindow.getComputedStyle(probe).color);
  }
  probe.remove();
  return found;
}
window.onload = () => {
  for (const frame of document.querySelectorAll('iframe')) {
    frame.series = colours(frame);
    measured.push(measure(frame));
  }
  document.getElementById('measured').textContent = JSON.stringify(measured);
};
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory, report_of_made_up_runs):
    folder = tmp_path_factory.mktemp("browser")
    content = html.escape(report_of_made_up_runs)
    frames = [("light", width) for width in WIDTHS] + [("dark", 800)]
    shown = "".join(
        f'<iframe style="width: {width}px; height: 2000px; border: 0; color-scheme: {scheme}" '
        f'srcdoc="{content}"></iframe>'
        for scheme, width in frames
    )
    file = folder / "frames.html"
    file.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{shown}<pre id="measured"></pre>'
        f"<script>{MEASURE}</script>",
        encoding="utf-8",
    )
    assert BROWSER is not None
    dumped = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000"),
            *("--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r'<pre id="measured">(.*?)</pre>', dumped, re.DOTALL)
    assert found is not None
    return dict(zip(frames, json.loads(html.unescape(found[1])), strict=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(measured, width):
    found = measured["light", width]
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_drawing_is_empty_or_cut_off(measured, width):
    drawings = measured["light", width]["drawings"]
    assert len(drawings) == 2 + 2 + 1 + 4 + 3 + 3
    for drawing in drawings:
        assert drawing["marks"] >= 2, drawing
        assert drawing["height"] > 60, drawing
        assert drawing["cut"] == [], drawing
        assert drawing["over"] == [], drawing
        assert 0.8 < drawing["scale"] < 1.6, drawing  # text of 10 units is 8 to 16 pixels


def test_dark_is_dark(measured):
    light, dark = measured["light", 800], measured["dark", 800]
    assert light["ground"] == "rgb(255, 255, 255)"
    assert dark["ground"] == "rgb(20, 23, 27)"
    assert dark["ink"] == "rgb(231, 234, 238)"
