"""`kanoclip knowledge build` against a server of this machine: what is asked, kept, asked again, and never written."""

import base64
import hashlib
import io
import json
import re
import time

import pytest
import yaml
from chat_server import KEY, failed, said
from layouts import LAYOUTS, write
from PIL import Image

from kanoclip.knowledge import build
from kanoclip.knowledge.base import KnowledgeBase
from kanoclip.knowledge.images import load_image_knowledge
from kanoclip.verbs import table as __main__

NORMAL = ["smooth fur of one color", "two pointed ears of one size", "a long tail of even width", "round clear eyes"]
ANOMALOUS = ["a bald patch on the back", "a torn left ear tip", "a knot of mud in the tail", "a cloudy right eye"]
SEEN = ["a brown blotch on the left flank"]


def talk(number, request):
    content = request["messages"][0]["content"]
    if not isinstance(content, str):
        return said(json.dumps(SEEN))
    return said(json.dumps(NORMAL if "flawless" in content else ANOMALOUS))


@pytest.fixture
def cats(tmp_path, server):
    """Run `build` on a tiny MVTec AD: one category, two normal and two anomalous test images."""
    write(tmp_path, LAYOUTS["mvtec"].files)
    server.plan = talk

    def run(*options):
        where = ["--data.root", str(tmp_path), "--base_url", server.url, "--output", str(tmp_path / "out/cats.yaml")]
        return __main__.main(["knowledge", "build", "--data", "mvtec", *where, *options])

    run.base, run.images, run.raw = (tmp_path / f"out/cats{end}" for end in (".yaml", ".jsonl", ".answers.jsonl"))
    return run


BOTH = ("--model", "talker", "--vqa_model", "seer")


