"""``kanoclip knowledge``: make a knowledge base by asking a language and a vision model, and show what one says."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.progress import track

from kanoclip.knowledge.base import STATES, KnowledgeBase, shipped
from kanoclip.knowledge.client import ChatClient, hide
from kanoclip.outputs.tables import print_table, word_table
from kanoclip.registry import NAMES, did_you_mean, load_class, resolve
from kanoclip.types import KanoclipError, counted, printable
from kanoclip.verbs.help import WIDTH
from kanoclip.verbs.say import folded

if TYPE_CHECKING:
    from kanoclip.data.base import AnomalyDataModule
    from kanoclip.knowledge.build import Outcome
    from kanoclip.knowledge.questions import Question

HELP = {"-h", "--help"}
SHOWN = 5  # failures that are printed one by one


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip knowledge``.

    Args:
        argv: As typed, such as ``["knowledge", "build", "--data", "mvtec"]``.

    Returns:
        0 done, 1 if something could not be answered, 130 interrupted.

    Raises:
        KanoclipError: A mistake of the caller.
    """
    action, *options = argv[1:]
    try:
        return _show(options) if action == "show" else _parse_and_build([_spelled(option) for option in options])
    except KeyboardInterrupt:
        print("kanoclip: interrupted; what is answered is kept, the same command goes on.", file=sys.stderr)
        return 130


def build(
    data: AnomalyDataModule,
    model: str | None = None,
    vqa_model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    output: str | None = None,
    questions: str | None = None,
    concurrency: PositiveInt = 4,
    retries: NonNegativeInt = 6,
    timeout: PositiveFloat = 120.0,
    stream: bool = False,
    dry_run: bool = False,
) -> int:
    """Ask what is not answered yet, and write what is known; returns 1 if something could not be answered.

    Args:
        data: Its categories and auxiliary images are asked about.
        model: Language model for general knowledge. Null: none is asked.
        vqa_model: Vision model for image-specific knowledge. Null: none is asked.
        base_url: Address of the server up to /v1. Null: OPENAI_BASE_URL, else OpenAI's.
        api_key: Better left to the environment's OPENAI_API_KEY: others see what is typed.
        output: YAML to write; runs/knowledge/NAME.yaml by default. The other files lie beside it.
        questions: Template of the questions. Null: the one that ships.
        concurrency: Questions on their way at the same time.
        retries: How often a question is asked again that the server could not answer just now.
        timeout: Seconds to wait for an answer.
        stream: Ask for answers in pieces.
        dry_run: Print the prompts and the number of calls, and ask nothing. A model need not be named.
    """
    from kanoclip.data.files import write_text
    from kanoclip.data.parsing import local_path
    from kanoclip.knowledge.build import ask_all, general_yaml, image_jsonl, is_open
    from kanoclip.knowledge.ledger import Ledger
    from kanoclip.knowledge.questions import Template, general_questions, image_questions

    path = local_path(output or f"runs/knowledge/{data.name}.yaml", "--output")
    if dry_run and not (model or vqa_model):
        model, vqa_model = "MODEL", "VQA_MODEL"  # what any would be asked
    if not (model or vqa_model):
        raise KanoclipError("--model should be a name, such as gpt-4o-mini; or --vqa_model.")
    if path.suffix not in (".yaml", ".yml"):
        raise KanoclipError("--output should be a file that ends in .yaml.")
    template = Template.load(questions)
    general = general_questions(template, model, data) if model else []
    of_images = []
    if vqa_model:
        of_images = image_questions(template, vqa_model, data, _track(data.part("fit"), "hashing"))
    ledger = Ledger(path.with_suffix(".answers.jsonl"))
    pending = [question for question in (*general, *of_images) if is_open(question, ledger)]
    before = len(general) + len(of_images) - len(pending)
    if dry_run:
        _print_prompts(pending)
        before_these = counted(before, "question is", "questions are")
        print(f"{counted(len(pending), 'call')}; {before_these} answered already. Nothing was asked.")
        return 0
    client = ChatClient(base_url, api_key, retries, timeout, stream)
    outcome = ask_all(pending, ledger, client, data.read, concurrency, lambda all, n: _track(all, "asking", n))
    incomplete, fit_with = bool(outcome.failed), ""
    if general:
        content, missing = general_yaml(general, ledger, template, data.name)
        write_text(path, content)
        print(f"general knowledge: {path}")
        fit_with += f" --model.knowledge {path}"
        if missing:
            print(f"Too little usable was said of: {', '.join(missing)}. Generic entries serve them.")
        incomplete |= bool(missing)
    if of_images:
        content, without = image_jsonl(of_images, ledger, template)
        write_text(path.with_suffix(".jsonl"), content)
        print(f"image-specific knowledge: {path.with_suffix('.jsonl')}")
        fit_with += f" --model.image_knowledge {path.with_suffix('.jsonl')}"
        if without:
            print(f"Nothing usable was said of {counted(without, 'image')}.")
        incomplete |= bool(without)
    print(f"raw answers: {ledger.path}")
    print(f"To read it while fitting: kanoclip fit --data {data.name} ...{fit_with}")
    _print_outcome(outcome, before)
    return int(incomplete)


