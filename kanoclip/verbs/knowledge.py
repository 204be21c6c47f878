"""``kanoclip knowledge``: make a knowledge base by asking a language and a vision model, and show what one says."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kanoclip.knowledge.base import STATES, KnowledgeBase, shipped
from kanoclip.knowledge.client import ChatClient, ChatError, cut_out
from kanoclip.outputs.tables import print_table
from kanoclip.registry import NAMES, UnknownNameError, load_class, resolve
from kanoclip.types import KanoclipError
from kanoclip.verbs.say import complain

if TYPE_CHECKING:
    from kanoclip.knowledge.questions import Question

SHOWN = 5  # failures that are told one by one


def main(argv: Sequence[str]) -> int:
    """Run ``kanoclip knowledge``; returns 0, 1 if something is missing, 2 for the caller's mistake, 130 interrupted."""
    options = [option.replace("--data.", "--", 1) for option in argv[1:]]  # the data set's, with and without prefix
    action, *rest = options
    try:
        return _show(rest) if action == "show" else _build(rest)
    except BrokenPipeError:  # `| head` has read enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UnknownNameError, ChatError, ValueError, OSError) as error:
        return complain(_without_keys(str(error), rest))
    except KeyboardInterrupt:
        print("kanoclip: interrupted; what is answered is kept, the same command goes on.", file=sys.stderr)
        return 130


def _build(options: Sequence[str]) -> int:
    name, rest = _data_option(options)
    if name is None:
        if "--help" in options or "-h" in options:
            _parser(None).print_help()
            return 0
        raise KanoclipError(f"Which data set? Add --data NAME, one of {', '.join(NAMES['data'])}.")
    kind = load_class(resolve("data", name))
    parser = _parser(kind, name)
    try:
        chosen: dict[str, Any] = parser.parse_args(rest).as_dict()
    except argparse.ArgumentError as error:
        raise KanoclipError(f"{_refusal(error)}. Options: {parser.prog} --data {name} --help") from error
    own = {key: chosen.pop(key) for key in OWN}
    return _ask(kind(**chosen), **own)


