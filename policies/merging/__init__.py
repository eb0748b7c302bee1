"""Merge operators: K skills' changes of one tensor -> one change of it. A new one is a file and a line here."""

from policies.merging.average import average
from policies.merging.breadcrumbs import breadcrumbs
from policies.merging.concrete import concrete
from policies.merging.dare import dare
from policies.merging.doge import doge
from policies.merging.operator import MergeFn
from policies.merging.task_arithmetic import task_arithmetic
from policies.merging.ties import ties

MERGE: dict[str, MergeFn] = {
    "average": average,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
    "breadcrumbs": breadcrumbs,
    "doge": doge,
    "concrete": concrete,
}
LINEAR = ("average", "task_arithmetic")  # Σ c_k τ_k with c independent of τ: exact on factors
