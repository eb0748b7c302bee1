"""Routers: which few of many skills fit a context. A new one is a file and a line here."""

from policies.routers.nearest_mean import NearestMean
from policies.routers.prototypes import Prototypes
from policies.routers.ridge import Ridge
from policies.routers.router import Router, Selection

__all__ = ["DEFAULT_ROUTER", "ROUTERS", "Router", "Selection"]

DEFAULT_ROUTER = "ridge"
ROUTERS: dict[str, type[Router]] = {"nearest_mean": NearestMean, "prototypes": Prototypes, "ridge": Ridge}
