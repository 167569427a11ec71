# SPDX-License-Identifier: GPL-2.0-or-later
"""Sphinx: ``make docs`` builds the static site in build/site from the pages here."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "Ring1"
author = "the Ring1 authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "Ring1"
html_show_copyright = False
myst_heading_anchors = 4
# Pages of the repository's root are included by pages here; their links into the tree stay text.
suppress_warnings = ["myst.xref_missing", "myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# What a page may not need: the compiled core takes no part in building text.
nitpicky = False
