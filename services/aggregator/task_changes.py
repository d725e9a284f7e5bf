"""What changing a draft task makes of its specification. Pure."""

from __future__ import annotations

from pydantic import ValidationError

from ifed.contracts import TaskChanges
from ifed.errors import Malformed
from ifed.tasks import TaskSpec

BINDING = ("labels", "model", "template", "chat")


def changed(spec: TaskSpec, changes: TaskChanges) -> tuple[TaskSpec, bool]:
    """The changed task, and whether those who joined it may stay.

    Members told their counts by label, run one model and showed what it does under the template, so a change of one of these sends them
    to join again; it also forgets the probe that the first of them set, and another model the identity.

    Raises:
        Malformed: the changed task would not be a valid one.
    """
    wanted = changes.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    fields = spec.model_dump(mode="json") | wanted
    if "model" in wanted and wanted["model"] != spec.model:
        fields["identity"] = None
    if any(name in wanted and wanted[name] != getattr(spec, name) for name in BINDING):
        fields["probe"] = None
    try:
        after = TaskSpec.model_validate(fields)
    except ValidationError as reason:
        raise Malformed("; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in reason.errors())) from reason
    return after, all(getattr(after, name) == getattr(spec, name) for name in BINDING)
