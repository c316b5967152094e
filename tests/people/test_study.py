"""A study through the pages that annotators and the lab use."""

import io
import json
import re
import threading
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select
from starlette.testclient import TestClient
from studies import PROMPTS, SYSTEMS, Person, Running, make, write_images

from emu_jax.cli.main import main
from emu_jax.errors import UserError
from emu_jax.people import tables
from emu_jax.people.access import Limit, add_annotators
from emu_jax.people.dealing import LOADED, deal
from emu_jax.people.images import decode
from emu_jax.people.questions import outcome, unswapped
from emu_jax.people.results import answer_rows, item_votes, missing_votes
from emu_jax.people.web import load_strings, make_app


@pytest.fixture
def running(tmp_path):
    return Running(
        make(
            tmp_path, "--appeal_votes=3", "--faithfulness_votes=2", "--checks=0.2", "--repeated=0.2"
        )
    )


def rows_of(store, table):
    with store.read() as connection:
        return connection.execute(select(table).order_by(table.c.id)).all()


def test_answers_mean_the_same_on_either_side():
    assert [outcome(a, False) for a in ("a", "b", "tie", "both", "neither")] == [-1, 1, 0, 0, 0]
    assert [outcome(a, True) for a in ("a", "b", "tie", "both", "neither")] == [1, -1, 0, 0, 0]
    assert unswapped("neither", True) == "neither" and unswapped("a", True) == "b"


def test_a_whole_study_gives_every_pair_its_votes(running):
    people = {name: running.person(name) for name in running.tokens}
    orders, questions = {}, {}
    for name, person in people.items():
        seen = person.finish(lambda task: "a")
        orders[name] = [task["id"] for task in seen]
        questions[name] = [task["question"] for task in seen]
        # The prompt is hidden in the one question and shown in the other, which comes last.
        assert all((task["prompt"] is None) == (task["question"] == "appeal") for task in seen)
        assert questions[name] == sorted(questions[name])
        state = person.state()
        assert state["tasks"] == [] and state["done"] == state["total"] == len(seen)
        assert state["seconds"] == 0
    rows = answer_rows(running.store)
    votes = Counter((row.question, row.prompt) for row in rows if row.counts)
    assert set(votes.values()) == {3, 2} and len(votes) == 2 * len(PROMPTS)
    assert {row.shown[0] for row in rows if row.counts} == {
        model.name for model in rows_of(running.store, tables.models)
    }  # sides are swapped for some
    assert sum(row.role == "gold" for row in rows) >= 1
    client, page = running.lab()
    assert f"{len(PROMPTS)} with 3 votes" in page and f"0 of {2 * len(PROMPTS)}" in page
    of_pairs = client.get("/lab/items").text
    assert of_pairs.count("3 of 3") == of_pairs.count("2 of 2") == len(PROMPTS)
    assert "&lt;b&gt;a &#34;blue&#34; disc" in of_pairs
    of_annotator = defaultdict(list)
    for row in rows:
        if row.role == "study" and not row.repeated and row.question == "appeal":
            of_annotator[row.annotator].append(row.prompt)
    assert len({tuple(order) for order in of_annotator.values()}) == 3  # an order for each
    assert all(len(set(order)) == len(order) for order in of_annotator.values())


def test_an_answer_is_counted_once_however_often_it_is_sent(running):
    person = running.person("anna")
    task = person.state()["tasks"][0]["id"]
    replies = []
    sending = [
        threading.Thread(target=lambda: replies.append(person.answer(task, "a", "the same key")))
        for _ in range(4)
    ]
    for thread in sending:
        thread.start()
    for thread in sending:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 4
    assert person.answer(task, "b", "another tab").status_code == 200  # the first one counts
    assert [row.answer for row in answer_rows(running.store)] == ["a"]
    assert person.client.post("/undo", json={}, headers=person.headers).status_code == 200
    assert person.state()["tasks"][0]["id"] == task and answer_rows(running.store) == []
    # A late copy of the undone answer is acknowledged, and counts no more.
    assert person.answer(task, "a", "the same key").status_code == 200
    assert answer_rows(running.store) == []
    assert person.answer(task, "b", "the second try").status_code == 200
    assert [row.answer for row in answer_rows(running.store)] == ["b"]


