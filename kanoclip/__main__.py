"""The ``kanoclip`` command. What can be answered without torch is answered here, at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from kanoclip import __version__
from kanoclip.registry import NAMES, UnknownNameError, did_you_mean, summary

VERBS = {
    "fit": "train the heads on an auxiliary data set",
    "validate": "metrics on the held-out part of a data set",
    "test": "metrics on a data set, zero-shot",
    "predict": "score images: maps, overlays, predictions.csv",
    "benchmark": "models x data sets x seeds -> one table",
    "data": "list, check, show and download data sets",
    "knowledge": "ask language and vision models for a knowledge base, and show one",
    "list": "every kind of component and its names",
}
ACTIONS = {  # what follows some verbs
    "data": {
        "list": "every data set: size, licence, whether it is here",
        "check": "open every file of a data set and count: kanoclip data check mvtec --root data",
        "show": "a contact sheet of images with outlined masks: kanoclip data show mvtec --output sheet.png",
        "download": "fetch a data set that has a public link: kanoclip data download visa --accept-license",
    },
    "knowledge": {
        "build": "ask models: kanoclip knowledge build --data mvtec --model gpt-4o-mini --vqa_model gpt-4o-mini",
        "show": "what a base says: kanoclip knowledge show mvtec",
    },
}
HELP = f"""kanoclip {__version__}: zero-shot visual anomaly detection

usage: kanoclip VERB [options]

{chr(10).join(f"  {verb:<10} {text}" for verb, text in VERBS.items())}

  kanoclip fit --config configs/quickstart.yaml
  kanoclip test --data surfaces
  kanoclip predict --data folder --data.root my_photos

More: kanoclip VERB --help, kanoclip test --data.help mvtec, kanoclip list
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0 done, 1 done in part, 2 a mistake of the caller, 130 interrupted (Ctrl-C), 143 told to end (SIGTERM).
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # also while torch is imported, which takes seconds
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    if arguments is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a user's own component is; a console script does not look there
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"kanoclip {__version__}")
        return 0
    verb, options = argv[0], argv[1:]
    if verb.startswith("-"):
        return complain(f"Before {verb} comes what to do: kanoclip VERB {verb} ... Verbs: {', '.join(VERBS)}.")
    if verb not in VERBS:
        return complain(f"Unknown verb {verb!r}.{did_you_mean(verb, VERBS)} Verbs: {', '.join(VERBS)}.")
    if verb == "list":
        if options and options[0] in ("-h", "--help"):
            print(f"usage: kanoclip list [KIND ...]\n\n{VERBS[verb]}: {', '.join(NAMES)}")
            return 0
        return list_components(options)
    actions = ACTIONS.get(verb, {})
    if actions and (not options or options[0] in ("-h", "--help")):
        print(f"usage: kanoclip {verb} ACTION [NAME] [options]\n")
        print("\n".join(f"  {action:<10} {text}" for action, text in actions.items()))
        return 0
    if actions and options[0] not in actions:
        hint = did_you_mean(options[0], actions)
        return complain(f"Unknown action {options[0]!r}.{hint} Actions: {', '.join(actions)}.")
    which = options[-1] if options and options[-1].endswith(".help") else ""
    if (kind := which.removesuffix(".help").rpartition(".")[2].removeprefix("--")) in NAMES:
        return list_components([kind], [f"For the options of one of these: {which} NAME"])
    # a torch without CUDA says on every import that it has no triton
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    if verb == "data":
        from kanoclip.datasets import main as run
    elif verb == "knowledge":
        from kanoclip.knowledge_verb import main as run
    elif verb == "benchmark":
        from kanoclip.benchmark_verb import main as run
    else:
        from kanoclip.arguments import UsageError, check

        try:
            check(argv)
        except (UnknownNameError, UsageError) as error:
            return complain(str(error))
        from kanoclip.cli import main as run
    return run(argv)


def list_components(kinds: Sequence[str], above: Sequence[str] = ()) -> int:
    """Print the names of the given kinds, or of all, with a line on each, below other lines."""
    lines = list(above)
    for kind in kinds or NAMES:
        if kind not in NAMES:
            return complain(f"Unknown kind {kind!r}. Kinds: {', '.join(NAMES)}.")
        lines.append(f"{kind}:")
        lines += [f"  {name:<20} {summary(path)}" for name, path in NAMES[kind].items()]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # `| head` has read enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def complain(message: str) -> int:
    """Print one line on what the caller should mend; returns the exit code."""
    print(f"kanoclip: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
