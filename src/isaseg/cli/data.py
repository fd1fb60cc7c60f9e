"""Check, prepare or cache a data set."""

import sys
from collections.abc import Sequence

from isaseg import config
from isaseg.cli import command
from isaseg.errors import ConfigError

_HELP = {
    "check": """\
check    Decode every file and tell all that is wrong; count sizes and classes; draw samples under their labels.
         Writes report.json, report.txt and contact_sheet.png into <output_dir>/data/<name>.
           isaseg data check data=cityscapes data.root=/path/to/cityscapes
           isaseg data check data=folder data.root=/path/to/it 'data.classes=[sky,ground]'
         splits=[train,val]       only these
         workers=8                threads; as many as there are cores unless given
         data.strict_size=true    another number of images than the published one is a fault, not a warning
""",
    "prepare": """\
prepare  Bring the official archives into the layout that is read.
           isaseg data prepare data=lip archives=/path/to/downloads data.root=/path/to/lip
         checksums=FILE           a list as sha256sum writes it, with which every archive must agree
         verify=true              no archives: compare what is in data.root with the checksums that were noted then
""",
    "cache": """\
cache    Decode every file once: training then reads only the pixels of a crop. The same command continues.
         Writes into data.cache, which is <output_dir>/cache/<name> unless given.
           isaseg data cache data=cityscapes data.root=/path/to/cityscapes
         splits=[train]           only these
         workers=8                threads; as many as there are cores unless given
         verify=true              decode everything again and mend what differs in a pixel
""",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code, see `command.run`: 2 also for faulty files."""
    words = sys.argv[1:] if words is None else words
    left = "nothing is left half-written, give the same command again"
    return command.main(_help(words), _work, words, left)


def _work(arguments: Sequence[str]) -> int:
    word = _word(arguments[0])
    cfg = config.compose_from("data_tool", arguments[1:])
    with command.fast_imports():  # imports torch: seconds that a typo need not wait for
        from isaseg.cli import data_commands as commands

    return {"check": commands.check, "prepare": commands.prepare, "cache": commands.cache}[word](cfg)


def _word(word: str) -> str:
    if word in _HELP:
        return word
    hint = config.suggest(word, list(_HELP))
    raise ConfigError(f"expected check, prepare or cache as the first word, got '{word}'; {hint}see --help")


def _help(arguments: Sequence[str]) -> str:
    known = [_HELP[word] for word in arguments if word in _HELP]
    names = sorted(path.stem for path in (config.conf_dir() / "data").glob("[!_]*.yaml"))
    usage = "usage: isaseg data {check|prepare|cache} data=NAME data.root=/path/to/it [KEY=VALUE ...]"
    end = f"Data sets: {', '.join(names)}\nKeys: conf/data_tool.yaml and conf/data\n"
    return f"{__doc__}\n\n{usage}\n\n" + "\n".join(known or _HELP.values()) + "\n" + end
