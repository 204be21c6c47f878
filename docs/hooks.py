"""Makes the pages that follow from the code, when the site is built: options, data sets, classes, the command's help.

MkDocs calls the functions whose names begin with ``on_``. Nothing of what is made here is committed.
"""

from __future__ import annotations

import inspect
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from layouts import BLANK, INDEX, LAYOUTS, MASK  # noqa: E402  # small trees that the tests of the data sets read

from kanoclip.data.base import AnomalyDataModule  # noqa: E402
from kanoclip.data.sets.tree import Tree  # noqa: E402
from kanoclip.registry import NAMES, load_class, summary  # noqa: E402
from kanoclip.verbs.options import OPTIONS  # noqa: E402
from kanoclip.verbs.specs import EXPECTED  # noqa: E402
from kanoclip.verbs.table import VERBS, main  # noqa: E402

PUBLIC = ("inspector", "types", "registry", "data/base", "data/sets/*", "data/drawn/surfaces", "data/drawn/synthetic",
          "backbone/clip", "backbone/blocks", "backbone/embedded", "backbone/attention", "backbone/tuning",
          "backbone/residual", "backbone/deep_tokens", "heads/*", "metrics/*", "models/*", "models/rivals/*",
          "outputs/exported")  # fmt: skip
"""Modules whose classes and functions the reference shows."""
ROOMS = {"data": "Data", "backbone": "Backbone", "heads": "Heads", "metrics": "Metrics", "models": "Models",
         "outputs": "Outputs"}  # fmt: skip
DOMAINS = {"industrial": "Industrial", "medical": "Medical", "": "Your own and drawn"}
REPORTS = ROOT / "benchmarks" / "reports"
CARD = ROOT / "kanoclip" / "backbone" / "embedded" / "README.md"


# ---------------------------------------------------------------------------------------------------- called by MkDocs


