"""The verbs of the command line: their names, their help, and the module that runs each.

What can be answered without torch is answered here, at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

from kanoclip import __version__
from kanoclip.data.processes import PARENT, end_when_told, end_with
from kanoclip.registry import NAMES, did_you_mean, resolve, summary
from kanoclip.verbs import configs
from kanoclip.verbs.help import HELP_OPTIONS, SHORT, WIDTH, everything, short_help
from kanoclip.verbs.say import complain, folded, mistake, stopped
from kanoclip.verbs.words import paths_as_folder


class Verb(NamedTuple):
    """A verb.

    Attributes:
        about: What it does, in one line.
        module: Module of this folder whose ``main(argv) -> exit code`` runs it.
        example: A command that works as typed.
        actions: What may follow the verb, and what that does.
    """

    about: str
    module: str
    example: str = ""
    actions: dict[str, str] = {}  # noqa: RUF012  # never changed


VERBS = {
    "fit": Verb(
        "train the heads on an auxiliary data set",
        "run",
        "kanoclip fit --config quickstart --data.images 4 --trainer.max_epochs 2",
    ),
    "validate": Verb(
        "metrics on the held-out part of a data set",
        "run",
        "kanoclip validate --data surfaces --data.images 4 --data.holdout 0.5",
    ),
    "test": Verb(
        "metrics on a data set, zero-shot",
        "run",
        "kanoclip test --data surfaces --data.images 4",
    ),
    "predict": Verb(
        "score images: maps, overlays, predictions.csv",
        "run",
        "kanoclip predict --data surfaces --data.images 4",
    ),
    "calibrate": Verb(
        "score good parts and choose the threshold of a decision: threshold.json",
        "calibrate",
        "kanoclip calibrate --data surfaces --max_fpr 0.05",
    ),
    "demo": Verb(
        "a page on this machine: drop in photos, see score, decision and overlay",
        "demo",
        "kanoclip demo --port 7861",
    ),
    "benchmark": Verb(
        "models x data sets x seeds -> one table",
        "benchmark",
        "kanoclip benchmark --config quickstart",
    ),
    "export": Verb(
        "a model of one category as a file that runs without torch: ONNX, OpenVINO",
        "export",
        "kanoclip export --model clip --model.backbone embedded --output clip.onnx",
    ),
    "push": Verb(
        "share a fit on the Hugging Face Hub or in a folder, as data alone",
        "push",
        "kanoclip push last.ckpt hub:OWNER/NAME --license apache-2.0",
    ),
    "import": Verb("weights that the authors of a rival publish as a checkpoint", "importing"),
    "data": Verb(
        "list, check, show and download data sets",
        "data",
        actions={
            "list": "every data set: size, licence, whether it is here",
            "check": "open every file of a data set and count: kanoclip data check mvtec --root data",
            "show": "a contact sheet of images with outlined masks: kanoclip data show mvtec --output sheet.png",
            "download": "fetch a data set that has a public link: kanoclip data download visa --accept-license",
        },
    ),
    "knowledge": Verb(
        "ask language and vision models for a knowledge base, and show one",
        "knowledge",
        actions={
            "build": "ask models: kanoclip knowledge build --data mvtec --model gpt-4o-mini --vqa_model gpt-4o-mini",
            "show": "what a base says: kanoclip knowledge show mvtec",
        },
    ),
    "list": Verb("every kind of component and its names; the configs that ship", "table"),
    "completion": Verb("what completes this command at the tab key: bash, zsh, fish", "completion"),
}
HELP = f"""kanoclip {__version__}: zero-shot visual anomaly detection

usage: kanoclip VERB [options]

{chr(10).join(f"  {name:<11} {verb.about}" for name, verb in VERBS.items())}

  kanoclip fit --config quickstart
  kanoclip test --data surfaces
  kanoclip predict my_photos

