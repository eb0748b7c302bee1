"""Composers: which skills act, and how much. A new one is a file and a line here."""

from policies.composers.anisotropic import Anisotropic
from policies.composers.composer import Composer, CompositionShape
from policies.composers.context_gate import ContextGate
from policies.composers.fixed import Fixed
from policies.composers.preference import Preference
from policies.composers.routed import Routed
from policies.composers.self_activated import SelfActivated
from policies.composers.supported import Supported

__all__ = ["COMPOSERS", "Composer", "CompositionShape"]

COMPOSERS: dict[str, type[Composer]] = {
    "fixed": Fixed,
    "anisotropic": Anisotropic,
    "context_gate": ContextGate,
    "self_activated": SelfActivated,
    "preference": Preference,
    "routed": Routed,
    "supported": Supported,
}
