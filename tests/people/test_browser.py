"""A whole study in a real browser: by keyboard, by mouse and on a phone, with a reload, a lost
connection, two tabs and another annotator's link in the middle.
"""

import re
from collections import Counter

import pytest
from browsing import CHROMIUM, chromium, open_page, served
from studies import PROMPTS, Running, make

from emu_jax.cli.main import main
from emu_jax.people.results import answer_rows

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")


@pytest.fixture
def browser():
    with chromium() as found:
        yield found


def shown(page, after=""):
    """Waits for a pair of images other than ``after``; returns its task."""
    ready = (
        "after => { const main = document.querySelector('main');"
        " return main.dataset.shown !== after && !document.getElementById('stage').hidden"
        " && document.getElementById('loading').hidden && main.dataset.shown; }"
    )
    return page.wait_for_function(ready, arg=after).json_value()


def test_a_whole_study_in_a_browser(tmp_path, browser):
    study = make(tmp_path, "--appeal_votes=2", "--faithfulness_votes=2", prompts=PROMPTS[:4])
    running = Running(study, ("anna", "ben"))
    problems, images = [], []
    with served(running.app) as url:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = open_page(context, problems)
        page.on(
            "request",
            lambda request: images.append(request.url) if "/image/" in request.url else None,
        )
        page.goto(f"{url}/a/{running.tokens['anna']}")
        assert page.url == f"{url}/"  # the token has left the address bar

        page.wait_for_selector("#begin:visible")
        page.keyboard.press("Enter")
        task = ""
        for _ in range(2):  # the training round tells whether an answer is right
            task = shown(page, task)
            assert page.locator("#training").is_visible()
            page.keyboard.press("ArrowLeft")
            page.wait_for_selector("#feedback:visible")
            page.keyboard.press("Enter")
        first = shown(page, task)
        assert page.locator("#training").is_hidden() and page.locator("#prompt").is_hidden()
        assert page.locator("#stage h1").inner_text() == "Which image looks better?"

        before = len({image for image in images})
        assert before >= 2 * 4  # the images of the next pairs are loaded ahead
        page.keyboard.press("ArrowRight")
        second = shown(page, first)
        page.keyboard.press("u")
        assert shown(page, second) == first
        page.keyboard.press("ArrowDown")
        assert shown(page, first) == second
        page.reload()
        assert shown(page) == second  # neither an answer nor a place is lost

        other = open_page(context, problems)  # the same pair in two tabs
        other.goto(url)
        assert shown(other) == second
        other.keyboard.press("b")
        third = shown(other, second)
        other.wait_for_function(
            "() => document.getElementById('saved').textContent.includes('saved')"
        )
        other.close()
        page.keyboard.press("a")  # the first answer counts
        assert shown(page, second) == third
        assert not problems

        context.set_offline(True)
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#notice:visible")
        assert "not sent yet: 1" in page.locator("#saved").inner_text()
        context.set_offline(False)
        page.wait_for_selector("#notice", state="hidden")
        page.wait_for_function(
            "() => document.getElementById('saved').textContent.includes('saved')"
        )
        problems.clear()  # of the lost connection

        state = context.storage_state()
        context.close()
        context = browser.new_context(  # goes on at another machine
            viewport={"width": 360, "height": 740}, has_touch=True, storage_state=state
        )
        page = open_page(context, problems)
        page.goto(url)
        task, questions = "", Counter()
        for number in range(20):
            page.wait_for_selector("#stage:visible, #begin:visible, #done:visible")
            if page.locator("#done").is_visible():
                break
            if page.locator("#begin").is_visible():
                page.locator("#begin").tap()
            task = shown(page, task)
            questions[page.locator("#question").inner_text()] += 1
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360  # nothing scrolls sideways
            boxes = [page.locator(name).bounding_box() for name in ("#a", "#b", "#answers")]
            tops = [box["y"] for box in boxes if box]
            ends = [box["y"] + box["height"] for box in boxes if box]
            assert ends[0] <= tops[1] and ends[1] <= tops[2] and ends[2] <= 740  # all in view
            assert min(box["height"] for box in boxes[:2] if box) > 150
            # Two taps at one place would be a double tap, which counts once.
            page.locator("#answers button").nth([0, -1][number % 2]).tap()
            if page.locator("#training").is_visible():
                page.wait_for_selector("#feedback:visible")
                page.locator("#next").tap()
            page.wait_for_function(
                "task => document.querySelector('main').dataset.shown !== task"
                " || document.getElementById('stage').hidden",
                arg=task,
            )
        assert page.locator("#done").is_visible() and len(questions) == 2
        context.close()
        by_mouse(browser, url, running, problems)
    assert not problems
    rows = answer_rows(running.store)
    study = [row for row in rows if row.counts]
    assert Counter((row.question, row.prompt) for row in study) == {
        (question, prompt): 2 for question in ("appeal", "faithfulness") for prompt in range(1, 5)
    }
    of = {(row.annotator, row.question): [] for row in study}
    for row in study:
        of[row.annotator, row.question].append(row.answer)
    assert of[1, "appeal"] == ["tie", "b", "a", "a"]
    assert of[2, "appeal"] == ["tie", "a", "b", "a"]
    assert of[2, "faithfulness"] == ["both", "neither", "a", "b"]
    assert all(0 < row.seconds < 1000 for row in rows)


