"""Train a segmentation network.

usage: isaseg train [GROUP=OPTION ...] [KEY=VALUE ...], or with -m several runs

Trains on the generated scenes of Lamps unless told otherwise. Everything that a run writes is in its folder
<output_dir>/<name>/<run name>. The same command continues a run that was interrupted.

  experiment=lamps_isa         a data set with everything that belongs to it
  data=NAME                    alone: experiment=NAME_isa, finetune for data=folder, or none where there is no such file
  attention=dense              another option of any group below
  trainer.max_steps=1000       any key of a YAML file, see `--cfg job`
  data.root=/path/to/it        the folder of the data set
  init_from=FILE               fine-tune: start from the network of a checkpoint (docs/checkpoints.md)
  resume=never                 start over; must: only continue; or the path of a checkpoint
  resume=extend                go on from the same run of fewer trainer.max_steps, by the schedule of more
  stale=retrain                train again what other code or other files have computed; refuse: exit with an error
  trainer=ddp                  all GPUs of this machine
  +trust=[mylab]               a package of your own, whose classes `_target_` may then name
  --config-dir DIR             a folder of your own with more options of the groups below
  -m attention=isa,dense       a sweep: one run for each combination, or those of a file: -m sweep=group_size

Examples:
  isaseg train
  isaseg train attention=dense seed=1
  isaseg train experiment=cityscapes_isa data.root=/data/cityscapes
  isaseg train -m sweep=group_size seed=0,1,2

Keys: conf/train.yaml. Groups (folders of conf) and their options:
"""

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from isaseg import config
from isaseg.cli import command
from isaseg.errors import ConfigError
from isaseg.runs.run_folder import record_failure, report_if_complete
from isaseg.trust import VARIABLE, trusted


def main(words: Sequence[str] | None = None) -> int:
    """Train, or with `-m` run a sweep; return the exit code: 1 for failed jobs, others as in `command.run`."""
    text = f"{__doc__}{_groups()}"
    return command.main(
        text, _work, words, "the same command continues from the last checkpoint", needs_words=False
    )


def _work(words: list[str]) -> int:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes exceptions on instead of exiting
    failed: list[Exception] = []
    given = trusted()

    @hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="train")
    def job(cfg: DictConfig) -> None:
        if trusted() != given:  # by hydra.job.env_set
            failed.append(
                ConfigError(f"expected no trust from a file, got {VARIABLE} in hydra.job.env_set; remove it")
            )
            return
        try:
            cfg = config.initialised(cfg, HydraConfig.get().overrides.task)
            if "hydra.mode=RUN" not in words and (chosen := HydraConfig.get().runtime.choices.get("sweep")):
                print(f"warning: without -m, sweep={chosen} trains one run", file=sys.stderr)
            if report_if_complete(cfg) is not None:
                return
            with command.fast_imports():
                from isaseg.training.run import train  # torch: a typo is reported before that
            train(cfg)
        except Exception as error:
            record_failure(cfg, error)
            failed.append(error)  # Hydra would print a line of its own about it

    shown = {"--cfg", "-c", "--info", "-i"} & {word.partition("=")[0] for word in words}
    if shown and {"-m", "--multirun"} & set(words):
        raise ConfigError(
            f"expected -m or {shown.pop()}, got both; leave out -m, and give each key the one value of the run to show"
        )
    # Hydra reads them there, and these options before all others
    words = config.with_experiment(words)
    sys.argv[1:] = sorted(words, key=lambda word: not word.startswith(("--config-dir=", "-m", "--multirun")))
    try:
        job()
    except SystemExit as error:
        if type(error).__name__ == "SIGTERMException":  # Lightning's, raised once the checkpoint is written
            raise command.Terminated from error
        if isinstance(error.__context__, KeyboardInterrupt):  # or Terminated: Lightning exits with code 1
            raise type(error.__context__) from error
        raise
    if failed:
        raise failed[0]
    return 0


def _groups() -> str:
    conf = config.conf_dir()
    folders = sorted(path for path in conf.rglob("*") if path.is_dir() and path.name != "recipe")
    options = {str(f.relative_to(conf)): sorted(path.stem for path in f.glob("[!_]*.yaml")) for f in folders}
    return "".join(f"  {name:<14} {' '.join(found)}\n" for name, found in options.items() if len(found) > 1)


if __name__ == "__main__":
    sys.exit(main())