def _parse_and_build(options: Sequence[str]) -> int:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--data", nargs="?")  # which other options there are depends on it
    found, rest = first.parse_known_args(options)
    name: str | None = found.data
    if not name and not HELP & set(rest):
        raise KanoclipError("Which data set? Add --data NAME. All names: kanoclip list data.")
    parser = ArgumentParser(prog=f"kanoclip knowledge build --data {name or 'NAME'}", exit_on_error=False)
    parser.description = (
        "Make a knowledge base of a data set. Questions that are answered are not asked again: after a stop, the same "
        "command goes on."
    )
    kind = load_class(resolve("data", name)) if name else None
    own = parser.add_function_arguments(build, skip={"data"})
    of_data = parser.add_class_arguments(kind) if kind else []
    if HELP & set(rest) or kind is None:
        parser.print_help()
        return 0
    try:
        chosen: dict[str, Any] = parser.parse_args(rest).as_dict()
    except argparse.ArgumentError as error:
        why = _refusal(error, rest, [*own, *of_data])
        raise KanoclipError(f"{why} Options: {parser.prog} --help") from error
    return build(kind(**{key: chosen[key] for key in of_data}), **{key: chosen[key] for key in own})


def _spelled(option: str) -> str:
    """Bring an option to one spelling: ``--data.root`` is ``--root``, ``--dry-run`` is ``--dry_run``."""
    if not option.startswith("--"):
        return option
    name, equals, value = option[2:].partition("=")
    return f"--{name.removeprefix('data.').replace('-', '_')}{equals}{os.path.expanduser(value)}"


def _refusal(error: argparse.ArgumentError, options: Sequence[str], known: Sequence[str]) -> str:
    """Say what the parser refused, without repeating a key."""
    said = re.sub(r'^Parser key "([\w.]+)"', r"--\1", " ".join(str(error).split())).rstrip(".")
    keys = [os.environ.get("OPENAI_API_KEY", "")]
    for option, following in zip(options, [*options[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if re.match("--?[a-z]", name) and name[2:].split(".")[0] not in known:  # a key may follow, if it is mistyped
            return f"Unknown option {name}.{did_you_mean(name, [f'--{one}' for one in known])}"
        keys.append((value or following) if name == "--api_key" else "")
    if "nrecognized arguments" in said:  # may be a key too
        return "A word stands without an option."
    return hide(said, *keys) + "."


def _print_prompts(questions: Iterable[Question]) -> None:
    prompts = Counter((question.model, question.sample is not None, question.text) for question in questions)
    for (model, image, text), count in prompts.items():
        print(f"[{model}, {count} {'images' if image else 'call' + 's' * (count > 1)}] {text}\n")


def _print_outcome(outcome: Outcome, before: int) -> None:
    told = [tokens for tokens in outcome.tokens if tokens]
    said = f"{sum(asked for asked, _ in told)} in questions, {sum(answer for _, answer in told)} in answers"
    if uncounted := len(outcome.tokens) - len(told):
        said = f"{said}, not told for {counted(uncounted, 'answer')}" if told else "not told"
    print(f"{counted(len(outcome.tokens), 'answer')}, {counted(before, 'question')} answered before. Tokens: {said}.")
    for text in outcome.failed[:SHOWN]:
        print(f"kanoclip: no answer: {printable(text)}", file=sys.stderr)
    if len(outcome.failed) > SHOWN:
        print(f"kanoclip: and {len(outcome.failed) - SHOWN} more.", file=sys.stderr)


def _track(items: Iterable[Any], title: str, total: int | None = None) -> Iterable[Any]:
    return track(items, title, total, console=Console(stderr=True), transient=True)


def _show(options: Sequence[str]) -> int:
    names = ", ".join(shipped())
    if HELP & set(options):
        what = f"kanoclip knowledge show NAME: a base, a data set, or a file (.yaml, .jsonl). Bases: {names}."
        print(folded(what, most=WIDTH))
        return 0
    if len(options) != 1:
        raise KanoclipError(f"Which one? Type: kanoclip knowledge show NAME, a data set, a file or one of {names}.")
    name = options[0]
    if name.endswith(".jsonl"):
        return _show_images(name)
    base = KnowledgeBase.for_data(name) if name in NAMES["data"] else KnowledgeBase.load(name)
    for key, value in ({"file": base.path, "data sets": ", ".join(base.data_sets) or "any"} | base.provenance).items():
        print(f"{printable(str(key))}: {printable(str(value))}")
    rows = [
        (printable(category) if state == STATES[0] else "", state, "\n".join(map(printable, entry[state])))
        for category, entry in {"generic": base.generic, **base.categories}.items()
        for state in STATES
    ]
    print_table(word_table(("category", "state", "texts"), rows))
    count = sum(len(texts) for entry in base.categories.values() for texts in entry.values())
    print(f"{counted(len(base.categories), 'category', 'categories')}, {counted(count, 'text')}.")
    return 0


def _show_images(name: str) -> int:
    from kanoclip.knowledge.images import load_image_entries

    entries = load_image_entries(name)
    headings, rows = ("image", "category", "state", "texts", "model", "date"), []
    for entry in entries:
        model = f"{entry.get('model', '?')} @ {entry.get('host', '?')}"
        cells = entry["image"][:12], entry.get("category", ""), entry["state"], model, entry.get("date", "")
        image, category, state, model, day = (printable(str(one)) for one in cells)
        rows.append((image, category, state, "\n".join(map(printable, entry["answers"])), model, day))
    print_table(word_table(headings, rows), word_table(headings, rows, ("model", "date")))
    texts = sum(len(entry["answers"]) for entry in entries)
    print(f"{counted(len(entries), 'image')}, {counted(texts, 'text')}.")
    return 0
