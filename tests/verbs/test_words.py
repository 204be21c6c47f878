import pytest

from kanoclip.registry import UnknownNameError
from kanoclip.verbs.words import expand_argv

CONV, MVTEC = "kanoclip.heads.adapter.ConvAdapter", "kanoclip.data.sets.mvtec.MVTecAD"


def test_the_command_line_is_expanded_in_every_spelling() -> None:
    given = ["--data", "mvtec", "--data=mvtec", "--model.adapter", "conv", "--model.init_args.adapter=conv"]
    given += ["--data.help", "mvtec", "--data.class_path", "mvtec", "--data.category", "clip", "--config", "clip"]
    assert expand_argv(given) == [
        "--data", MVTEC, f"--data={MVTEC}", "--model.adapter", CONV, f"--model.init_args.adapter={CONV}",
        "--data.help", MVTEC, "--data.class_path", MVTEC, "--data.category", "clip", "--config", "clip",
    ]  # fmt: skip


def test_a_folder_of_the_same_name_does_no_harm(tmp_path, monkeypatch) -> None:
    (tmp_path / "mvtec").mkdir()
    monkeypatch.chdir(tmp_path)
    assert expand_argv(["--data", "mvtec"]) == ["--data", MVTEC]


def test_an_unknown_name_says_which_option_it_was_for() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown data 'mvtecc' for --data\. Did you mean 'mvtec'\?"):
        expand_argv(["--data", "mvtecc"])
