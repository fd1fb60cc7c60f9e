"""Try a trained network on a page in the browser.

usage: isaseg demo checkpoint=FILE [KEY=VALUE ...]

Drop a picture on the page: it shows the labels over it, the classes with their share of the pixels, how sure the network
is of each, and, when you click on a pixel, what that attends to in each stage of the context module. A network of Lamps
or Cards has scenes to try. Needs `pip install 'isaseg[demo]'`.

  checkpoint=FILE       from training, mmsegmentation or openseg; or a folder of export, or USER/NAME on the hub
  port=7861             default: 7860
  host=0.0.0.0          let other machines in, all of them and without a password; default: 127.0.0.1, this machine alone
  device=cpu            cpu, cuda or cuda:NUMBER; default: a GPU if there is one
  longest_side=512      larger pictures are reduced before the network sees them; default: 1024, at most 2048
  max_pixels=25000000   refuse images larger than this; max_megabytes=10: refuse larger files
  +trust=[mylab]        where the network has parts of your own package

Pictures stay on this machine: no statistics are sent, the page loads nothing from elsewhere, and what was uploaded is
deleted after an hour, and at the end. Ctrl-C ends it.

Examples:
  isaseg demo checkpoint=best.ckpt
  isaseg demo checkpoint=isanet.pth port=8080 device=cuda

Keys: conf/demo.yaml
"""

import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from typing import Annotated, Any

from omegaconf import DictConfig

from isaseg import config
from isaseg.cli import command
from isaseg.errors import ConfigError


def main(words: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted; return the exit code, see `command.run`."""
    return command.main(__doc__, _work, words, "the page is closed, and what was uploaded is deleted")


def _work(words: list[str]) -> int:
    cfg = config.compose_from("demo", words)
    _check(cfg)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is there
    with tempfile.TemporaryDirectory(prefix="isaseg-demo-") as folder:
        # read when Gradio is imported
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        with command.fast_imports():
            try:
                from isaseg.cli import demo_page
            except ImportError as error:
                raise ConfigError(
                    f"expected the package gradio, got: {error}; pip install 'isaseg[demo]'"
                ) from error
        demo_page.serve(cfg)
    return 0


def _check(cfg: DictConfig) -> None:
    """Check what can be known before the network is loaded.

    Raises:
        ConfigError: Naming the key, its value and what was expected.
    """
    from pydantic import Field, PositiveInt

    from isaseg.inference.predict import DEVICE, chosen_device

    keys: dict[str, Any] = {
        "host": str,
        "port": Annotated[int, Field(ge=1, le=65535)],
        "device": DEVICE,
        "longest_side": Annotated[int, Field(ge=32, le=2048)],
        "max_pixels": PositiveInt,
        "max_megabytes": PositiveInt,
    }
    config.require(cfg, "checkpoint")
    for key, annotation in keys.items():
        config.check_value(key, cfg[key], annotation)
    chosen_device(cfg.device)
    try:
        socket.create_server((cfg.host, cfg.port)).close()
    except OSError as error:
        raise ConfigError(
            f"expected an address of this machine and a free port, got host={cfg.host} and port={cfg.port}: "
            f"{str(error.strerror).partition(' (')[0]}; give another port"
        ) from error