def test_both_kinds_of_knowledge_are_asked_for_and_kept_with_their_provenance(cats, server, capsys) -> None:
    assert cats(*BOTH) == 0
    # the states of the category and of the generic one; one question to a normal image, two to an anomalous one
    assert len(server.requests) == 4 + 2 * 1 + 2 * 2
    assert {request["model"] for request in server.requests} == {"talker", "seer"}
    base = KnowledgeBase.load(str(cats.base))
    assert base.data_sets == ("mvtec",)
    assert base.categories == {"cat": {"normal": NORMAL, "anomalous": ANOMALOUS}}
    assert base.generic == {"normal": NORMAL, "anomalous": ANOMALOUS}
    assert base.provenance["model"] == "talker"
    assert base.provenance["host"] == server.host
    assert base.provenance["prompt_version"] == "1"
    assert base.provenance["date"] == time.strftime("%Y-%m-%d")
    assert "{category}" in base.provenance["prompt"]["anomalous"]
    lines = [json.loads(line) for line in cats.images.read_text().splitlines()]
    assert sorted(line["state"] for line in lines) == ["anomalous", "anomalous", "normal", "normal"]
    assert all((line["category"], line["answers"], line["model"]) == ("cat", SEEN, "seer") for line in lines)
    files = [path for path in (cats.base.parents[1] / "mvtec/cat/test").rglob("*") if path.is_file()]
    assert {line["image"] for line in lines} == {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert set(load_image_knowledge(cats.images)) == {x["image"] for x in lines if x["state"] == "anomalous"}
    told = capsys.readouterr().out
    assert "10 answers, 0 questions answered before. Tokens: 100 in questions, 50 in answers." in told
    assert f"kanoclip fit --data mvtec ... --model.knowledge {cats.base} --model.image_knowledge {cats.images}" in told


def test_no_name_of_a_defect_is_told_to_a_model(cats, server) -> None:
    cats(*BOTH)
    for question in server.questions:
        assert "bad" not in question
        assert "mvtec" not in question.lower()
        assert "{" not in question


def test_an_image_is_sent_as_a_small_jpeg(tmp_path, server, cats) -> None:
    large = tmp_path / "mvtec/cat/test/bad/000.png"
    mask = tmp_path / "mvtec/cat/ground_truth/bad/000_mask.png"
    for path in (large, mask):
        Image.open(path).resize((1200, 900)).save(path)
    cats("--vqa_model", "seer")
    urls = [request["messages"][0]["content"][1]["image_url"]["url"] for request in server.requests]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    sizes = {Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls}
    assert sizes == {(512, 384), (32, 24)}
    assert not cats.base.exists()  # no language model was asked


def test_what_is_answered_is_not_asked_again(cats, server, capsys) -> None:
    cats(*BOTH)
    first = cats.base.read_text(), cats.images.read_text()
    assert cats(*BOTH) == 0
    assert len(server.requests) == 10
    assert (cats.base.read_text(), cats.images.read_text()) == first
    assert "0 answers, 10 questions answered before." in capsys.readouterr().out
    cats("--model", "another")
    assert len(server.requests) == 14


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_after_a_stop_only_the_rest_is_asked(cats, server, monkeypatch, stop) -> None:
    add, count = build.Ledger.add, [0]

    def add_four(*arguments):
        if count[0] == 4:
            raise stop
        count[0] += 1
        add(*arguments)

    monkeypatch.setattr(build.Ledger, "add", add_four)
    if stop is KeyboardInterrupt:
        assert cats(*BOTH, "--concurrency", "1") == 130
    else:
        with pytest.raises(stop):
            cats(*BOTH, "--concurrency", "1")
    assert len(cats.raw.read_text().splitlines()) == 4
    assert not cats.base.exists()
    kept = server.questions[:4]
    monkeypatch.setattr(build.Ledger, "add", add)
    server.requests.clear()
    assert cats(*BOTH) == 0
    assert len(server.requests) == 6
    assert not set(kept) & {q for q, r in zip(server.questions, server.requests, strict=True) if r["model"] == "talker"}
    assert KnowledgeBase.load(str(cats.base)).categories["cat"]["normal"] == NORMAL


def test_a_line_that_was_cut_off_is_asked_again(cats, server) -> None:
    cats(*BOTH)
    raw = cats.raw.read_bytes()
    cats.raw.write_bytes(raw[:-20])
    assert cats(*BOTH) == 0
    assert len(server.requests) == 11
    lines = cats.raw.read_bytes().splitlines()
    assert len(lines) == 11  # the broken one stays, on a line of its own
    assert json.loads(lines[-1])["answer"] == json.loads(raw.splitlines()[-1])["answer"]


def test_a_dry_run_prints_prompts_and_calls_and_asks_and_writes_nothing(cats, server, capsys) -> None:
    assert cats(*BOTH, "--dry_run", "true") == 0
    told = capsys.readouterr().out
    assert server.requests == []
    assert not cats.base.parent.exists()
    assert "[talker, 1 call] You look at industrial images of this subject: cat." in told
    assert told.count("[seer, 2 images] The subject of this industrial image is: cat.") == 3
    assert "10 calls; 0 questions are answered already. Nothing was asked." in told
    cats("--model", "talker")
    assert cats(*BOTH, "--dry_run", "true") == 0
    assert "6 calls; 4 questions are answered already." in capsys.readouterr().out


def test_a_dry_run_needs_no_key(cats, capsys) -> None:
    assert cats("--base_url", "null", "--model", "gpt", "--dry_run", "true") == 0
    assert cats("--base_url", "null", "--model", "gpt") == 2
    assert "No key for api.openai.com" in capsys.readouterr().err


def test_the_limit_is_of_images_of_a_category(cats, server) -> None:
    assert cats("--vqa_model", "seer", "--limit", "1") == 0
    assert len(cats.images.read_text().splitlines()) == 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_questions_are_on_their_way_than_allowed(cats, server, concurrency) -> None:
    def slow(number, request):
        time.sleep(0.05)
        return talk(number, request)

    server.plan = slow
    cats(*BOTH, "--concurrency", str(concurrency))
    assert server.busiest == concurrency


def test_lies_are_asked_again_a_few_times_and_then_left_out(cats, server, capsys) -> None:
    lies = ["I'm sorry, I can't help with that.", "[]", " ".join(["crack"] * 200), '["une bouteille avec une fissure"]']

    def lie(number, request):
        content = request["messages"][0]["content"]
        generic = "flawless object" in content or "made object" in content
        return talk(number, request) if generic else said(lies[number % 4])

    server.plan = lie
    assert cats(*BOTH) == 1
    assert len(server.requests) == 2 + 3 * (2 + 2 + 4)
    assert KnowledgeBase.load(str(cats.base)).categories == {}
    assert cats.images.read_text() == ""
    told = capsys.readouterr().out
    assert "Too little usable was said of: cat. Generic entries serve them." in told
    assert "Nothing usable was said of 4 images." in told
    server.requests.clear()
    assert cats(*BOTH) == 1
    assert server.requests == []


def test_a_second_answer_adds_to_a_first_that_was_too_short(cats, server) -> None:
    def little_by_little(number, request):
        texts = NORMAL if "flawless" in request["messages"][0]["content"] else ANOMALOUS
        asked_before = server.questions.count(request["messages"][0]["content"]) > 1
        return said(json.dumps(texts[1:] if asked_before else [texts[0], *texts[:2]]))

    server.plan = little_by_little
    assert cats("--model", "talker", "--concurrency", "1") == 0
    assert len(server.requests) == 8
    assert KnowledgeBase.load(str(cats.base)).categories["cat"] == {"normal": NORMAL, "anomalous": ANOMALOUS}


def test_a_model_that_says_nothing_of_any_object_is_an_error_that_names_the_answers(cats, server, capsys) -> None:
    server.plan = lambda number, request: said("")
    assert cats("--model", "talker") == 2
    assert f"talker said nothing usable. Read its answers: {cats.raw}" in capsys.readouterr().err
    assert not cats.base.exists()


def test_what_is_said_of_both_states_teaches_nothing(cats, server) -> None:
    both = "a cat with four legs"
    server.plan = lambda n, r: said(
        json.dumps([both, *(NORMAL if "flawless" in r["messages"][0]["content"] else ANOMALOUS)])
    )
    cats("--model", "talker")
    assert both not in cats.base.read_text()


def test_limits_and_failures_are_survived(cats, server) -> None:
    def stumble(number, request):
        replies = {0: failed(429, Retry_After="0.1"), 3: failed(500), 5: failed(503)}
        return replies.get(number) or talk(number, request)

    server.plan = stumble
    assert cats(*BOTH, "--concurrency", "1") == 0
    assert len(server.requests) == 13


def test_one_question_that_is_refused_stops_no_other(cats, server, capsys) -> None:
    server.plan = lambda n, r: failed(400, "not this one") if n == 5 else talk(n, r)
    assert cats(*BOTH, "--concurrency", "1") == 1
    assert len(server.requests) == 10
    told = capsys.readouterr()
    assert "refuses the question: 400 not this one" in told.err
    assert "9 answers" in told.out
    assert cats(*BOTH) == 0  # and is asked again by the next run
    assert len(server.requests) == 11


def test_five_failures_in_a_row_end_it(cats, server, capsys) -> None:
    server.plan = lambda n, r: talk(n, r) if n < 4 else failed(500, "out of memory")
    assert cats(*BOTH, "--concurrency", "1", "--retries", "0") == 2
    assert len(server.requests) == 9
    assert "5 questions in a row have no answer." in capsys.readouterr().err


def test_refused_questions_in_a_row_end_nothing_and_are_told(cats, server, capsys) -> None:
    server.plan = lambda n, r: talk(n, r) if n < 4 else failed(400, "this model sees no images")
    assert cats(*BOTH, "--concurrency", "1") == 1
    assert len(server.requests) == 10
    assert cats.base.exists()
    assert "refuses the question: 400 this model sees no images" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_told_and_the_others_are_asked(cats, tmp_path, server, capsys) -> None:
    (tmp_path / "mvtec/cat/test/good/000.png").write_bytes(b"no image")
    assert cats("--vqa_model", "seer") == 1
    assert len(cats.images.read_text().splitlines()) == 3
    assert "good/000.png: it is not an image" in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "told"), [(None, "Tokens: not told."), ((1, 2), "30 in questions, 11 in answers")])
