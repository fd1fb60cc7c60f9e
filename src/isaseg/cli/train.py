"""Train a segmentation network: `python src/train.py experiment=lamps_isa attention=dense seed=1`."""

import logging
import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.cli.command import of_file
from isaseg.cli.importing import uncollected
from isaseg.errors import IsasegError
from isaseg.runs.run_folder import record_failure, told_complete


def main() -> int:
    """Run one job, or with `-m` several; return the exit code.

    0 done, 1 a bug or failed jobs of a sweep, 2 bad input or a file that cannot be used, 3 divergence, 4 out of
    memory, 130 or 143 interrupted.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us; each is told in one line below
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    codes = [0]

    @hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="train")
    def job(cfg: DictConfig) -> float | None:
        cfg = config.shortened(cfg)
        finished = told_complete(cfg)
        if finished is not None:
            return float(finished["val/mIoU"])
        with uncollected():  # imports torch: seconds that a typo need not wait for
            from isaseg.training.run import train

        try:
            return float(train(cfg)["val/mIoU"])
        except IsasegError as error:
            record_failure(cfg, error)
            codes.append(_tell(error, error.exit_code))
            return None
        except OSError as error:
            record_failure(cfg, error)
            codes.append(_tell(of_file(error), 2))
            return None
        except Exception as error:
            record_failure(cfg, error)
            raise

    try:
        job()
    except IsasegError as error:  # of a sweep
        return _tell(error, error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        return _tell(config.explain(error), 2)
    except OSError as error:
        return _tell(of_file(error), 2)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning answers Ctrl-C with SystemExit(1) of its own
        if type(error).__name__ == "SIGTERMException":  # Lightning's, after the batch; without an exit code
            return _tell("terminated; the same command continues from the last checkpoint", 143)
        if isinstance(error, SystemExit) and error.code == 143:  # ours, of a sweep
            return _tell("terminated; the same command goes on", 143)
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return _tell("interrupted; the same command continues from the last checkpoint", 130)
    return max(codes)


def _tell(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
