"""``kanoclip completion``: the scripts are asked as the shells ask them."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kanoclip.verbs.table import main

ASKED = {
    "kanoclip be": "benchmark",
    "kanoclip fit --model anomalyc": "anomalyclip",
    "kanoclip fit --model.interaction bi": "bi_cmci",
    "kanoclip test --trainer.max_st": "--trainer.max_steps",
    "kanoclip fit --data surfaces_a": "surfaces_auxiliary",
    "kanoclip fit --data.cache t": "true",
    "kanoclip predict --data my_": "my_photo.jpg",
    "kanoclip predict my_": "my_photo.jpg",
    "kanoclip fit --config mi": "mine.yaml",
    "kanoclip fit --config rivals/winclip_f": "rivals/winclip_few_shot",
    "kanoclip benchmark --config qui": "quickstart",
    "kanoclip data check magnetic": "magnetic_tile",
    "kanoclip data check visa --ro": "--root",
    "kanoclip knowledge show medi": "medical",
    "kanoclip list inter": "interaction",
}
BASH = """. ./kanoclip.bash; read -r -a COMP_WORDS <<< "$1"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_kanoclip; printf '%s\\n' "${COMPREPLY[@]}" """
ZSH = """PS1='> '; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -d dump; setopt no_beep; print re''ady\n"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for name in ("my_photo.jpg", "mine.yaml"):
        (folder / name).touch()
    return folder


def script(shell: str, folder: Path, name: str, capsys) -> None:
    assert main(["completion", shell]) == 0
    (folder / name).write_text(capsys.readouterr().out)


def ask(folder: Path, *command: str) -> str:
    env = {**os.environ, "TERM": "dumb", "HOME": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    return done.stdout


def test_bash_completes_verbs_options_and_names(folder, capsys) -> None:
    script("bash", folder, "kanoclip.bash", capsys)
    for typed, found in ASKED.items():
        assert ask(folder, "bash", "-c", BASH, "_", typed).split() == [found], typed


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes_verbs_options_and_names(folder, capsys) -> None:
    script("fish", folder, "kanoclip.fish", capsys)
    for typed, found in ASKED.items():
        said = ask(folder, "fish", "--no-config", "-c", f"source kanoclip.fish; complete -C '{typed}'")
        assert [line.split("\t")[0] for line in said.splitlines()] == [found], typed


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes_verbs_options_and_names(folder, capsys) -> None:  # which it does at a terminal alone
    script("zsh", folder, "_kanoclip", capsys)
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "COLUMNS": "200"})
    try:
        type_and_await(terminal, ZSH, "ready")
        for typed, found in ASKED.items():
            type_and_await(terminal, f"{typed}\t", f"{typed.rpartition(' ')[0]} {found}")
            type_and_await(terminal, "\x15", "")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def type_and_await(terminal: int, typed: str, awaited: str) -> None:
    os.write(terminal, typed.encode())
    said, end = "", time.monotonic() + 30
    while awaited not in said:
        assert time.monotonic() < end, f"{awaited!r} is not in {said!r}"
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 65536).decode()


def test_what_is_no_shell_is_told_without_torch(capsys) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "Unknown shell 'bsh'. Did you mean 'bash'? There are bash, zsh, fish." in capsys.readouterr().err
    assert main(["completion", "bash", "zsh"]) == 2
    assert "Unknown shell 'bash zsh'." in capsys.readouterr().err
    assert main(["completion"]) == 0
    assert "kanoclip completion fish > ~/.config/fish/completions/kanoclip.fish" in capsys.readouterr().out