def test_tokens_are_told_as_far_as_the_server_tells_them(cats, server, capsys, tokens, told) -> None:
    def some(number, request):
        status, headers, content = talk(number, request)
        reply = json.loads(content)
        if number or tokens is None:
            del reply["usage"]
        if number == 1 and tokens:
            reply["usage"] = {"prompt_tokens": 20, "completion_tokens": 6}
        return status, headers, json.dumps(reply).encode()

    server.plan = some
    cats("--model", "talker", "--concurrency", "1")
    said_then = capsys.readouterr().out
    assert told in said_then
    assert ("not told for 2 answers" in said_then) == (tokens is not None)


@pytest.mark.parametrize("reply", [None, failed(401, f"Incorrect API key provided: {KEY}"), failed(500, KEY)])
@pytest.mark.parametrize("typed", ["--api_key", "--api-key", ""])
def test_the_key_is_in_no_file_and_no_output(cats, server, tmp_path, capsys, monkeypatch, reply, typed) -> None:
    def echo(number, request):
        status, headers, content = talk(number, request)
        return reply or (status, headers, content.replace(b"patch", KEY.encode()))

    server.plan = echo
    if not typed:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
    cats(*BOTH, *([typed, KEY] if typed else []))
    assert all(request["key"] == f"Bearer {KEY}" for request in server.requests)
    told = capsys.readouterr()
    assert KEY not in told.out + told.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert cats.raw.exists() == (reply is None)


