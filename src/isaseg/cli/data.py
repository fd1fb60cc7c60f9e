"""Check, prepare or cache a data set: `python src/data.py check data=cityscapes data.root=/path/to/it`."""

import difflib
from collections.abc import Sequence
from functools import partial

from isaseg import config
from isaseg.cli import command
from isaseg.cli.importing import uncollected
from isaseg.errors import ConfigError

SCRIPT = "src/data.py"
_HELP = {
    "check": """\
check    Decode every file and tell all that is wrong; count sizes and classes; draw samples under their labels.
         Writes report.json, report.txt and contact_sheet.png into <output_dir>/data/<name>.
           python src/data.py check data=cityscapes data.root=/path/to/cityscapes
           python src/data.py check data=folder data.root=/path/to/it 'data.classes=[sky,ground]'
         splits=[train,val]       only these
         workers=8                threads; as many as there are cores unless given
         data.strict_size=true    another number of images than the published one is a fault, not a warning
""",
    "prepare": """\
prepare  Bring the official archives into the layout that is read.
           python src/data.py prepare data=lip archives=/path/to/downloads data.root=/path/to/lip
         checksums=FILE           a list as sha256sum writes it, with which every archive must agree
         verify=true              no archives: compare what is in data.root with the checksums that were noted then
""",
    "cache": """\
cache    Decode every file once: training then reads only the pixels of a crop. The same command continues.
         Writes into data.cache, which is <output_dir>/cache/<name> unless given.
           python src/data.py cache data=cityscapes data.root=/path/to/cityscapes
         splits=[train]           only these
         workers=8                threads; as many as there are cores unless given
         verify=true              decode everything again and mend what differs in a pixel
""",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code: 0 done, 2 bad input or faulty files, others as in `command.run`."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_help(arguments), end="")
        return 0 if arguments else 2
    return command.run(
        partial(_work, arguments),
        "data_tool",
        SCRIPT,
        "nothing is left half-written, give the same command again",
    )


def _work(arguments: Sequence[str]) -> int:
    word = _word(arguments[0])
    cfg = config.compose_from("data_tool", arguments[1:], SCRIPT)
    with uncollected():  # imports torch: seconds that a typo need not wait for
        from isaseg.cli import data_commands as commands

    return {"check": commands.check, "prepare": commands.prepare, "cache": commands.cache}[word](cfg)


def _word(word: str) -> str:
    if word in _HELP:
        return word
    near = difflib.get_close_matches(word, _HELP, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"expected check, prepare or cache as the first word, got '{word}'; {hint}see `python src/data.py --help`"
    )


def _help(arguments: Sequence[str]) -> str:
    known = [_HELP[word] for word in arguments if word in _HELP]
    names = sorted(path.stem for path in (config.conf_dir() / "data").glob("[!_]*.yaml"))
    usage = (
        "usage: python src/data.py {check|prepare|cache} data=NAME data.root=/path/to/it [KEY=VALUE ...]\n\n"
    )
    end = f"data sets: {', '.join(names)}\nkeys: conf/data_tool.yaml and conf/data\n"
    return usage + "\n".join(known or _HELP.values()) + "\n" + end
