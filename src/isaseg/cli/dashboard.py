"""Compare runs in W&B: `python src/dashboard.py entity=me`, or offline in the terminal, `runs=outputs`."""

from collections.abc import Sequence
from functools import partial

from isaseg import config
from isaseg.cli import command

SCRIPT = "src/dashboard.py"
_HELP = """\
usage: python src/dashboard.py [entity=NAME] [project=NAME] [group=NAME] [spec=FILE | runs=FOLDER]

Make a W&B workspace that compares runs: mIoU against cost, curves by context module, group sizes, classes, pictures,
speed and memory. Saving it needs a key (`wandb login`) and the package of `pip install 'isaseg[dashboard]'`.

  entity=me              the W&B user or team; that of the key unless given
  project=isaseg         as logger.project of the runs
  group=lamps_isa        only the runs of one experiment or sweep
  name="My workspace"    its title
  spec=workspace.json    write what would be saved; no key, no network
  runs=outputs/lamps_isa the offline runs below this folder, side by side in `wandb leet`; no key, no network

examples:
  python src/dashboard.py entity=me group=lamps_isa
  python src/dashboard.py entity=me spec=workspace.json
  python src/dashboard.py runs=outputs/lamps_isa
keys: conf/dashboard.yaml
"""


def main(arguments: Sequence[str]) -> int:
    """Make the workspace; return the exit code: 0 done, 2 bad input, 130 interrupted."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return 0
    return command.run(partial(_work, arguments), "dashboard", SCRIPT, "nothing is saved")


def _work(arguments: Sequence[str]) -> int:
    cfg = config.compose_from("dashboard", arguments, SCRIPT)
    from isaseg.runs import dashboard

    return dashboard.main(cfg)