@pytest.mark.parametrize("options", [["--api_kye", KEY], [f"--key={KEY}"], ["--timeout", KEY, "--api_key", KEY]])
def test_a_refused_command_line_does_not_repeat_the_key(cats, capsys, options) -> None:
    assert cats("--model", "talker", *options) == 2
    told = capsys.readouterr()
    assert "kanoclip: error: " in told.err
    assert KEY not in told.out + told.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model should be a name"),
        (["--model", "m", "--output", "here.json"], "--output should be a file that ends in .yaml"),
        (["--model", "m", "--concurrency", "0"], "--concurrency: Not of type PositiveInt: 0 does not conform"),
        (["--model", "m", "--retries", "-1"], "--retries: Not of type NonNegativeInt: -1 does not conform"),
        (["--model", "m", "--timeout", "0"], "--timeout: Not of type PositiveFloat: 0 does not conform"),
        (["--model", "m", "--questions", "nowhere.yaml"], "No file of questions nowhere.yaml"),
        (["--model", "m", "--category", "dog"], "Unknown category 'dog'"),
        (["--model", "m", "--root", "/nowhere"], "No MVTec AD at"),
        (["--model", "m", "--base_url", "localhost"], "The base URL is no address"),
        (
            ["--model", "m", "--wings=2"],
            "Unknown option --wings. Options: kanoclip knowledge build --data mvtec --help",
        ),
        (["--modle", "m"], "Unknown option --modle. Did you mean '--model'? Options: kanoclip"),
        (["--model", "m", "n"], "A word stands without an option. Options: kanoclip"),
        (["--model", "m", "--timeout", "soon"], "could not convert string to float: 'soon'"),
        (["--model", "m", "--output", "/dev/null/out.yaml"], "Choose another place with --output"),
    ],
)
def test_a_mistake_is_one_line(cats, capsys, options, message) -> None:
    assert cats(*options) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1


def test_a_server_that_is_not_there_is_one_line(cats, server, capsys) -> None:
    server.http.server_close()
    assert cats(*BOTH) == 2
    told = capsys.readouterr().err.strip()
    assert re.fullmatch(
        rf"kanoclip: error: No server answers at {server.host} \(.*\)\. Start it, or set --base_url\.", told
    )


def test_ones_own_questions_are_asked(cats, server, tmp_path) -> None:
    mine = {"version": "mine", "count": {"general": 4, "image": 1}, "answer": "Give {count}.", "generic": "thing"}
    mine |= {"general": {"normal": "A flawless {category}?", "anomalous": "A bad {category}?"}}
    mine |= {"image": {"normal": [], "anomalous": ["Where on the {category}?"]}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(mine))
    assert cats(*BOTH, "--questions", str(file)) == 0
    assert sorted(server.questions) == [
        "A bad cat? Give 4.", "A bad thing? Give 4.", "A flawless cat? Give 4.", "A flawless thing? Give 4.",
        "Where on the cat? Give 1.", "Where on the cat? Give 1.",
    ]  # fmt: skip
    assert KnowledgeBase.load(str(cats.base)).provenance["prompt_version"] == "mine"


def test_drawn_images_are_known_by_their_pixels(server, tmp_path) -> None:
    server.plan = talk
    options = ["--data", "surfaces_auxiliary", "--category", "ring", "--limit", "2", "--vqa_model", "seer"]
    where = ["--base_url", server.url, "--output", str(tmp_path / "drawn.yaml")]
    assert __main__.main(["knowledge", "build", *options, *where]) == 0
    assert len({json.loads(line)["image"] for line in (tmp_path / "drawn.jsonl").read_text().splitlines()}) == 2


def test_images_without_labels_cannot_be_asked_about(server, tmp_path, capsys) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    options = ["--data", "folder", "--root", str(tmp_path), "--output", str(tmp_path / "out.yaml")]
    assert __main__.main(["knowledge", "build", *options, "--base_url", server.url, "--vqa_model", "seer"]) == 2
    assert "one.png has no label" in capsys.readouterr().err


def test_a_refused_key_is_told_once_whatever_the_others_were_doing(cats, server, capsys) -> None:
    server.plan = lambda number, request: failed(401, "who are you")
    assert cats(*BOTH, "--concurrency", "8") == 2
    assert len(server.requests) <= 8
    assert "refuses the key: who are you" in capsys.readouterr().err
