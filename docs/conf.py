"""How Sphinx builds this documentation, and the parts of it that are made from the code."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["COLUMNS"] = "100"  # as wide as argparse writes its help

import shmrpc
from shmrpc.cli import call, health, listing, serve
from shmrpc.shm import protocol

project = "shmrpc"
copyright = "the authors of shmrpc"
version = release = shmrpc.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"shmrpc {release}"
html_show_sphinx = False
myst_heading_anchors = 3
napoleon_custom_sections = [("Entering it raises", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

TABLES: dict[str, dict[Any, Any]] = {
    "outgoing": protocol.OUTGOING,
    "incoming": protocol.INCOMING,
    "arguments": protocol.ARGUMENTS,
}
COMMANDS = {"serve": serve, "call": call, "list": listing, "health": health}


class StateDiagram(SphinxDirective):
    """``{state-diagram} outgoing``: a table of `shmrpc.shm.protocol` as a table of the page, and as a diagram's source."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Makes the nodes."""
        table = TABLES[self.arguments[0]]
        rows = [f"| {state.value} | {event.value} | {after.value} |" for (state, event), after in table.items()]
        text = ["| state | what happens | state after |", "|---|---|---|", *rows]
        text += ["", "As a [Mermaid](https://mermaid.js.org) diagram:"]
        made = nodes.Element()
        self.state.nested_parse(StringList(text, source=self.env.docname), self.content_offset, made)
        diagram = protocol.as_mermaid(table)
        return [*made.children, nodes.literal_block(diagram, diagram, language="text")]


class CommandHelp(SphinxDirective):
    """``{command-help} serve``: what a command says of itself."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Makes the node."""
        name = self.arguments[0]
        commands = argparse.ArgumentParser(prog="shmrpc").add_subparsers()
        COMMANDS[name].add_parser(commands)
        text = commands.choices[name].format_help()
        return [nodes.literal_block(text, text, language="text")]


def hide_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Before napoleon, which would take the text before a colon in a property's docstring for its type."""
    if what in ("property", "attribute"):
        lines[:] = [line.replace(":", "\ue000") for line in lines]


def show_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """After napoleon."""
    lines[:] = [line.replace("\ue000", ":") for line in lines]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.add_directive("state-diagram", StateDiagram)
    app.add_directive("command-help", CommandHelp)
