"""KAnoCLIP, its ablations and its rivals: zero-shot visual anomaly detection as one Lightning framework.

The names in ``__all__`` and those listed in ``docs/api.md`` are the public interface; all else may change.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["Inspector", "KAnoCLIP", "KanoclipError", "__version__", "available", "register"]

_WHERE = {
    "Inspector": "kanoclip.inspector",
    "KAnoCLIP": "kanoclip.models.kanoclip",
    "KanoclipError": "kanoclip.types",
    "available": "kanoclip.registry",
    "register": "kanoclip.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import kanoclip`` loads no torch."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'kanoclip' has no attribute {name!r}")
