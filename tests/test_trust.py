"""Trust in a user's own package: given by the user alone, and needed before anything is imported."""

from pathlib import Path

import pytest

from isaseg.errors import ConfigError
from isaseg.trust import VARIABLE, as_words, import_trusted, refuse_trust, take_trust, trust, trusted


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that a package `ownlab`, in the current folder, writes when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    (tmp_path / "ownlab.py").write_text("open('ran', 'w').close()\n\n\nclass Mine:\n    pass\n")
    return tmp_path / "ran"


@pytest.mark.parametrize("others", [None, "", "ownlab2", "own", "ownlab.Mine2", "os,sys"])
def test_nothing_of_a_package_runs_without_trust_in_it(
    others: str | None, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if others is not None:
        monkeypatch.setenv(VARIABLE, others)
    with pytest.raises(ConfigError, match=r"\+trust=\[ownlab\].*ISASEG_TRUST=ownlab"):
        import_trusted("ownlab.Mine")
    assert not package.exists()


def test_a_trusted_package_is_found_in_the_current_folder(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "otherlab")
    trust(["ownlab", "otherlab"])
    assert trusted() == ("otherlab", "ownlab")
    assert import_trusted("ownlab.Mine").__name__ == "Mine"
    assert package.exists()
    with pytest.raises(ConfigError, match=r"'ownlab\.Yours'.*AttributeError"):
        import_trusted("ownlab.Yours")
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        import_trusted("otherlab.Mine")
    with pytest.raises(ConfigError, match="name of a package"):
        trust(["a/b"])


@pytest.mark.parametrize(
    ("words", "rest", "given"),
    [
        (["+trust=[ownlab, otherlab]", "seed=1"], ["seed=1"], "ownlab,otherlab"),
        (["trust=ownlab"], [], "ownlab"),
        (["++trust=['ownlab']", "+trust=ownlab.part"], [], "ownlab,ownlab.part"),
        (["a=+trust=[ownlab]", " trust=ownlab", "~trust", "+trust@_global_=ownlab"], None, ""),
    ],
)
def test_trust_is_taken_out_of_a_command_line(
    words: list[str], rest: list[str] | None, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert take_trust(words) == (words if rest is None else rest)
    assert ",".join(trusted()) == given
    assert take_trust(as_words()) == []
    assert ",".join(trusted()) == given


@pytest.mark.parametrize("word", ["trust", "trust=ownlab", "+trust=[ownlab]", "++trust=ownlab"])
def test_no_word_of_a_file_gives_trust(word: str) -> None:
    with pytest.raises(ConfigError, match="no trust from a file, got '.*; give it on the command line"):
        refuse_trust(["seed=1", word])
    for empty in ("+trust=", "+trust=[]", "+trust=[a b]"):
        with pytest.raises(ConfigError, match="the name of a package to trust"):
            take_trust([empty])


def test_a_library_is_never_trusted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch,isaseg.files, ownlab")
    assert trusted() == ("ownlab",)
    with pytest.raises(ConfigError, match="a package of your own to trust, got 'torch'"):
        trust(["torch"])
    with pytest.raises(ConfigError, match="derive a class of a package of your own"):
        import_trusted("torch.nn.Identity")
    monkeypatch.setenv(VARIABLE, "ownlab")
    with pytest.raises(ConfigError, match=r"e\.g\. ownlab\.Mine, got 'ownlab'"):
        import_trusted("ownlab")