def test_training_answers_are_commented_and_checks_are_not(running):
    person, judged = running.person("anna"), []
    state = person.state()
    while state["tasks"] and state["tasks"][0]["question"] == "appeal":
        task = state["tasks"][0]
        reply = person.answer(task["id"], "a").json()
        judged.append((task["training"], reply["right"]))
        assert reply["right"] == ("a" in reply["expected"] if task["training"] else None)
        state = reply["state"]
    assert [training for training, _ in judged[:2]] == [True, True]
    assert all(isinstance(right, bool) for training, right in judged if training)
    assert all(right is None for training, right in judged if not training)
    with running.store.read() as connection:
        gold = connection.execute(
            select(tables.items.c.expected).where(tables.items.c.role == "gold")
        )
        assert all(right in (["a"], ["a", "neither"]) for (right,) in gold)


def test_what_is_served_says_nothing_of_the_models(running, tmp_path):
    """HTML, scripts, URLs, headers and image bytes of all that an annotator can reach."""
    person = running.person("anna")
    seen, sizes = [], set()
    files = [row.file for row in rows_of(running.store, tables.images)]
    secrets = [*SYSTEMS, "metadata.jsonl", str(tmp_path), *files]
    secrets += [file.removesuffix(".png") for file in files]
    responses = [person.client.get(path) for path in ("/", "/people.css", "/compare.js")]
    responses.append(person.client.get("/state", headers=person.headers))
    state = person.state()
    while state["tasks"]:
        task = state["tasks"][0]
        assert set(task) == {"id", "question", "training", "prompt"}
        assert re.fullmatch(r"[0-9a-f]{32}", task["id"])
        for side in "ab":
            image = person.client.get(f"/image/{task['id']}/{side}")
            assert image.headers["content-type"] == "image/png"
            chunks = [name for name in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME", b"iCCP")]
            assert not any(chunk in image.content for chunk in chunks)
            with Image.open(io.BytesIO(image.content)) as opened:
                assert opened.info == {} and opened.mode == "RGB"
                sizes.add(opened.size)
            responses.append(image)
        reply = person.answer(task["id"], "b")
        responses.append(reply)
        seen.append(task["id"])
        state = reply.json()["state"]
    assert len(seen) > 2 * len(PROMPTS) and sizes == {(48, 48)}
    for response in responses:
        said = f"{response.url} {dict(response.headers)}".encode() + response.content
        assert not [secret for secret in secrets if secret.encode() in said]
        assert not {"last-modified", "etag", "server"} & set(response.headers)
    # Another annotator's tasks are no path to the images.
    other = running.person("ben")
    assert other.client.get(f"/image/{seen[0]}/a").status_code == 404
    assert other.answer(seen[0], "a").status_code == 404


def test_pages_are_closed_to_everyone_else(running):
    anonymous = TestClient(running.app, follow_redirects=False)
    assert anonymous.get("/").status_code == 403
    for path in ("/state", "/image/x/a"):
        assert anonymous.get(path).status_code == 401
    assert anonymous.get("/lab").status_code == anonymous.get("/lab/answers.csv").status_code == 403
    assert anonymous.get("/a/wrong").status_code == anonymous.get("/lab/enter/wrong").status_code
    assert anonymous.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert anonymous.get("/image/../../study.sqlite/a").status_code == 404
    for _ in range(30):  # guessing is slow
        last = anonymous.get("/a/wrong").status_code
    assert last == 429

    person = running.person("anna")
    cookie = person.client.get(f"/a/{running.tokens['anna']}", follow_redirects=False)
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.headers["set-cookie"].split("; "))
    assert person.client.get("/lab").status_code == 403
    task = person.state()["tasks"][0]["id"]
    sent = {"task": task, "answer": "a", "key": "long enough", "seconds": 1}
    for headers in (
        {},
        {"X-CSRF-Token": "0" * 64},
        {b"X-CSRF-Token": "é".encode()},
    ):
        assert person.client.post("/answer", json=sent, headers=headers).status_code == 403
        assert person.client.post("/undo", json={}, headers=headers).status_code == 403
    wrong = [
        {**sent, "answer": "both"},
        {**sent, "answer": None},
        {**sent, "key": "short"},
        {**sent, "seconds": -1},
        {**sent, "seconds": "1"},
        {},
    ]
    for body in wrong:
        assert person.client.post("/answer", json=body, headers=person.headers).status_code == 400
    for content in (b"{", b'{"seconds": NaN}', b"[" * 60_000):
        reply = person.client.post("/answer", content=content, headers=person.headers)
        assert reply.status_code == 400
    huge = person.client.post("/answer", content=b" " * 70_000, headers=person.headers)
    assert huge.status_code == 413
    assert answer_rows(running.store) == []
    policy = person.client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert person.client.get("/").headers["cache-control"] == "no-store"