def by_mouse(browser, url, running, problems):
    """A whole study by mouse, in a browser in which another annotator's link is opened once."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = open_page(context, problems)
    page.goto(f"{url}/a/{running.tokens['ben']}")
    task = ""

    def answer(*answers):
        nonlocal task
        for one in answers:
            task = shown(page, task)
            page.locator(f"[data-answer={one}]").click()

    def train(*answers):
        said = set()
        page.locator("#begin").click()
        for one in answers:
            answer(one)
            page.wait_for_selector("#feedback:visible")
            said.add(page.locator("#feedback p").inner_text())
            page.locator("#next").click()
        return said

    right, wrong = sorted(train("tie", "tie"), reverse=True)  # one pair is equal, one is not
    assert right == "Yes, that is right."
    assert re.fullmatch(r"Please look again\. The answer here: [AB] is better\.", wrong)

    task = first = shown(page, task)
    page.locator("figure button").last.click()
    page.keyboard.press("ArrowDown")  # scrolls the large image
    page.locator("figure.large button").click()
    assert page.locator("figure.large").count() == 0
    page.locator("[data-answer=tie]").dblclick()  # an answer to one pair
    task = second = shown(page, first)
    page.locator("[data-answer=b]").click()
    third = shown(page, second)
    page.locator("#undo").click()
    assert shown(page, third) == second
    page.locator("#help").click()
    page.locator("#begin").click()
    page.locator("[data-answer=a]").click()
    assert shown(page, second) == third and not problems

    other = open_page(context, [])
    other.goto(f"{url}/a/{running.tokens['anna']}")
    other.close()
    page.locator("[data-answer=b]").click()
    page.wait_for_selector("#done:visible")  # of the other annotator
    problems.clear()  # of the refused request
    page.goto(f"{url}/a/{running.tokens['ben']}")
    task = third
    answer("a")
    train("a", "neither")
    answer("both", "neither", "a", "b")
    page.wait_for_selector("#done:visible")
    context.close()


def test_curation_by_keyboard(pictures, tmp_path, browser):
    """A wall with marks, a rubric, and captions; each in a study of its own. What was begun
    survives a reload, and a wall comes back as a whole with its marks.
    """
    problems, found = [], {}
    marked = "#grid [aria-pressed=true]"
    for stage, more in (
        ("recall", ()),
        ("precision", ("--select=key == 00.png|01.png", "--votes=1")),
        ("captions", ("--select=key == 00.png|01.png",)),
    ):
        place = ["folder/tiny", f"--stage={stage}", f"--data_dir={pictures}", "--no_serve", *more]
        assert main(["people", "curate", *place, f"--out={tmp_path / stage}"]) == 0
        running = Running(tmp_path / stage, ("anna",))
        with served(running.app) as url:
            context = browser.new_context(viewport={"width": 1200, "height": 900})
            page = open_page(context, problems)
            page.goto(f"{url}/a/{running.tokens['anna']}")
            page.wait_for_selector("#begin:visible")
            page.keyboard.press("Enter")
            if stage == "recall":
                page.wait_for_selector("#submit:enabled")
                for key in (
                    "x",
                    "ArrowRight",
                    "ArrowDown",
                    "Space",
                    "ArrowLeft",
                    "x",
                    "x",
                ):
                    page.keyboard.press(key)
                for again in ("F5", "u"):
                    if again == "F5":
                        page.reload()
                    else:
                        page.keyboard.press(again)
                    page.wait_for_selector("#submit:enabled")
                    assert page.locator(marked).count() == 2
                    assert page.locator("#grid button").count() == 24
                    page.set_viewport_size({"width": 360, "height": 740})
                    assert page.evaluate("document.documentElement.scrollWidth") <= 360
                    page.keyboard.press("Enter")
                    page.wait_for_selector("#done:visible")
            else:
                first = page.wait_for_function("() => document.querySelector('main').dataset.shown")
                first = first.json_value()
                again = "task => document.querySelector('main').dataset.shown !== task"
                if stage == "precision":
                    for key in ("1", "3", "3", "z", "l"):
                        page.keyboard.press(key)
                    page.set_viewport_size({"width": 360, "height": 740})
                    assert page.evaluate("document.documentElement.scrollWidth") <= 360
                    page.wait_for_function(again, arg=first)
                    page.keyboard.press("k")
                else:
                    page.keyboard.type("A disc; the keys u and k are letters here")
                    page.reload()
                    page.wait_for_function("() => document.querySelector('main').dataset.shown")
                    page.keyboard.press("Control+Enter")
                    page.wait_for_function(again, arg=first)
                    page.keyboard.type("Another")
                    page.locator("#captions button").click()
            page.wait_for_selector("#done:visible")
            context.close()
        found[stage] = [row.answer for row in answer_rows(running.store)]
    assert not problems
    assert Counter(found["recall"]) == {"bad": 2, "good": 22} and found["recall"][0] == "bad"
    assert found["precision"] == [
        {"keep": False, "faults": ["composition"]},
        {"keep": True, "faults": []},
    ]
    assert found["captions"] == [
        {"caption": "A disc; the keys u and k are letters here"},
        {"caption": "Another"},
    ]