More: kanoclip VERB --help, kanoclip test --data.help mvtec, kanoclip list
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0 done, 1 done in part, 2 a mistake of the caller, 130 interrupted (Ctrl-C), 143 told to end (SIGTERM).
    """
    if arguments is None:
        _begin()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(
            any(verb.module in ("run", "calibrate", "benchmark") for name, verb in VERBS.items() if name in argv[:1])
        )
    except Exception as error:
        place = "file:FOLDER" if argv[:1] == ["push"] else "--output"
        if (said := mistake(error, place)) is None:  # fit, validate, test and predict answer for themselves
            raise  # a fault of ours keeps its traceback
        return complain(said)
    except KeyboardInterrupt:  # also while torch is imported, which takes seconds
        return 130
    except SystemExit as end:
        if end.code == 143:
            stopped()
        raise


def _begin() -> None:
    """Make this the process of a command of its own: its signals, its working folder, its parent."""
    end_when_told()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a user's own component is; a console script does not look there
    if "LOCAL_RANK" in os.environ:  # one of several, started by the first one or by torchrun
        end_with(int(os.environ.get(PARENT, os.getppid())))
    else:
        os.environ[PARENT] = str(os.getpid())


def _run(argv: Any) -> int:
    if not argv or argv[0] in (*HELP_OPTIONS, "help"):
        words = [word for word in argv[1:] if word not in (*HELP_OPTIONS, "all")]
        if not words:
            print(HELP, end="")
            return 0
        argv = [*words, "--help", *["all"] * ("all" in argv)]  # `kanoclip help fit`
    if argv[0] in ("-V", "--version"):
        print(f"kanoclip {__version__}")
        return 0
    name = argv[0]
    if name.startswith("-"):
        return complain(f"Before {name} comes what to do: kanoclip VERB {name} ... Verbs: {', '.join(VERBS)}.")
    if name not in VERBS:
        return complain(f"Unknown verb {name!r}.{did_you_mean(name, VERBS)} Verbs: {', '.join(VERBS)}.")
    verb = VERBS[name]
    whole, argv = everything(argv)
    options = argv[1:]
    if HELP_OPTIONS & set(options) and not whole and name in SHORT:
        print(short_help(name, verb.about, verb.example))
        return 0
    if name == "list":
        if options and options[0] in HELP_OPTIONS:
            said = f"usage: kanoclip list [KIND ...]\n\n{verb.about}: {', '.join([*NAMES, 'configs'])}"
            print(folded(said, most=WIDTH))
            return 0
        return list_components(options)
    if verb.actions and (not options or options[0] in HELP_OPTIONS):
        print(f"usage: kanoclip {name} ACTION [NAME] [options]\n")
        print("\n".join(folded(f"  {action:<10} ", text, WIDTH) for action, text in verb.actions.items()))
        return 0
    if HELP_OPTIONS & set(options) and verb.example and not whole:
        print(f"example: {verb.example}\n")
    if verb.actions and options[0] not in verb.actions:
        hint = did_you_mean(options[0], verb.actions)
        return complain(f"Unknown action {options[0]!r}.{hint} Actions: {', '.join(verb.actions)}.")
    which = options[-1] if options and options[-1].endswith(".help") else ""
    if (kind := which.removesuffix(".help").rpartition(".")[2].removeprefix("--")) in NAMES:
        return list_components([kind], [f"For the options of one of these: {which} NAME"])
    if options[:1] in (["check"], ["show"]) and name == "data" and options[1:] and not options[1].startswith("-"):
        _, *options[1:] = paths_as_folder(["--data", *options[1:]], "--root")
        argv = [name, *options]
    for before, word in pairwise(options):
        if verb.actions and (
            before == "--data" or (name == "data" and before == options[0] and not word.startswith("-"))
        ):
            resolve("data", word)  # a mistyped name is answered before torch is imported
    for word in (
        options if verb.module in ("run", "calibrate", "benchmark") else ()
    ):  # which write it into configs and reports
        if any("\udc80" <= letter <= "\udcff" for letter in word):
            shown = word.encode("utf-8", "backslashreplace").decode()
            return complain(f"{shown} is not a UTF-8 name. Rename it, or give a link to it: ln -s FOLDER photos.")
    if verb.module in ("run", "calibrate"):
        from kanoclip.verbs.arguments import prepare

        argv = prepare(argv)
    code: int = import_module(f"kanoclip.verbs.{verb.module}").main(argv)
    return code


def list_components(kinds: Sequence[str], above: Sequence[str] = ()) -> int:
    """Print the names of the given kinds, or of all components, with a line on each, below other lines."""
    lines, known = list(above), [*NAMES, "configs"]
    for kind in kinds or NAMES:
        if kind not in known:
            return complain(f"Unknown kind {kind!r}.{did_you_mean(kind, known)} Kinds: {', '.join(known)}.")
        if kind == "configs":
            found = {name: configs.summary(path) for name, path in configs.names().items()}
        else:
            found = {name: summary(path).replace("``", "") for name, path in NAMES[kind].items()}
        width = max([20, *map(len, found)])
        lines.append(f"{kind}:")
        lines += [folded(f"  {name:<{width}} ", text) for name, text in found.items()]
    lines += ["Configs that ship (--config NAME): kanoclip list configs"] * (not kinds)
    print("\n".join(lines))
    return 0