def test_markup_in_prompts_and_names_is_text(running):
    person = running.person("anna")
    assert "<script>" not in person.page and "style=" not in person.page  # the policy forbids them
    client, page = running.lab()
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    added = client.post("/lab/add", data={"csrf": csrf, "names": "<i>eve</i>\ndora"})
    assert "&lt;i&gt;eve&lt;/i&gt;" in added.text and "<i>eve" not in added.text
    assert len(re.findall(r"http://x/a/[\w-]{22}<", added.text)) == 2
    again = client.post("/lab/add", data={"csrf": csrf, "names": "dora"})
    assert "already" in again.text
    assert client.post("/lab/add", data={"csrf": "0", "names": "fred"}).status_code == 403


def test_another_language_is_a_file(running, tmp_path):
    """All that a page shows, and all that it reads out, is from the file or in English."""
    english = load_strings("en")

    def translated(text):
        if isinstance(text, str):
            return f"«{text.upper()}»"
        pairs = text.items() if isinstance(text, dict) else enumerate(text)
        found = {name: translated(one) for name, one in pairs}
        return found if isinstance(text, dict) else list(found.values())

    own = {**translated(english), "lang": "he", "dir": "rtl"}
    del own["undo"], own["captions"]["save"]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(own))
    strings = load_strings(str(file))
    assert strings["undo"] == "Undo" and strings["captions"]["save"] == "Save"
    for kind in ("compare", "precision"):
        app = make_app(running.store, {**strings, "undo": "«"}, ("testserver",))
        app.state.site.kind = kind
        page = Person(app, running.tokens["anna"]).page
        assert '<html lang="he" dir="rtl">' in page
        said = re.findall(r'(?:alt|title|aria-label)="([^"]+)"', page)
        plain = re.sub(r"<kbd>.*?</kbd>|<main[^>]*>|<!doctype html>", "", page)
        said += [text.strip() for text in re.findall(r">([^<]+)<", plain) if text.strip()]
        assert len(said) > 10
        assert {text for text in said if "«" not in text} <= {"A", "B", "Save"}
    for wrong in ('{"undo": 1}', '{"unknown": "x"}', '{"recall": {"keys": []}}', "[]", "{"):
        file.write_text(wrong)
        with pytest.raises(UserError, match="does not have the form"):
            load_strings(str(file))
    with pytest.raises(UserError, match="no language"):
        load_strings("../strings/en")


def test_the_lab_stops_and_leaves_out_annotators(running):
    client, page = running.lab()
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    store = running.store
    for name in ("anna", "ben"):
        running.person(name).finish(lambda task: "a")

    def press(action, number):
        data = {"csrf": csrf, "action": action}
        return client.post(f"/lab/annotator/{number}", data=data)

    before = missing_votes(item_votes(store, answer_rows(store)))
    assert press("leave_out", 1).status_code == 200
    assert sum(missing_votes(item_votes(store, answer_rows(store))).values()) > sum(before.values())
    left_out = running.person("anna").state()
    assert left_out["stopped"] and left_out["tasks"] == []
    press("count", 1)
    assert missing_votes(item_votes(store, answer_rows(store))) == before
    press("stop", 3)  # chris has not begun: the work goes to whoever is added
    (token,) = add_annotators(store, ["dora"]).values()
    assert deal(store) == 0
    for person in (running.person("anna"), running.person("ben"), Person(running.app, token)):
        person.finish(lambda task: "b")
    assert set(missing_votes(item_votes(store, answer_rows(store))).values()) == {0}
    page = press("renew", 1).text
    assert TestClient(running.app).get(f"/a/{running.tokens['anna']}").status_code == 403
    new = re.search(r"http://x(/a/[\w-]+)<", page)
    assert TestClient(running.app).get(new[1]).status_code == 200
    assert press("explode", 1).status_code == 400


def test_dealing_again_keeps_what_a_browser_has_loaded(running):
    person = running.person("anna")
    loaded = [task["id"] for task in person.state()["tasks"]]
    add_annotators(running.store, ["dora", "emil"])
    deal(running.store)
    assert [task["id"] for task in person.state()["tasks"]] == loaded
    open_tasks = Counter(task.annotator for task in rows_of(running.store, tables.tasks))
    assert open_tasks[1] >= LOADED and len(open_tasks) == 5
    votes = Counter()
    with running.store.read() as connection:
        items, tasks = tables.items, tables.tasks
        query = select(items.c.id, items.c.votes, tasks.c.repeated).join(
            tasks, tasks.c.item == items.c.id
        )
        for item, wanted, repeated in connection.execute(query.where(items.c.role == "study")):
            votes[item] += not repeated
            assert votes[item] <= wanted
    assert sum(votes.values()) == len(PROMPTS) * (3 + 2)


