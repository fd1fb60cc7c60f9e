"""`isaseg demo` when something is wrong: one sentence, before Gradio is imported and the network is loaded."""

import socket
from collections.abc import Callable

import pytest

from isaseg.cli import demo as cli

COMMAND = cli.main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("checkpoint=", "expected a value for checkpoint, got none"),
        ("port=0", "expected port to be greater than or equal to 1, got port=0"),
        ("port=99999", "expected port to be less than or equal to 65535"),
        ("longest_side=9", "expected longest_side to be greater than or equal to 32"),
        ("max_pixels=0", "expected max_pixels to be greater than 0"),
        ("host=300.1.1.1", "expected an address of this machine and a free port, got host=300.1.1.1"),
        ("prt=3", "no configuration key 'prt'; did you mean 'port'?"),
        ("share=true", "no configuration key 'share'"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, message: str, refused: Callable[..., str]) -> None:
    assert message in refused("checkpoint=x", *words.split())


def test_a_port_that_is_taken_is_reported(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused("checkpoint=x", f"port={port}")
    assert f"got host=127.0.0.1 and port={port}: Address already in use; give another port" in line
