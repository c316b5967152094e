"""How long a page with two 1024 x 1024 images takes from an answer to the next pair, in Chromium.

    python tests/people_page.py [--side=1024] [--pairs=40] [--look=1.0]

A study of noise, whose images compress worst, is served by the real command in its own process.
The time is measured in the page: from the key of an answer to the second animation frame after the
next pair became ready to answer, so both images are on the screen. Between answers a person looks
for ``--look`` seconds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import people_load as load
from playwright.sync_api import sync_playwright

from emu_jax.people.access import add_annotators
from emu_jax.people.dealing import deal
from emu_jax.people.store import open_store

CHROMIUM = "/usr/bin/chromium"
READY = "() => !document.querySelector('#answers button').disabled"
WATCH = """() => {
  const main = document.querySelector("main");
  window.times = [];
  let pressed = 0;
  addEventListener("keydown", () => { pressed = performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(
    (now) => window.times.push(performance.now() - pressed)
  ))).observe(main, { attributeFilter: ["data-shown"] });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="of the images, in pixels")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--look", type=float, default=1.0, help="seconds before an answer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        study = Path(folder) / "study"
        load.make_noise_study(study, args.pairs + 1, 1, side=args.side).close()
        store = open_store(study)
        (token,) = add_annotators(store, ["anna"]).values()
        deal(store)
        server = load.Server(study)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"http://127.0.0.1:{server.port}/a/{token}")
            page.wait_for_selector("#begin:visible")
            page.keyboard.press("Enter")
            page.wait_for_function(READY)
            page.evaluate(WATCH)
            for number in range(args.pairs):
                page.wait_for_timeout(1000 * args.look)
                page.keyboard.press("ArrowLeft")
                page.wait_for_function(f"() => window.times.length > {number}")
            times = sorted(page.evaluate("() => window.times"))
        finally:
            browser.close()
            server.kill()
    p95 = statistics.quantiles(times, n=20)[-1]
    print(
        f"{len(times)} pairs of {args.side} x {args.side}: median {statistics.median(times):.0f} "
        f"ms, p95 {p95:.0f} ms, slowest {times[-1]:.0f} ms"
    )


if __name__ == "__main__":
    main()
