"""Compare runs in Weights & Biases, or offline in the terminal.

usage: isaseg dashboard [entity=NAME] [project=NAME] [group=NAME] [spec=FILE | runs=FOLDER]

Makes a W&B workspace that compares runs: mIoU against cost, curves by context module, group sizes, classes, pictures,
speed and memory. Saving it needs a key (`wandb login`) and `pip install 'isaseg[dashboard]'`.

  entity=me              the W&B user or team; default: the one of the key
  project=isaseg         as logger.project of the runs
  group=lamps_isa        only the runs of one experiment or sweep
  name="My workspace"    its title
  spec=workspace.json    write what would be saved; no key, no network
  runs=outputs/lamps_isa show the offline runs below this folder side by side in `wandb leet`; no key, no network

Examples:
  isaseg dashboard entity=me group=lamps_isa
  isaseg dashboard entity=me spec=workspace.json
  isaseg dashboard runs=outputs/lamps_isa

Keys: conf/dashboard.yaml
"""

from collections.abc import Sequence

from isaseg import config
from isaseg.cli import command


def main(words: Sequence[str] | None = None) -> int:
    """Make the workspace; return the exit code, see `command.run`."""
    return command.main(__doc__, _work, words, "nothing is saved", needs_words=False)


def _work(words: list[str]) -> int:
    cfg = config.compose_from("dashboard", words)
    from isaseg.runs import dashboard

    return dashboard.main(cfg)