def _data_option(options: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take ``--data NAME`` out: which other options there are depends on it."""
    name, rest = None, list(options)
    for place, option in enumerate(rest):
        if option.startswith("--data="):
            return option.partition("=")[2], rest[:place] + rest[place + 1 :]
        if option == "--data" and place + 1 < len(rest):
            return rest[place + 1], rest[:place] + rest[place + 2 :]
    return name, rest


def _refusal(error: argparse.ArgumentError) -> str:
    """In one line; of options that there are not, only the names: what follows a mistyped --api_key is a key."""
    said = " ".join(str(error).split()).rstrip(".")
    start, colon, words = said.partition("nrecognized arguments:")
    if not colon or len(start) > 1:
        return said
    return "Unknown options: " + ", ".join(
        word.partition("=")[0] if word.startswith("-") else "(a word without an option)" for word in words.split()
    )


OWN: dict[str, tuple[Any, Any, str]] = {
    "model": (str | None, None, "Language model for general knowledge. Null: none is asked."),
    "vqa_model": (str | None, None, "Vision model for image-specific knowledge. Null: none is asked."),
    "base_url": (str | None, None, "Address of the server up to /v1. Null: OPENAI_BASE_URL, else OpenAI's."),
    "api_key": (str | None, None, "Better left to the environment's OPENAI_API_KEY: others see what is typed."),
    "output": (str | None, None, "YAML to write; runs/knowledge/NAME.yaml by default. The others lie beside it."),
    "questions": (str | None, None, "Template of the questions. Null: the one that ships."),
    "concurrency": (int, 4, "Questions on their way at the same time."),
    "retries": (int, 6, "How often a question is asked again that the server could not answer just now."),
    "timeout": (float, 120.0, "Seconds to wait for an answer."),
    "stream": (bool, False, "Ask for answers in pieces."),
    "dry_run": (bool, False, "Print the prompts and the number of calls, and ask nothing. A model need not be named."),
}


def _parser(kind: type | None, name: str = "NAME") -> ArgumentParser:
    parser = ArgumentParser(prog="kanoclip knowledge build", exit_on_error=False)
    parser.description = (
        f"Make a knowledge base for --data {name}. Questions that are answered are not asked again: after a stop, the "
        f"same command goes on."
    )
    for option, (of, default, text) in OWN.items():
        dashed = [f"--{option.replace('_', '-')}"] if "_" in option else []
        parser.add_argument(f"--{option}", *dashed, type=of, default=default, help=text)
    if kind:
        parser.add_class_arguments(kind)
    return parser


def _ask(
    data: Any,
    model: str | None,
    vqa_model: str | None,
    base_url: str | None,
    api_key: str | None,
    output: str | None,
    questions: str | None,
    concurrency: int,
    retries: int,
    timeout: float,
    stream: bool,
    dry_run: bool,
) -> int:
    from kanoclip.data.files import write_text
    from kanoclip.knowledge.build import ask_all, general_yaml, image_jsonl, open_questions
    from kanoclip.knowledge.images import image_hash
    from kanoclip.knowledge.ledger import Ledger
    from kanoclip.knowledge.questions import Template, general_questions, image_questions

    path = Path(output or f"runs/knowledge/{data.name}.yaml").expanduser()
    if dry_run and not (model or vqa_model):
        model, vqa_model = "MODEL", "VQA_MODEL"  # what any would be asked
    for option, valid, expected in (
        ("model", model or vqa_model, "a name, such as gpt-4o-mini; or --vqa_model"),
        ("output", path.suffix in (".yaml", ".yml"), "a file that ends in .yaml"),
        ("concurrency", concurrency > 0, "1 or more"),
        ("retries", retries >= 0, "0 or more"),
        ("timeout", timeout > 0, "more than 0 seconds"),
    ):
        if not valid:
            raise KanoclipError(f"--{option} should be {expected}.")
    template = Template.load(questions)
    general = general_questions(template, model, data) if model else []
    samples = image_questions(
        template, vqa_model, data, lambda sample: image_hash(sample, data.read), lambda all: _track(all, "hashing")
    ) if vqa_model else []  # fmt: skip
    ledger = Ledger(path.with_suffix(".answers.jsonl"))
    pending = open_questions([*general, *samples], ledger)
    known = len(general) + len(samples) - len(pending)
    if dry_run:
        _print_prompts(pending)
        print(f"{len(pending)} calls; {known} questions are answered already. Nothing was asked.")
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
    if samples:
        content, without = image_jsonl(samples, ledger, template)
        write_text(path.with_suffix(".jsonl"), content)
        print(f"image-specific knowledge: {path.with_suffix('.jsonl')}")
        fit_with += f" --model.image_knowledge {path.with_suffix('.jsonl')}"
        if without:
            print(f"Nothing usable was said of {without} images.")
        incomplete |= bool(without)
    print(f"raw answers: {ledger.path}")
    print(f"To read it while fitting: kanoclip fit --data {data.name} ...{fit_with}")
    told = f"{outcome.tokens[0]} in questions, {outcome.tokens[1]} in answers"
    if outcome.untold:
        told = "not told" if outcome.untold == outcome.asked else f"{told}, not told for {outcome.untold} answers"
    print(f"{outcome.asked} answers, {known} questions answered before. Tokens: {told}.")
    for text in outcome.failed[:SHOWN]:
        print(f"kanoclip: no answer: {client.hide(text)}", file=sys.stderr)
    if len(outcome.failed) > SHOWN:
        print(f"kanoclip: and {len(outcome.failed) - SHOWN} more.", file=sys.stderr)
    return int(incomplete)


def _print_prompts(questions: Iterable[Question]) -> None:
    prompts = Counter((question.model, question.sample is not None, question.text) for question in questions)
    for (model, image, text), count in prompts.items():
        print(f"[{model}, {count} {'images' if image else 'call'}] {text}\n")


def _track(items: Iterable[Any], title: str, total: int | None = None) -> Iterable[Any]:
    return track(items, title, total, console=Console(stderr=True), transient=True)


def _without_keys(text: str, options: Sequence[str]) -> str:
    """A refused command line is quoted in its message; a key in it is not."""
    keys = [os.environ.get("OPENAI_API_KEY", "")]
    for place, option in enumerate(options):
        if option.startswith("-") and "key" in option.lower():
            keys += [option.partition("=")[2], *options[place + 1 : place + 2]]
    return cut_out(text, *keys)


def _show(options: Sequence[str]) -> int:
    names = ", ".join(shipped())
    if "-h" in options or "--help" in options:
        print(f"kanoclip knowledge show NAME: a base, a data set, or a file (.yaml, .jsonl). Bases: {names}.")
        return 0
    if len(options) != 1:
        raise KanoclipError(f"Which one? Type: kanoclip knowledge show NAME, a data set, a file or one of {names}.")
    name = options[0]
    if name.endswith(".jsonl"):
        return _show_images(name)
    own = name in NAMES["data"] and name not in shipped()
    base = KnowledgeBase.for_data(name) if own else KnowledgeBase.load(name)
    _print_provenance({"file": base.path, "data sets": ", ".join(base.data_sets) or "any"} | base.provenance)
    table = Table("category", "state", "texts", box=box.SIMPLE_HEAD)
    for category, entry in {"generic": base.generic, **base.categories}.items():
        for state in STATES:
            table.add_row(category if state == STATES[0] else "", state, "\n".join(entry[state]))
    print_table(table)
    print(f"{len(base.categories)} categories, {sum(map(_count, base.categories.values()))} texts.")
    return 0


def _show_images(name: str) -> int:
    from kanoclip.knowledge.images import load_image_entries

    entries = load_image_entries(name)
    table = Table("image", "category", "state", "texts", "model", "date", box=box.SIMPLE_HEAD)
    for entry in entries:
        model = f"{entry.get('model', '?')} @ {entry.get('host', '?')}"
        table.add_row(entry["image"][:12], str(entry.get("category", "")), entry["state"], "\n".join(entry["answers"]),
                      model, str(entry.get("date", "")))  # fmt: skip
    print_table(table)
    print(f"{len(entries)} images, {sum(len(entry['answers']) for entry in entries)} texts.")
    return 0


def _count(entry: dict[str, list[str]]) -> int:
    return sum(map(len, entry.values()))


def _print_provenance(provenance: dict[str, Any]) -> None:
    for key, value in provenance.items():
        print(f"{key}: {value}")