def on_config(config: Any) -> Any:
    """Let ```math blocks become MathML, and add what is made here to the navigation."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": math}]
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    sections["Data sets"] += [
        {"All data sets": "data_sets/index.md"},
        *({title: [f"data_sets/{name}.md" for name in of_domain(key)]} for key, title in DOMAINS.items()),
    ]
    sections["Reference"] += [
        {"The command": "reference/command.md"},
        {"Names": "reference/names.md"},
        {"Options": [{title: f"reference/{page}.md"} for page, title in option_pages().items()]},
        {"Classes and functions": [*by_room()]},
    ]
    sections["Reproduce a table"] += [
        {"The embedded backbone": "embedded.md"},
        {"Reports": [f"reports/{path.name}" for path in sorted(REPORTS.glob("*.md"))]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for name, content in pages():
        files.append(File.generated(config, name, content=content))
    for path in sorted(REPORTS.iterdir()):
        files.append(File.generated(config, f"reports/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links that name places in the repository to the pages made of them."""
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace("](../benchmarks/reports/", f"]({up}reports/")
    markdown = markdown.replace("](../kanoclip/backbone/embedded/README.md", f"]({up}embedded.md")
    return re.sub(r"\]\(\.\./(kanoclip/[\w/]+)\.py", lambda m: f"]({up}reference/{m[1].replace('/', '.')}.md", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Keep an option in running text in one line: a browser would break it behind its dashes."""
    option = re.compile(r"(?<![^>\s(\[])--[\w.-]+")
    return re.sub(r"<code>[^<]*</code>", lambda code: option.sub(r"<span>\g<0></span>", code[0]), html)


def math(source: str, *_: Any, **__: Any) -> str:
    """Write a formula in MathML, which browsers show without a script."""
    return f'<div class="math">{convert(source.strip(), display="block")}</div>'


# -------------------------------------------------------------------------------------------------------- what is made


def pages() -> Iterator[tuple[str, str]]:
    """Give the name and the text of each page."""
    yield "embedded.md", CARD.read_text(encoding="utf-8")
    yield "data_sets/index.md", data_index()
    for name in NAMES["data"]:
        yield f"data_sets/{name}.md", data_page(name)
    yield "reference/command.md", command_page()
    yield "reference/names.md", names_page()
    yield "reference/run.md", run_page()
    for kind in NAMES:
        yield f"reference/{kind}.md", kind_page(kind)
    for module in modules():
        shown = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
        yield f"reference/{module}.md", f"# {module}\n\n::: {module}\n{shown}"


def modules() -> list[str]:
    """Name the public modules."""
    found = [path for pattern in PUBLIC for path in sorted((ROOT / "kanoclip").glob(f"{pattern}.py"))]
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in dict.fromkeys(found)
        if path.stem != "__init__"
    ]


def by_room() -> Iterator[dict[str, Any]]:
    """Give the navigation of the modules, by room."""
    rooms: dict[str, list[dict[str, str]]] = {}
    for module in modules():
        _, room, *rest = module.split(".")
        link = {".".join(rest) or room: f"reference/{module}.md"}
        if rest:
            rooms.setdefault(ROOMS[room], []).append(link)
        else:
            yield link
    yield from ({room: links} for room, links in rooms.items())


def options(cls: type) -> list[tuple[str, str, str, str]]:
    """List key, type, default and line of each option of a class, as the command line takes them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    return [
        (one.dest, type_name(getattr(one, "_typehint", None) or one.type), default(one.default), first(one.help or ""))
        for one in parser._actions
        if one.dest != "help" and not one.dest.endswith(".help")
    ]


def type_name(kind: Any) -> str:
    """Write a type as a reader says it."""
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    text = re.sub(r"\b(?:\w+\.)+(?=[A-Za-z])", "", text)
    for _ in range(3):
        text = re.sub(r"Optional\[((?:[^][]|\[[^][]*\])*)\]", r"\1 or null", text)
        text = re.sub(r"Union\[((?:[^][]|\[[^][]*\])*)\]", lambda found: alternatives(found[1]), text)
    text = re.sub(r"Literal\[([^]]*)\]", lambda found: found[1].replace("'", "").replace(", ", " or "), text)
    return re.sub(r"\s*\|\s*", " or ", text).replace("NoneType", "null").replace("None", "null")


def alternatives(text: str) -> str:
    """Join the members of a union, whose own brackets stay whole."""
    return " or ".join(part.strip() for part in re.split(r",\s*(?![^[]*\])", text))


def default(value: Any) -> str:
    """Write a default as YAML does."""
    known = {None: "null", True: "true", False: "false"}
    return known[value] if value is None or isinstance(value, bool) else str(value)


def first(text: str) -> str:
    """Take the first sentences of a help text, in one line that a table can hold."""
    text = re.sub(r"\s*\(required.*?\)|\s*\(type:.*?\)", "", " ".join(text.split()))
    return cell(text.replace("``", "`"))


def cell(text: str) -> str:
    """Keep a text inside its cell of a table."""
    parts = text.replace("|", "\\|").split("`")  # between backticks < is written as it is
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Write a table."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def option_table(rows: list[tuple[str, str, str, str]], prefix: str = "") -> str:
    """Write options as a table."""
    shown = [(f"`{prefix}{key}`", cell(kind), f"`{cell(value)}`", line) for key, kind, value, line in rows]
    return table(("key", "type", "default", "what it does"), shown)


# ----------------------------------------------------------------------------------------------------------- data sets


def of_domain(domain: str) -> list[str]:
    """Name the published data sets of a domain; of "" all others."""
    classes = {name: load_class(path) for name, path in NAMES["data"].items()}
    return [
        name
        for name, cls in classes.items()
        if (published(cls) and getattr(cls, "domain", "") == domain) or (not published(cls) and domain == "")
    ]


def published(cls: type) -> bool:
    """Whether a data set is read from its publisher's files."""
    return issubclass(cls, Tree) and hasattr(cls, "about")


def data_index() -> str:
    """Write the page of all data sets."""
    text = [
        "# All data sets\n\nEach is read from the folder that its publisher's archive unpacks to; nothing is "
        "converted. Put that folder at `<root>/<name>` and type `--data NAME --data.root <root>`. `~`: we have not "
        "confirmed the counts. `*`: the public pages of KAnoCLIP name it among the sets that it tests on.\n"
    ]
    for domain, title in DOMAINS.items():
        text.append(f"\n## {title}\n")
        rows = []
        for name in of_domain(domain):
            cls = load_class(NAMES["data"][name])
            link = f"[{name}]({name}.md)"
            if published(cls):
                about = cls.about
                sure = "" if about.confirmed or not about.counts else "~"
                counts = "{}{} / {}".format(sure, *about.counts) if about.counts else "unknown"
                rows.append((link + "\\*" * about.paper, counts, "yes" if about.masks else "no", cell(about.licence)))
            else:
                rows.append((link, cell(summary(NAMES["data"][name]))))
        heads = ("name", "normal / anomalous test images", "masks", "licence") if domain else ("name", "what it is")
        text.append(table(heads, rows))
    return "\n".join(text)


def data_page(name: str) -> str:
    """Write the page of one data set, from its declaration."""
    cls = load_class(NAMES["data"][name])
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:")[0].replace("``", "`")
    if not published(cls):
        own = option_table(own_options(cls))
        return f"# {name}\n\n{cell(text)}\n\n## Options\n\n{own}\n{shared_options(cls)}"
    about = cls.about
    lead, *prose = [
        part for part in text.split("\n\n") if "Reference: " not in part and "Other arguments as" not in part
    ]
    counts = "{} normal, {} anomalous".format(*about.counts) if about.counts else "unknown"
    sure = "" if about.confirmed else " (not confirmed by us)"
    get = f"`kanoclip data download {name}`, or [its publisher]({about.homepage})" if about.archives else about.homepage
    facts = [
        ("in print", f"{about.reference}"),
        ("licence", about.licence),
        ("test images", counts + sure * bool(about.counts)),
        ("training images", f"{about.train}{sure}" if about.train else "none, or unknown"),
        ("masks", cls._mask_rule().strip() or "not pictures: see below"),
        ("where to get it", get if "`" in get else f"<{get}>"),
    ]
    parts = [f"# {name}\n\n{cell(lead)}\n", "| | |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in facts)]
    parts.append("## Layout\n\n" + cell("\n\n".join(prose).removeprefix("Layout: ")))
    if name in LAYOUTS:
        parts.append(
            f"A small tree in this layout, as the tests write and read it:\n\n```text\n{tree(LAYOUTS[name].files)}\n```"
        )
    parts.append(f"Found below `--data.root` under any of these names: {names_of(cls)}.")
    traps = [about.note] if about.note else []
    if about.pieces_of:
        same = "a test on one after a fit on the other is not zero-shot"
        traps.append(f"Its images are pieces of those of `{about.pieces_of}`: {same}.")
    if not cls.unambiguous:
        traps.append("Its layout fits other data sets too, so its folder must have one of the names above.")
    if about.counts and not about.counts[0]:
        traps.append("It has no normal test images: image metrics are undefined.")
    if not about.masks:
        traps.append("Without masks there are no pixel metrics, and a fit needs `--model.gamma 0`.")
    if traps:
        parts.append("## Traps\n\n" + "\n".join(f"* {cell(one)}" for one in traps))
    parts.append(f"## Use it\n\n```sh\nkanoclip data check {name} --root /data\n"
                 f"kanoclip test --data {name} --data.root /data\n```")  # fmt: skip
    if own := own_options(cls):
        parts.append("Options of its own:\n\n" + option_table(own))
    parts.append(shared_options(cls))
    return "\n\n".join(parts) + "\n"


def own_options(cls: type) -> list[tuple[str, str, str, str]]:
    """List the options that not every data set has."""
    common = {row[0] for row in options(AnomalyDataModule)}
    return [row for row in options(cls) if row[0] not in common]


def shared_options(cls: type) -> str:
    """Say where the options of all data sets are listed."""
    return "All other options: [of every data set](../reference/data.md).\n"


def names_of(cls: Any) -> str:
    """Name the folders in which a data set is looked for."""
    return ", ".join(f"`{each}`" for each in dict.fromkeys((cls.name, *cls.folders)))


def tree(files: dict[str, str]) -> str:
    """Draw paths as a tree; a mask is marked."""
    root: dict[str, Any] = {}
    for path in files:
        at = root
        for part in path.removeprefix("./").split("/"):
            at = at.setdefault(part, {})
    masks = {path.rsplit("/", 1)[-1] + path for path, kind in files.items() if kind in (MASK, INDEX, BLANK)}

    def lines(at: dict[str, Any], indent: str, above: str) -> Iterator[str]:
        for name, below in at.items():
            last, path = name == list(at)[-1], f"{above}/{name}".removeprefix("/")
            mark = "   <- mask" if name + path in masks else ""
            yield f"{indent}{'└── ' if last else '├── '}{name}{'/' if below else ''}{mark}"
            yield from lines(below, indent + ("    " if last else "│   "), path)

    return "\n".join(lines(root, "", ""))


# ----------------------------------------------------------------------------------------------------------- reference


def option_pages() -> dict[str, str]:
    """Name the pages of options: file -> title."""
    return {"run": "Of every run", "data": "Of data sets", "model": "Of models",
            **{kind: f"{kind}" for kind in NAMES if kind not in ("data", "model")}}  # fmt: skip


def run_page() -> str:
    """Write the page of the options that belong to no component."""
    from lightning.pytorch import Trainer

    run = [
        (key, type_name(one.kind), default(one.default), f"For {' and '.join(one.verbs)}: {first(one.about)}.")
        for key, one in OPTIONS.items()
    ]
    shared = [
        ("config", "path or name", "null", "A YAML of any of these keys; names that ship: `kanoclip list configs`."),
        ("ckpt_path", "path or last", "null", "Checkpoint to test, predict with or go on from; null: the newest fit."),
        ("seed_everything", "bool or int", "111", "Seed of all that is drawn; false: nothing is seeded."),
        ("data", "name", "null", "[Data set](data.md)."),
        ("model", "name", "kanoclip", "[Model](model.md)."),
        ("optimizer", "name of torch.optim", "null", "Optimiser of the heads; null: Adam with the model's `lr`."),
        ("lr_scheduler", "name of torch.optim.lr_scheduler", "null", "Schedule of the learning rate."),
    ]
    plan = [(key, "", "", first(text)) for key, text in EXPECTED.items()]
    return (
        "# Options of every run\n\nOn the command line `--key value`; in a config of `fit`, `test` and "
        "`predict` the same key, nested by its dots.\n\n"
        + option_table(shared)
        + "\n## Of test and predict\n\n"
        + option_table(run)
        + "\n## Of the trainer\n\nLightning's `Trainer`. What kanoclip sets otherwise: `max_epochs` 15, "
        "`default_root_dir` runs, `deterministic` warn, `log_every_n_steps` 10, `enable_model_summary` false.\n\n"
        + option_table(options(Trainer), "trainer.")
        + "\n## Of a benchmark\n\nKeys of its YAML; more in [Benchmarks](../benchmark.md).\n\n"
        + table(("key", "what it is"), [(f"`{key}`", text) for key, _, _, text in plan])
    )


def kind_page(kind: str) -> str:
    """Write the page of a kind: each name with its options."""
    option = f"--{kind}" if kind in ("data", "model") else f"--model.{kind}"
    parts = [f"# Options of {kind}\n\n`{option} NAME`; an option of it is `{option}.KEY`.\n"]
    common: list[tuple[str, str, str, str]] = []
    if kind == "data":
        common = options(AnomalyDataModule)
        parts.append("## Every data set\n\n" + option_table(common))
    if kind == "model":
        common = options(load_class(NAMES["model"]["kanoclip"]))
    known, keys = {row[:3] for row in common}, [row[0] for row in common]
    for name, path in NAMES[kind].items():
        given = options(load_class(path))
        rows = [row for row in given if name == "kanoclip" or row[:3] not in known]
        same = "As above" if kind == "data" else "As `kanoclip`"
        body = option_table(rows) if rows else f"{same}: no other key or default.\n" if common else "No options.\n"
        if lacking := [f"`{key}`" for key in keys if kind == "model" and key not in {row[0] for row in given}]:
            body += f"\nIt has no {', '.join(lacking)}.\n"
        module, _, cls = path.rpartition(".")
        parts.append(f"## {name}\n\n{cell(summary(path))} [{cls}]({module}.md#{path})\n\n{body}")
    if kind == "model":
        parts.insert(1, "All of `kanoclip` are listed; of each other model, the keys that differ from them.\n")
    return "\n".join(parts)


def names_page() -> str:
    """List every registered name with a line on it."""
    parts = ["# Names\n\nWhat `kanoclip list` prints. Kind = argument = YAML key.\n"]
    for kind, names in NAMES.items():
        rows = [(f"[{name}]({kind}.md#{name})", cell(summary(path))) for name, path in names.items()]
        parts.append(f"## {kind}\n\n" + table(("name", "what it is"), rows))
    return "\n".join(parts)


def command_page() -> str:
    """Show what each verb says for ``--help``."""
    parts = ["# The command\n\nWhat `kanoclip VERB --help` prints.\n"]
    for verb in ["", *VERBS]:
        words = [verb, "--help"] if verb else ["--help"]
        parts.append(f"## {' '.join(['kanoclip', verb]).strip()}\n\n```text\n{said(words)}\n```\n")
    return "\n".join(parts)


def said(words: list[str]) -> str:
    """Run a command and return what it prints."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = ["kanoclip", *words]  # whose first word stands in the usage
    with redirect_stdout(out), suppress(SystemExit):  # how argparse ends after its help
        main(words)
    sys.argv = argv
    return out.getvalue().strip()
