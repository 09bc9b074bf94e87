"""How Sphinx builds these pages: `make docs`."""

import mnx

project = 'mnx'
author = 'mnx contributors'
copyright = author
version = release = mnx.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'mnx {version}'

myst_heading_anchors = 3

default_role = 'py:obj'  # `name` in a docstring leads to what it names, if that is documented
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the numpydoc sections say it in words
napoleon_google_docstring = False
napoleon_use_rtype = False
