"""The kinds of step that a session runs, each beside the pattern that recognises it.

Every module of this folder is loaded here, and registers its patterns as it is loaded (`registry`).
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