def test_too_few_annotators_are_reported(tmp_path, capsys):
    study = make(tmp_path)
    assert main(["people", "add", str(study), "anna", "ben"]) == 0
    said = capsys.readouterr().out
    missing = len(PROMPTS) * (5 - 2 + 3 - 2)
    assert f"{missing} votes have no annotator" in said
    assert len(re.findall(r"^(?:anna|ben): http://127.0.0.1:8321/a/[\w-]{22}$", said, re.M)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / SYSTEMS[0] / f"{SYSTEMS[0]}_0.png").unlink(), "names tuned_secret_0"),
        (
            lambda root: Image.new("RGB", (8, 8)).save(root / SYSTEMS[0] / f"{SYSTEMS[0]}_0.png"),
            "size",
        ),
        (
            lambda root: (root / SYSTEMS[0] / f"{SYSTEMS[0]}_0.png").write_bytes(b"x"),
            "cannot be used",
        ),
        (lambda root: (root / SYSTEMS[0] / "metadata.jsonl").write_text(""), "cannot be|order"),
    ],
)
def test_folders_that_do_not_fit_are_refused(change, message, tmp_path, capsys):
    write_images(tmp_path)
    change(tmp_path)
    table = tmp_path / "prompts.txt"
    table.write_text("\n".join(prompt for prompt, _ in PROMPTS[:-1]))
    systems = [str(tmp_path / name) for name in SYSTEMS]
    arguments = ["people", "compare", *systems, f"--prompts={table}", "--no_serve"]
    assert main([*arguments, f"--out={tmp_path / 'study'}"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_interrupted_study_is_completed_and_a_complete_one_is_kept(tmp_path, capsys):
    study = make(tmp_path, "--count=3")
    table = tmp_path / "prompts.tsv"
    systems = [str(tmp_path / name) for name in SYSTEMS]
    arguments = ["people", "compare", *systems, f"--prompts={table}", f"--out={study}"]
    assert main([*arguments, "--no_serve", "--count=3"]) == 2
    assert "has a study already" in capsys.readouterr().err
    other = tmp_path / "other"
    broken = tmp_path / SYSTEMS[1] / f"{SYSTEMS[1]}_4.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    arguments[-1] = f"--out={other}"
    assert main([*arguments, "--no_serve"]) == 2
    assert main(["people", "report", str(other)]) == 2
    assert "not complete" in capsys.readouterr().err
    before = {path.name for path in (other / "images").iterdir()}
    broken.write_bytes(whole)
    assert main([*arguments, "--no_serve", "--seed=1"]) == 2
    assert main([*arguments, "--no_serve"]) == 0
    assert before < {path.name for path in (other / "images").iterdir()}


def test_a_limit_lets_through_what_it_promises():
    limit = Limit(rate=1, burst=3, clients=2)
    assert [limit.allows("x", now=0.0) for _ in range(4)] == [True] * 3 + [False]
    assert limit.allows("y", now=0.0) and not limit.allows("x", now=0.5)
    assert limit.allows("x", now=2.0)
    assert json.dumps(len(limit._buckets)) == "2"


def test_models_draw_the_images_of_compare(generator_run, tmp_path, monkeypatch):
    """The first prompt's noise has the seed, the next one's the seed after it, for each model."""
    from emu_jax.assembly import cascade

    # Each model is compiled once: for the study and for what it is compared with.
    opened, real = {}, cascade.open_generator

    def open_generator(name, **changes):
        assert changes["steps"] == 2
        opened[name] = real(name, **changes)
        return opened[name]

    monkeypatch.setattr(cascade, "open_generator", open_generator)
    texts = ["a red disc", "a blue disc"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    models = [f"{generator_run}@2", f"{generator_run}@4"]
    arguments = [*models, f"--prompts={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 'study'}"]
    more = ("--steps=2", "--seed=5", "--no_training", "--checks=0", "--no_serve")
    assert main(["people", "compare", *arguments, *more]) == 0
    running = Running(tmp_path / "study", ())
    images = {(row.model, row.prompt): row for row in rows_of(running.store, tables.images)}
    assert len(images) == 4
    for number, model in enumerate(models, start=1):
        drawn = opened[model].draw_each(texts, [5, 6])
        for prompt, pixels in enumerate(drawn, start=1):
            file = running.store.image(images[number, prompt].file)
            assert np.array_equal(decode(file.read_bytes()), pixels)
