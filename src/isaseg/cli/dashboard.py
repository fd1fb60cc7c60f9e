"""Compare runs in Weights & Biases.

usage: isaseg dashboard [entity=NAME] [project=NAME] [group=NAME] [spec=FILE]

Makes a W&B workspace that compares runs: mIoU against cost, curves by context module, classes, pictures, speed and
memory. Saving it needs a key (`wandb login`) and `pip install 'isaseg[dashboard]'`.

  entity=me              the W&B user or team; default: the one of the key
  project=isaseg         as logger.wandb.project of the runs
  group=lamps_isa        only the runs of one experiment or sweep
  name="My workspace"    its title
  score=last             the scores of last checkpoints, of runs with score=last as a protocol sets it
  spec=workspace.json    write what would be saved; no key, no network

Examples:
  isaseg dashboard entity=me group=lamps_isa
  isaseg dashboard entity=me spec=workspace.json

Keys: conf/dashboard.yaml
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from isaseg import config
from isaseg.cli import command
from isaseg.errors import ConfigError
from isaseg.runs.run_folder import write_json

log = logging.getLogger(__name__)


def main(words: Sequence[str] | None = None) -> int:
    """Make the workspace; return the exit code, see `command.run`."""
    return command.main(__doc__, _work, words, "nothing is saved", needs_words=False)


def _work(words: list[str]) -> int:
    cfg = config.compose_from("dashboard", words)
    try:
        from isaseg.runs import dashboard
        from isaseg.runs._compat import workspace_spec
    except ImportError as error:
        raise ConfigError(
            f"expected the package wandb-workspaces, got: {error}; pip install 'isaseg[dashboard]'"
        ) from error
    made = dashboard.workspace(cfg.entity or "", cfg.project, cfg.name, cfg.group, cfg.score)
    if cfg.spec is None:
        log.info("saved: %s", dashboard.save(made))
    else:
        write_json(Path(cfg.spec), workspace_spec(made))
        log.info("written: %s", cfg.spec)
    return 0
